// Steps of a plan on random tokens: how long they take, and the rows that experts got.
#pragma once
#include <cstdint>
#include <vector>

#include "comm/world.h"
#include "exec/metrics.h"
#include "graph/graph.h"
#include "plan/plan.h"

namespace tessera::exec {

class RankEngine;

struct MeasuredSteps {
  std::vector<double> seconds;    // wall, of each step
  graph::RoutingCounts routing;   // of mixtures: of the last step
  std::vector<StepMetrics> each;  // of each step
};
// Of the right shape and without a row; of dense models empty.
[[nodiscard]] graph::RoutingCounts no_routing(const plan::Plan& plan);
// Puts the rows of the rank's last step in their place. Of different ranks at the same time: safe.
void note_routing(RankEngine& engine, graph::RoutingCounts& routing);

// Trains `steps` steps on random tokens after one to warm up: every rank a thread, or in `world`, whose size
// is the plan's. Of several processes each returns the routing, and the first one the rest.
[[nodiscard]] MeasuredSteps measure_steps(const plan::Plan& plan, std::int32_t steps,
                                          comm::World* world = nullptr);

}  // namespace tessera::exec
