#include "exec/forward_model.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "exec/rope.h"

namespace tessera::exec {

using layout::Axis;
using layout::ParamKind;

namespace {
// MTP layers have no part in a forward pass.
ForwardOptions main_model(ForwardOptions options) {
  options.model.num_nextn_predict_layers = 0;
  return options;
}

// Every layer as many slots, which the ep ranks share evenly, and every expert in one at least.
void check_slots(const ForwardOptions& o, Problems& problems) {
  const std::string where = "placement";
  const auto moe_layers = o.model.moe ? std::ssize(spec::moe_layers(main_model(o).model)) : 0;
  if (std::ssize(o.expert_of_slot) != moe_layers) {
    problems.add(
        fmt::format("slots of {} layers for a model of {} MoE layers", o.expert_of_slot.size(), moe_layers),
        where, "give the placement of this model");
    return;
  }
  const auto slots = std::ssize(o.expert_of_slot.front());
  if (slots % o.parallel.ep != 0) {
    problems.add(fmt::format("{} slots are not shared evenly by ep={} ranks", slots, o.parallel.ep), where,
                 "place for as many GPUs as ep ranks");
  }
  for (std::size_t l = 0; l < o.expert_of_slot.size(); ++l) {
    std::vector<bool> seen(static_cast<std::size_t>(o.model.moe->num_experts), false);
    bool fits = std::ssize(o.expert_of_slot[l]) == slots;
    for (const std::int32_t e : o.expert_of_slot[l]) {
      fits = fits && e >= 0 && e < o.model.moe->num_experts;
      if (fits) seen[static_cast<std::size_t>(e)] = true;
    }
    if (fits && std::ranges::find(seen, false) == seen.end()) continue;
    problems.add(fmt::format("MoE layer {} does not have every one of the {} experts in its {} slots", l,
                             seen.size(), slots),
                 where, "give the placement of this model");
    return;
  }
}
}  // namespace

void check_forward(const ForwardOptions& o, Problems& problems) {
  spec::Job job;
  job.model = main_model(o).model;
  job.parallel = o.parallel;
  job.train.steps = 1;
  job.train.sequence_length = o.context;
  job.train.micro_batch_size = o.parallel.tp;
  job.train.global_batch_size = std::int64_t{o.parallel.tp} * o.parallel.dp;
  job.train.optimizer = {};
  job.train.precision = o.dtype == tensor::DType::bf16  ? spec::Precision::bf16
                        : o.dtype == tensor::DType::f64 ? spec::Precision::f64
                                                        : spec::Precision::f32;
  Problems found;
  spec::validate(job, "", found);
  if (found.empty()) spec::check_engine_runs(job, "", found, o.compute.on);
  if (!o.expert_of_slot.empty()) check_slots(o, found);
  problems.append(found);
}

namespace {
layout::Layout layout_of(const ForwardOptions& o) {
  layout::Layout layout = layout::make_layout(o.model, o.parallel, layout::Placement::loop);
  if (o.expert_of_slot.empty()) return layout;
  layout.expert_of_slot.resize(static_cast<std::size_t>(o.model.num_hidden_layers));
  auto slots = o.expert_of_slot.begin();
  for (const std::int32_t l : spec::moe_layers(o.model))
    layout.expert_of_slot[static_cast<std::size_t>(l)] = *slots++;
  return layout;
}

// Replicas whose rows meet in this rank's etp x ep group.
std::int64_t replicas_in_expert_group(const layout::Layout& layout, Rank rank) {
  std::set<std::int32_t> replicas;
  for (const Rank r : layout.expert.group(rank, {Axis::etp, Axis::ep}))
    replicas.insert(layout.dense.coordinate(r, Axis::dp));
  return static_cast<std::int64_t>(replicas.size());
}

bool is_expert(ParamKind kind) {
  return kind == ParamKind::expert_gate || kind == ParamKind::expert_up || kind == ParamKind::expert_down ||
         kind == ParamKind::expert_gate_bias || kind == ParamKind::expert_up_bias ||
         kind == ParamKind::expert_down_bias;
}
}  // namespace

ForwardModel::ForwardModel(const ForwardOptions& options, Rank rank, const CommFactory& factory)
    : options_(main_model(options)),
      rank_(rank),
      layout_(layout_of(main_model(options))),
      kernels_(kernels_for(rank, options.compute.kernels)),
      network_(options.compute.network ? options.compute.network(rank, kernels_->memory()) : nullptr),
      comms_(make_communicators(layout_, rank, options.model.tie_word_embeddings, 1, factory,
                                {.memory = kernels_->memory(), .network = network_.get()})) {}

void ForwardModel::set_up(const std::function<ArenaSize(Arena&)>& build) {
  const auto once = [&](Arena& arena) {
    store_ = std::make_unique<ParamStore>(
        layout::parameters(options_.model, layout_, rank_),
        StoreOptions{.dtype = options_.dtype, .training = false, .tied = options_.model.tie_word_embeddings},
        comms_, *kernels_, arena);
    cos_ = arena.take(tensor::stats_of(options_.dtype), {options_.context, options_.model.rotated_dim() / 2});
    sin_ = arena.take(tensor::stats_of(options_.dtype), {options_.context, options_.model.rotated_dim() / 2});
    return build(arena);
  };
  Arena counting;
  const ArenaSize scratch = once(counting);
  arena_ = Arena(kernels_->memory(), counting.size());
  scratch_ = Arena(kernels_->memory(), scratch);
  (void)once(arena_);
  fill_rope_tables(options_.model, {.length = options_.context}, cos_, sin_, *kernels_->memory());
}

void ForwardModel::load(const ckpt::WeightSource& source) {
  store_->write_values([&](const StoredParam& p) {
    source.read({.name = p.spec.name,
                 .num_dims = p.spec.num_dims,
                 .global = p.spec.global,
                 .slice = p.spec.slice,
                 .data = p.value});
  });
  store_->pack(*kernels_);
}

std::unique_ptr<Stage> ForwardModel::make_stage(std::int64_t batch, std::int64_t seq, Parts parts,
                                                bool cached) {
  layout::StageCut cut = layout_.stages.at(0);
  if (parts == Parts::without_head) cut.has_head = false;
  return std::make_unique<Stage>(Stage::Options{.model = options_.model,
                                                .recipe = {},
                                                .cut = cut,
                                                .id = StageId(0),
                                                .dims = {.dtype = options_.dtype,
                                                         .batch = batch,
                                                         .seq = seq,
                                                         .hidden = options_.model.hidden_size,
                                                         .tp = options_.parallel.tp},
                                                .etp = options_.parallel.etp,
                                                .units_in_group = replicas_in_expert_group(layout_, rank_),
                                                .cached = cached,
                                                .expert_of_slot = layout_.expert_of_slot},
                                 *store_, comms_, cos_, sin_);
}

ForwardModel::ActiveBytes ForwardModel::active_bytes() const {
  ActiveBytes bytes;
  for (const StoredParam& p : store_->params()) {
    // Products beside bf16 rows read the copy in bf16.
    const auto size = static_cast<double>(p.value.num_elements() * size_of(options_.dtype));
    if (is_expert(p.spec.kind)) {
      const std::int32_t slots = layout_.slots_of(p.spec.layer, options_.model.moe->num_experts);
      bytes.experts += size * options_.model.moe->num_experts_per_tok / slots;
    } else if (!layout::is_input(p.spec.kind) || p.spec.tied_copy) {
      bytes.dense += size;
    }
  }
  return bytes;
}

}  // namespace tessera::exec
