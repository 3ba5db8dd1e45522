// Arguments: name, values and line of everything that a launch file says, whatever its format: flags of a
// command line ("num-layers"), or keys of a configuration by their path ("training.seq_len"). Readers ask by
// name; what nobody asked for is listed in the end. Inside of this room; one a thread.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "spec/value.h"

namespace tessera::frameworks {

struct Argument {
  std::string name;
  std::vector<std::string> values;  // none: a flag alone
  std::int32_t line = 0;            // 1-based; 0: not from a file
  // Shell: what a value needs and no line sets, "SLURM_NNODES"; empty: nothing.
  std::string unresolved = {};
  bool asked = false;
  [[nodiscard]] std::string text() const;  // values, blanks between
};

class Arguments {
 public:
  // prefix: how a name is spelt in messages: "--" of flags.
  Arguments(std::string file, std::string prefix) : file_(std::move(file)), prefix_(std::move(prefix)) {}

  void add(Argument argument) { list_.push_back(std::move(argument)); }
  [[nodiscard]] const std::vector<Argument>& list() const { return list_; }

  // The last of that name, marked as asked; nullptr: none.
  const Argument* find(std::string_view name);
  [[nodiscard]] bool has(std::string_view name) { return find(name) != nullptr; }
  void accept(std::string_view name) { (void)find(name); }  // known, without influence
  // A flag alone, or true. Something else than true or false is a problem.
  bool on(std::string_view name, Problems& problems);
  // nullopt: absent, or a problem.
  std::optional<std::int64_t> integer(std::string_view name, Problems& problems);
  std::optional<double> number(std::string_view name, Problems& problems);
  std::optional<std::string> word(std::string_view name, Problems& problems);
  // One of `known`; another word is a problem with the nearest.
  std::optional<std::string> choice(std::string_view name, const std::vector<std::string>& known,
                                    Problems& problems);

  // The same name twice with different values, of those that were asked for.
  void refuse_contradictions(Problems& problems) const;
  [[nodiscard]] std::string where(std::string_view name) const;  // "run.sh:12: --num-layers"
  [[nodiscard]] std::string spelt(std::string_view name) const { return prefix_ + std::string(name); }
  [[nodiscard]] const std::string& file() const { return file_; }

 private:
  const Argument* resolved(std::string_view name, Problems& problems);

  std::string file_, prefix_;
  std::vector<Argument> list_;
};

// Leaves of a tree by path; a list is several values, one of lists joins the inner ones by commas.
void add_leaves(const spec::Value& root, std::string_view path, Arguments& out);

}  // namespace tessera::frameworks
