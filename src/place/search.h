// One layer by simulated annealing under an objective with several terms, for what greedy balancing cannot
// say: several load windows at once, experts that must keep a replica on their home node, slots that should
// stay as they are. Loads are shares of the mean device of their window:
//
//   F = mean over windows of (fullest device) + off_home * (share of choices served off the home node)
//       + moved * (share of slots that must receive an expert)
//
// A step swaps two slots of different devices, or gives a slot of an expert with replicas to another expert;
// half of the steps take the first slot from the fullest device of some window. No device holds an expert
// twice, every expert keeps a replica (on its home node, where it has one), and no more than most_moved
// slots move. The best map met is returned, so it is never worse than the start.
//
// Deterministic: steps are counted, random numbers come from the seed. Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

struct SearchGoal {
  std::vector<std::vector<double>> windows;  // at least one, each [E]; of any unit
  std::vector<std::int32_t> home;            // [E] node that keeps a replica; empty: any
  LayerMap before;                           // where slots are now; empty: nowhere
  double off_home = 0.0;
  double moved = 0.0;
  std::int32_t most_moved = -1;  // -1: any number
};

struct SearchOptions {
  std::int64_t steps = 400'000;
  double hot = 0.02, cold = 2e-5;  // temperatures, in the unit of F
  std::uint64_t seed = 1;
};

// REQUIRES a start that fulfils the conditions above: no expert twice on a device, homes kept, at most
// most_moved slots moved. Then the result does too.
[[nodiscard]] LayerMap anneal(const LayerMap& start, const Machine& machine, const SearchGoal& goal,
                              const SearchOptions& options);

// The terms of F for a map.
struct GoalTerms {
  double fullest = 0.0;   // mean over windows of max / mean
  double off_home = 0.0;  // share of choices
  double moved = 0.0;     // share of slots
};
[[nodiscard]] GoalTerms terms_of(const LayerMap& map, const Machine& machine, const SearchGoal& goal);
[[nodiscard]] double value_of(const GoalTerms& terms, const SearchGoal& goal);

// The swaps that undo wasted slots, where there are any: device by device, in order.
[[nodiscard]] LayerMap without_waste(LayerMap map, const Machine& machine, std::int32_t num_experts);

}  // namespace tessera::place
