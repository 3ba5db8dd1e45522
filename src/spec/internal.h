// What the files of the spec room share: the config.json reader and writer on Value trees, and validation
// with a place per key (the job reader knows lines, the public functions know only the file).
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <set>
#include <string>
#include <string_view>

#include "spec/job.h"
#include "spec/model.h"
#include "spec/value.h"

namespace tessera::spec {

// Adds cross-check faults. A check names every key it looks at; it is silent when one of them has a fault
// already, so that one mistake is reported once; a fault of a single key silences what comes after it. The
// first key is where the fault stands.
class Checker {
 public:
  using Where = std::function<std::string(std::string_view key)>;
  Checker(Where where, std::set<std::string, std::less<>> faulty, Problems& problems)
      : where_(std::move(where)), faulty_(std::move(faulty)), problems_(problems) {}
  // Returns `good`.
  bool check(bool good, std::initializer_list<std::string_view> keys, std::string what, std::string mend);
  [[nodiscard]] bool sound(std::initializer_list<std::string_view> keys) const;

 private:
  Where where_;
  std::set<std::string, std::less<>> faulty_;
  Problems& problems_;
};

// "{1, 2, 4}": the divisors of n >= 1 for mend lines; long lists are cut in the middle. Fast for every n.
[[nodiscard]] std::string divisor_choices(std::int64_t n);

// Reads the keys of a config.json from `reader`, which reports to `problems`; afterwards reader.faulty()
// holds the keys with a problem.
[[nodiscard]] ModelSpec read_model(MapReader& reader, Problems& problems);
[[nodiscard]] Value model_value(const ModelSpec& m);

// Keys are Hugging Face names ("num_attention_heads"). True when no fault was found.
bool validate_model(const ModelSpec& m, Checker& checker);
// Keys are job paths ("parallel.tp").
void validate_job(const Job& job, Checker& checker);

}  // namespace tessera::spec
