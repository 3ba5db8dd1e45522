// What a placement costs: load of every device, nodes that a token reaches, bytes inside and across nodes
// with and without de-duplication, what the fullest node takes in and gives out, predicted seconds. Formulas
// and sources: docs/placement.md. Pure, thread safe.
//
// Copies: with de-duplication a token goes once to each node that holds one of its experts and spreads there
// (DeepEP normal mode); without, once for each choice (low-latency mode, plain all-to-all). Sources of tokens
// are spread evenly over the nodes unless they are given: then copies across nodes are expectations, with
// de-duplication D (1 - 1/N), without k (1 - 1/N) for every placement without replicas.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/input.h"
#include "place/placement.h"

namespace tessera::place {

// Which replica a token takes. even: they take turns, which is what the loads assume. cover: the one whose
// node the token reaches anyway (its source first), else the node that serves most of the rest.
enum class ReplicaChoice : std::uint8_t { even, cover };

struct TrafficOptions {
  ReplicaChoice choice = ReplicaChoice::even;
  std::span<const std::int32_t> sources;  // [T] node of each token; empty: even over the nodes
};

// Per token, of a layer. Expectations where sources are even.
struct Traffic {
  double nodes = 0.0;       // distinct nodes: D, also called connectivity
  double gpus = 0.0;        // distinct devices
  double across = 0.0;      // copies between nodes, with de-duplication
  double across_all = 0.0;  // and without
  double within = 0.0;      // copies inside of nodes, with de-duplication by device
  double within_all = 0.0;
  std::vector<double> ingress, egress;      // [nodes] copies across, with de-duplication
  [[nodiscard]] double bottleneck() const;  // of a node, the larger of the two
};
[[nodiscard]] Traffic traffic_of(const LayerMap& map, const Machine& machine,
                                 std::span<const std::int16_t> tokens, std::int32_t num_experts,
                                 std::int32_t top_k, const TrafficOptions& options);
// From loads alone: copies without de-duplication, each choice one; `nodes` and `gpus` stay 0.
[[nodiscard]] Traffic traffic_of_loads(const LayerMap& map, const Machine& machine,
                                       std::span<const double> load, std::int32_t top_k);

// What turns loads and copies into seconds.
struct Rates {
  double seconds_per_choice = 0.0;  // one token in one expert on one device
  double bytes_per_copy = 0.0;      // dispatch and combine of one token
  double node_bandwidth = 0.0;      // B/s of a node's network, one direction
  double expert_bytes = 0.0;        // weights of one expert
  double gpu_bandwidth = 0.0;       // B/s at which a device receives weights
  double tokens = 4096.0 * 8;       // of all devices, in a step
  double steps_between = 1000.0;    // steps that share the cost of one migration
};

struct Seconds3 {
  double compute = 0.0, network = 0.0, migration = 0.0;
  [[nodiscard]] double total() const { return compute + network + migration; }
};

struct LayerCost {
  std::vector<double> loads;  // [gpus] choices, of the whole load
  double balance = 0.0;       // mean / max of the whole load
  double node_balance = 0.0;
  double mean_fullest = 0.0;  // mean over windows of max / mean
  Traffic traffic;
  std::int32_t moved = 0;       // slots, against `before`
  std::int32_t most_moved = 0;  // of one device
  std::int32_t wasted = 0;
  Seconds3 seconds;
};

struct CostOptions {
  Rates rates;
  ReplicaChoice choice = ReplicaChoice::even;
  const LayerMap* before = nullptr;
};
[[nodiscard]] LayerCost cost_of(const LayerMap& map, const Machine& machine, const LayerInput& layer,
                                std::int32_t top_k, const CostOptions& options);

}  // namespace tessera::place
