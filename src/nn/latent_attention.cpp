// T tokens of the micro-batch, t of this rank, H hidden, L columns of a latent (of kv: before the norm with
// the rope key behind it), r = rope_dim. Heads are those of this rank.
#include "nn/latent_attention.h"

#include <cmath>

#include "nn/projection.h"
#include "nn/tp_overlap.h"

namespace tessera::nn {

namespace {

using kernels::ColumnGroups;
using kernels::GroupNormOptions;
using kernels::Write;

// A latent is one group: its first `width` columns.
struct LatentNorm {
  ColumnGroups columns;
  GroupNormOptions options;
  LatentNorm(std::int64_t width, double eps)
      : columns{.first = 0, .groups = 1, .width = width}, options{.eps = eps, .count = width} {}
};

void normalise_latent(Context& ctx, const LatentNorm& norm, Tensor latent_TL, Tensor raw_tL,
                      Tensor squares_t1, const Param& w_L) {
  const Tensor own_tL = local_rows(ctx, latent_TL);
  ctx.kernels.group_norm(own_tL, raw_tL, squares_t1, w_L.weight.value_NK, norm.options, norm.columns);
  gather_rows(ctx, latent_TL, own_tL);
}

// dlatent_TL: of this rank's heads, destroyed. dw_L =, the columns of the latent in draw_tL =.
void latent_backward(Context& ctx, const LatentNorm& norm, Tensor draw_tL, Tensor dw_L, Tensor dlatent_TL,
                     Tensor raw_tL, Tensor squares_t1, Tensor dots_t1, const Param& w_L) {
  Kernels& k = ctx.kernels;
  const Tensor own_tL = local_rows(ctx, dlatent_TL);
  const Tensor w = w_L.weight.value_NK;
  scatter_sum(ctx, own_tL, dlatent_TL);
  k.group_norm_wgrad(dw_L, own_tL, raw_tL, squares_t1, norm.options, norm.columns, Write::overwrite);
  k.group_norm_dots(dots_t1, own_tL, raw_tL, w, norm.columns);
  k.group_norm_dgrad(draw_tL, own_tL, raw_tL, squares_t1, dots_t1, w, norm.options, norm.columns);
}

}  // namespace

LatentAttention::LatentAttention(Options options, Params params, Tensor cos_SP, Tensor sin_SP)
    : o_(options),
      p_(params),
      norm_(NormKind::rms, options.norm_eps, params.norm_H, std::nullopt),
      ring_(options.dims.dtype, shape(), options.dims.cp),
      cos_(cos_SP),
      sin_(sin_SP) {
  TESSERA_CHECK(p_.q_a.has_value() == q_has_latent() && p_.q_a_norm.has_value() == q_has_latent(),
                "latent attention has weights for the latent of q when q has one");
  TESSERA_CHECK(q_has_latent() || !p_.q_a_bias, "a query without latent has no bias");
}

kernels::AttentionShape LatentAttention::shape() const {
  return {.batch = o_.dims.batch,
          .seq = o_.dims.seq,
          .heads = o_.heads,
          .kv_heads = o_.heads,
          .head_dim = qk_dim(),
          .scale = o_.scale > 0.0 ? o_.scale : 1.0 / std::sqrt(static_cast<double>(qk_dim())),
          .v_head_dim = o_.v_dim};
}

// ---------------------------------------------------------------------------------------------- memory

LatentAttention::Inputs LatentAttention::take_inputs(Arena& arena) const {
  const Dims& d = o_.dims;
  Inputs in;
  in.n = arena.take(d.dtype, {q_has_latent() ? d.local_tokens() : d.tokens(), d.hidden});
  if (q_has_latent()) in.q_latent_TL = arena.take(d.dtype, {d.tokens(), o_.q_lora_rank});
  in.kv_latent_TL = arena.take(d.dtype, {d.tokens(), o_.kv_lora_rank});
  return in;
}

Tensor LatentAttention::take_qkv(Arena& arena) const {
  return arena.take(o_.dims.dtype, {o_.dims.tokens(), shape().qkv_dim()});
}

Tensor LatentAttention::take_partial(Arena& arena) const {
  return arena.take(o_.dims.dtype, {o_.dims.tokens(), o_.dims.hidden});
}

struct LatentAttention::UpScratch {
  Tensor q, kv, key_Tr;
};
LatentAttention::UpScratch LatentAttention::up_scratch(Arena& arena) const {
  const Dims& d = o_.dims;
  UpScratch s;
  s.q = arena.take(d.dtype, {d.tokens(), o_.heads * qk_dim()});
  s.kv = arena.take(d.dtype, {d.tokens(), o_.heads * (o_.nope_dim + o_.v_dim)});
  s.key_Tr = arena.take(d.dtype, {d.tokens(), o_.rope_dim});
  return s;
}

struct LatentAttention::BackwardScratch {
  Tensor dattn, dqkv, dkey_Tr;
  Tensor dkv_latent_TL;
  Tensor dq_input;  // gradient of what Wq reads; with one rank and no latent it is written in place
  Tensor dots_t1;
  ContextRing::Buffers ring;
};
LatentAttention::BackwardScratch LatentAttention::backward_scratch(Arena& arena) const {
  const Dims& d = o_.dims;
  BackwardScratch s;
  s.dattn = arena.take(d.dtype, {d.tokens(), shape().out_dim()});
  s.dqkv = take_qkv(arena);
  s.dkey_Tr = arena.take(d.dtype, {d.tokens(), o_.rope_dim});
  s.dkv_latent_TL = arena.take(d.dtype, {d.tokens(), o_.kv_lora_rank});
  if (q_has_latent()) {
    s.dq_input = arena.take(d.dtype, {d.tokens(), o_.q_lora_rank});
  } else if (d.tp > 1) {
    s.dq_input = take_partial(arena);
  }
  s.dots_t1 = arena.take(d.stats(), {d.local_tokens(), 1});
  s.ring = ring_.backward_buffers(arena);
  return s;
}

void LatentAttention::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  const std::int64_t t = d.local_tokens();
  Saved s;
  s.norm = norm_.reserve(arena, d.dtype, t);
  if (q_has_latent()) {
    s.q_raw_tL = arena.take(d.dtype, {t, o_.q_lora_rank});
    s.q_squares_t1 = arena.take(d.stats(), {t, 1});
  }
  s.kv_raw_tL = arena.take(d.dtype, {t, o_.kv_lora_rank + o_.rope_dim});
  s.kv_squares_t1 = arena.take(d.stats(), {t, 1});
  if (!selective()) s.inputs = take_inputs(arena);
  if (!selective()) s.qkv = take_qkv(arena);
  s.out = arena.take(d.dtype, {d.tokens(), shape().out_dim()});
  s.lse = arena.take(d.stats(), {d.tokens(), o_.heads});
  saved_.push_back(s);
}

