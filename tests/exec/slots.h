// Placements for tests.
#pragma once
#include <cstdint>
#include <numeric>
#include <utility>
#include <vector>

#include "base/random.h"
#include "spec/model.h"

namespace tessera::testing {

// ParallelSpec::expert_slots: another order in every MoE layer.
inline std::vector<std::int32_t> shuffled_slots(const spec::ModelSpec& model, std::uint64_t seed) {
  std::vector<std::int32_t> slots;
  for (const std::int32_t layer : spec::moe_layers(model)) {
    std::vector<std::int32_t> order(static_cast<std::size_t>(model.moe->num_experts));
    std::iota(order.begin(), order.end(), 0);
    for (std::uint64_t i = order.size(); i > 1; --i) {
      const std::uint64_t j = uniform_below(i, seed, static_cast<std::uint64_t>(layer), i);
      std::swap(order[i - 1], order[j]);
    }
    slots.insert(slots.end(), order.begin(), order.end());
  }
  return slots;
}

}  // namespace tessera::testing
