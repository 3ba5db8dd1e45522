#include "exec/stage.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/math.h"
#include "exec/rope.h"

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

moe::Choice to_moe(spec::RouterChoice c) {
  switch (c) {
    case spec::RouterChoice::model:
      return moe::Choice::scores;
    case spec::RouterChoice::hash:
      return moe::Choice::hash;
    case spec::RouterChoice::expert_choice:
      return moe::Choice::expert_choice;
  }
  return moe::Choice::scores;
}

// The loss over all layers together needs them all on this rank; one with the previous step's counts does
// not.
std::unique_ptr<moe::LayerCounts> make_layer_counts(const spec::ModelSpec& m, const spec::Recipe& r,
                                                    const nn::Dims& dims) {
  const spec::MoeRecipe& e = r.moe;
  const bool joined = e.aux_loss_normalisation == spec::AuxNormalisation::huggingface &&
                      e.aux_loss_unit != spec::BalanceUnit::global_batch && e.aux_loss_coef > 0.0;
  if (!m.moe || !joined) return nullptr;
  const std::int64_t units = e.aux_loss_unit == spec::BalanceUnit::sequence ? dims.batch : 1;
  return std::make_unique<moe::LayerCounts>(static_cast<std::int32_t>(spec::moe_layers(m).size()),
                                            units * m.moe->num_experts);
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

kernels::ActivationOptions to_nn(const spec::ModelSpec& m) {
  using kernels::Activation;
  switch (m.hidden_act) {
    case spec::Activation::silu:
      return {.kind = Activation::swiglu};
    case spec::Activation::gelu:
      return {.kind = Activation::gelu};
    case spec::Activation::gelu_tanh:
      return {.kind = Activation::gelu_tanh};
    case spec::Activation::clamped_swiglu:
      return {.kind = Activation::clamped_swiglu, .limit = m.swiglu_limit};
    case spec::Activation::relu:
      TESSERA_CHECK(false, "the engine trains no model with relu");
  }
  return {.kind = Activation::swiglu};
}

nn::NormKind norm_of(const spec::ModelSpec& m) {
  return m.norm == spec::NormKind::rms ? nn::NormKind::rms : nn::NormKind::layer;
}

kernels::RouterScore score_of(const spec::MoeSpec& e) {
  if (e.score == spec::RouterScore::sigmoid) return kernels::RouterScore::sigmoid;
  return e.softmax_before_topk ? kernels::RouterScore::softmax_then_topk
                               : kernels::RouterScore::topk_then_softmax;
}

kernels::RouterOptions router_of(const spec::MoeSpec& e) {
  return {.top_k = e.num_experts_per_tok,
          .score = score_of(e),
          .renormalise = e.norm_topk_prob,
          .scale = e.routed_scaling_factor,
          .n_group = e.n_group,
          .topk_group = e.topk_group,
          .group_score = e.group_score == spec::GroupScore::max ? kernels::GroupScore::max
                                                                : kernels::GroupScore::top2_sum};
}

}  // namespace

// Takes parameters of the store one after another, in the order that layout::parameters states.
class Stage::Taker {
 public:
  Taker(ParamStore& store, StageId stage) : store_(store) {
    while (store_.params().at(at_).spec.stage != stage) ++at_;
  }
  [[nodiscard]] bool is_next(ParamKind kind) const {
    return at_ < store_.params().size() && store_.params()[at_].spec.kind == kind;
  }
  [[nodiscard]] const layout::ParamSpec& peek() const { return store_.params().at(at_).spec; }
  // The next one, which must be of this kind, with those that follow it in one fused weight.
  nn::Param take(ParamKind kind, Packing packing = Packing::packed) {
    TESSERA_CHECK(is_next(kind), "parameters come in the order that layout::parameters states");
    std::size_t count = 1;
    while (at_ + count < store_.params().size() && store_.params()[at_ + count].spec.follows) ++count;
    nn::Param p = store_.view(at_, count, packing);
    at_ += count;
    return p;
  }
  std::optional<nn::Param> take_if(ParamKind kind, Packing packing = Packing::packed) {
    if (!is_next(kind)) return std::nullopt;
    return take(kind, packing);
  }

 private:
  ParamStore& store_;
  std::size_t at_ = 0;
};

