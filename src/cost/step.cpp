#include "cost/step.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "cost/step_impl.h"

namespace tessera::cost {

std::string_view name(Part part) {
  switch (part) {
    case Part::ideal:
      return "ideal";
    case Part::gemm:
      return "gemm";
    case Part::attention:
      return "attention";
    case Part::memory_bound:
      return "memory-bound";
    case Part::launch:
      return "launch";
    case Part::recompute:
      return "recompute";
    case Part::imbalance:
      return "imbalance";
    case Part::tp:
      return "tp";
    case Part::cp:
      return "cp";
    case Part::ep:
      return "ep";
    case Part::pp:
      return "pp";
    case Part::bubble:
      return "bubble";
    case Part::dp:
      return "dp";
    case Part::optimizer:
      return "optimizer";
    case Part::jitter:
      return "jitter";
  }
  return "unknown";
}

Part part_of(graph::Axis axis) {
  switch (axis) {
    case graph::Axis::tp:
      return Part::tp;
    case graph::Axis::cp:
      return Part::cp;
    case graph::Axis::ep:
    case graph::Axis::ep_inter:
    case graph::Axis::ep_intra:
    case graph::Axis::etp:
      return Part::ep;
    case graph::Axis::pp:
      return Part::pp;
    case graph::Axis::dp:
    case graph::Axis::tp_dp:
    case graph::Axis::edp:
    case graph::Axis::tie:
    case graph::Axis::world:
      return Part::dp;
  }
  return Part::dp;
}

schedule::StageCosts stage_costs(const StepWork& work) {
  schedule::StageCosts costs;
  for (const StageWork& stage : work.stages) {
    costs.forward.emplace_back(stage.forward_seconds);
    costs.backward_input.emplace_back(stage.backward_input_seconds);
    costs.backward_weight.emplace_back(stage.backward_weight_seconds);
  }
  return costs;
}

double StepCost::seconds() const {
  return std::accumulate(parts.begin(), parts.end(), 0.0);
}

namespace {
std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}
}  // namespace

std::size_t TableHash::operator()(const TableKey& k) const {
  std::uint64_t h = 0x9e3779b97f4a7c15ULL;
  const auto mix = [&](std::int64_t v) {
    h = (h ^ static_cast<std::uint64_t>(v)) * 0xff51afd7ed558ccdULL;
    h ^= h >> 29U;
  };
  constexpr std::int64_t kShift = std::int64_t{1} << 32U;
  mix(k.tp * kShift + k.cp);
  mix(k.ep * kShift + k.etp);
  mix(k.micro_batch_size * kShift + k.split_pp);
  mix(std::int64_t{k.modules} * 8 + static_cast<std::int64_t>(k.recompute) * 2 +
      (k.sequence_parallel ? 1 : 0));
  return static_cast<std::size_t>(h);
}

namespace {
// Links at the rate that a training run sees.
Setup in_training(Setup s) {
  s.calibration.inter_efficiency *= s.calibration.sustained_network;
  s.calibration.sustained_network = 1.0;
  return s;
}
}  // namespace

StepModel::Impl::Impl(Setup s)
    : setup(in_training(std::move(s))),
      classes(setup.model),
      flops_per_token(
          spec::train_flops_per_token(setup.model, setup.work.sequence_length, spec::AttentionFlops::causal)),
      flops_per_token_full(
          spec::train_flops_per_token(setup.model, setup.work.sequence_length, spec::AttentionFlops::full)),
      peak(gemm_model(setup.calibration, setup.work.precision).peak) {}

namespace {
// So many tables are kept: a search that goes on to other cuts never comes back.
constexpr std::size_t kMaxTables = 4096;

TableKey key_of(const Candidate& c) {
  return {.tp = c.tp,
          .cp = c.cp,
          .ep = c.ep,
          .etp = c.etp,
          .micro_batch_size = c.micro_batch_size,
          .split_pp = 0,
          .modules = c.recompute == spec::Recompute::selective ? c.recompute_modules : 0,
          .recompute = c.recompute,
          .sequence_parallel = c.sequence_parallel,
          .pipelined = false};
}
}  // namespace

