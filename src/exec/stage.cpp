#include "exec/stage.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/math.h"

namespace tessera::exec {

using layout::ParamKind;

namespace {

nn::Recompute to_nn(spec::Recompute r) {
  switch (r) {
    case spec::Recompute::selective:
      return nn::Recompute::selective;
    case spec::Recompute::none:
    case spec::Recompute::full:
      return nn::Recompute::none;  // full: whole units, by the stage
  }
  return nn::Recompute::none;
}

moe::BalanceUnit to_moe(spec::BalanceUnit u) {
  switch (u) {
    case spec::BalanceUnit::sequence:
      return moe::BalanceUnit::sequence;
    case spec::BalanceUnit::micro_batch:
      return moe::BalanceUnit::micro_batch;
    case spec::BalanceUnit::global_batch:
      return moe::BalanceUnit::global_batch;
  }
  return moe::BalanceUnit::micro_batch;
}

moe::DropPolicy to_moe(spec::DropPolicy p) {
  switch (p) {
    case spec::DropPolicy::position:
      return moe::DropPolicy::position;
    case spec::DropPolicy::probs:
      return moe::DropPolicy::probs;
  }
  return moe::DropPolicy::position;
}

// Takes the next `count` parameters of the store, which must begin with `kind`, as one weight.
nn::Param next(ParamStore& store, std::size_t& at, ParamKind kind, std::size_t count, Packing packing) {
  TESSERA_CHECK_EQ(static_cast<int>(store.params().at(at).spec.kind), static_cast<int>(kind),
                   "parameters come in the order that layout::parameters states");
  nn::Param p = store.view(at, count, packing);
  at += count;
  return p;
}

}  // namespace

Stage::Stage(const Options& options, ParamStore& store, const Communicators& comms, Tensor cos_SP,
             Tensor sin_SP)
    : options_(options) {
  std::size_t at = 0;
  while (store.params().at(at).spec.stage != options_.id) ++at;
  if (options_.cut.has_embedding) add_embedding(store, at);
  for (std::int32_t l = 0; l < options_.cut.num_layers; ++l) {
    add_transformer_layer(options_.cut.first_layer + l, store, comms, cos_SP, sin_SP, at);
  }
  if (options_.cut.has_head) add_head(store, at);
}

void Stage::add_embedding(ParamStore& store, std::size_t& at) {
  const std::int64_t vocab_begin = store.params().at(at).spec.slice.begin[0];
  Unit unit{.position = kEmbeddingPosition, .recomputed = false, .layers = {}, .mid = {}};
  unit.layers.push_back(std::make_unique<nn::Embedding>(
      options_.dims, next(store, at, ParamKind::embedding, 1, Packing::none), vocab_begin));
  units_.push_back(std::move(unit));
}

void Stage::add_transformer_layer(std::int32_t layer, ParamStore& store, const Communicators& comms,
                                  Tensor cos, Tensor sin, std::size_t& at) {
  const spec::ModelSpec& m = options_.model;
  const nn::Dims& dims = options_.dims;
  Unit unit{.position = layer,
            .recomputed = options_.recipe.recompute == spec::Recompute::full,
            .layers = {},
            .mid = {}};
  nn::Attention::Params attention;
  attention.norm_H = next(store, at, ParamKind::norm, 1, Packing::none);
  attention.qkv = next(store, at, ParamKind::q, 3, Packing::packed);
  attention.o = next(store, at, ParamKind::o, 1, Packing::packed);
  unit.layers.push_back(std::make_unique<nn::Attention>(
      nn::Attention::Options{.dims = dims,
                             .heads = div_exact(m.num_attention_heads, dims.tp),
                             .kv_heads = div_exact(m.num_key_value_heads, dims.tp),
                             .head_dim = m.head_dim,
                             .norm_eps = m.rms_norm_eps,
                             .recompute = to_nn(options_.recipe.recompute)},
      attention, cos, sin));
  nn::Param norm = next(store, at, ParamKind::norm, 1, Packing::none);
  if (m.moe) {
    unit.layers.push_back(make_moe(layer, norm, store, comms, at));
  } else {
    nn::Mlp::Params mlp;
    mlp.norm_H = norm;
    mlp.gate_up = next(store, at, ParamKind::gate, 2, Packing::packed);
    mlp.down = next(store, at, ParamKind::down, 1, Packing::packed);
    unit.layers.push_back(
        std::make_unique<nn::Mlp>(nn::Mlp::Options{.dims = dims,
                                                   .intermediate = div_exact(m.intermediate_size, dims.tp),
                                                   .norm_eps = m.rms_norm_eps,
                                                   .recompute = to_nn(options_.recipe.recompute)},
                                  mlp));
  }
  units_.push_back(std::move(unit));
}

std::unique_ptr<nn::Layer> Stage::make_moe(std::int32_t layer, nn::Param norm, ParamStore& store,
                                           const Communicators& comms, std::size_t& at) {
  const spec::ModelSpec& m = options_.model;
  const spec::MoeRecipe& r = options_.recipe.moe;
  moe::Params params;
  params.norm_H = norm;
  params.router_EH = next(store, at, ParamKind::router, 1, Packing::packed);
  while (at < store.params().size() && store.params()[at].spec.kind == ParamKind::expert_gate &&
         store.params()[at].spec.layer == layer) {
    moe::ExpertParams expert;
    expert.gate_up = next(store, at, ParamKind::expert_gate, 2, Packing::packed);
    expert.down = next(store, at, ParamKind::expert_down, 1, Packing::packed);
    params.experts.push_back(expert);
  }
  auto made = std::make_unique<moe::MoeLayer>(
      moe::Options{.dims = options_.dims,
                   .num_experts = m.moe->num_experts,
                   .intermediate = div_exact(m.intermediate_size, options_.etp),
                   .router = {.top_k = m.moe->num_experts_per_tok,
                              .score = m.moe->softmax_before_topk ? kernels::RouterScore::softmax_then_topk
                                                                  : kernels::RouterScore::topk_then_softmax,
                              .renormalise = m.moe->norm_topk_prob},
                   .norm_eps = m.rms_norm_eps,
                   .recompute = to_nn(options_.recipe.recompute),
                   .unit = to_moe(r.aux_loss_unit),
                   .aux_loss_coef = r.aux_loss_coef,
                   .z_loss_coef = r.z_loss_coef,
                   .capacity_factor = r.capacity_factor,
                   .drop_policy = to_moe(r.drop_policy),
                   .units_in_group = options_.units_in_group},
      params, *comms.ep, *comms.etp);
  mixtures_.push_back({layer, made.get()});
  return made;
}

void Stage::add_head(ParamStore& store, std::size_t& at) {
  nn::Head::Params params;
  params.norm_H = next(store, at, ParamKind::norm, 1, Packing::none);
  const layout::Slice slice = store.params().at(at).spec.slice;
  // A tied copy is listed under the embedding's kind or the head's: either way it is the next matrix.
  params.head_VH = next(store, at, store.params().at(at).spec.kind, 1, Packing::packed);
  auto head = std::make_unique<nn::Head>(nn::Head::Options{.dims = options_.dims,
                                                           .vocab = slice.size[0],
                                                           .vocab_begin = slice.begin[0],
                                                           .norm_eps = options_.model.rms_norm_eps},
                                         params);
  head_ = head.get();
  Unit unit{.position = kHeadPosition, .recomputed = false, .layers = {}, .mid = {}};
  unit.layers.push_back(std::move(head));
  units_.push_back(std::move(unit));
}

// ---------------------------------------------------------------------------------------------- memory

void Stage::reserve_unit_saved(Unit& unit, Arena& arena) {
  if (unit.layers.size() > 1) {
    unit.mid.push_back(arena.take(options_.dims.dtype, {options_.dims.local_tokens(), options_.dims.hidden}));
  }
  for (auto& layer : unit.layers) layer->reserve_saved(arena);
}

void Stage::reserve_overlaid(Arena& arena, const std::function<void(Unit&)>& reserve) {
  const std::int64_t base = arena.mark();
  std::int64_t most = base;
  for (Unit& unit : units_) {
    reserve(unit);
    most = std::max(most, arena.mark());
    arena.release(base);
  }
  (void)arena.take(DType::u8, {most - base});
}

void Stage::reserve_live(const SlotCounts& counts, Arena& arena) {
  counts_ = counts;
  const nn::Dims& d = options_.dims;
  const auto stream = [&] { return arena.take(d.dtype, {d.local_tokens(), d.hidden}); };
  for (std::int32_t live = 0; live < counts.live; ++live) {
    std::vector<Tensor> row;
    for (std::size_t u = 0; u <= units_.size(); ++u) {
      const bool absent =
          (u == 0 && options_.cut.has_embedding) || (u == units_.size() && options_.cut.has_head);
      row.push_back(absent ? Tensor() : stream());
    }
    boundaries_.push_back(std::move(row));
    for (Unit& unit : units_) {
      if (!unit.recomputed) reserve_unit_saved(unit, arena);
    }
  }
  for (std::int32_t g = 0; g < counts.gradient; ++g) gradients_.push_back(stream());
}

void Stage::reserve_deferred(Arena& arena) {
  const auto recomputed = [&](Unit& unit) {
    if (unit.recomputed) reserve_unit_saved(unit, arena);
  };
  const auto deferred = [&](Unit& unit) {
    for (auto& layer : unit.layers) layer->reserve_deferred(arena);
  };
  for (std::int32_t i = 0; i < counts_.deferred; ++i) {
    if (counts_.fused) {
      reserve_overlaid(arena, [&](Unit& unit) {
        recomputed(unit);
        deferred(unit);
      });
      continue;
    }
    for (Unit& unit : units_) {
      recomputed(unit);
      deferred(unit);
    }
  }
  // Forward needs a place for values that are thrown away; outstanding W's must not lose theirs to it.
  if (!counts_.fused) reserve_overlaid(arena, recomputed);
}

Bytes Stage::scratch_bytes() const {
  Bytes most;
  for (const Unit& unit : units_) {
    for (const auto& layer : unit.layers) {
      Arena counting;
      layer->measure_scratch(counting);
      most = std::max(most, counting.peak());
    }
  }
  return most;
}

// ---------------------------------------------------------------------------------------------- running

nn::Slots Stage::slots_of(const Unit& unit, StageSlot slot) const {
  return {.saved = unit.recomputed ? slot.deferred : slot.live, .deferred = slot.deferred};
}

Tensor Stage::boundary(std::int32_t live, std::size_t unit) const {
  return boundaries_.at(static_cast<std::size_t>(live)).at(unit);
}
Tensor Stage::input(std::int32_t live) const {
  return boundary(live, 0);
}
Tensor Stage::output(std::int32_t live) const {
  return boundary(live, units_.size());
}
Tensor Stage::gradient(std::int32_t gradient) const {
  return gradients_.at(static_cast<std::size_t>(gradient));
}

const nn::Head& Stage::head() const {
  TESSERA_CHECK(head_ != nullptr, "this stage has no head");
  return *head_;
}
double Stage::loss(std::int32_t live) const {
  return head().loss(live);
}

void Stage::run_forward(nn::Context& ctx, Unit& unit, nn::Slots slots, const nn::Microbatch& mb, Tensor x,
                        Tensor y, nn::Pass pass) {
  if (unit.layers.size() == 1) {
    unit.layers[0]->forward(ctx, slots, mb, x, y, pass);
    return;
  }
  const Tensor mid = unit.mid.at(static_cast<std::size_t>(slots.saved));
  unit.layers[0]->forward(ctx, slots, mb, x, mid, pass);
  unit.layers[1]->forward(ctx, slots, mb, mid, y, pass);
}

void Stage::forward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb) {
  const std::int32_t thrown_away = counts_.fused ? 0 : counts_.deferred;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    Unit& unit = units_[u];
    const nn::Slots slots{.saved = unit.recomputed ? thrown_away : slot.live, .deferred = slot.deferred};
    run_forward(ctx, unit, slots, mb, boundary(slot.live, u), boundary(slot.live, u + 1), nn::Pass::forward);
  }
}

