// T tokens of the micro-batch, t of this rank, H hidden, D = heads * head_dim of this rank; qkv has
// D + 2 kv_heads * head_dim columns.
#include <cmath>

#include "nn/layers.h"

namespace tessera::nn {

namespace {

kernels::AttentionShape shape_of(const Attention::Options& o) {
  return {.batch = o.dims.batch,
          .seq = o.dims.seq,
          .heads = o.heads,
          .kv_heads = o.kv_heads,
          .head_dim = o.head_dim,
          .scale = 1.0 / std::sqrt(static_cast<double>(o.head_dim))};
}

bool selective(const Attention::Options& o) {
  return o.recompute == Recompute::selective;
}

// measure_scratch and the calls take through the same functions, so they cannot differ.
struct ForwardScratch {
  Tensor n_TH;  // selective only
  Tensor partial_TH;
};
ForwardScratch forward_scratch(Arena& arena, const Attention::Options& o) {
  const Dims& d = o.dims;
  ForwardScratch s;
  if (selective(o)) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  return s;
}

struct BackwardScratch {
  Tensor dattn_TD;
  Tensor partial_TH;  // with one rank the norm's gradient is written in place
};
BackwardScratch backward_scratch(Arena& arena, const Attention::Options& o) {
  const Dims& d = o.dims;
  BackwardScratch s;
  s.dattn_TD = arena.take(d.dtype, {d.tokens(), shape_of(o).q_dim()});
  if (d.tp > 1) s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  return s;
}

}  // namespace

Attention::Attention(Options options, Params params, Tensor cos_SP, Tensor sin_SP)
    : o_(options), p_(params), cos_(cos_SP), sin_(sin_SP) {}

void Attention::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  const kernels::AttentionShape shape = shape_of(o_);
  Saved s;
  s.rstd_t = arena.take(d.dtype, {d.local_tokens()});
  if (!selective(o_)) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.qkv = arena.take(d.dtype, {d.tokens(), shape.qkv_dim()});
  s.out = arena.take(d.dtype, {d.tokens(), shape.q_dim()});
  s.lse = arena.take(d.dtype, {d.tokens(), shape.heads});
  saved_.push_back(s);
}

void Attention::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  Deferred f;
  if (selective(o_)) f.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dqkv = arena.take(d.dtype, {d.tokens(), shape_of(o_).qkv_dim()});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  deferred_.push_back(f);
}

void Attention::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)forward_scratch(counting, o_);
  }
  const Frame frame(counting);
  (void)backward_scratch(counting, o_);
}

void Attention::forward(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor x_tH, Tensor y_tH,
                        Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the attention layer was built for another tp group");
  Saved& s = slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  const ForwardScratch scratch = forward_scratch(ctx.scratch, o_);
  const Tensor n_TH = selective(o_) ? scratch.n_TH : s.n_TH;
  const kernels::AttentionShape shape = shape_of(o_);
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  k.rms_norm(local_rows(ctx, n_TH), s.rstd_t, x_tH, p_.norm_H.weight.value_NK, o_.norm_eps);
  gather_rows(ctx, n_TH, local_rows(ctx, n_TH));
  k.linear(s.qkv, n_TH, p_.qkv.weight);
  k.rope(s.qkv, cos_, sin_, shape, false);
  k.attention(s.out, s.lse, s.qkv, shape);
  k.linear(scratch.partial_TH, s.out, p_.o.weight);
  const Tensor f_tH = local_rows(ctx, scratch.partial_TH);
  scatter_sum(ctx, f_tH, scratch.partial_TH);
  k.add(y_tH, x_tH, f_tH);
}

void Attention::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const BackwardScratch scratch = backward_scratch(ctx.scratch, o_);
  const Tensor dn_TH = o_.dims.tp > 1 ? scratch.partial_TH : f.dn_tH;
  const kernels::AttentionShape shape = shape_of(o_);
  Kernels& k = ctx.kernels;

  if (selective(o_)) {
    k.rms_norm_apply(local_rows(ctx, f.n_TH), s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK);
    gather_rows(ctx, f.n_TH, local_rows(ctx, f.n_TH));
  }
  gather_rows(ctx, f.dout_TH, g_tH);
  k.linear_dgrad(scratch.dattn_TD, f.dout_TH, p_.o.weight);
  k.attention_backward(f.dqkv, scratch.dattn_TD, s.qkv, s.out, s.lse, shape);
  k.rope(f.dqkv, cos_, sin_, shape, true);
  k.linear_dgrad(dn_TH, f.dqkv, p_.qkv.weight);
  scatter_sum(ctx, f.dn_tH, dn_TH);
  k.rms_norm_dgrad(g_tH, f.dn_tH, s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK, kernels::Write::accumulate);
}

void Attention::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  Kernels& k = ctx.kernels;
  k.linear_wgrad(p_.o.grad, f.dout_TH, s.out);
  k.linear_wgrad(p_.qkv.grad, f.dqkv, selective(o_) ? f.n_TH : s.n_TH);
  k.rms_norm_wgrad(p_.norm_H.grad, f.dn_tH, s.x_tH, s.rstd_t);
}

}  // namespace tessera::nn