// A power law is a mean over thousands of shuffles: once for each ep, not for each table.
const LoadFigures& StepModel::Impl::load_of(const Candidate& c) {
  const auto found = loads.find(c.ep);
  if (found != loads.end()) return found->second;
  LoadFigures figures;
  if (setup.model.moe) {
    figures = load_figures(setup.routing, setup.model.moe->num_experts, setup.model.moe->num_experts_per_tok,
                           c.ep, setup.work.capacity_factor);
  }
  return loads.emplace(c.ep, figures).first->second;
}

const LayerTable& StepModel::Impl::table(const Candidate& c) {
  TableKey key = key_of(c);
  const bool cut = c.order == AxisOrder::tp_cp_ep_pp_dp && c.pp > 1 && c.ep * c.etp > c.tp * c.cp;
  if (cut) key.split_pp = c.pp;
  key.pipelined = c.pp > 1 && setup.practice.tp_host_pipelined > 0.0;
  const auto found = tables.find(key);
  if (found != tables.end()) return found->second;
  if (tables.size() >= kMaxTables) tables.clear();
  return tables.emplace(key, layer_table(setup, classes, c, load_of(c))).first->second;
}

const LayerTable& StepModel::Impl::sizes(const Candidate& c) {
  const TableKey key = key_of(c);
  const auto found = size_tables.find(key);
  if (found != size_tables.end()) return found->second;
  if (size_tables.size() >= kMaxTables) size_tables.clear();
  return size_tables.emplace(key, size_table(setup, classes, c, load_of(c))).first->second;
}

const StageSplit& StepModel::Impl::split_of(const Candidate& c) const {
  const std::int32_t stages = c.pp * c.vpp;
  const auto found = splits.find(stages);
  if (found != splits.end()) return found->second;
  return splits.emplace(stages, StageSplit(setup.model, stages, setup.practice.balanced_stages))
      .first->second;
}

std::int32_t StepModel::Impl::stage_of(const Candidate& c, std::int32_t r, std::int32_t v) {
  if (c.schedule == schedule::Kind::zb_v) return v == 0 ? r : 2 * c.pp - 1 - r;
  return v * c.pp + r;
}

PipelineRank StepModel::Impl::rank_seconds(const LayerTable& t, const StageSplit& split, const Candidate& c,
                                           std::int32_t r) const {
  PipelineRank out;
  for (std::int32_t v = 0; v < c.vpp; ++v) {
    for_blocks(t, split, stage_of(c, r, v), [&](const BlockCost& b, double n) {
      out.forward += n * b.forward.seconds;
      out.backward_input += n * b.backward_input.seconds;
      out.backward_weight += n * b.backward_weight.seconds;
    });
  }
  return out;
}

RankHolding StepModel::Impl::rank_holding(const LayerTable& t, const StageSplit& split, const Candidate& c,
                                          std::int32_t r) const {
  RankHolding h;
  double layer_shapes = 0, head_shapes = 0;
  for (std::int32_t v = 0; v < c.vpp; ++v) {
    for_blocks(t, split, stage_of(c, r, v), [&](const BlockCost& b, double n) {
      const bool shares = &b == &t.head && c.pp == 1 && setup.model.tie_word_embeddings;
      const graph::BlockParams& p = shares ? t.shared_head : b.params;
      h.params.dense += static_cast<std::int64_t>(n) * p.dense;
      h.params.replicated += static_cast<std::int64_t>(n) * p.replicated;
      h.params.expert += static_cast<std::int64_t>(n) * p.expert;
      h.saved_per_microbatch += n * b.saved;
      h.transient = std::max(h.transient, b.transient);
      h.largest_layer_params = std::max(h.largest_layer_params, static_cast<double>(p.total()));
      h.head_logits = std::max(h.head_logits, b.logits);
      double& shapes = &b == &t.head ? head_shapes : layer_shapes;
      shapes = std::max(shapes, b.distinct_gradients);
    });
  }
  h.distinct_gradient_shapes = layer_shapes + head_shapes;
  h.saved_in_flight =
      h.saved_per_microbatch * in_flight(c.schedule, c.pp, c.vpp, num_microbatches(setup.work, c), r);
  return h;
}