Stage::Stage(const Options& options, ParamStore& store, const Communicators& comms, Tensor cos_SP,
             Tensor sin_SP)
    : options_(options), layer_counts_(make_layer_counts(options.model, options.recipe, options.dims)) {
  Taker params(store, options_.id);
  if (options_.cut.has_embedding) add_embedding(params);
  for (std::int32_t l = 0; l < options_.cut.num_layers; ++l) {
    add_transformer_layer(options_.cut.first_layer + l, params, comms, cos_SP, sin_SP);
  }
  if (options_.cut.has_head) add_head(params, comms, cos_SP, sin_SP);
}

void Stage::add_embedding(Taker& params) {
  const std::int64_t vocab_begin = params.peek().slice.begin[0];
  Unit unit{.position = kEmbeddingPosition, .recomputed = false, .layers = {}, .mid = {}};
  nn::Embedding::Params p{.table_VH = params.take(ParamKind::embedding, Packing::none),
                          .position_PH = params.take_if(ParamKind::position, Packing::none)};
  unit.layers.push_back(std::make_unique<nn::Embedding>(options_.dims, p, vocab_begin));
  units_.push_back(std::move(unit));
}

void Stage::add_transformer_layer(std::int32_t layer, Taker& params, const Communicators& comms, Tensor cos,
                                  Tensor sin) {
  Unit unit{.position = layer,
            .recomputed = options_.recipe.recompute == spec::Recompute::full,
            .layers = {},
            .mid = {}};
  unit.layers.push_back(options_.model.mla ? make_latent_attention(layer, params, cos, sin)
                                           : make_attention(layer, params, cos, sin));
  unit.layers.push_back(spec::layer_class(options_.model, layer).moe ? make_moe(layer, params, comms)
                                                                     : make_mlp(params));
  units_.push_back(std::move(unit));
}

std::unique_ptr<nn::Layer> Stage::make_attention(std::int32_t layer, Taker& params, Tensor cos, Tensor sin) {
  const spec::ModelSpec& m = options_.model;
  const bool sliding = spec::layer_class(m, layer).span == spec::AttentionSpan::sliding;
  nn::Attention::Options o{.dims = options_.dims,
                           .heads = div_exact(m.num_attention_heads, options_.dims.tp),
                           .kv_heads = div_exact(m.num_key_value_heads, options_.dims.tp),
                           .head_dim = m.head_dim,
                           .norm_eps = m.rms_norm_eps,
                           .recompute = to_nn(options_.recipe.recompute),
                           .norm = norm_of(m),
                           .scale = attention_scale(m, layer),
                           .window = sliding ? m.sliding_window : 0,
                           .clip_qkv = m.clip_qkv,
                           .layer = layer};
  if (m.position != spec::PositionKind::rope) o.rope = std::nullopt;
  if (m.qk_norm) o.qk_norm = m.qk_norm_whole ? nn::QkNorm::whole : nn::QkNorm::per_head;
  nn::Attention::Params p;
  p.norm_H = params.take(ParamKind::norm);
  p.norm_bias_H = params.take_if(ParamKind::norm_bias);
  p.qkv = params.take(ParamKind::q);
  p.qkv_bias = params.take_if(ParamKind::q_bias);
  p.q_norm = params.take_if(ParamKind::q_norm);
  p.k_norm = params.take_if(ParamKind::k_norm);
  p.sinks_h = params.take_if(ParamKind::sinks);
  p.o = params.take(ParamKind::o);
  p.o_bias = params.take_if(ParamKind::o_bias);
  return std::make_unique<nn::Attention>(o, p, cos, sin);
}

std::unique_ptr<nn::Layer> Stage::make_latent_attention(std::int32_t layer, Taker& params, Tensor cos,
                                                        Tensor sin) {
  const spec::ModelSpec& m = options_.model;
  const spec::MlaSpec& a = *m.mla;
  nn::LatentAttention::Params p;
  p.norm_H = params.take(ParamKind::norm);
  p.q_a = params.take_if(ParamKind::q_a);
  p.q_a_bias = params.take_if(ParamKind::q_a_bias);
  p.q_a_norm = params.take_if(ParamKind::q_a_norm);
  p.q = params.take(p.q_a ? ParamKind::q_b : ParamKind::q);
  p.kv_a = params.take(ParamKind::kv_a);
  p.kv_a_bias = params.take_if(ParamKind::kv_a_bias);
  p.kv_a_norm = params.take(ParamKind::kv_a_norm);
  p.kv_b = params.take(ParamKind::kv_b);
  p.o = params.take(ParamKind::o);
  p.o_bias = params.take_if(ParamKind::o_bias);
  const auto pairs = m.rope_interleaved ? kernels::RopePairs::interleaved : kernels::RopePairs::halves;
  return std::make_unique<nn::LatentAttention>(
      nn::LatentAttention::Options{.dims = options_.dims,
                                   .heads = div_exact(m.num_attention_heads, options_.dims.tp),
                                   .nope_dim = a.qk_nope_head_dim,
                                   .rope_dim = a.qk_rope_head_dim,
                                   .v_dim = a.v_head_dim,
                                   .q_lora_rank = a.q_lora_rank,
                                   .kv_lora_rank = a.kv_lora_rank,
                                   .norm_eps = m.rms_norm_eps,
                                   .recompute = to_nn(options_.recipe.recompute),
                                   .scale = attention_scale(m, layer),
                                   .pairs = pairs,
                                   .layer = layer,
                                   .cached = options_.cached},
      p, cos, sin);
}

