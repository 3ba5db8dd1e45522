// Layouts of every kind that the engine runs, and what it counts on each: for tests that compare a
// description of the engine with the engine.
#pragma once
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "graph/graph.h"
#include "run.h"

namespace tessera::testing {

inline void unchanged(spec::Recipe& /*r*/) {}

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
  plan::RankMemory memory;  // planned, which is what the arenas hold
};

struct Observed {
  std::vector<Counted> ranks;
  graph::RoutingCounts routing;
};

inline Counted counted(exec::RankEngine& engine) {
  const plan::RankMemory& memory = engine.planned_memory();
  Counted c{.calls = {},
            .flops = engine.step_flops(),
            .activations = memory[plan::MemoryKind::saved] + memory[plan::MemoryKind::deferred],
            .memory = memory};
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

inline Observed observe(const spec::Job& job) {
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
                          for (const exec::Stage::Mixture& m : stage.mixtures()) {
                            std::vector<std::int64_t> kept = m.moe->stats().chosen;
                            for (std::size_t e = 0; e < kept.size(); ++e)
                              kept[e] -= m.moe->stats().dropped[e];
                            o.routing.kept[m.layer][rank] = kept;
                          }
                        }
                      }});
  return o;
}

inline spec::ParallelSpec scheduled(spec::ParallelSpec p, const char* schedule) {
  p.schedule = schedule;
  return p;
}

inline void zero(spec::Recipe& r) {
  r.zero_stage = 1;
}
inline void one_bucket(spec::Recipe& r) {
  r.bucket_bytes = 1 << 30;
}
inline void small_buckets(spec::Recipe& r) {
  r.bucket_bytes = 1;
}
inline void f32(spec::Recipe& r) {
  r.precision = spec::Precision::f32;
}
inline void selective(spec::Recipe& r) {
  r.recompute = spec::Recompute::selective;
}
inline void full(spec::Recipe& r) {
  r.recompute = spec::Recompute::full;
}
inline void drops_by_weight(spec::Recipe& r) {
  r.moe.capacity_factor = 1.0;
  r.moe.drop_policy = spec::DropPolicy::probs;
}
inline void drops_by_position(spec::Recipe& r) {
  r.moe.capacity_factor = 1.25;
  r.moe.aux_loss_unit = spec::BalanceUnit::sequence;
}
inline void global_unit(spec::Recipe& r) {
  r.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
}
inline void no_aux(spec::Recipe& r) {
  r.moe.aux_loss_coef = 0.0;
}
inline void everything(spec::Recipe& r) {
  zero(r);
  full(r);
  r.moe.capacity_factor = 1.0;
}
inline void zero_f32(spec::Recipe& r) {
  zero(r);
  f32(r);
}

inline spec::Job job_of(const Case& c) {
  spec::Job job = small_job({.moe = c.moe, .tied = c.tied});
  job.parallel = c.parallel;
  job.model.hidden_size = c.hidden;
  c.change(job.train);
  return job;
}

inline std::vector<Case> agreement_cases() {
  return {

      Case{"one_rank", false, false, {}},
      Case{"one_rank_moe", true, false, {}},
      Case{"tp", false, false, {.tp = 4}},
      Case{"dp", false, false, {.dp = 4}},
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
           everything}};
}

}  // namespace tessera::testing
