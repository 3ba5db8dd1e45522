#include "cost/reduction.h"

#include <algorithm>

namespace tessera::cost {

namespace {

struct Side {
  double seconds = 0, bytes = 0;
};

// `elements` in pieces of `piece` elements, each a call of its own.
Side call(const Setup& s, const GroupShape& group, graph::Call what, double elements, double piece,
          double element_bytes) {
  if (group.size == 1 || elements == 0.0) return {};
  const double n = group.size;
  const double times = what == graph::Call::all_reduce ? 2.0 : 1.0;
  const double calls = std::max(1.0, elements / piece);
  const double sent = times * (n - 1.0) / n * elements * element_bytes;
  const Bytes of_call(static_cast<std::int64_t>(sent / calls));
  return {calls * collective_time(s.cluster, s.calibration, group, what, of_call).value, sent};
}

// Elements that one call reduces or gathers.
double piece_of(const Setup& s, const Candidate& c, const GroupShape& group, const RankHolding& h) {
  const graph::Practice& p = s.practice;
  if (c.zero_stage == 3) return h.largest_layer_params / p.gathers_per_layer;
  if (!p.in_bucket_reduce) return 1e18;  // one call
  return static_cast<double>(
      std::max(p.bucket_elements, p.bucket_elements_per_replica * std::int64_t{group.size}));
}

struct Traffic {
  Side gradients, weights;
};

// What so many calls of one owner each cost beside one collective of all: their latency.
double owners_seconds(const Setup& s, const GroupShape& group) {
  if (!s.practice.owner_broadcast || group.size == 1) return 0.0;
  return group.size *
         collective_time(s.cluster, s.calibration, group, graph::Call::all_gather, Bytes(group.size)).value;
}

// zero_group: state sharded inside of a smaller group; the sums of the groups meet over the rest.
Traffic traffic(const Setup& s, const Candidate& c, const GroupShape& group, const RankHolding& holding,
                double elements) {
  const double piece = piece_of(s, c, group, holding);
  constexpr double kWeightBytes = 2.0;
  const double wire = s.practice.gradient_reduce_bytes;
  Traffic t;
  if (c.zero_stage == 0) {
    t.gradients = call(s, group, graph::Call::all_reduce, elements, piece, wire);
    return t;
  }
  if (c.zero_group > 0 && c.zero_group < group.size) {
    const std::int64_t stride = std::int64_t{c.tp} * c.cp;
    const GroupShape inner = group_shape(s.cluster, c.zero_group, stride);
    const GroupShape outer = group_shape(s.cluster, group.size / c.zero_group, stride * c.zero_group);
    t.gradients = call(s, inner, graph::Call::reduce_scatter, elements, piece, wire);
    const Side across =
        call(s, outer, graph::Call::all_reduce, elements / c.zero_group, piece / c.zero_group, wire);
    t.gradients.seconds += across.seconds;
    t.gradients.bytes += across.bytes;
    t.weights = call(s, inner, graph::Call::all_gather, elements, piece, kWeightBytes);
    t.weights.seconds += owners_seconds(s, inner);
    return t;
  }
  t.gradients = call(s, group, graph::Call::reduce_scatter, elements, piece, wire);
  t.weights = call(s, group, graph::Call::all_gather, elements, piece, kWeightBytes);
  if (c.zero_stage == 1) t.weights.seconds += owners_seconds(s, group);
  return t;
}

// Seconds that remain visible of `time` run beside `window` of compute in pieces, of which the last one has
// nothing to hide under.
double exposed(double time, double window, bool overlapped, double slowdown) {
  constexpr double kLastPiece = 0.05;
  if (!overlapped) return time;
  const double hidden = std::min(time * (1.0 - kLastPiece), window);
  return time - hidden * (1.0 - slowdown);
}

// Gradient read for the norm and again for the step, master and moments read and written, weight written.
double optimizer_seconds(const Setup& s, const Candidate& c, const ReductionGroups& g, const RankHolding& h) {
  const auto shards = [&](const GroupShape& group) {
    if (c.zero_stage == 0) return 1.0;
    return static_cast<double>(c.zero_group > 0 ? std::min(c.zero_group, group.size) : group.size);
  };
  const double elements = static_cast<double>(h.params.dense) / shards(g.dense) +
                          static_cast<double>(h.params.expert) / shards(g.expert);
  const double bytes = elements * (2.0 * s.practice.gradient_bytes + 2.0 * s.practice.optimizer_bytes + 2.0);
  const Calibration& k = s.calibration;
  return k.optimizer_passes * bytes / (k.memory_bandwidth * k.memory_efficiency);
}

}  // namespace

ReductionGroups reduction_groups(const Setup& setup, const Candidate& c) {
  const spec::ClusterSpec& k = setup.cluster;
  ReductionGroups g;
  const std::int64_t inner = c.tp;
  const bool pp_inside = c.order == AxisOrder::tp_cp_ep_pp_dp && c.pp > 1;
  if (pp_inside) {
    g.dense = group_shape(k, c.cp, inner, c.dp, inner * c.cp * c.pp);
    g.expert = group_shape(k, c.edp(), std::int64_t{c.ep} * c.etp * c.pp);
  } else {
    g.dense = group_shape(k, c.cp * c.dp, inner);
    g.expert = group_shape(k, c.edp(), std::int64_t{c.ep} * c.etp);
  }
  return g;
}

Reduction reduction_cost(const Setup& setup, const Candidate& c, const RankHolding& holding,
                         const ReductionWindow& window, std::int64_t num_microbatches) {
  const ReductionGroups groups = reduction_groups(setup, c);
  const Traffic dense = traffic(setup, c, groups.dense, holding, static_cast<double>(holding.params.dense));
  const Traffic expert =
      traffic(setup, c, groups.expert, holding, static_cast<double>(holding.params.expert));
  const double slowdown = setup.calibration.overlap_slowdown;
  Reduction r;
  double gradients = dense.gradients.seconds + expert.gradients.seconds;
  double weights = dense.weights.seconds + expert.weights.seconds;
  double weight_repeats = 1.0;
  if (c.zero_stage == 3) {
    // Weights are gathered for forward and, when they were let go, for backward; each micro-batch anew.
    const auto m = static_cast<double>(num_microbatches);
    const bool again = setup.practice.reshard_after_forward;
    const double forward = exposed(weights, window.forward, setup.practice.fsdp_prefetch, slowdown);
    const double backward =
        exposed((again ? weights : 0.0) + gradients, window.backward, setup.practice.fsdp_prefetch, slowdown);
    r.exposed = m * (forward + backward);
    weight_repeats = m * (again ? 2.0 : 1.0);
    weights *= weight_repeats;
    gradients *= m;
    r.dense_bytes = m * dense.gradients.bytes + weight_repeats * dense.weights.bytes;
    r.expert_bytes = m * expert.gradients.bytes + weight_repeats * expert.weights.bytes;
  } else {
    // ZeRO-2 reduces each micro-batch's gradients as they come.
    const double repeats = c.zero_stage == 2 ? static_cast<double>(num_microbatches) : 1.0;
    r.exposed = repeats * exposed(gradients, window.backward, setup.practice.grad_overlap, slowdown) +
                exposed(weights, window.forward, setup.practice.param_overlap, slowdown);
    gradients *= repeats;
    r.dense_bytes = repeats * dense.gradients.bytes + dense.weights.bytes;
    r.expert_bytes = repeats * expert.gradients.bytes + expert.weights.bytes;
  }
  r.weight_bytes = (dense.weights.bytes + expert.weights.bytes) * weight_repeats;
  r.gradient_bytes = r.dense_bytes + r.expert_bytes - r.weight_bytes;
  r.gradient_seconds = gradients;
  r.weight_seconds = weights;
  const double all = gradients + weights;
  const double of_dense = dense.gradients.seconds + dense.weights.seconds;
  const double of_expert = expert.gradients.seconds + expert.weights.seconds;
  if (of_dense + of_expert > 0.0) {
    r.dense_seconds = all * of_dense / (of_dense + of_expert);
    r.expert_seconds = all - r.dense_seconds;
  }
  r.optimizer = optimizer_seconds(setup, c, groups, holding);
  return r;
}

}  // namespace tessera::cost
