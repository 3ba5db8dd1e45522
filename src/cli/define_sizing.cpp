// size and compare.
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

void add_compare(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.compare;
  CLI::App* c = add(app, "compare",
                    "Two models, two clusters, two plans, or a mixture of experts and its dense partner",
                    "tessera compare mixtral-8x7b dgx-h100 --equal active-compute --devices 64\n"
                    "  tessera compare llama-3-70b qwen2-72b dgx-h100\n"
                    "  tessera compare deepseek-v3 h800 gb200-nvl72 --devices 2048\n"
                    "  tessera compare before.json after.json\n"
                    "docs/howto/compare.md tells how to read it.",
                    f.json);
  c->add_option("things", f.things, "Two models and a cluster, a model and two clusters, two plans")
      ->required()
      ->expected(2, 3);
  c->add_option("--equal", f.equal,
                "Set the one model, a mixture of experts, against a dense one: active-compute, total-memory")
      ->check(CLI::IsMember({"active-compute", "total-memory"}));
  c->add_option("--devices", f.devices, "Devices of each (default: all of the cluster)")->check(positive());
  c->add_option("--tokens", f.tokens, "To train on, for days and price")->capture_default_str();
  c->add_option("--price", f.price, "Of a device and hour (default: the cluster's)")->check(not_negative());
  c->add_option("--gain", f.gain,
                "Times the tokens of the mixture that the dense model needs for the same loss (default: 3, "
                "published, at equal active compute; else none)")
      ->check(not_negative());
  c->add_option("--uneven", f.routing_excess,
                "Uneven routing: rows of the busiest expert beyond the mean, 0.7 is 1.7 times the mean")
      ->check(not_negative())
      ->capture_default_str();
  c->add_option("--power", f.alpha, "Exponent of the power law of routing that nothing balances")
      ->check(CLI::Range(0.01, 10.0))
      ->capture_default_str();
  c->add_option("--serve-batch", f.serve_batch, "Sequences that are served at once")
      ->check(positive())
      ->capture_default_str();
  c->add_option("--serve-context", f.serve_context, "Tokens of each")
      ->check(positive())
      ->capture_default_str();
  c->add_option("--memory", f.memory, "Share of the usable memory that a plan may reserve")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  c->add_option("--threads", f.threads, "Of the search (default: all cores)")->check(CLI::Range(1, 1024));
  add_question(*c, f);
  c->callback([&] { code = compare(f, terminal); });
}

}  // namespace

void add_sizing(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  add_size(app, all, terminal, code);
  add_compare(app, all, terminal, code);
}

}  // namespace tessera::cli
