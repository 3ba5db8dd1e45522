// T tokens of the micro-batch, t of this rank, H hidden, I intermediate of this rank.
#include "nn/layers.h"

namespace tessera::nn {

namespace {

bool selective(const Mlp::Options& o) {
  return o.recompute == Recompute::selective;
}

// measure_scratch and the calls take through the same functions, so they cannot differ.
struct ForwardScratch {
  Tensor n_TH, h_TI;  // selective only
  Tensor partial_TH;
};
ForwardScratch forward_scratch(Arena& arena, const Mlp::Options& o) {
  const Dims& d = o.dims;
  ForwardScratch s;
  if (selective(o)) {
    s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
    s.h_TI = arena.take(d.dtype, {d.tokens(), o.intermediate});
  }
  s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  return s;
}

struct BackwardScratch {
  Tensor dh_TI;
  Tensor partial_TH;  // with one rank the norm's gradient is written in place
};
BackwardScratch backward_scratch(Arena& arena, const Mlp::Options& o) {
  const Dims& d = o.dims;
  BackwardScratch s;
  s.dh_TI = arena.take(d.dtype, {d.tokens(), o.intermediate});
  if (d.tp > 1) s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  return s;
}

// Selective: only W reads h again, so it is computed there.
Tensor weight_scratch(Arena& arena, const Mlp::Options& o) {
  return selective(o) ? arena.take(o.dims.dtype, {o.dims.tokens(), o.intermediate}) : Tensor();
}

}  // namespace

Mlp::Mlp(Options options, Params params) : o_(options), p_(params) {}

void Mlp::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  Saved s;
  s.rstd_t = arena.take(d.dtype, {d.local_tokens()});
  if (!selective(o_)) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.gate_up = arena.take(d.dtype, {d.tokens(), 2 * o_.intermediate});
  if (!selective(o_)) s.h_TI = arena.take(d.dtype, {d.tokens(), o_.intermediate});
  saved_.push_back(s);
}

void Mlp::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  Deferred f;
  if (selective(o_)) f.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dgate_up = arena.take(d.dtype, {d.tokens(), 2 * o_.intermediate});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  deferred_.push_back(f);
}

void Mlp::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)forward_scratch(counting, o_);
  }
  {
    const Frame frame(counting);
    (void)backward_scratch(counting, o_);
  }
  const Frame frame(counting);
  (void)weight_scratch(counting, o_);
}

void Mlp::forward(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor x_tH, Tensor y_tH,
                  Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the MLP layer was built for another tp group");
  Saved& s = slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  const ForwardScratch scratch = forward_scratch(ctx.scratch, o_);
  const Tensor n_TH = selective(o_) ? scratch.n_TH : s.n_TH;
  const Tensor h_TI = selective(o_) ? scratch.h_TI : s.h_TI;
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  k.rms_norm(local_rows(ctx, n_TH), s.rstd_t, x_tH, p_.norm_H.weight.value_NK, o_.norm_eps);
  gather_rows(ctx, n_TH, local_rows(ctx, n_TH));
  k.linear(s.gate_up, n_TH, p_.gate_up.weight);
  k.swiglu(h_TI, s.gate_up);
  k.linear(scratch.partial_TH, h_TI, p_.down.weight);
  const Tensor f_tH = local_rows(ctx, scratch.partial_TH);
  scatter_sum(ctx, f_tH, scratch.partial_TH);
  k.add(y_tH, x_tH, f_tH);
}

void Mlp::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const BackwardScratch scratch = backward_scratch(ctx.scratch, o_);
  const Tensor dn_TH = o_.dims.tp > 1 ? scratch.partial_TH : f.dn_tH;
  Kernels& k = ctx.kernels;

  if (selective(o_)) {
    k.rms_norm_apply(local_rows(ctx, f.n_TH), s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK);
    gather_rows(ctx, f.n_TH, local_rows(ctx, f.n_TH));
  }
  gather_rows(ctx, f.dout_TH, g_tH);
  k.linear_dgrad(scratch.dh_TI, f.dout_TH, p_.down.weight);
  k.swiglu_backward(f.dgate_up, scratch.dh_TI, s.gate_up);
  k.linear_dgrad(dn_TH, f.dgate_up, p_.gate_up.weight);
  scatter_sum(ctx, f.dn_tH, dn_TH);
  k.rms_norm_dgrad(g_tH, f.dn_tH, s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK, kernels::Write::accumulate);
}

void Mlp::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Tensor scratch = weight_scratch(ctx.scratch, o_);
  const Tensor h_TI = selective(o_) ? scratch : s.h_TI;
  Kernels& k = ctx.kernels;
  if (selective(o_)) k.swiglu(h_TI, s.gate_up);
  k.linear_wgrad(p_.down.grad, f.dout_TH, h_TI);
  k.linear_wgrad(p_.gate_up.grad, f.dgate_up, selective(o_) ? f.n_TH : s.n_TH);
  k.rms_norm_wgrad(p_.norm_H.grad, f.dn_tH, s.x_tH, s.rstd_t);
}

}  // namespace tessera::nn