void LatentAttention::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  Deferred f;
  if (selective()) f.inputs = take_inputs(arena);
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dq = arena.take(d.dtype, {d.tokens(), o_.heads * qk_dim()});
  f.dkv = arena.take(d.dtype, {d.tokens(), o_.heads * (o_.nope_dim + o_.v_dim)});
  if (q_has_latent()) {
    f.dq_raw_tL = arena.take(d.dtype, {d.local_tokens(), o_.q_lora_rank});
    f.dq_norm = arena.take(d.stats(), {o_.q_lora_rank});
  }
  f.dkv_raw_tL = arena.take(d.dtype, {d.local_tokens(), o_.kv_lora_rank + o_.rope_dim});
  f.dkv_norm = arena.take(d.stats(), {o_.kv_lora_rank});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  deferred_.push_back(f);
}

void LatentAttention::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    if (selective()) (void)take_inputs(counting);
    if (selective()) (void)take_qkv(counting);
    {
      const Frame up(counting);
      (void)up_scratch(counting);
    }
    {
      const Frame ring(counting);
      (void)ring_.forward_buffers(counting);
    }
    if (o_.cached) measure_cached(counting);
    (void)projection_scratch(counting, o_.dims);
  }
  const Frame frame(counting);
  if (selective()) (void)take_qkv(counting);
  if (selective()) {
    const Frame up(counting);
    (void)up_scratch(counting);
  }
  (void)backward_scratch(counting);
}

