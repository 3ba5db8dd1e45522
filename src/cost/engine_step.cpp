#include "cost/engine_step.h"

#include <algorithm>
#include <initializer_list>

#include "cost/kernel_time.h"
#include "cost/network.h"
#include "cost/pipeline_time.h"
#include "graph/dispatch_form.h"

namespace tessera::cost {

namespace {

using graph::Call;

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

double real(std::int64_t v) {
  return static_cast<double>(v);
}

Part part_of(const graph::Op& op) {
  if (op.recomputed && op.kind != graph::OpKind::collective) return Part::recompute;
  switch (op.kind) {
    case graph::OpKind::gemm:
      return Part::gemm;
    case graph::OpKind::attention:
      return Part::attention;
    case graph::OpKind::memory:
      return Part::memory_bound;
    case graph::OpKind::collective:
      break;
  }
  return cost::part_of(op.axis);
}

// One rank of the job as time.
class RankCost {
 public:
  RankCost(const EngineJob& j, const spec::ClusterSpec& cluster, const Calibration& c, Rank rank,
           const graph::RoutingCounts& routing)
      : j_(j), cluster_(cluster), c_(c), rank_(rank), graph_(graph::build(j.job, j.layout, rank, routing)) {
    for (const graph::StageGraph& s : graph_.stages) stages_.push_back(stage_work(s));
    for (const graph::Op& op : graph_.step) add_step(op);
  }

  [[nodiscard]] const graph::StepGraph& graph() const { return graph_; }
  [[nodiscard]] const std::vector<StageWork>& stages() const { return stages_; }
  // Does a group of one of these axes reach beyond the threads of a host?
  [[nodiscard]] bool crosses(std::initializer_list<graph::Axis> axes) const {
    return std::ranges::any_of(axes, [&](graph::Axis axis) { return group(axis).num_tiers > 1; });
  }
  // Once a step.
  double grad_seconds = 0, grad_bytes = 0, param_seconds = 0, param_bytes = 0, world_seconds = 0;
  std::array<double, graph::kNumAxes> comm_seconds{};  // of a step
  double attention_flops = 0;                          // model FLOPs of a step

  // Gradients to zero, their norm, AdamW (reads p, g, m, v; writes p, m, v), panels in both directions.
  [[nodiscard]] double optimizer_seconds(const EngineMemory& m) const {
    const double owned = real(m.optimizer.value) / 2.0;
    const double moved = real(m.gradients.value) + 8.0 * owned + 2.0 * real(m.packed_weights.value);
    return c_.optimizer_passes * memory_time(c_, Bytes(static_cast<std::int64_t>(moved))).value;
  }

 private:
  [[nodiscard]] GroupShape group(graph::Axis axis) const {
    using layout::Axis;
    const layout::Layout& l = j_.layout;
    const spec::ParallelSpec& p = j_.job.parallel;
    const auto ranks = [&]() -> std::vector<Rank> {
      switch (axis) {
        case graph::Axis::tp:
          return l.dense.group(rank_, {Axis::tp});
        case graph::Axis::cp:
          return l.dense.group(rank_, {Axis::cp});
        case graph::Axis::pp:
        case graph::Axis::tie:
          return l.dense.group(rank_, {Axis::pp});
        case graph::Axis::dp:
          return l.dense.group(rank_, {Axis::cp, Axis::dp});
        case graph::Axis::tp_dp:
          return l.dense.group(rank_, {Axis::tp, Axis::cp, Axis::dp});
        case graph::Axis::edp:
          return l.expert.group(rank_, {Axis::edp});
        case graph::Axis::ep:
          return l.expert.group(rank_, {Axis::ep});
        case graph::Axis::ep_inter:
          return layout::expert_nodes(l, rank_, graph::dispatch_nodes(j_.job)).across;
        case graph::Axis::ep_intra:
          return layout::expert_nodes(l, rank_, graph::dispatch_nodes(j_.job)).inside;
        case graph::Axis::etp:
          return l.expert.group(rank_, {Axis::etp});
        case graph::Axis::world:
          return l.dense.group(rank_, {Axis::tp, Axis::cp, Axis::dp, Axis::pp});
      }
      return {};
    }();
    if (ranks.size() < 2) return group_shape(cluster_, 1, 1);
    // Neighbours of a pipeline, and the ends of a tie, talk in pairs.
    const bool pair = axis == graph::Axis::pp || axis == graph::Axis::tie;
    const std::int32_t reach = axis == graph::Axis::tie ? p.pp - 1 : 1;
    return group_shape(cluster_, pair ? 2 : static_cast<std::int32_t>(ranks.size()),
                       std::int64_t{ranks[1].value - ranks[0].value} * reach);
  }