std::unique_ptr<nn::Layer> Stage::make_mlp(Taker& params) {
  const spec::ModelSpec& m = options_.model;
  nn::Mlp::Params p;
  p.norm_H = params.take(ParamKind::norm);
  p.norm_bias_H = params.take_if(ParamKind::norm_bias);
  p.up = params.take(m.gated_mlp ? ParamKind::gate : ParamKind::up);
  p.down = params.take(ParamKind::down);
  p.up_bias = params.take_if(m.gated_mlp ? ParamKind::gate_bias : ParamKind::up_bias);
  p.down_bias = params.take_if(ParamKind::down_bias);
  return std::make_unique<nn::Mlp>(
      nn::Mlp::Options{.dims = options_.dims,
                       .intermediate = div_exact(m.intermediate_size, options_.dims.tp),
                       .activation = to_nn(m),
                       .norm_eps = m.rms_norm_eps,
                       .recompute = to_nn(options_.recipe.recompute),
                       .norm = norm_of(m)},
      p);
}

moe::Params Stage::take_moe(std::int32_t layer, Taker& params) {
  const auto or_none = [](std::optional<nn::Param> p) { return p.value_or(nn::Param()); };
  moe::Params p;
  p.norm_H = params.take(ParamKind::norm);
  p.router_EH = params.take(ParamKind::router);
  p.router_bias_E = or_none(params.take_if(ParamKind::router_bias));
  p.correction_E = or_none(params.take_if(ParamKind::router_correction));
  if (params.is_next(ParamKind::shared_gate)) {
    p.shared.gate_up = params.take(ParamKind::shared_gate);
    p.shared.down = params.take(ParamKind::shared_down);
    p.shared.gate_1H = or_none(params.take_if(ParamKind::shared_expert_gate));
  }
  while (params.is_next(ParamKind::expert_gate) && params.peek().layer == layer) {
    moe::ExpertParams e;
    e.gate_up = params.take(ParamKind::expert_gate);
    e.gate_up_bias_Z = or_none(params.take_if(ParamKind::expert_gate_bias));
    e.down = params.take(ParamKind::expert_down);
    e.down_bias_H = or_none(params.take_if(ParamKind::expert_down_bias));
    p.experts.push_back(e);
  }
  return p;
}

std::unique_ptr<nn::Layer> Stage::make_moe(std::int32_t layer, Taker& params, const Communicators& comms) {
  const spec::ModelSpec& m = options_.model;
  const spec::MoeRecipe& r = options_.recipe.moe;
  auto made = std::make_unique<moe::MoeLayer>(
      moe::Options{.dims = options_.dims,
                   .num_experts = m.moe->num_experts,
                   .intermediate = div_exact(spec::expert_intermediate_size(m), options_.etp),
                   .router = router_of(*m.moe),
                   .norm_eps = m.rms_norm_eps,
                   .recompute = to_nn(options_.recipe.recompute),
                   .unit = to_moe(r.aux_loss_unit),
                   .aux_loss_coef = r.aux_loss_coef * options_.aux_loss_scale,
                   .z_loss_coef = r.z_loss_coef,
                   .capacity_factor = r.capacity_factor,
                   .drop_policy = to_moe(r.drop_policy),
                   .units_in_group = options_.units_in_group,
                   .activation = to_nn(m),
                   .shared_intermediate = div_exact(m.moe->shared_intermediate_size, options_.dims.tp),
                   .choice = to_moe(r.router),
                   .padding = r.pad_to_capacity ? moe::Padding::to_capacity : moe::Padding::none,
                   .dispatch = options_.dispatch,
                   .router_jitter = r.router_jitter,
                   .seed = options_.recipe.seed,
                   .layer = layer,
                   .joined = layer_counts_.get(),
                   .expert_of_slot = options_.expert_of_slot.empty()
                                         ? std::vector<std::int32_t>{}
                                         : options_.expert_of_slot[static_cast<std::size_t>(layer)]},
      take_moe(layer, params), comms.expert_groups());
  mixtures_.push_back({layer, made.get()});
  return made;
}

