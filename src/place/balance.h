// Even load for one load vector with slots anywhere: replicas by greedy apportionment, packed largest first,
// then swaps with the fullest device down to a local optimum, then trials that give a slot to another expert
// and descend again, kept when the fullest device becomes lighter. Two replicas of an expert never share a
// device (where some placement without that exists at all: no expert has more replicas than devices).
//
// Deterministic: work is bounded by counted visits, never by the clock. Pure, thread safe.
//
//   const LayerMap map = balance(load, {.nodes = 4, .gpus = 32, .slots = 288}, {});
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

struct BalanceOptions {
  // Visits of slots that the trials after the first descent may take, of one layer; a visit is about 2 ns.
  std::int64_t visits = 40'000;
  double enough = 3e-4;  // trials end this far (relative) above the bound
  std::uint64_t seed = 1;
};

// REQUIRES a checked machine and finite loads of 0 or more.
[[nodiscard]] LayerMap balance(std::span<const double> load, const Machine& machine,
                               const BalanceOptions& options);

// Replicas of each expert that make the largest load of one replica as small as it can be (greedy is optimal:
// each further slot goes to the largest share), none more than `most` times. Sums to slots.
[[nodiscard]] std::vector<std::int32_t> apportion(std::span<const double> load, std::int32_t slots,
                                                  std::int32_t most);

// No placement's fullest device holds less: the mean of the devices, and the largest share of a replica when
// slots are dealt as well as possible. In the unit of the loads.
[[nodiscard]] double load_bound(std::span<const double> load, const Machine& machine);

}  // namespace tessera::place