  [[nodiscard]] double collective_seconds(const graph::Op& op) const {  // of all of its calls in a step
    const std::int64_t calls = std::max<std::int64_t>(1, op.calls);
    const Bytes each((op.bytes_sent.value * op.count) / calls);
    return real(calls) * collective_time(cluster_, c_, group(op.axis), op.call, each).value;
  }

  [[nodiscard]] double compute_seconds(const graph::Op& op) const {
    const double rate = op.kind == graph::OpKind::gemm ? c_.sustained : 1.0;
    return kernel_time(c_, op, j_.job.train.precision).value / rate +
           op.kernels * (c_.launch + c_.kernel_latency).value;
  }

  void add_pass(const graph::OpList& ops, std::vector<Segment>& out, double& seconds, StageWork& stage) {
    const double m = graph_.num_microbatches;
    for (const graph::Op& op : ops) {
      const bool communication = op.kind == graph::OpKind::collective;
      const double step = communication ? collective_seconds(op) : compute_seconds(op) * real(op.count);
      if (communication) comm_seconds[at(static_cast<int>(op.axis))] += step;
      if (op.kind == graph::OpKind::attention && !op.recomputed)
        attention_flops += real(op.flops.value * op.count);
      if (op.axis == graph::Axis::pp && communication) {
        stage.p2p_seconds = step / m;
        stage.p2p_bytes = real(op.bytes_sent.value);
        continue;
      }
      Segment s;
      s.name = op.name;
      s.part = part_of(op);
      s.axis = op.axis;
      s.communication = communication;
      s.seconds = s.exposed = step / m;
      s.flops = real(op.flops.value * op.count) / m;
      s.bytes_sent = real(op.bytes_sent.value * op.count) / m;
      seconds += s.seconds;
      out.push_back(std::move(s));
    }
  }

  [[nodiscard]] StageWork stage_work(const graph::StageGraph& g) {
    StageWork w;
    // The gradient's message first: the stage's own message goes forward, and a last stage has none.
    add_pass(g.backward_input, w.backward_input, w.backward_input_seconds, w);
    w.p2p_seconds = w.p2p_bytes = 0.0;
    add_pass(g.forward, w.forward, w.forward_seconds, w);
    add_pass(g.backward_weight, w.backward_weight, w.backward_weight_seconds, w);
    w.saved_bytes = real(g.saved_bytes().value);
    return w;
  }

  void add_step(const graph::Op& op) {
    const double seconds = collective_seconds(op);
    comm_seconds[at(static_cast<int>(op.axis))] += seconds;
    if (op.axis == graph::Axis::world) {
      world_seconds += seconds;
    } else if (op.call == Call::all_gather) {
      param_seconds += seconds;
      param_bytes += real(op.bytes_sent.value);
    } else {
      grad_seconds += seconds;
      grad_bytes += real(op.bytes_sent.value);
    }
  }

  const EngineJob& j_;
  const spec::ClusterSpec& cluster_;
  const Calibration& c_;
  Rank rank_;
  graph::StepGraph graph_;
  std::vector<StageWork> stages_;
};

// Ranks that exchange rows wait for the slowest of them in every layer: each operator takes as long as its
// longest, and what that is above the mean is imbalance.
void merge_pass(const std::vector<const std::vector<Segment>*>& members, std::vector<Segment>& out,
                double& seconds) {
  const double n = real(std::ssize(members));
  for (std::size_t i = 0; i < members.front()->size(); ++i) {
    Segment mean = (*members.front())[i];
    double longest = 0.0;
    mean.seconds = mean.flops = mean.bytes_sent = 0.0;
    for (const std::vector<Segment>* m : members) {
      const Segment& s = (*m)[i];
      longest = std::max(longest, s.seconds);
      mean.seconds += s.seconds / n;
      mean.flops += s.flops / n;
      mean.bytes_sent += s.bytes_sent / n;
    }
    mean.exposed = mean.seconds;
    Segment wait{.name = mean.name + " of the most loaded", .part = Part::imbalance};
    wait.seconds = wait.exposed = longest - mean.seconds;
    seconds += longest;
    out.push_back(std::move(mean));
    if (wait.seconds > 1e-12 * longest) out.push_back(std::move(wait));
  }
}

// Ranks of one pipeline rank that share experts, as one.
struct GroupCost {
  const RankCost* first = nullptr;
  EngineMemory memory;
  std::vector<StageWork> stages;

