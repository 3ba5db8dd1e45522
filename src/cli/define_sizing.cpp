// size.
#include <CLI/CLI.hpp>
#include <cstdint>

#include "cli/definitions.h"

namespace tessera::cli {

namespace {

CLI::Range positive() {
  return CLI::Range(std::int64_t{1}, kMost);
}
CLI::Range not_negative() {
  return CLI::Range(0.0, 1e12);
}

void add_size(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.size;
  CLI::App* c =
      add(app, "size", "How many devices a training needs: fewest, cheapest, fastest, with failures",
          "tessera size llama-3-70b dgx-h100 --tokens 15T --deadline 60 --price 2.5 --gbs 1024 --seq "
          "8192\n"
          "docs/howto/size-a-cluster.md tells how to read it.",
          f.json);
  c->add_option("model", f.model, "Shipped model by name, or a config.json or its folder")->required();
  c->add_option("cluster", f.cluster, "Shipped cluster by name, or a cluster YAML")->required();
  c->add_option("--tokens", f.tokens, "To train on: 15T, 300B or 1.4e12")->required();
  c->add_option("--deadline", f.deadline_days, "Days that the training may take (default: any)")
      ->check(not_negative());
  c->add_option("--price", f.price, "Of a device and hour (default: the cluster's)")->check(not_negative());
  c->add_option("--mtbf", f.mtbf_hours, "Hours between failures of one device that stop the job; 0: none")
      ->check(not_negative())
      ->capture_default_str();
  c->add_option("--checkpoint-seconds", f.checkpoint_seconds, "That a checkpoint holds the steps up")
      ->check(not_negative())
      ->capture_default_str();
  c->add_option("--restart-seconds", f.restart_seconds, "From a failure to the next step")
      ->check(not_negative())
      ->capture_default_str();
  c->add_option("--interval-seconds", f.interval_seconds, "Between checkpoints (default: the best)")
      ->check(not_negative());
  c->add_option("--devices", f.sizes, "Sizes to try, 256,512,1024 (default: doublings, then between them)")
      ->delimiter(',')
      ->check(positive())
      ->allow_extra_args(false);
  c->add_option("--max-devices", f.most_devices, "The most to try (default: the cluster's)")
      ->check(positive());
  c->add_option("--memory", f.memory, "Share of the usable memory that a plan may reserve")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  c->add_option("--threads", f.threads, "Of the search (default: all cores)")->check(CLI::Range(1, 1024));
  c->add_flag("--only-sizes", f.only_sizes, "Leave out what a better machine is worth");
  add_question(*c, f);
  c->callback([&] { code = size(f, terminal); });
}

}  // namespace

void add_sizing(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  add_size(app, all, terminal, code);
}

}  // namespace tessera::cli
