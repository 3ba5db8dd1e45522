// The planner's price of a job of the engine stands on what the engine does: FLOPs, bytes on every axis, and
// bytes of weights, gradients, optimizer and activations of every rank equal what the engine counts and
// takes, on every kind of layout.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "agreement.h"
#include "cost/engine_step.h"

namespace tessera::testing {
namespace {

using plan::MemoryKind;

class PlanAgreement : public ::testing::TestWithParam<Case> {};

std::int64_t sent_on(const Counted& counted, graph::Axis axis) {
  std::int64_t sum = 0;
  for (const auto& [key, n] : counted.calls) {
    if (key.first == graph::name(axis)) sum += n.second;
  }
  return sum;
}

cost::EngineStep priced(const plan::Plan& plan, const graph::RoutingCounts& routing) {
  spec::ClusterSpec cluster{.name = "box", .device = "cpu-generic", .num_devices = 64};
  cluster.devices_per_node = 64;
  cluster.tiers = {
      {.name = "memory", .size = 64, .bandwidth = gigabytes_per_second(5), .latency = Seconds(5e-6)}};
  return cost::engine_step({plan.job, plan.layout, plan.schedule}, cluster, cost::calibration("cpu-generic"),
                           routing);
}

TEST_P(PlanAgreement, PricesWhatTheEngineDoesAndHolds) {
  const spec::Job job = job_of(GetParam());
  const Observed seen = observe(job);
  const plan::Plan plan = plan::make_plan(job);
  const cost::EngineStep step = priced(plan, seen.routing);
  ASSERT_EQ(step.ranks.size(), seen.ranks.size());
  for (std::size_t r = 0; r < step.ranks.size(); ++r) {
    SCOPED_TRACE(fmt::format("rank {}", r));
    const cost::EngineRank& planned = step.ranks[r];
    const Counted& engine = seen.ranks[r];
    EXPECT_EQ(planned.flops.value, engine.flops.value);
    for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
      const auto axis = static_cast<graph::Axis>(a);
      EXPECT_EQ(planned.bytes_sent[a].value, sent_on(engine, axis)) << graph::name(axis);
    }
    EXPECT_EQ(planned.memory.weights, engine.memory[MemoryKind::weights]);
    EXPECT_EQ(planned.memory.gradients, engine.memory[MemoryKind::gradients]);
    EXPECT_EQ(planned.memory.optimizer, engine.memory[MemoryKind::optimizer]);
    EXPECT_EQ(planned.memory.saved, engine.memory[MemoryKind::saved]);
    EXPECT_EQ(planned.memory.deferred, engine.memory[MemoryKind::deferred]);
  }
}

// What the seconds are made of: segments carry all FLOPs and bytes of the rank that they are of.
TEST_P(PlanAgreement, SegmentsCarryTheWholeStep) {
  const plan::Plan plan = plan::make_plan(job_of(GetParam()));
  const cost::EngineStep step = priced(plan, {});
  double flops = 0.0;
  for (const cost::StageWork& stage : step.work.stages) {
    for (const auto* pass : {&stage.forward, &stage.backward_input, &stage.backward_weight}) {
      for (const cost::Segment& s : *pass) flops += s.flops * static_cast<double>(step.work.num_microbatches);
    }
  }
  // Of the slowest rank of each pipeline rank; balanced routing makes all of them nearly alike.
  const double mean = step.cost.hardware_flops * plan.layout.dense.size(layout::Axis::pp);
  EXPECT_NEAR(flops / mean, 1.0, 0.05);
  double parts = 0.0;
  for (const double p : step.cost.parts) {
    EXPECT_GE(p, -1e-12);
    parts += p;
  }
  EXPECT_GT(parts, 0.0);
  EXPECT_NEAR(parts, step.cost.seconds(), 1e-12 * parts);
}

INSTANTIATE_TEST_SUITE_P(Layouts, PlanAgreement, ::testing::ValuesIn(agreement_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
