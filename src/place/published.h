// DeepSeek's published balancer (github.com/deepseek-ai/EPLB), reproduced value for value: what SGLang, vLLM
// and TensorRT-LLM run, and what every other method here is compared with. Three greedy steps:
//
//   1. groups of experts go to nodes, heaviest group first to the lightest node that has room;
//   2. in each node every spare slot goes to the expert with the largest load per replica;
//   3. replicas go to devices, heaviest first to the lightest device that has room.
//
// With a number of groups that the nodes do not divide it takes 1 group and 1 node: the global policy. Loads
// are float32 and every division and sum is rounded as there. Where the original leaves it to an unstable
// sort, equal loads keep their order; the first of equal packs and experts wins. It may place two replicas
// of one expert on one device.
//
// O(L R log R) for L layers and R slots. Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

struct PublishedMap {
  LayerMap expert_of_slot;            // phy2log [R]
  std::vector<std::int32_t> replica;  // [R] which replica of its expert a slot holds
  std::vector<std::int32_t> counts;   // logcnt [E]
};

// One layer. REQUIRES a checked machine, num_groups that divides the experts, finite loads of 0 or more.
[[nodiscard]] PublishedMap published(std::span<const double> load, const Machine& machine,
                                     std::int32_t num_groups);
// Only the map. num_groups 1 is the global policy on any machine.
[[nodiscard]] LayerMap published_map(std::span<const double> load, const Machine& machine,
                                     std::int32_t num_groups);

}  // namespace tessera::place
