// One layer under one objective in seconds, from a start: what the methods find apart, traded against each
// other.
//
//   F = compute * mean over windows of (fullest device / mean device)
//     + network * copies per token into or out of the busiest node
//     + migration * slots that the device with most arrivals must receive
//
// A step swaps two slots of different devices, or gives a slot of an expert with replicas to another expert;
// simulated annealing that keeps the best met, so the result is never worse than the start by F. Copies are
// expectations over tokens whose replicas are drawn evenly and sources spread evenly over the nodes; without
// tokens every choice is a copy of its own. No step puts an expert on a device that has it, takes an expert's
// last slot, or moves more than most_moved slots.
//
// Deterministic: work is counted, not timed. Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

struct JointGoal {
  std::vector<std::vector<double>> windows;  // at least one, each [E]
  std::span<const std::int16_t> tokens;      // [T, K], -1: no choice; empty: not known
  std::int32_t top_k = 1;
  LayerMap before;                                       // where slots are now; empty: nowhere
  std::int32_t most_moved = -1;                          // -1: any number
  double compute = 0.0, network = 0.0, migration = 0.0;  // seconds
};

struct JointOptions {
  std::int64_t visits = 16'000'000;  // of tokens (and of devices, counted less); about 15 ns each
  std::int64_t most_tokens = 8192;   // of which it learns, evenly picked
  double hot = 3e-3, cold = 1e-5;    // temperatures, of F of the start
  std::uint64_t seed = 1;
};

// REQUIRES a start with at most most_moved slots moved, where that is set.
[[nodiscard]] LayerMap anneal_seconds(const LayerMap& start, const Machine& machine, const JointGoal& goal,
                                      const JointOptions& options);

// F of a map, by the tokens that the search learns from.
[[nodiscard]] double joint_seconds(const LayerMap& map, const Machine& machine, const JointGoal& goal,
                                   const JointOptions& options);

}  // namespace tessera::place
