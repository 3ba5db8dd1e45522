// What the files of the spec room share: the config.json reader and writer on Value trees, and validation
// with a place per key (the job reader knows lines, the public functions know only the file).
#pragma once
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <set>
#include <span>
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

// Largest number of layers and heads: what is longer is refused before anything of that length is made.
inline constexpr std::int64_t kMaxLayers = 100'000;
// Of the sizes of one head and of latent vectors.
inline constexpr std::int64_t kMaxMlaSize = 1 << 20;

// A key of Tessera's own: a correction bias in a family that has none at Hugging Face, from training with
// balancing: bias.
inline constexpr std::string_view kOwnCorrectionBias = "tessera_score_correction_bias";

// What a family calls its sizes.
struct KeyNames {
  std::string_view layers = "num_hidden_layers";
  std::string_view hidden = "hidden_size";
  std::string_view intermediate = "intermediate_size";
  std::string_view heads = "num_attention_heads";
  std::string_view kv_heads = "num_key_value_heads";
  std::string_view positions = "max_position_embeddings";
  std::string_view eps = "rms_norm_eps";
  std::string_view experts = "num_local_experts";
  std::string_view expert_width = "moe_intermediate_size";
  std::string_view shared_width = "shared_expert_intermediate_size";
};
[[nodiscard]] const KeyNames& key_names(Family family);
// The switches and default values of a family, as Hugging Face has them for absent keys.
[[nodiscard]] ModelSpec family_defaults(Family family);
[[nodiscard]] bool has_experts(Family family);
[[nodiscard]] bool has_mla(Family family);

// Reads the keys of a config.json from `map` and validates what they say. `also_known` are keys of the
// caller.
[[nodiscard]] ModelSpec read_model(const Value& map, const Place& place,
                                   std::span<const std::string> also_known, Problems& problems);
[[nodiscard]] Value model_value(const ModelSpec& m);

// Keys are Hugging Face names ("num_attention_heads"). True when no fault was found.
bool validate_model(const ModelSpec& m, Checker& checker);
// Keys are job paths ("parallel.tp").
void validate_job(const Job& job, Checker& checker, JobUse use);
// The engine's limits alone.
void check_engine(const Job& job, Checker& checker, EngineOn on);
void check_positions(const Job& job, Checker& checker);  // the sequence is within the model's positions
// tp against the sizes it cuts; for the engine, which neither repeats nor pads, against more of them.
void check_tp(const Job& job, Checker& checker, JobUse use);
// Faults stand at the key `at`.
void check_model_trains(const ModelSpec& m, Checker& checker, std::string_view at);

}  // namespace tessera::spec
