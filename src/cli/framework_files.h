// Launch files of training frameworks: `tessera plan --from FILE`, `--emit FRAMEWORK`, and `tessera emit`.
// Inside of this room.
#pragma once
#include <optional>
#include <string>
#include <string_view>

#include "cli/plan_command.h"
#include "frameworks/files.h"
#include "report/terminal.h"
#include "search/search.h"

namespace CLI {
class App;
}

namespace tessera::cli {

// What --from and --emit make of the question, and of the answer.
class FrameworkFiles {
 public:
  // Reads the file of --from. Error{config} with all its problems, and for flags that say otherwise than it.
  explicit FrameworkFiles(const PlanFlags& asked);

  // The flags with what the file says in them; only layouts that the framework runs.
  [[nodiscard]] const PlanFlags& flags() const { return flags_; }
  // The user's own; nullopt without --from.
  [[nodiscard]] std::optional<cost::Candidate> candidate() const;

  // Whether the launch file is all that is printed.
  [[nodiscard]] bool emits_alone() const { return emit_ && flags_.emit_to.empty(); }
  [[nodiscard]] std::string emitted(const cost::Setup& setup, const search::Ranked& best) const;
  // Behind the page: the verdict on the user's file; --emit-to writes its file, this tells of it.
  [[nodiscard]] std::string page(const cost::Setup& setup, const search::Ranked& best,
                                 const report::Style& style) const;
  // "": not asked for.
  [[nodiscard]] std::string from_json(const cost::Setup& setup) const;
  [[nodiscard]] std::string emitted_json(const cost::Setup& setup, const search::Ranked& best) const;

 private:
  void read_file(const PlanFlags& asked);
  void limit_space(frameworks::Framework f);
  [[nodiscard]] std::string verdict(const cost::Setup& setup, const report::Style& style) const;
  [[nodiscard]] frameworks::Written written(const cost::Setup& setup, const search::Ranked& best) const;

  PlanFlags flags_;
  std::optional<frameworks::Reading> reading_;
  std::optional<frameworks::Framework> emit_;
  std::vector<std::string> limits_;  // pins that keep the search to what the framework runs
};

struct EmitFlags {
  std::string plan;       // plan.json
  std::string framework;  // megatron, ...
  std::string output;     // file; empty: standard output
  bool json = false;
};
int emit(const EmitFlags& flags);

void add_framework_flags(CLI::App& command, PlanFlags& flags);

}  // namespace tessera::cli