void Stage::add_head(Taker& params, const Communicators& comms, Tensor cos, Tensor sin) {
  nn::Head::Params p;
  p.norm_H = params.take(ParamKind::norm);
  p.norm_bias_H = params.take_if(ParamKind::norm_bias);
  const layout::Slice slice = params.peek().slice;
  p.head_VH = params.take(ParamKind::head);  // or the tied copy
  const nn::Head::Options o{.dims = options_.dims,
                            .vocab = slice.size[0],
                            .vocab_begin = slice.begin[0],
                            .norm_eps = options_.model.rms_norm_eps,
                            .norm = norm_of(options_.model)};
  auto head = std::make_unique<nn::Head>(o, p);
  head_ = head.get();
  Unit unit{.position = kHeadPosition, .recomputed = false, .layers = {}, .mid = {}};
  if (options_.model.num_nextn_predict_layers > 0) {
    unit.layers.push_back(make_mtp(std::move(head), o, p.head_VH, params, comms, cos, sin));
  } else {
    unit.layers.push_back(std::move(head));
  }
  units_.push_back(std::move(unit));
}

std::unique_ptr<nn::Layer> Stage::make_mtp(std::unique_ptr<nn::Head> head, const nn::Head::Options& options,
                                           const nn::Param& head_VH, Taker& params,
                                           const Communicators& comms, Tensor cos, Tensor sin) {
  const spec::ModelSpec& m = options_.model;
  const nn::Param table_VH =
      m.tie_word_embeddings ? head_VH : params.take(ParamKind::mtp_embedding, Packing::none);
  const auto norm = [&] {
    return nn::Norm(options.norm, options.norm_eps, params.take(ParamKind::norm), {});
  };
  std::vector<MtpDepth> depths;
  for (std::int32_t k = 0; k < m.num_nextn_predict_layers; ++k) {
    const std::int32_t layer = m.num_hidden_layers + k;
    nn::Norm embedding_norm = norm();
    nn::Norm stream_norm = norm();
    const nn::Param proj_HC = params.take(ParamKind::mtp_proj);
    auto attention =
        m.mla ? make_latent_attention(layer, params, cos, sin) : make_attention(layer, params, cos, sin);
    auto feed_forward = spec::layer_class(m, layer).moe ? make_moe(layer, params, comms) : make_mlp(params);
    const nn::Head::Params own{.norm_H = params.take(ParamKind::norm), .head_VH = head_VH};
    depths.push_back({.embedding_norm = embedding_norm,
                      .stream_norm = stream_norm,
                      .proj_HC = proj_HC,
                      .embedding = std::make_unique<nn::Embedding>(
                          options_.dims, nn::Embedding::Params{.table_VH = table_VH}, options.vocab_begin),
                      .attention = std::move(attention),
                      .feed_forward = std::move(feed_forward),
                      .head = std::make_unique<nn::Head>(options, own)});
  }
  auto made = std::make_unique<HeadWithMtp>(options_.dims, options_.recipe.mtp_loss_coef, std::move(head),
                                            std::move(depths));
  mtp_ = made.get();
  return made;
}

// ---------------------------------------------------------------------------------------------- memory

void Stage::reserve_unit_saved(Unit& unit, Arena& arena) {
  if (unit.layers.size() > 1) {
    unit.mid.push_back(arena.take(options_.dims.dtype, {options_.dims.local_tokens(), options_.dims.hidden}));
  }
  for (auto& layer : unit.layers) layer->reserve_saved(arena);
}

