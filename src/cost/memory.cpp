#include "cost/memory.h"

#include <algorithm>
#include <vector>

#include "base/math.h"
#include "graph/block_size.h"

namespace tessera::cost {

namespace {

// Of the caching allocator: tensors / what it reserved. SimuMax's figure; its runs on B200 lie at 0.93 to
// 0.96, the verification cards of Megatron-Bridge at 0.83 to 0.96.
constexpr double kAllocatorFill = 0.94;

double weight_bytes(spec::Precision precision) {
  return static_cast<double>(spec::element_bytes(precision));
}

// Ranks that share what ZeRO shards of a parameter.
std::int32_t shards(std::int32_t group, std::int32_t limit) {
  return limit > 0 ? std::min(group, limit) : group;
}

double to_double(Bytes b) {
  return static_cast<double>(b.value);
}

// Adds blocks to a holding.
class Holder {
 public:
  Holder(const Setup& setup, const Candidate& c, double in_flight)
      : setup_(setup), c_(c), cut_(cut_of(setup, c)), in_flight_(in_flight) {
    if (!setup.model.moe) return;
    slowest_rank_ = load_figures(setup.routing, setup.model.moe->num_experts,
                                 setup.model.moe->num_experts_per_tok, c.ep, setup.work.capacity_factor)
                        .slowest_rank;
  }

  void add_layers(const spec::LayerClass& layer, std::int32_t count) {
    const graph::Transients own = graph::layer_transients(setup_.model, layer, cut_, setup_.practice);
    add_params(graph::layer_params(setup_.model, layer, cut_), count);
    add_memory(graph::layer_saved(setup_.model, layer, cut_, setup_.practice), own, count);
    layer_shapes_ = std::max(layer_shapes_, graph::layer_distinct_weights(setup_.model, layer, cut_));
  }
  void add_embedding() {
    add_params(graph::embedding_params(setup_.model, cut_), 1);
    h_.saved_in_flight +=
        in_flight_ * to_double(graph::embedding_saved(setup_.model, cut_, setup_.practice).total());
  }
  void add_head() {
    const bool shared = c_.pp == 1;
    const auto tied = shared ? graph::TiedHead::shares_table : graph::TiedHead::own_copy;
    add_params(graph::head_params(setup_.model, cut_, tied), 1);
    for (std::int32_t i = 0; i < setup_.model.num_nextn_predict_layers; ++i) {
      add_params(graph::mtp_params(setup_.model, cut_), 1);
      add_memory(graph::mtp_saved(setup_.model, cut_, setup_.practice),
                 graph::head_transients(setup_.model, cut_, setup_.practice), 1);
    }
    head_shapes_ = graph::head_distinct_weights(setup_.model, cut_);
    h_.head_logits = head_peak(setup_.model, cut_, setup_.practice);
  }
  [[nodiscard]] RankHolding holding() const {
    RankHolding h = h_;
    h.distinct_gradient_shapes = static_cast<double>(layer_shapes_ + head_shapes_);
    return h;
  }

 private:
  void add_params(const graph::BlockParams& p, std::int32_t count) {
    h_.params.dense += count * p.dense;
    h_.params.replicated += count * p.replicated;
    h_.params.expert += count * p.expert;
    h_.largest_layer_params = std::max(h_.largest_layer_params, static_cast<double>(p.total()));
  }
  void add_memory(const graph::SavedBytes& saved, const graph::Transients& own, std::int32_t count) {
    const BlockMemory block =
        block_memory(saved, own.forward, own.backward, c_.recompute, c_.recompute_modules, slowest_rank_);
    h_.saved_per_microbatch += count * block.saved;
    h_.saved_in_flight += in_flight_ * count * block.saved;
    h_.transient = std::max(h_.transient, block.transient);
  }