// ---------------------------------------------------------------------------------------------- forward

Tensor LatentAttention::local_n(const Context& ctx, const Inputs& in) const {
  return q_has_latent() ? in.n : local_rows(ctx, in.n);
}

void LatentAttention::compress(Context& ctx, const Saved& s, const Inputs& in) const {
  Kernels& k = ctx.kernels;
  const Tensor n_tH = local_n(ctx, in);
  if (q_has_latent()) {
    k.linear(s.q_raw_tL, n_tH, p_.q_a->weight);
    add_bias(k, s.q_raw_tL, p_.q_a_bias);
    k.group_squares(s.q_squares_t1, s.q_raw_tL, LatentNorm(o_.q_lora_rank, o_.latent_eps).columns);
  }
  k.linear(s.kv_raw_tL, n_tH, p_.kv_a.weight);
  add_bias(k, s.kv_raw_tL, p_.kv_a_bias);
  k.group_squares(s.kv_squares_t1, s.kv_raw_tL, LatentNorm(o_.kv_lora_rank, o_.latent_eps).columns);
}

void LatentAttention::normalise(Context& ctx, const Saved& s, const Inputs& in) const {
  if (q_has_latent()) {
    normalise_latent(ctx, LatentNorm(o_.q_lora_rank, o_.latent_eps), in.q_latent_TL, s.q_raw_tL,
                     s.q_squares_t1, *p_.q_a_norm);
  } else {
    gather_rows(ctx, in.n, local_rows(ctx, in.n));
  }
  normalise_latent(ctx, LatentNorm(o_.kv_lora_rank, o_.latent_eps), in.kv_latent_TL, s.kv_raw_tL,
                   s.kv_squares_t1, p_.kv_a_norm);
}

void LatentAttention::turn_queries(Kernels& k, Tensor qkv, bool adjoint, Tensor positions_T) const {
  k.rope(qkv, cos_, sin_,
         {.seq = o_.dims.seq,
          .heads = o_.heads,
          .first = o_.nope_dim,
          .stride = qk_dim(),
          .rotated = o_.rope_dim,
          .pairs = o_.pairs},
         adjoint, positions_T);
}

void LatentAttention::turn_key(Kernels& k, Tensor key_Tr, bool adjoint, Tensor positions_T) const {
  k.rope(key_Tr, cos_, sin_,
         {.seq = o_.dims.seq,
          .heads = 1,
          .first = 0,
          .stride = o_.rope_dim,
          .rotated = o_.rope_dim,
          .pairs = o_.pairs},
         adjoint, positions_T);
}