void Stage::unit_backward_input(nn::Context& ctx, std::size_t u, StageSlot slot, const nn::Microbatch& mb) {
  Unit& unit = units_[u];
  const nn::Slots slots = slots_of(unit, slot);
  if (unit.recomputed) {
    // The unit's output is written again with the same bits; its boundary is still the input of the next
    // unit.
    run_forward(ctx, unit, slots, mb, boundary(slot.live, u), boundary(slot.live, u + 1),
                nn::Pass::recompute);
  }
  for (std::size_t i = unit.layers.size(); i-- > 0;) {
    unit.layers[i]->backward_input(ctx, slots, mb, gradient(slot.gradient));
  }
}

void Stage::unit_backward_weight(nn::Context& ctx, Unit& unit, StageSlot slot, const nn::Microbatch& mb) {
  for (std::size_t i = unit.layers.size(); i-- > 0;) {
    unit.layers[i]->backward_weight(ctx, slots_of(unit, slot), mb);
  }
}

void Stage::backward_input(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb) {
  for (std::size_t u = units_.size(); u-- > 0;) unit_backward_input(ctx, u, slot, mb);
}

void Stage::backward_weight(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb,
                            const UnitDone& done) {
  for (std::size_t u = units_.size(); u-- > 0;) {
    unit_backward_weight(ctx, units_[u], slot, mb);
    done(units_[u].position);
  }
}

void Stage::backward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb, const UnitDone& done) {
  for (std::size_t u = units_.size(); u-- > 0;) {
    unit_backward_input(ctx, u, slot, mb);
    unit_backward_weight(ctx, units_[u], slot, mb);
    done(units_[u].position);
  }
}

}  // namespace tessera::exec
