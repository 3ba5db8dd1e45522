// Steps of a plan on random tokens: how long they take, and the rows that experts got.
#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "comm/world.h"
#include "exec/compute.h"
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

struct StepsOptions {
  comm::World* world = nullptr;  // of the plan's size; null: every rank a thread
  Compute compute = {};
  std::function<void(Rank)> warm = nullptr;  // on each rank's thread, after the step that warms up
};
// Trains `steps` steps on random tokens after one to warm up. Of several processes each returns the routing,
// and the first one the rest.
[[nodiscard]] MeasuredSteps measure_steps(const plan::Plan& plan, std::int32_t steps,
                                          const StepsOptions& options = {});

}  // namespace tessera::exec