void LatentAttention::expand(Context& ctx, Tensor qkv, const Saved& s, const Inputs& in,
                             Tensor positions_T) const {
  Kernels& k = ctx.kernels;
  const std::int64_t h = o_.heads;
  const std::int64_t keys = h * qk_dim();  // first column of the keys
  const std::int64_t pair = o_.nope_dim + o_.v_dim;
  const Frame frame(ctx.scratch);
  const UpScratch up = up_scratch(ctx.scratch);
  const Tensor own_tr = local_rows(ctx, up.key_Tr);
  ctx.kernels.move_columns(own_tr, s.kv_raw_tL,
                           {.width = o_.rope_dim, .to = {}, .from = {.first = o_.kv_lora_rank}});
  gather_rows(ctx, up.key_Tr, own_tr);
  turn_key(k, up.key_Tr, false, positions_T);
  k.linear(up.q, q_has_latent() ? in.q_latent_TL : in.n, p_.q.weight);
  k.linear(up.kv, in.kv_latent_TL, p_.kv_b.weight);
  ctx.kernels.move_columns(qkv, up.q, {.width = keys, .to = {}, .from = {}});
  turn_queries(k, qkv, false, positions_T);
  ctx.kernels.move_columns(
      qkv, up.kv,
      {.blocks = h, .width = o_.nope_dim, .to = {.first = keys, .stride = qk_dim()}, .from = {0, pair}});
  ctx.kernels.move_columns(qkv, up.key_Tr,
                           {.blocks = h,
                            .width = o_.rope_dim,
                            .to = {.first = keys + o_.nope_dim, .stride = qk_dim()},
                            .from = {.first = 0, .stride = 0}});
  ctx.kernels.move_columns(qkv, up.kv,
                           {.blocks = h,
                            .width = o_.v_dim,
                            .to = {.first = 2 * keys, .stride = o_.v_dim},
                            .from = {.first = o_.nope_dim, .stride = pair}});
}

void LatentAttention::forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH,
                              Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the latent attention layer was built for another tp group");
  Saved& s = slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  const Inputs in = selective() ? take_inputs(ctx.scratch) : s.inputs;
  const Tensor qkv = selective() ? take_qkv(ctx.scratch) : s.qkv;

  s.x_tH = x_tH;
  norm_.forward(ctx.kernels, local_n(ctx, in), s.norm, x_tH);
  compress(ctx, s, in);
  normalise(ctx, s, in);
  if (mb.cache != nullptr) {
    attend_cached(ctx, s, in, mb);
  } else {
    expand(ctx, qkv, s, in, mb.positions_T);
    const Frame ring(ctx.scratch);
    ring_.forward(ctx, ring_.forward_buffers(ctx.scratch), s.out, s.lse, qkv, Tensor());
  }
  add_projection(ctx, o_.dims, y_tH, x_tH, s.out, p_.o, p_.o_bias, projection_scratch(ctx.scratch, o_.dims));
}

// ---------------------------------------------------------------------------------------------- backward

void LatentAttention::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Tensor qkv = selective() ? take_qkv(ctx.scratch) : s.qkv;
  Kernels& k = ctx.kernels;

  if (selective()) {
    norm_.apply(k, local_n(ctx, f.inputs), s.x_tH, s.norm);
    normalise(ctx, s, f.inputs);
    expand(ctx, qkv, s, f.inputs, Tensor());
  }
  const BackwardScratch scratch = backward_scratch(ctx.scratch);
  gather_then(ctx, o_.dims, f.dout_TH, g_tH, [&](std::int64_t begin, std::int64_t rows) {
    k.linear_dgrad(scratch.dattn.narrow_rows(begin, rows), f.dout_TH.narrow_rows(begin, rows), p_.o.weight);
  });
  ring_.backward(ctx, scratch.ring, scratch.dqkv, Tensor(), scratch.dattn, qkv, s.out, s.lse, Tensor());
  take_apart(k, f, scratch.dqkv, scratch.dkey_Tr);
  latents_backward(ctx, s, f, scratch);
  norm_.dgrad(k, g_tH, f.dn_tH, s.x_tH, s.norm, Write::accumulate);
}

