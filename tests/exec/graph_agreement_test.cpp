// The graph says what the engine does: FLOPs of a step, bytes and calls on every axis, and bytes of saved and
// deferred slots, all equal to what the engine counts and takes, on every kind of layout, schedule,
// recomputation and routing.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <map>
#include <mutex>

#include "comm/thread_world.h"
#include "graph/graph.h"
#include "run.h"

namespace tessera::testing {
namespace {

void unchanged(spec::Recipe& /*r*/) {}

struct Case {
  std::string name;
  bool moe = false;
  bool tied = false;
  spec::ParallelSpec parallel;
  void (*change)(spec::Recipe&) = unchanged;
  std::int64_t hidden = 16;  // odd: parameters that need padding in their buckets
};

// What one rank counted in one step, by communicator label and call.
struct Counted {
  std::map<std::pair<std::string, std::string>, std::pair<std::int64_t, std::int64_t>> calls;  // calls, bytes
  Flops flops;
  Bytes activations;
};

struct Observed {
  std::vector<Counted> ranks;
  graph::RoutingCounts routing;
};

std::int64_t aligned(std::int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}
std::int64_t element_bytes(const spec::Job& job) {
  return job.train.precision == spec::Precision::f64 ? 8 : 4;
}

Counted counted(exec::RankEngine& engine) {
  const plan::RankMemory& memory = engine.planned_memory();
  Counted c{.calls = {},
            .flops = engine.step_flops(),
            .activations = memory[plan::MemoryKind::saved] + memory[plan::MemoryKind::deferred]};
  for (comm::Communicator* comm : engine.comms().all()) {
    if (comm->size() == 1) continue;
    for (std::int32_t i = 0; i < comm::kNumCalls; ++i) {
      const comm::CallCount& n = comm->counters()[i];
      const auto call = static_cast<comm::Call>(i);
      if (n.calls == 0 || call == comm::Call::recv) continue;
      c.calls[{std::string(comm->label()), std::string(comm::name(call))}] = {n.calls, n.bytes_sent.value};
    }
  }
  return c;
}

Observed observe(const spec::Job& job) {
  Observed o;
  const std::int32_t world = job.parallel.world_size();
  o.ranks.resize(world);
  if (job.model.moe) {
    o.routing.num_microbatches = static_cast<std::int32_t>(job.train.global_batch_size /
                                                           (job.train.micro_batch_size * job.parallel.dp));
    o.routing.kept.assign(job.model.num_hidden_layers, std::vector<std::vector<std::int64_t>>(world));
  }
  (void)run_job(job, {.steps = 2, .inspect = [&](exec::RankEngine& engine) {
                        const std::int32_t rank = engine.rank().value;
                        o.ranks[rank] = counted(engine);
                        for (exec::Stage& stage : engine.stages()) {
                          std::int32_t layer = stage.cut().first_layer;
                          for (const moe::MoeLayer* moe : stage.moe_layers()) {
                            std::vector<std::int64_t> kept = moe->stats().chosen;
                            for (std::size_t e = 0; e < kept.size(); ++e) kept[e] -= moe->stats().dropped[e];
                            o.routing.kept[layer++][rank] = kept;
                          }
                        }
                      }});
  return o;
}

// Slots as the rank engine counts them, where no neighbour stage lies on the same rank.
Bytes activation_bytes(const plan::Plan& plan, const graph::StepGraph& g, std::int32_t pp_rank) {
  const spec::Job& job = plan.job;
  const std::int64_t b = element_bytes(job);
  const std::int64_t stream = aligned(job.train.micro_batch_size * job.train.sequence_length /
                                      job.parallel.tp * job.model.hidden_size * b);
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
  spec::Job job = small_job({.moe = c.moe, .tied = c.tied});
  job.parallel = c.parallel;
  job.model.hidden_size = c.hidden;
  c.change(job.train);
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

spec::ParallelSpec scheduled(spec::ParallelSpec p, const char* schedule) {
  p.schedule = schedule;
  return p;
}

void zero(spec::Recipe& r) {
  r.zero_stage = 1;
}
void one_bucket(spec::Recipe& r) {
  r.bucket_bytes = 1 << 30;
}
void small_buckets(spec::Recipe& r) {
  r.bucket_bytes = 1;
}
void f32(spec::Recipe& r) {
  r.precision = spec::Precision::f32;
}
void selective(spec::Recipe& r) {
  r.recompute = spec::Recompute::selective;
}
void full(spec::Recipe& r) {
  r.recompute = spec::Recompute::full;
}
void drops_by_weight(spec::Recipe& r) {
  r.moe.capacity_factor = 1.0;
  r.moe.drop_policy = spec::DropPolicy::probs;
}
void drops_by_position(spec::Recipe& r) {
  r.moe.capacity_factor = 1.25;
  r.moe.aux_loss_unit = spec::BalanceUnit::sequence;
}
void global_unit(spec::Recipe& r) {
  r.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
}
void no_aux(spec::Recipe& r) {
  r.moe.aux_loss_coef = 0.0;
}
void everything(spec::Recipe& r) {
  zero(r);
  full(r);
  r.moe.capacity_factor = 1.0;
}
void zero_f32(spec::Recipe& r) {
  zero(r);
  f32(r);
}
INSTANTIATE_TEST_SUITE_P(
    Layouts, GraphAgreement,
    ::testing::Values(
        Case{"one_rank", false, false, {}}, Case{"one_rank_moe", true, false, {}},
        Case{"tp", false, false, {.tp = 4}}, Case{"dp", false, false, {.dp = 4}},
        Case{"dp_of_three_stage_cuts", false, false, {.dp = 2, .pp = 3, .stage_layers = {1, 2, 1}}},
        Case{"tp_dp_pp", false, false, {.tp = 2, .dp = 2, .pp = 2}},
        Case{"tied_pp", false, true, {.tp = 2, .dp = 2, .pp = 2}},
        Case{"tied_one_stage", false, true, {.tp = 2, .dp = 2}},
        Case{"tied_zero", false, true, {.tp = 2, .dp = 2, .pp = 2}, zero},
        Case{"tied_vee", false, true, scheduled({.dp = 2, .pp = 2, .vpp = 2}, "zb-v"), zero},
        Case{"zero", false, false, {.tp = 2, .dp = 4}, zero},
        Case{"one_bucket", true, false, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, one_bucket},
        Case{"small_buckets", true, false, {.tp = 2, .dp = 4, .ep = 2}, small_buckets},
        Case{"f32", true, false, {.tp = 2, .dp = 2, .ep = 2}, f32},
        Case{"selective", false, false, {.tp = 2, .pp = 2}, selective},
        Case{"full", false, false, {.tp = 2, .pp = 2}, full},
        Case{"interleaved", true, false, scheduled({.tp = 2, .pp = 2, .ep = 2, .vpp = 2}, "interleaved")},
        Case{"zb_h1", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "zb-h1")},
        Case{"zb_h1_full", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "zb-h1"), full},
        Case{"gpipe", true, false, scheduled({.dp = 2, .pp = 2, .ep = 2}, "gpipe")},
        Case{"moe_ep", true, false, {.dp = 4, .ep = 4}},
        Case{"moe_ep_over_tp", true, false, {.tp = 2, .dp = 2, .ep = 4}},
        Case{"moe_etp", true, false, {.tp = 4, .etp = 4}},
        Case{"moe_ep_etp", true, false, {.tp = 2, .dp = 4, .ep = 2, .etp = 2}},
        Case{"moe_ep_etp_selective", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, selective},
        Case{"moe_ep_etp_full", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, full},
        Case{"moe_drops", true, false, {.tp = 2, .dp = 2, .ep = 4}, drops_by_weight},
        Case{"moe_drops_by_position", true, false, {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, drops_by_position},
        Case{"moe_global_unit", true, false, {.tp = 4, .ep = 2}, global_unit},
        Case{"moe_no_aux", true, false, {.tp = 4, .ep = 2}, no_aux},
        Case{"odd_sizes", true, true, {.tp = 4, .pp = 2, .ep = 2}, unchanged, 13},
        Case{"odd_sizes_zero", false, false, {.tp = 4, .dp = 2}, zero_f32, 7},
        Case{"moe_everything", true, true, scheduled({.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2}, "zb-h1"),
             everything}),
    [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
