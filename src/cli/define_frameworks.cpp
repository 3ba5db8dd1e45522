// The flags of `tessera plan` for launch files, and `tessera emit`.
#include <CLI/CLI.hpp>

#include "base/text.h"
#include "cli/definitions.h"

namespace tessera::cli {

void add_framework_flags(CLI::App& command, PlanFlags& f) {
  command.add_option("--from", f.from,
                     "Judge this launch file: a Megatron-LM script, a torchtitan TOML or a DeepSpeed JSON");
  command
      .add_option("--emit", f.emit,
                  "The best one as arguments of " + join(frameworks::framework_names(), ", ") +
                      ": instead of the page, or into --emit-to")
      ->type_name("FRAMEWORK");
  command.add_option("--emit-to", f.emit_to, "Write what --emit makes into this file, and print the page");
}

void add_emit(CLI::App& app, AllFlags& all, int& code) {
  auto& f = all.emit;
  CLI::App* c = add(app, "emit", "Write a saved plan as arguments of Megatron-LM, torchtitan, DeepSpeed, ...",
                    "tessera emit plan.json megatron --output launch.sh", f.json);
  c->add_option("plan", f.plan, "plan.json (of plan or train)")->required();
  c->add_option("framework", f.framework, join(frameworks::framework_names(), ", "))->required();
  c->add_option("--output", f.output, "File to write (default: standard output)");
  c->callback([&] { code = emit(f); });
}

}  // namespace tessera::cli