void Stage::reserve_overlaid(Arena& arena, const std::function<void(Unit&)>& reserve) {
  const ArenaSize base = arena.mark();
  ArenaSize most = base;
  for (Unit& unit : units_) {
    reserve(unit);
    most = most.join(arena.mark());
    arena.release(base);
  }
  arena.cover(most);
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

ArenaSize Stage::scratch_size() const {
  ArenaSize most;
  for (const Unit& unit : units_) {
    for (const auto& layer : unit.layers) {
      Arena counting;
      layer->measure_scratch(counting);
      most = most.join(counting.size());
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
void Stage::add_losses(nn::Kernels& kernels, Tensor losses_2, std::int32_t live) const {
  kernels.accumulate(losses_2.narrow_rows(0, 1), head().loss_1(live));
  if (mtp_ != nullptr) mtp_->add_loss(kernels, losses_2.narrow_rows(1, 1), live);
}
double Stage::mtp_loss(std::int32_t live) const {
  return mtp_ != nullptr ? mtp_->loss(live) : 0.0;
}

void Stage::run_forward(nn::Context& ctx, Unit& unit, nn::Slots slots, const nn::Microbatch& mb, Tensor x,
                        Tensor y, nn::Pass pass) {
  ctx.at_layer(unit.position);
  if (unit.layers.size() == 1) {
    unit.layers[0]->forward(ctx, slots, mb, x, y, pass);
    return;
  }
  const Tensor mid = unit.mid.at(static_cast<std::size_t>(slots.saved));
  unit.layers[0]->forward(ctx, slots, mb, x, mid, pass);
  unit.layers[1]->forward(ctx, slots, mb, mid, y, pass);
}

void Stage::prepare(std::size_t unit, UnitPass pass) {
  if (guard_ == nullptr) return;
  const std::size_t next = pass == UnitPass::forward ? unit + 1 : unit - 1;  // before the first: none
  guard_->before_unit(options_.id, pass, units_[unit].position,
                      next < units_.size() ? units_[next].position : kNoUnit);
}

void Stage::forward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb) {
  const std::int32_t thrown_away = counts_.fused ? 0 : counts_.deferred;
  for (std::size_t u = 0; u < units_.size(); ++u) {
    Unit& unit = units_[u];
    prepare(u, UnitPass::forward);
    const nn::Slots slots{.saved = unit.recomputed ? thrown_away : slot.live, .deferred = slot.deferred};
    run_forward(ctx, unit, slots, mb, boundary(slot.live, u), boundary(slot.live, u + 1), nn::Pass::forward);
    if (listener_ != nullptr) tell_listener(ctx, unit, mb, slots.saved);
  }
}

void Stage::tell_listener(const nn::Context& ctx, const Unit& unit, const nn::Microbatch& mb,
                          std::int32_t saved) {
  const bool ran_mtp = unit.position == kHeadPosition && ctx.training;
  for (const Mixture& mixture : mixtures_) {
    const bool mtp = mixture.layer >= options_.model.num_hidden_layers;
    if (mtp ? ran_mtp : mixture.layer == unit.position) listener_->on_routed(mixture, mb, saved);
  }
}

void Stage::unit_backward_input(nn::Context& ctx, std::size_t u, StageSlot slot, const nn::Microbatch& mb) {
  Unit& unit = units_[u];
  const nn::Slots slots = slots_of(unit, slot);
  ctx.at_layer(unit.position);
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
  ctx.at_layer(unit.position);
  for (std::size_t i = unit.layers.size(); i-- > 0;) {
    unit.layers[i]->backward_weight(ctx, slots_of(unit, slot), mb);
  }
}

void Stage::backward_input(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb) {
  for (std::size_t u = units_.size(); u-- > 0;) {
    prepare(u, UnitPass::backward_input);
    unit_backward_input(ctx, u, slot, mb);
  }
}

void Stage::unit_done(const Unit& unit, const UnitDone& done) const {
  done(unit.position);
  if (unit.position != kHeadPosition || mtp_ == nullptr) return;
  for (std::int32_t k = options_.model.num_nextn_predict_layers; k-- > 0;)
    done(options_.model.num_hidden_layers + k);
}

void Stage::backward_weight(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb,
                            const UnitDone& done) {
  for (std::size_t u = units_.size(); u-- > 0;) {
    prepare(u, UnitPass::backward_weight);
    unit_backward_weight(ctx, units_[u], slot, mb);
    unit_done(units_[u], done);
  }
}

void Stage::backward(nn::Context& ctx, StageSlot slot, const nn::Microbatch& mb, const UnitDone& done) {
  for (std::size_t u = units_.size(); u-- > 0;) {
    prepare(u, UnitPass::backward);
    unit_backward_input(ctx, u, slot, mb);
    unit_backward_weight(ctx, units_[u], slot, mb);
    unit_done(units_[u], done);
  }
}

}  // namespace tessera::exec