  const Setup& setup_;
  const Candidate& c_;
  graph::Cut cut_;
  double in_flight_;
  double slowest_rank_ = 1.0;
  RankHolding h_;
  std::int64_t layer_shapes_ = 0, head_shapes_ = 0;
};

}  // namespace

std::string_view name(MemoryPart part) {
  switch (part) {
    case MemoryPart::weights:
      return "weights";
    case MemoryPart::gradients:
      return "gradients";
    case MemoryPart::optimizer:
      return "optimizer";
    case MemoryPart::activations:
      return "activations";
    case MemoryPart::transient:
      return "transient";
    case MemoryPart::buffers:
      return "buffers";
  }
  return "unknown";
}

double MemoryCost::allocated() const {
  double sum = 0;
  for (const double part : parts) sum += part;
  return sum;
}

double MemoryCost::reserved() const {
  return allocated() / kAllocatorFill;
}

BlockMemory block_memory(const graph::SavedBytes& saved, Bytes transient_forward, Bytes transient_backward,
                         spec::Recompute recompute, std::uint32_t modules, double slowest_rank) {
  graph::SavedBytes all = saved;
  if (all.experts.value > 0) {
    const auto loaded = [&](Bytes b) {
      return Bytes(static_cast<std::int64_t>(slowest_rank * static_cast<double>(b.value)));
    };
    all.experts = loaded(all.experts);
    all.activation = loaded(all.activation);
  }
  BlockMemory block;
  block.saved = to_double(all.kept(recompute, modules));
  block.transient = std::max(to_double(transient_forward),
                             to_double(transient_backward) + to_double(all.total()) - block.saved);
  return block;
}

double head_peak(const spec::ModelSpec& m, const graph::Cut& cut, const graph::Practice& practice) {
  const graph::Transients own = graph::head_transients(m, cut, practice);
  const double losses = 1.0 + m.num_nextn_predict_layers;
  return losses * to_double(graph::head_logits(m, cut, practice)) +
         to_double(std::max(own.forward, own.backward)) +
         to_double(graph::head_saved(m, cut, practice).total());
}

RankHolding holding(const Setup& setup, const Candidate& c, std::int32_t pipeline_rank) {
  const std::int64_t m = num_microbatches(setup.work, c);
  Holder holder(setup, c, in_flight(c.schedule, c.pp, c.vpp, m, pipeline_rank));
  const std::int32_t num_stages = c.pp * c.vpp;
  const StageSplit split(setup.model, num_stages, setup.practice.balanced_stages);
  const bool vee = schedule::placement_of(c.schedule) == schedule::Placement::vee;
  // Counted by class first: a rank has few.
  std::vector<std::pair<spec::LayerClass, std::int32_t>> classes;
  for (std::int32_t chunk = 0; chunk < c.vpp; ++chunk) {
    const std::int32_t stage =
        vee && chunk == 1 ? 2 * c.pp - 1 - pipeline_rank : chunk * c.pp + pipeline_rank;
    for (std::int32_t i = split.first(stage); i < split.first(stage + 1); ++i) {
      const spec::LayerClass layer = spec::layer_class(setup.model, i);
      const auto at = std::ranges::find(classes, layer, &std::pair<spec::LayerClass, std::int32_t>::first);
      if (at == classes.end())
        classes.emplace_back(layer, 1);
      else
        ++at->second;
    }
    if (stage == 0) holder.add_embedding();
    if (stage == num_stages - 1) holder.add_head();
  }
  for (const auto& [layer, count] : classes) holder.add_layers(layer, count);
  return holder.holding();
}

MemoryCost rank_memory(const Setup& setup, const Candidate& c, const RankHolding& h,
                       std::int32_t pipeline_rank) {
  const double w = weight_bytes(setup.work.precision);
  // An f32 or f64 model is its own master copy.
  const bool own_master = w > 2.0;
  const double g = own_master ? w : setup.practice.gradient_bytes + setup.practice.gradient_copy_bytes;
  const double o = own_master ? 2.0 * w : setup.practice.optimizer_bytes;
  const std::int32_t dense_shards = shards(c.dp * c.cp, c.zero_group);
  const std::int32_t expert_shards = shards(c.edp(), c.zero_group);
  const double dense = static_cast<double>(h.params.dense);
  const double expert = static_cast<double>(h.params.expert);
  const double sharded = dense / dense_shards + expert / expert_shards;
  const double whole = dense + expert;

  MemoryCost cost;
  cost.pipeline_rank = pipeline_rank;
  const auto part = [&](MemoryPart p) -> double& { return cost.parts[static_cast<std::size_t>(p)]; };
  part(MemoryPart::weights) = w * (c.zero_stage >= 3 ? 0.0 : whole);
  part(MemoryPart::gradients) = g * (c.zero_stage >= 2 ? sharded : whole);
  part(MemoryPart::optimizer) = o * (c.zero_stage >= 1 ? sharded : whole);
  if (c.zero_stage >= 3) {
    // The shard is the master weight among the optimizer's bytes; two units are gathered at a time.
    if (own_master) part(MemoryPart::weights) = w * sharded;
    part(MemoryPart::buffers) += 2.0 * w * h.largest_layer_params;
  }
  if (c.zero_stage >= 2) part(MemoryPart::buffers) += w * h.largest_layer_params;
  if (setup.practice.dummy_gradients) part(MemoryPart::buffers) += w * h.distinct_gradient_shapes;
  part(MemoryPart::activations) = h.saved_in_flight;
  const std::int64_t m = num_microbatches(setup.work, c);
  const double logits_in_flight =
      c.schedule == schedule::Kind::gpipe ? static_cast<double>(std::max<std::int64_t>(m, 1)) : 1.0;
  part(MemoryPart::transient) = std::max(h.transient, h.head_logits * logits_in_flight);
  return cost;
}

MemoryCost peak_memory(const Setup& setup, const Candidate& c) {
  MemoryCost most;
  for (std::int32_t r = 0; r < c.pp; ++r) {
    const MemoryCost cost = rank_memory(setup, c, holding(setup, c, r), r);
    if (r == 0 || cost.allocated() > most.allocated()) most = cost;
  }
  return most;
}

double in_flight(schedule::Kind kind, std::int32_t pp, std::int32_t vpp, std::int64_t m,
                 std::int32_t pipeline_rank) {
  switch (kind) {
    case schedule::Kind::naive:
      return 1.0;
    case schedule::Kind::gpipe:
      return static_cast<double>(m);
    case schedule::Kind::one_f_one_b:
      return static_cast<double>(std::min<std::int64_t>(m, pp - pipeline_rank));
    case schedule::Kind::combined:
      return static_cast<double>(std::min<std::int64_t>(m, std::int64_t{2} * (pp - pipeline_rank)));
    case schedule::Kind::zb_h1:
    case schedule::Kind::zb_v:
      return static_cast<double>(std::min<std::int64_t>(m, pp));
    case schedule::Kind::interleaved:
      break;
  }
  // Warm-up and one more, in the order of the chunks: groups of pp micro-batches, the last may be incomplete.
  const std::int64_t warm_up = std::int64_t{2} * (pp - 1 - pipeline_rank) + std::int64_t{vpp - 1} * pp;
  const std::int64_t begun = std::min(round_up(m, pp) * vpp, warm_up + 1);
  const std::int64_t in_whole_groups = std::min(begun, m / pp * pp * vpp);
  const std::int64_t rest = begun - in_whole_groups;
  const std::int64_t live = in_whole_groups + rest / pp * (m % pp) + std::min(rest % pp, m % pp);
  return static_cast<double>(live) / vpp;
}

}  // namespace tessera::cost
