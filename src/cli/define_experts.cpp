// routing and place.
#include <CLI/CLI.hpp>
#include <cstdint>

#include "cli/definitions.h"

namespace tessera::cli {

namespace {

// How to read a table without names.
template <class Flags>
void add_table(CLI::App& c, Flags& f) {
  c.add_option("--content", f.content, "Of a table without names: counts or choices")
      ->check(CLI::IsMember({"auto", "counts", "choices"}))
      ->capture_default_str();
  c.add_option("--order", f.order, "Of a table of choices: layers first or tokens first")
      ->check(CLI::IsMember({"auto", "layers", "tokens"}))
      ->capture_default_str();
  c.add_option("--experts", f.experts, "Of a layer, where the file does not say it (0: the largest id + 1)")
      ->check(CLI::Range(0, 16384))
      ->capture_default_str();
  c.add_option("--first-layer", f.first_layer, "Model index of a table's first layer")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

void add_routing(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.routing;
  CLI::App* c =
      add(app, "routing", "Show which experts tokens chose, of a routing file of any program; convert it",
          "tessera routing runs/a/routing.safetensors\n"
          "  tessera routing topk.npy --experts 64 --first-layer 1 --convert routing.safetensors\n"
          "The files that can be read: docs/formats/routing.md.",
          f.json);
  c->add_option("file", f.file, "Routing file, or TensorRT-LLM's folder of expert statistics")->required();
  c->add_option("--convert", f.convert, "Write it as a Tessera routing file");
  add_table(*c, f);
  c->add_option("--pairs", f.pairs, "Most co-active pairs shown of a layer")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  c->callback([&] { code = routing(f, terminal); });
}

void add_place_files(CLI::App& c, PlaceFlags& f) {
  c.add_option("--output", f.output, "Write the placement (docs/formats/placement.md)");
  c.add_option("--sglang", f.sglang, "Write it for SGLang --init-expert-location");
  c.add_option("--model-layers", f.model_layers,
               "Layers of the whole model, for --sglang (0: up to the last)")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  c.add_option("--vllm", f.vllm, "Write it for vLLM's initial_expert_map_path");
  c.add_option("--vllm-ranks", f.vllm_ranks, "Write it for vLLM's --expert-placement-file; needs --one-map");
  c.add_option("--vllm-ascend", f.vllm_ascend, "Write it for vllm-ascend's expert_map_path");
  c.add_option("--tensorrt-llm", f.tensorrt_llm, "Write it for TensorRT-LLM's load balancer");
  c.add_option("--svg", f.svg, "Draw the load of every GPU before and after");
}

void add_place_search(CLI::App& c, PlaceFlags& f) {
  c.add_option("--method", f.method,
               "seconds, balance, relaxed, traffic, published, published-global, contiguous, random")
      ->capture_default_str();
  c.add_option("--groups", f.groups, "Groups of experts, for relaxed and published (0: as many as nodes)")
      ->capture_default_str();
  c.add_option("--cap", f.cap, "Load of a node above the mean, for traffic")->capture_default_str();
  c.add_flag("--robust", f.robust, "Place for all load windows at once, not for their sum");
  c.add_option("--windows", f.windows, "Cut the tokens into so many windows where the file has none")
      ->check(CLI::Range(0, 1000));
  c.add_option("--hold-out", f.hold_out,
               "Judge on it, do not see it: a window, or a share of the tokens (0.5)");
  c.add_option("--skip-tokens", f.skip_tokens, "Leave out so many first tokens of every sequence")
      ->check(CLI::Range(0, 1 << 20));
  c.add_flag("--one-map", f.one_map, "The same map in all layers");
  c.add_flag("--cover", f.cover, "Tokens prefer replicas on nodes that they reach anyway");
  c.add_option("--current", f.current, "Placement that is deployed now: moves count");
  c.add_option("--most-moved", f.most_moved, "Share of a layer's slots that may change, of --current")
      ->capture_default_str();
  c.add_option("--effort", f.effort, "Steps of the searches, times this")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  c.add_option("--seed", f.seed, "Of the searches")->capture_default_str();
  c.add_option("--threads", f.threads, "Of the searches (0: all cores); the result is the same")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void add_place(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.place;
  CLI::App* c =
      add(app, "place", "Place experts on GPUs from routing statistics: even load, little traffic, few moves",
          "tessera place routing.safetensors --nodes 4 --slots-per-gpu 9 --output placement.json\n"
          "  tessera place topk.npy --experts 64 --nodes 4 --method traffic --hold-out 0.5\n"
          "How to read it: docs/howto/place-experts.md.",
          f.json);
  c->add_option("stats", f.stats, "Routing file of any program (docs/formats/routing.md)")->required();
  c->add_option("--nodes", f.nodes, "Nodes of the expert-parallel group")->check(CLI::Range(1, 1 << 16));
  c->add_option("--gpus-per-node", f.gpus_per_node, "(default: the cluster's)")
      ->check(CLI::Range(1, 1 << 10));
  c->add_option("--slots-per-gpu", f.slots_per_gpu,
                "Experts that a GPU holds of a layer (default: the fewest)")
      ->check(CLI::Range(1, 1 << 14));
  c->add_option("--cluster", f.cluster, "Preset or YAML: bandwidths and GPU, for seconds")
      ->capture_default_str();
  c->add_option("--model", f.model, "Preset or config.json: sizes of experts, for seconds")
      ->capture_default_str();
  c->add_option("--tokens-per-gpu", f.tokens_per_gpu, "Of a step, for seconds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--steps-between", f.steps_between, "Steps that share the cost of moving experts once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_place_search(*c, f);
  add_place_files(*c, f);
  c->add_flag("--pareto", f.pareto, "Print the front of computing, network and moved slots");
  c->add_flag("--by-layer", f.by_layer, "Print a line a layer");
  add_table(*c, f);
  c->callback([&] { code = place(f, terminal); });
}

}  // namespace

void add_experts(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  add_routing(app, all, terminal, code);
  add_place(app, all, terminal, code);
}

}  // namespace tessera::cli
