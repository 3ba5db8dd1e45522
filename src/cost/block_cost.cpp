#include "cost/block_cost.h"

#include <algorithm>

#include "cost/kernel_time.h"

namespace tessera::cost {

namespace {

double& part(PassCost& p, Part which) {
  return p.parts[static_cast<std::size_t>(which)];
}

const GroupShape& group_of(const BlockGroups& groups, graph::Axis axis) {
  switch (axis) {
    case graph::Axis::cp:
      return groups.cp;
    case graph::Axis::ep:
      return groups.ep;
    case graph::Axis::etp:
      return groups.etp;
    case graph::Axis::tp:
    case graph::Axis::pp:
    case graph::Axis::dp:
    case graph::Axis::tp_dp:
    case graph::Axis::edp:
    case graph::Axis::tie:
    case graph::Axis::world:
    case graph::Axis::ep_inter:  // of the engine alone
    case graph::Axis::ep_intra:
      return groups.tp;
  }
  return groups.tp;
}

constexpr auto kMoe = static_cast<std::uint32_t>(graph::Module::moe);
constexpr auto kMoeAct = static_cast<std::uint32_t>(graph::Module::moe_act);

bool of_experts(const graph::Op& op) {
  return op.name.starts_with("experts") || ((op.modules & (kMoe | kMoeAct)) == (kMoe | kMoeAct));
}

double communication_time(const BlockContext& x, const graph::Op& op) {
  const Setup& s = x.setup;
  const GroupShape& group = group_of(x.groups, op.axis);
  if (op.axis == graph::Axis::ep && op.call == graph::Call::all_to_all_v && s.model.moe) {
    const spec::MoeSpec& moe = *s.model.moe;
    // Groups of experts are nodes, or several nodes where the ranks are spread wider.
    const std::int32_t nodes = group.size / std::max(1, group.members[0]);
    const std::int32_t nodes_a_group = std::max(1, nodes / std::max(1, moe.n_group));
    const AllToAll a{.tokens = x.expert_tokens,
                     .top_k = moe.num_experts_per_tok,
                     .num_experts = moe.num_experts,
                     .row_bytes = 2 * s.model.hidden_size,
                     .node_limit = moe.n_group > 1 ? moe.topk_group * nodes_a_group : 0,
                     .dedup = s.practice.ep_dedup,
                     .busiest = x.load.slowest_rank,
                     .parts = &x.load.parts};
    return all_to_all_time(s.cluster, s.calibration, group, a).value;
  }
  return collective_time(s.cluster, s.calibration, group, op.call, op.bytes_sent).value;
}

// Seconds of the compute that a collective at position i may hide under.
double window(const graph::OpList& ops, std::size_t i, const std::vector<double>& seconds, double compute) {
  const auto nearest = [&](graph::OpKind kind) {
    for (std::size_t d = 1; d < ops.size(); ++d) {
      if (i + d < ops.size() && ops[i + d].kind == kind) return seconds[i + d];
      if (i >= d && ops[i - d].kind == kind) return seconds[i - d];
    }
    return 0.0;
  };
  switch (ops[i].beside) {
    case graph::Beside::nothing:
      return 0.0;
    case graph::Beside::gemm:
      return nearest(graph::OpKind::gemm);
    case graph::Beside::attention:
      return nearest(graph::OpKind::attention);
    case graph::Beside::shared:
    case graph::Beside::microbatch:
      return compute / 2.0;  // dispatch and combine share the pass
  }
  return 0.0;
}

// Communication that cannot hide: the first and the last piece of a chunked overlap.
double edge_fraction(const graph::Op& op, const GroupShape& group) {
  if (op.beside == graph::Beside::microbatch || op.beside == graph::Beside::shared) return 0.1;
  return 1.0 / static_cast<double>(std::max(2, group.size));
}

void add_compute(const BlockContext& x, const graph::Op& op, double seconds, PassCost& out) {
  if (op.recomputed) {
    part(out, Part::recompute) += seconds;
  } else {
    switch (op.kind) {
      case graph::OpKind::gemm:
        part(out, Part::gemm) += seconds;
        break;
      case graph::OpKind::attention:
        part(out, Part::attention) += seconds;
        break;
      case graph::OpKind::memory:
      case graph::OpKind::collective:
        part(out, Part::memory_bound) += seconds;
        break;
    }
  }
  if (of_experts(op)) part(out, Part::imbalance) += seconds * (x.load.slowest_rank - 1.0);
  const auto flops = static_cast<double>(op.flops.value);
  (op.kind == graph::OpKind::attention ? out.attention_flops : out.gemm_flops) += flops;
}

// Of an operator in a training step beside its kernel's benchmark.
double relative_rate(const Setup& s, const graph::Op& op) {
  const Calibration& c = s.calibration;
  switch (op.kind) {
    case graph::OpKind::gemm:
      return op.low_precision && spec::is_narrow(s.work.precision) ? c.sustained_low : c.sustained;
    case graph::OpKind::attention:
      switch (s.practice.flash_generation) {
        case 1:
          return c.sustained_attention * c.attention_flash1;
        case 2:
          return c.sustained_attention * c.attention_flash2;
        default:
          return c.sustained_attention;
      }
    case graph::OpKind::memory:
      return c.sustained_memory;
    case graph::OpKind::collective:
      return 1.0;
  }
  return 1.0;
}

}  // namespace

PassCost& PassCost::operator+=(const PassCost& other) {
  for (std::size_t i = 0; i < parts.size(); ++i) parts[i] += other.parts[i];
  for (std::size_t i = 0; i < comm_seconds.size(); ++i) {
    comm_seconds[i] += other.comm_seconds[i];
    bytes_sent[i] += other.bytes_sent[i];
  }
  seconds += other.seconds;
  gemm_flops += other.gemm_flops;
  attention_flops += other.attention_flops;
  kernels += other.kernels;
  return *this;
}

PassCost pass_cost(const BlockContext& x, const graph::OpList& ops, double more_host) {
  const Setup& s = x.setup;
  const Calibration& c = s.calibration;
  PassCost out;
  std::vector<double> seconds(ops.size(), 0.0);
  double compute = 0.0;
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const graph::Op& op = ops[i];
    if (op.kind == graph::OpKind::collective) continue;
    seconds[i] = kernel_time(c, op, s.work.precision).value / relative_rate(s, op);
    compute += seconds[i];
    out.kernels += op.kernels;
    add_compute(x, op, seconds[i], out);
  }
  for (std::size_t i = 0; i < ops.size(); ++i) {
    const graph::Op& op = ops[i];
    if (op.kind != graph::OpKind::collective) continue;
    const double time = communication_time(x, op);
    const double hidden = std::min(time * (1.0 - edge_fraction(op, group_of(x.groups, op.axis))),
                                   window(ops, i, seconds, compute));
    const double exposed = time - hidden * (1.0 - c.overlap_slowdown);
    part(out, op.recomputed ? Part::recompute : part_of(op.axis)) += exposed;
    out.comm_seconds[static_cast<std::size_t>(op.axis)] += time;
    out.bytes_sent[static_cast<std::size_t>(op.axis)] += static_cast<double>(op.bytes_sent.value);
    out.kernels += 1;
  }
  double busy = 0.0;
  for (const double p : out.parts) busy += p;
  const double gaps = out.kernels * c.kernel_latency.value;
  const double host = s.practice.cuda_graphs ? 0.0 : std::max(out.kernels * c.launch.value, more_host);
  part(out, Part::launch) += std::max(gaps, host - busy);
  for (const double p : out.parts) out.seconds += p;
  return out;
}

BlockCost block_cost(const BlockContext& x, const graph::BlockWork& work, spec::Recompute recompute,
                     std::uint32_t modules) {
  BlockCost cost;
  constexpr double kForwardShare = 1.0 / 3.0;
  cost.forward = pass_cost(x, work.ops.forward, kForwardShare * x.host);
  graph::OpList backward = graph::recomputed(work, recompute, modules);
  backward.insert(backward.end(), work.ops.backward_input.begin(), work.ops.backward_input.end());
  cost.backward_input = pass_cost(x, backward, (1.0 - kForwardShare) * x.host);
  cost.backward_weight = pass_cost(x, work.ops.backward_weight, 0.0);
  cost.params = work.params;
  const BlockMemory memory = block_memory(work.saved, work.transient_forward, work.transient_backward,
                                          recompute, modules, x.load.slowest_rank);
  cost.saved = memory.saved;
  cost.transient = memory.transient;
  for (const graph::Op& op : work.ops.forward) {
    if (op.kind != graph::OpKind::attention) continue;
    cost.attention_ideal_flops += 3.0 * static_cast<double>(op.flops.value);
  }
  return cost;
}

}  // namespace tessera::cost
