// The searches of one layer as `tessera place` combines them, and the choice among them by predicted
// seconds. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "place/evaluate.h"
#include "place/input.h"
#include "place/methods.h"
#include "place/placement.h"
#include "place/relaxed.h"

namespace tessera::place {

struct Candidate {
  std::string name;  // "traffic, cap 3%"
  LayerMap map;
  LayerCost cost;
  bool allowed = true;  // no more slots move than the wish allows
};

// Even load. With a current map and a share of moves below 1 from there, within that share.
[[nodiscard]] LayerMap balanced_layer(const LayerInput& layer, const Wish& wish, const LayerMap* current);
// Groups keep their nodes. With a current map and a share below 1: experts keep their current node.
[[nodiscard]] RelaxedMap relaxed_layer(const LayerInput& layer, const Wish& wish, const LayerMap* current);

// Whether every device can be filled with experts of its own node.
[[nodiscard]] bool traffic_fits(const Machine& machine, std::int32_t num_experts);
// Fewest nodes per token under the cap, then even load inside of every node. Devices and nodes are named so
// that few slots move against `current`.
[[nodiscard]] LayerMap traffic_layer(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                     const LayerMap* current);

// What the methods give for this layer: caps on a node's load, spare slots inside or across nodes, shares of
// moves; and the best of these by seconds annealed on seconds (joint.h). Each with its cost; never empty.
[[nodiscard]] std::vector<Candidate> candidates(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                                const LayerMap* current);
// The allowed one with the least predicted seconds, the first of equals.
[[nodiscard]] const Candidate& best_of(const std::vector<Candidate>& all);

// Sums of candidates of the same name over the layers: also with the network or the moves weighed otherwise.
struct FrontPoint {
  std::string name;
  Seconds3 seconds;
  double balance = 0.0;  // mean over layers
  double nodes = 0.0;    // mean distinct nodes per token; 0: not known
  double moved = 0.0;    // share of all slots
};
// Those that no other beats in compute, network and moved slots at once, by compute.
[[nodiscard]] std::vector<FrontPoint> pareto_front(const PlaceInput& input, const Wish& wish);

}  // namespace tessera::place
