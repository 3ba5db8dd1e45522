#include "explain/routing_draw.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/random.h"

namespace tessera::explain {

namespace {

constexpr std::uint64_t kPlaces = stream_of("routing.places");
constexpr std::int32_t kLayers = 16;

// Shares of one layer.
void add_layer(const std::vector<double>& loads, double share, std::uint64_t seed, std::uint64_t counter,
               std::vector<double>& histogram) {
  std::vector<double> shuffled = loads;
  for (std::size_t i = shuffled.size(); i > 1; --i)
    std::swap(shuffled[i - 1],
              shuffled[static_cast<std::size_t>(uniform_below(i, seed, kPlaces, counter + i))]);
  const auto experts = static_cast<double>(shuffled.size());
  for (const double load : shuffled) histogram.push_back((1.0 - share + share * load) / experts);
}

}  // namespace

cost::RoutingLoad draw_routing(const spec::ModelSpec& m, const RoutingDraw& draw) {
  using cost::LoadKind;
  if (!m.moe) return {};
  const std::vector<double> loads = cost::expert_loads({.kind = LoadKind::power_law, .alpha = draw.alpha},
                                                       m.moe->num_experts, m.moe->num_experts_per_tok);
  const double most = *std::ranges::max_element(loads) - 1.0;
  const double share = most > 0.0 ? std::clamp(draw.excess / most, 0.0, 1.0) : 0.0;
  cost::RoutingLoad out{.kind = LoadKind::histogram};
  out.num_layers = std::clamp(static_cast<std::int32_t>(spec::moe_layers(m).size()), 1, kLayers);
  for (std::int32_t l = 0; l < out.num_layers; ++l) {
    const std::uint64_t counter = (draw.index << 40U) + (static_cast<std::uint64_t>(l) << 24U);
    add_layer(loads, share, draw.seed, counter, out.histogram);
  }
  return out;
}

}  // namespace tessera::explain
