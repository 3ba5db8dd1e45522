// Placement: which expert each slot of each device holds, layer by layer. Slots are numbered device by
// device and devices node by node, so slot s lies on device s / slots_per_gpu. Several slots may hold the
// same expert (replicas): its tokens are split evenly between them. Plain data, pure functions, thread safe.
//
//   const Machine machine{.nodes = 4, .gpus = 32, .slots = 288};
//   const LayerMap map = contiguous(machine, 256);
//   balancedness(gpu_loads(map, load, machine));   // mean over max, 1 is perfect
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera::place {

inline constexpr std::int32_t kMostSlots = 1 << 20;

struct Machine {
  std::int32_t nodes = 1;
  std::int32_t gpus = 1;   // of all nodes
  std::int32_t slots = 1;  // of all devices, for each layer
  [[nodiscard]] std::int32_t gpus_per_node() const { return gpus / nodes; }
  [[nodiscard]] std::int32_t slots_per_gpu() const { return slots / gpus; }
  [[nodiscard]] std::int32_t slots_per_node() const { return slots / nodes; }
  [[nodiscard]] std::int32_t gpu_of(std::int32_t slot) const { return slot / slots_per_gpu(); }
  [[nodiscard]] std::int32_t node_of(std::int32_t slot) const { return slot / slots_per_node(); }
  friend bool operator==(const Machine&, const Machine&) = default;
};

// Every fault: counts below 1, nodes that do not divide devices, devices that do not divide slots, fewer
// slots than experts, more slots than all devices can fill without a second replica of an expert on one.
void check_machine(const Machine& machine, std::int32_t num_experts, std::string_view where,
                   Problems& problems);

using LayerMap = std::vector<std::int32_t>;  // [slots] the expert of each slot

struct Placement {
  std::string source;  // who made it, for people
  Machine machine;
  std::int32_t num_experts = 0;
  std::vector<std::int32_t> layers;  // [L] index in the model, ascending
  std::vector<LayerMap> maps;        // [L]
  friend bool operator==(const Placement&, const Placement&) = default;
};

// Every fault of the value: sizes, ids out of range, experts that no slot holds.
void check_placement(const Placement& placement, std::string_view where, Problems& problems);

[[nodiscard]] std::vector<std::int32_t> replica_counts(std::span<const std::int32_t> map,
                                                       std::int32_t num_experts);
// Slots whose expert lies on the same device a second time: a slot and its memory wasted.
[[nodiscard]] std::int32_t wasted_slots(const LayerMap& map, const Machine& machine);

// load: of each expert, in any unit.
[[nodiscard]] std::vector<double> gpu_loads(const LayerMap& map, std::span<const double> load,
                                            const Machine& machine);
[[nodiscard]] double largest(std::span<const double> loads);
[[nodiscard]] double balancedness(std::span<const double> loads);  // mean / max; 1 when all are 0

// Slots that must receive an expert which their device does not hold before. The same machine.
[[nodiscard]] std::int32_t moved_slots(const LayerMap& before, const LayerMap& after, const Machine& machine);
// The same placement with devices' slots (and nothing else) in another order, so that what stays on a device
// stays in its slot.
[[nodiscard]] LayerMap keep_positions(const LayerMap& before, const LayerMap& after, const Machine& machine);
// And with whole devices of a node, and whole nodes, renamed so that few slots move: greedy, largest overlap
// first. Loads of devices and traffic between nodes stay what they are, as all nodes are alike.
[[nodiscard]] LayerMap rename_devices(const LayerMap& before, const LayerMap& after, const Machine& machine);

// Slot s holds expert s modulo E: what engines start with.
[[nodiscard]] LayerMap contiguous(const Machine& machine, std::int32_t num_experts);
// The same experts, shuffled.
[[nodiscard]] LayerMap shuffled(const Machine& machine, std::int32_t num_experts, std::uint64_t seed,
                                std::int32_t layer);

}  // namespace tessera::place