  [[nodiscard]] PipelineRank seconds() const {
    PipelineRank r;
    for (const StageWork& s : stages) {
      r.forward += s.forward_seconds;
      r.backward_input += s.backward_input_seconds;
      r.backward_weight += s.backward_weight_seconds;
    }
    return r;
  }
};

GroupCost merge(const std::vector<RankCost>& costs, const std::vector<Rank>& members) {
  GroupCost g{.first = &costs[at(members.front().value)]};
  for (std::size_t s = 0; s < g.first->stages().size(); ++s) {
    StageWork w = g.first->stages()[s];
    const auto pass = [&](std::vector<Segment> StageWork::*list, double StageWork::*seconds) {
      std::vector<const std::vector<Segment>*> lists;
      for (const Rank r : members) lists.push_back(&(costs[at(r.value)].stages()[s].*list));
      (w.*list).clear();
      w.*seconds = 0.0;
      merge_pass(lists, w.*list, w.*seconds);
    };
    pass(&StageWork::forward, &StageWork::forward_seconds);
    pass(&StageWork::backward_input, &StageWork::backward_input_seconds);
    pass(&StageWork::backward_weight, &StageWork::backward_weight_seconds);
    g.stages.push_back(std::move(w));
  }
  return g;
}

EngineRank rank_figures(const EngineJob& j, const RankCost& cost, Rank rank) {
  EngineRank r{.flops = cost.graph().flops(), .model_flops = cost.graph().model_flops()};
  for (std::int32_t a = 0; a < graph::kNumAxes; ++a) {
    r.bytes_sent[at(a)] = cost.graph().bytes_sent(static_cast<graph::Axis>(a));
  }
  r.memory = engine_memory(j, rank);
  return r;
}

// `slowest`: one group for each pipeline rank.
StepWork step_work(const EngineJob& j, const std::vector<GroupCost>& slowest) {
  StepWork w;
  w.stages.resize(j.layout.stages.size());
  for (std::size_t r = 0; r < slowest.size(); ++r) {
    const GroupCost& group = slowest[r];
    const RankCost& cost = *group.first;
    for (std::size_t i = 0; i < group.stages.size(); ++i) {
      w.stages[at(cost.graph().stages[i].stage.value)] = group.stages[i];
    }
    const MemoryCost m = group.memory.cost(static_cast<std::int32_t>(r));
    w.static_bytes.push_back(m.allocated() - m[MemoryPart::activations]);
    w.grad_seconds.push_back(cost.grad_seconds);
    w.grad_bytes.push_back(cost.grad_bytes);
    w.param_seconds.push_back(cost.param_seconds);
    w.param_bytes.push_back(cost.param_bytes);
    w.optimizer_seconds.push_back(cost.optimizer_seconds(group.memory) + cost.world_seconds);
    w.num_microbatches = cost.graph().num_microbatches;
  }
  return w;
}

double& part(StepCost& c, Part p) {
  return c.parts[static_cast<std::size_t>(p)];
}

// What the blocks take, over an average rank; recomputation stands in its own part.
void add_stages(StepCost& c, const StepWork& w, double pp) {
  const double scale = real(w.num_microbatches) / pp;
  for (const StageWork& s : w.stages) {
    for (const std::vector<Segment>* pass : {&s.forward, &s.backward_input, &s.backward_weight}) {
      for (const Segment& g : *pass) part(c, g.part) += g.exposed * scale;
    }
  }
}

// Figures of an average device; the largest memory.
void add_ranks(StepCost& c, const EngineJob& j, const std::vector<EngineRank>& ranks,
               const std::vector<RankCost>& costs) {
  const double n = real(std::ssize(ranks));
  const double seq = real(j.job.train.sequence_length);
  double attention = 0.0;
  for (std::size_t r = 0; r < ranks.size(); ++r) {
    c.model_flops += real(ranks[r].model_flops.value) / n;
    c.hardware_flops += real(ranks[r].flops.value) / n;
    attention += costs[r].attention_flops / n;
    for (std::size_t a = 0; a < c.bytes_sent.size(); ++a) {
      c.bytes_sent[a] += real(ranks[r].bytes_sent[a].value) / n;
      c.comm_seconds[a] += costs[r].comm_seconds[a] / n;
    }
    const MemoryCost m =
        ranks[r].memory.cost(j.layout.dense.coordinate(Rank(static_cast<std::int32_t>(r)), layout::Axis::pp));
    if (r == 0 || m.allocated() > c.memory.allocated()) c.memory = m;
  }
  // Kept pairs S (S + 1) / 2 against half of the square.
  c.model_flops_full = c.model_flops + attention * (2.0 * seq / (seq + 1.0) - 1.0);
  part(c, Part::ideal) = c.model_flops / c.peak;
  part(c, Part::gemm) -= (c.model_flops - attention) / c.peak;
  part(c, Part::attention) -= attention / c.peak;
}

StepCost step_cost(const EngineJob& j, const StepWork& w, const std::vector<GroupCost>& slowest) {
  StepCost c;
  c.num_microbatches = real(w.num_microbatches);
  const double pp = real(std::ssize(slowest));
  add_stages(c, w, pp);
  const double busy = c.seconds();
  std::vector<PipelineRank> ranks;
  PipelineShape shape{.kind = j.schedule.kind,
                      .vpp = j.job.parallel.vpp,
                      .num_microbatches = w.num_microbatches,
                      .message = 0.0,
                      .message_hidden = w.p2p_overlapped};
  double grad = 0.0, param = 0.0, optimizer = 0.0, world = 0.0;
  double message = 0.0;
  for (std::size_t r = 0; r < slowest.size(); ++r) {
    ranks.push_back(slowest[r].seconds());
    c.compute_seconds = std::max(c.compute_seconds, c.num_microbatches * ranks.back().total());
    grad = std::max(grad, w.grad_seconds[r]);
    param = std::max(param, w.param_seconds[r]);
    world = std::max(world, slowest[r].first->world_seconds);
    optimizer = std::max(optimizer, w.optimizer_seconds[r] - slowest[r].first->world_seconds);
  }
  for (const StageWork& s : w.stages) message = std::max(message, s.p2p_seconds);
  const double pipeline = pipeline_time(shape, ranks);
  shape.message = message;
  part(c, Part::pp) = pipeline_time(shape, ranks) - pipeline;
  part(c, Part::bubble) = pipeline - busy;
  const PipelineRank& first = ranks.front();
  const double window =
      w.grad_overlapped ? real(w.grad_repeats) * (first.backward_input + first.backward_weight) : 0.0;
  part(c, Part::dp) = std::max(0.0, grad - window) + param + world;
  part(c, Part::optimizer) = optimizer;
  return c;
}

}  // namespace

EngineStep engine_step(const EngineJob& job, const spec::ClusterSpec& cluster, const Calibration& calibration,
                       const graph::RoutingCounts& routing) {
  EngineStep step;
  std::vector<RankCost> costs;
  const std::int32_t world = job.layout.world_size();
  for (std::int32_t r = 0; r < world; ++r) {
    costs.emplace_back(job, cluster, calibration, Rank(r), routing);
    step.ranks.push_back(rank_figures(job, costs.back(), Rank(r)));
  }
  std::vector<GroupCost> slowest(at(job.layout.dense.size(layout::Axis::pp)));
  for (std::int32_t r = 0; r < world; ++r) {
    const std::vector<Rank> members = job.layout.expert.group(Rank(r), {layout::Axis::etp, layout::Axis::ep});
    if (members.front().value != r) continue;
    GroupCost group = merge(costs, members);
    group.memory = step.ranks[at(r)].memory;
    GroupCost& s = slowest[at(job.layout.dense.coordinate(Rank(r), layout::Axis::pp))];
    if (s.first == nullptr || group.seconds().total() > s.seconds().total()) s = std::move(group);
  }
  step.work = step_work(job, slowest);
  const std::int32_t zero = job.job.train.zero_stage;
  // Between threads the one that reduces gradients copies, and hides nothing where every core computes; the
  // network moves bytes beside compute.
  using graph::Axis;
  const bool spare = cluster.num_devices >= 2 * world;
  const bool network = costs.front().crosses({Axis::dp, Axis::tp_dp, Axis::edp});
  step.work.grad_overlapped = job.job.train.overlap_grad_reduce && (spare || network);
  step.work.param_overlapped = zero >= 1 && job.job.train.overlap_param_gather && network;
  if (step.work.grad_overlapped && network) {
    for (double& seconds : step.work.grad_seconds) seconds /= calibration.sustained_network;
  }
  step.work.p2p_overlapped = costs.front().crosses({Axis::pp});
  step.work.overlap_slowdown = calibration.overlap_slowdown;
  // ZeRO-2 sums the gradients of each micro-batch, ZeRO-3 brings the values of each pass.
  const std::int64_t m = step.work.num_microbatches;
  if (zero >= 2) step.work.grad_repeats = m;
  if (zero == 3) step.work.param_repeats = 2 * m;
  step.cost = step_cost(job, step.work, slowest);
  step.cost.peak = gemm_model(calibration, job.job.train.precision).peak;
  add_ranks(step.cost, job, step.ranks, costs);
  const double total = step.cost.seconds();
  step.cost.bubble_fraction = total > 0.0 ? step.cost[Part::bubble] / total : 0.0;
  return step;
}

std::int32_t num_buckets(const EngineJob& job, const StepWork& work) {
  constexpr std::int64_t kMostBuckets = 1024;
  const double bytes = *std::ranges::max_element(work.grad_bytes);
  const auto n = static_cast<std::int64_t>(bytes / real(job.job.train.bucket_bytes) + 0.5);
  return static_cast<std::int32_t>(std::clamp<std::int64_t>(n, 1, kMostBuckets));
}

}  // namespace tessera::cost
