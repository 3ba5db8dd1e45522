// Uneven routing to price with: a share of the power law on top of even routing, popular experts at random
// places, in every layer others. Counter-based, pure, thread safe.
#pragma once
#include <cstdint>

#include "cost/routing_load.h"
#include "spec/model.h"

namespace tessera::explain {

struct RoutingDraw {
  double alpha = 1.2;  // of the power law (cost/routing_load.h)
  // Rows of the busiest expert beyond the mean, in means: 0.7 is 1.7 times the mean. So much of the law is
  // taken as gives that; all of it where the law gives less.
  double excess = 0.7;
  std::uint64_t seed = 1;
  std::uint64_t index = 0;  // of the draw
};
// Layers beyond 16 repeat those before in the mean. Balanced for a model without experts.
[[nodiscard]] cost::RoutingLoad draw_routing(const spec::ModelSpec& m, const RoutingDraw& draw);

}  // namespace tessera::explain