Bytes StepModel::Impl::message_bytes(const Candidate& c) const {
  const std::int64_t tokens = c.micro_batch_size * (setup.work.sequence_length / c.cp);
  const bool cut = c.sequence_parallel || setup.practice.p2p_scatter;
  return Bytes((cut ? tokens / c.tp : tokens) * setup.model.hidden_size * 2);
}

double StepModel::Impl::message_seconds(const Candidate& c) const {
  if (c.pp == 1) return 0.0;
  const std::int64_t inside = std::int64_t{c.tp} * c.cp;
  const std::int64_t distance = c.order == AxisOrder::tp_cp_ep_dp_pp ? inside * c.dp : inside;
  return p2p_time(setup.cluster, setup.calibration, distance, message_bytes(c)).value;
}

bool StepModel::Impl::messages_hidden(const Candidate& c) const {
  return setup.practice.p2p_overlap && c.vpp > 1;
}

double StepModel::Impl::jitter_share(const Candidate& c) const {
  const double nodes = static_cast<double>(c.world_size()) / setup.cluster.devices_per_node;
  return setup.calibration.straggler * std::log2(std::max(1.0, nodes));
}

MemoryCost StepModel::Impl::memory_of(const LayerTable& t, const StageSplit& split,
                                      const Candidate& c) const {
  MemoryCost largest = rank_memory(setup, c, rank_holding(t, split, c, 0), 0);
  for (const std::int32_t r : {1, c.pp - 1}) {
    if (r <= 0 || r >= c.pp) continue;
    const MemoryCost m = rank_memory(setup, c, rank_holding(t, split, c, r), r);
    if (m.allocated() > largest.allocated()) largest = m;
  }
  return largest;
}

// Every block of the model once: what all pipeline ranks together do for one micro-batch.
PassCost StepModel::Impl::all_blocks(const LayerTable& t, double& attention_ideal) const {
  PassCost sum;
  for_blocks(t, 0, setup.model.num_hidden_layers, true, true, [&](const BlockCost& b, double n) {
    for (const PassCost* pass : {&b.forward, &b.backward_input, &b.backward_weight}) {
      for (std::size_t i = 0; i < sum.parts.size(); ++i) sum.parts[i] += n * pass->parts[i];
      for (std::size_t a = 0; a < sum.comm_seconds.size(); ++a) {
        sum.comm_seconds[a] += n * pass->comm_seconds[a];
        sum.bytes_sent[a] += n * pass->bytes_sent[a];
      }
      sum.gemm_flops += n * pass->gemm_flops;
      sum.attention_flops += n * pass->attention_flops;
    }
    attention_ideal += n * b.attention_ideal_flops;
  });
  return sum;
}

StepCost StepModel::Impl::predict(const Candidate& c) {
  const LayerTable& t = table(c);
  const StageSplit& split = split_of(c);
  StepCost out;
  out.num_microbatches = static_cast<double>(num_microbatches(setup.work, c));
  out.memory = memory_of(t, split, c);
  ranks.resize(at(c.pp));
  for (std::int32_t r = 0; r < c.pp; ++r) ranks[at(r)] = rank_seconds(t, split, c, r);
  double attention_ideal = 0.0;
  const PassCost sum = all_blocks(t, attention_ideal);
  const double scale = out.num_microbatches / c.pp;  // of an average rank
  for (std::size_t i = 0; i < sum.parts.size(); ++i) out.parts[i] = sum.parts[i] * scale;
  for (std::size_t a = 0; a < sum.comm_seconds.size(); ++a) {
    out.comm_seconds[a] = sum.comm_seconds[a] * scale;
    out.bytes_sent[a] = sum.bytes_sent[a] * scale;
  }
  out.hardware_flops = (sum.gemm_flops + sum.attention_flops) * scale;
  finish(out, t, split, c, attention_ideal * scale);
  return out;
}

