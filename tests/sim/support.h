// What the tests of the simulator share: schedules, work by hand, random steps.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "schedule/check.h"
#include "schedule/schedule.h"
#include "schedule/support.h"
#include "sim/simulate.h"

namespace tessera::sim {

using schedule::Dice;
using schedule::Kind;
using schedule::make;
using schedule::Schedule;

// One micro-batch of one rank takes f, i and w in all, whatever the number of chunks.
inline cost::StepWork uniform_work(const Schedule& s, double f, double i, double w) {
  cost::StepWork work;
  work.num_microbatches = s.num_microbatches;
  work.stages.resize(s.num_stages());
  for (cost::StageWork& stage : work.stages) {
    stage.forward_seconds = f / s.vpp;
    stage.backward_input_seconds = i / s.vpp;
    stage.backward_weight_seconds = w / s.vpp;
  }
  return work;
}

inline void add(std::vector<cost::Segment>& segments, double& sum, const std::string& name, cost::Part part,
                double seconds) {
  segments.push_back({.name = name, .part = part, .seconds = seconds, .exposed = seconds, .flops = 1e3});
  sum += seconds;
}
// `hidden` seconds of it run under compute.
inline void add_communication(std::vector<cost::Segment>& segments, double& sum, const std::string& name,
                              graph::Axis axis, cost::Part part, double exposed, double hidden) {
  segments.push_back({.name = name,
                      .part = part,
                      .axis = axis,
                      .communication = true,
                      .seconds = exposed + hidden,
                      .exposed = exposed,
                      .bytes_sent = 1e6});
  sum += exposed;
}

// A step with some of everything: uneven stages, segments, messages, reductions, gathers.
inline cost::StepWork random_work(const Schedule& s, Dice& dice) {
  const auto some = [&](std::int32_t n) { return dice.below(n) * 1e-3; };
  cost::StepWork work;
  work.num_microbatches = s.num_microbatches;
  for (std::int32_t i = 0; i < s.num_stages(); ++i) {
    cost::StageWork w;
    for (std::int32_t n = dice.below(3); n >= 0; --n) {
      add(w.forward, w.forward_seconds, "gemm", cost::Part::gemm, some(9) / 7);
      add_communication(w.forward, w.forward_seconds, "gather", graph::Axis::tp, cost::Part::tp, some(3),
                        some(3));
      add(w.backward_input, w.backward_input_seconds, "gemm", cost::Part::gemm, some(9));
      add_communication(w.backward_input, w.backward_input_seconds, "exchange", graph::Axis::ep,
                        cost::Part::ep, some(2), some(2));
      add(w.backward_weight, w.backward_weight_seconds, "gemm", cost::Part::gemm, some(9));
    }
    w.p2p_seconds = some(3);
    w.p2p_bytes = dice.below(1000);
    w.saved_bytes = dice.below(1000);
    w.transient_bytes = dice.below(100);
    work.stages.push_back(w);
  }
  const auto per_rank = [&](std::int32_t n) {
    std::vector<double> v;
    for (std::int32_t r = 0; r < s.pp; ++r) v.push_back(some(n));
    return v;
  };
  work.static_bytes = per_rank(100);
  work.grad_seconds = per_rank(20);
  work.grad_bytes = per_rank(100);
  work.param_seconds = per_rank(10);
  work.param_bytes = per_rank(100);
  work.optimizer_seconds = per_rank(5);
  work.p2p_overlapped = dice.below(2) == 0;
  work.grad_overlapped = dice.below(2) == 0;
  work.param_overlapped = dice.below(2) == 0;
  work.overlap_slowdown = dice.below(3) * 0.1;
  work.jitter_share = dice.below(3) * 0.01;
  const std::int32_t zero = dice.below(4);
  if (zero >= 2) work.grad_repeats = s.num_microbatches;
  if (zero == 3) work.param_repeats = s.num_microbatches * dice.between(1, 2);
  return work;
}

inline Options random_options(const Schedule& s, Dice& dice) {
  Options o;
  o.shared_links = dice.below(2) == 0;
  if (dice.below(2) == 0) o.link_axes |= axis_bit(graph::Axis::ep) | axis_bit(graph::Axis::tp);
  o.synchronized_optimizer = dice.below(3) != 0;
  o.num_buckets = dice.between(1, 20);
  if (dice.below(3) == 0) {
    for (std::int32_t r = 0; r < s.pp; ++r) o.rank_slowdown.push_back(1 + dice.below(3) * 0.1);
  }
  if (dice.below(3) == 0) {
    o.replica_slowdown = {1.0, 1.0 + dice.below(3) * 0.2, 1.1};
    o.replicas_share_links = dice.below(2) == 0;
  }
  o.detail = dice.below(2) == 0 ? Detail::segments : Detail::actions;
  return o;
}

inline Schedule random_schedule(Dice& dice) {
  const Schedule s =
      make(schedule::kAllKinds[dice.below(6)], dice.between(1, 6), dice.between(1, 12), dice.between(2, 3));
  return dice.below(2) == 0 ? lower(s) : s;
}

}  // namespace tessera::sim
