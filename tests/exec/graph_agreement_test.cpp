// The graph says what the engine does: FLOPs of a step, bytes and calls on every axis, and bytes of saved and
// deferred slots, all equal to what the engine counts and takes, on every kind of layout, schedule,
// recomputation and routing.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>

#include "agreement.h"

namespace tessera::testing {
namespace {

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}
std::int64_t element_bytes(const spec::Job& job) {
  return job.train.precision == spec::Precision::f64 ? 8 : 4;
}

// Slots as the rank engine counts them, where no neighbour stage lies on the same rank.
Bytes activation_bytes(const plan::Plan& plan, const graph::StepGraph& g, std::int32_t pp_rank) {
  const spec::Job& job = plan.job;
  const std::int64_t b = element_bytes(job);
  const std::int64_t stream = aligned(job.train.micro_batch_size * job.train.sequence_length /
                                      job.parallel.cp / job.parallel.tp * job.model.hidden_size * b);
  std::int64_t sum = 0;
  for (const graph::StageGraph& s : g.stages) {
    const schedule::StageSlots& slots = plan.proof.stages.at(s.stage.value);
    std::int64_t deferred = 0;
    std::int64_t most = 0;
    bool split = false;
    for (const schedule::Action& a : plan.schedule.ranks.at(pp_rank)) {
      if (a.stage != s.stage) continue;
      if (a.kind == schedule::ActionKind::backward_input) most = std::max(most, ++deferred), split = true;
      if (a.kind == schedule::ActionKind::backward) most = std::max(most, deferred + 1);
      if (a.kind == schedule::ActionKind::backward_weight) --deferred;
    }
    const auto mode = split ? graph::Backward::split : graph::Backward::fused;
    sum += slots.peak_live * s.saved_bytes().value + (slots.peak_unreceived_backward + 1) * stream +
           most * s.deferred_bytes(mode).value + (split ? s.discarded_bytes().value : 0);
  }
  return Bytes(sum);
}

class GraphAgreement : public ::testing::TestWithParam<Case> {};

TEST_P(GraphAgreement, EqualsWhatTheEngineCounts) {
  const Case& c = GetParam();
  const spec::Job job = job_of(c);
  const Observed seen = observe(job);
  const plan::Plan plan = plan::make_plan(job);
  for (std::int32_t r = 0; r < plan.layout.world_size(); ++r) {
    SCOPED_TRACE(fmt::format("rank {}", r));
    const graph::StepGraph g = graph::build(job, plan.layout, Rank(r), seen.routing);
    EXPECT_EQ(g.flops().value, seen.ranks[r].flops.value);
    std::map<std::pair<std::string, std::string>, std::pair<std::int64_t, std::int64_t>> planned;
    for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
      for (std::int32_t k = 0; k <= static_cast<std::int32_t>(graph::Call::send); ++k) {
        const auto axis = static_cast<graph::Axis>(a);
        const auto call = static_cast<graph::Call>(k);
        if (g.calls(axis, call) == 0) continue;
        planned[{std::string(graph::name(axis)), std::string(graph::name(call))}] = {
            g.calls(axis, call), g.bytes_sent(axis, call).value};
      }
    }
    EXPECT_EQ(planned, seen.ranks[r].calls);
    if (job.parallel.vpp == 1) {
      const std::int32_t pp_rank = plan.layout.dense.coordinate(Rank(r), layout::Axis::pp);
      EXPECT_EQ(activation_bytes(plan, g, pp_rank), seen.ranks[r].activations);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Layouts, GraphAgreement, ::testing::ValuesIn(agreement_cases()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