void LatentAttention::take_apart(Kernels& k, const Deferred& f, Tensor dqkv, Tensor dkey_Tr) const {
  const std::int64_t h = o_.heads;
  const std::int64_t keys = h * qk_dim();
  const std::int64_t pair = o_.nope_dim + o_.v_dim;
  turn_queries(k, dqkv, true, Tensor());
  k.move_columns(f.dq, dqkv, {.width = keys, .to = {}, .from = {}});
  k.move_columns(
      f.dkv, dqkv,
      {.blocks = h, .width = o_.nope_dim, .to = {0, pair}, .from = {.first = keys, .stride = qk_dim()}});
  k.move_columns(f.dkv, dqkv,
                 {.blocks = h,
                  .width = o_.v_dim,
                  .to = {.first = o_.nope_dim, .stride = pair},
                  .from = {.first = 2 * keys, .stride = o_.v_dim}});
  // The key went to every head: its gradient is their sum, still of the rotated key.
  k.move_columns(dkey_Tr, dqkv,
                 {.blocks = h,
                  .width = o_.rope_dim,
                  .to = {.first = 0, .stride = 0},
                  .from = {.first = keys + o_.nope_dim, .stride = qk_dim()}});
  turn_key(k, dkey_Tr, true, Tensor());
}

void LatentAttention::latents_backward(Context& ctx, const Saved& s, const Deferred& f,
                                       const BackwardScratch& scratch) const {
  Kernels& k = ctx.kernels;
  k.linear_dgrad(scratch.dkv_latent_TL, f.dkv, p_.kv_b.weight);
  latent_backward(ctx, LatentNorm(o_.kv_lora_rank, o_.latent_eps), f.dkv_raw_tL, f.dkv_norm,
                  scratch.dkv_latent_TL, s.kv_raw_tL, s.kv_squares_t1, scratch.dots_t1, p_.kv_a_norm);
  const Tensor own_tr = local_rows(ctx, scratch.dkey_Tr);
  scatter_sum(ctx, own_tr, scratch.dkey_Tr);
  ctx.kernels.move_columns(f.dkv_raw_tL, own_tr,
                           {.width = o_.rope_dim, .to = {.first = o_.kv_lora_rank}, .from = {}});
  if (q_has_latent()) {
    k.linear_dgrad(scratch.dq_input, f.dq, p_.q.weight);
    latent_backward(ctx, LatentNorm(o_.q_lora_rank, o_.latent_eps), f.dq_raw_tL, f.dq_norm, scratch.dq_input,
                    s.q_raw_tL, s.q_squares_t1, scratch.dots_t1, *p_.q_a_norm);
    k.linear_dgrad(f.dn_tH, f.dq_raw_tL, p_.q_a->weight);
  } else {
    const Tensor dn_TH = o_.dims.tp > 1 ? scratch.dq_input : f.dn_tH;
    k.linear_dgrad(dn_TH, f.dq, p_.q.weight);
    scatter_sum(ctx, f.dn_tH, dn_TH);
  }
  k.linear_dgrad(f.dn_tH, f.dkv_raw_tL, p_.kv_a.weight, Write::accumulate);
}

void LatentAttention::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Inputs& in = selective() ? f.inputs : s.inputs;
  const Tensor n_tH = local_n(ctx, in);
  Kernels& k = ctx.kernels;
  projection_wgrad(ctx, p_.o, p_.o_bias, f.dout_TH, s.out);
  k.linear_wgrad(p_.q.grad, f.dq, q_has_latent() ? in.q_latent_TL : in.n);
  k.linear_wgrad(p_.kv_b.grad, f.dkv, in.kv_latent_TL);
  if (q_has_latent()) {
    k.linear_wgrad(p_.q_a->grad, f.dq_raw_tL, n_tH);
    bias_wgrad(k, p_.q_a_bias, f.dq_raw_tL);
    k.accumulate(p_.q_a_norm->grad, f.dq_norm);
  }
  k.linear_wgrad(p_.kv_a.grad, f.dkv_raw_tL, n_tH);
  bias_wgrad(k, p_.kv_a_bias, f.dkv_raw_tL);
  k.accumulate(p_.kv_a_norm.grad, f.dkv_norm);
  norm_.wgrad(k, f.dn_tH, s.x_tH, s.norm);
}

}  // namespace tessera::nn
