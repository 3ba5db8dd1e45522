// `tessera place`: experts onto GPUs from routing statistics; what it brings, in numbers, and the files that
// engines read.
#pragma once
#include <cstdint>
#include <string>

#include "cli/commands.h"

namespace tessera::cli {

struct PlaceFlags {
  std::string stats;
  std::string content = "auto", order = "auto";  // of tables, as `tessera routing` has them
  std::int32_t experts = 0, first_layer = 0;
  std::int32_t nodes = 0, gpus_per_node = 0, slots_per_gpu = 0;  // 0: 1 node, the cluster's, the fewest
  std::string cluster = "dgx-h100", model = "deepseek-v3";
  std::string method = "seconds";
  std::int32_t groups = 0;
  double cap = 0.03;
  bool robust = false, one_map = false, cover = false;
  std::int32_t windows = 0;  // > 1: cut the tokens into so many
  std::int32_t skip_tokens = 0;
  std::string hold_out;  // a window's name or number, or a share of the tokens
  std::string current;   // placement file
  double most_moved = 1.0;
  double tokens_per_gpu = 4096.0, steps_between = 1000.0;
  std::string output, sglang, vllm, vllm_ranks, vllm_ascend, tensorrt_llm, svg;
  std::int32_t model_layers = 0;
  double effort = 1.0;
  std::uint64_t seed = 1;
  std::int32_t threads = 0;  // 0: all cores
  bool pareto = false, by_layer = false;
  bool json = false;
};
int place(const PlaceFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