// Pipeline, reductions, optimizer; and the split of compute into the ideal and the rest.
void StepModel::Impl::finish(StepCost& out, const LayerTable& t, const StageSplit& split, const Candidate& c,
                             double attention_ideal) const {
  const auto part = [&](Part p) -> double& { return out.parts[static_cast<std::size_t>(p)]; };
  const auto axis = [](graph::Axis a) { return static_cast<std::size_t>(a); };
  const double m = out.num_microbatches;
  const double busy = out.seconds();
  for (const PipelineRank& r : ranks) out.compute_seconds = std::max(out.compute_seconds, m * r.total());

  PipelineShape shape{.kind = c.schedule,
                      .vpp = c.vpp,
                      .num_microbatches = static_cast<std::int64_t>(m),
                      .message = 0.0,
                      .message_hidden = messages_hidden(c)};
  const double pipeline = pipeline_time(shape, ranks);
  shape.message = message_seconds(c);
  part(Part::pp) = pipeline_time(shape, ranks) - pipeline;
  part(Part::bubble) = pipeline - busy;
  out.comm_seconds[axis(graph::Axis::pp)] = 2.0 * m * c.vpp * shape.message;
  if (c.pp > 1)
    out.bytes_sent[axis(graph::Axis::pp)] = 2.0 * m * c.vpp * static_cast<double>(message_bytes(c).value);

  const PipelineRank& first = ranks.front();
  const Reduction r =
      reduction_cost(setup, c, rank_holding(t, split, c, 0),
                     {.forward = first.forward, .backward = first.backward_input + first.backward_weight},
                     static_cast<std::int64_t>(m));
  part(Part::dp) = r.exposed;
  part(Part::optimizer) = r.optimizer;
  out.comm_seconds[axis(graph::Axis::dp)] = r.dense_seconds;
  out.comm_seconds[axis(graph::Axis::edp)] = r.expert_seconds;
  out.bytes_sent[axis(graph::Axis::dp)] = r.dense_bytes;
  out.bytes_sent[axis(graph::Axis::edp)] = r.expert_bytes;

  const double tokens =
      static_cast<double>(setup.work.global_batch_size) * static_cast<double>(setup.work.sequence_length);
  out.peak = peak;
  out.model_flops = flops_per_token * tokens / c.world_size();
  out.model_flops_full = flops_per_token_full * tokens / c.world_size();
  // Matrix products and attention stand whole in their parts: take the useful time out of them.
  part(Part::ideal) = out.model_flops / peak;
  part(Part::gemm) -= part(Part::ideal) - attention_ideal / peak;
  part(Part::attention) -= attention_ideal / peak;

  const double total = out.seconds();
  out.bubble_fraction = part(Part::bubble) / total;
  part(Part::jitter) = total * jitter_share(c);
}

StepModel::StepModel(Setup setup) : impl_(std::make_unique<Impl>(std::move(setup))) {}
StepModel::~StepModel() = default;
StepModel::StepModel(StepModel&&) noexcept = default;
StepModel& StepModel::operator=(StepModel&&) noexcept = default;

const Setup& StepModel::setup() const {
  return impl_->setup;
}

StepCost StepModel::predict(const Candidate& c) {
  return impl_->predict(c);
}

MemoryCost StepModel::memory(const Candidate& c) {
  return impl_->memory_of(impl_->sizes(c), impl_->split_of(c), c);
}

double StepModel::lower_bound(const Candidate& c) {
  const LayerTable& t = impl_->table(c);
  double sum = 0.0;
  impl_->for_blocks(t, 0, impl_->setup.model.num_hidden_layers, true, true,
                    [&](const BlockCost& b, double n) { sum += n * b.seconds(); });
  return sum * static_cast<double>(num_microbatches(impl_->setup.work, c)) / c.pp;
}

double StepModel::lowest_bound(const Candidate& c) {
  Candidate plain = c;
  plain.recompute = spec::Recompute::none;
  plain.recompute_modules = 0;
  plain.order = AxisOrder::tp_cp_ep_dp_pp;
  const LayerTable& t = impl_->table(plain);
  double sum = 0.0;
  impl_->for_blocks(t, 0, impl_->setup.model.num_hidden_layers, true, true,
                    [&](const BlockCost& b, double n) {
                      sum += n * b.seconds();
                      for (const PassCost* pass : {&b.forward, &b.backward_input, &b.backward_weight}) {
                        sum -= n * pass->parts[static_cast<std::size_t>(Part::ep)];
                      }
                    });
  return sum * static_cast<double>(num_microbatches(impl_->setup.work, c)) / c.pp;
}

}  // namespace tessera::cost
