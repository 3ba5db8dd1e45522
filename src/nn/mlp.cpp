// T tokens of the micro-batch, t of this rank, H hidden, I intermediate of this rank, Z columns of the first
// product.
#include "nn/layers.h"
#include "nn/projection.h"
#include "nn/tp_overlap.h"

namespace tessera::nn {

namespace {

bool selective(const Mlp::Options& o) {
  return o.recompute == Recompute::selective;
}

// Gate and up beside each other, or one matrix up.
std::int64_t z_columns(const Mlp::Options& o) {
  return (o.activation.gated() ? 2 : 1) * o.intermediate;
}

// measure_scratch and the calls take through the same functions, so they cannot differ.
struct ForwardScratch {
  Tensor n_TH, h_TI;  // selective only
  ProjectionScratch projection;
};
ForwardScratch forward_scratch(Arena& arena, const Mlp::Options& o) {
  const Dims& d = o.dims;
  ForwardScratch s;
  if (selective(o)) {
    s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
    s.h_TI = arena.take(d.dtype, {d.tokens(), o.intermediate});
  }
  s.projection = projection_scratch(arena, d);
  return s;
}

struct BackwardScratch {
  Tensor dh_TI;
  Tensor received;    // of the scatter
  Tensor partial_TH;  // with one rank the norm's gradient is written in place
};
BackwardScratch backward_scratch(Arena& arena, const Mlp::Options& o) {
  const Dims& d = o.dims;
  BackwardScratch s;
  s.dh_TI = arena.take(d.dtype, {d.tokens(), o.intermediate});
  if (d.tp > 1) s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.received = scatter_scratch(arena, d);
  return s;
}

// Selective: only W reads h again, so it is computed there.
Tensor weight_scratch(Arena& arena, const Mlp::Options& o) {
  return selective(o) ? arena.take(o.dims.dtype, {o.dims.tokens(), o.intermediate}) : Tensor();
}

}  // namespace

Mlp::Mlp(Options options, Params params)
    : o_(options), p_(params), norm_(options.norm, options.norm_eps, params.norm_H, params.norm_bias_H) {}

void Mlp::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  Saved s;
  s.norm = norm_.reserve(arena, d.dtype, d.local_tokens());
  if (!selective(o_)) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.z_TZ = arena.take(d.dtype, {d.tokens(), z_columns(o_)});
  if (!selective(o_)) s.h_TI = arena.take(d.dtype, {d.tokens(), o_.intermediate});
  saved_.push_back(s);
}

void Mlp::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  Deferred f;
  if (selective(o_)) f.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dz_TZ = arena.take(d.dtype, {d.tokens(), z_columns(o_)});
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
  norm_.forward(k, local_rows(ctx, n_TH), s.norm, x_tH);
  gather_then(ctx, o_.dims, n_TH, local_rows(ctx, n_TH), [&](std::int64_t begin, std::int64_t rows) {
    k.linear(s.z_TZ.narrow_rows(begin, rows), n_TH.narrow_rows(begin, rows), p_.up.weight);
  });
  add_bias(k, s.z_TZ, p_.up_bias);
  k.activation(h_TI, s.z_TZ, o_.activation);
  add_projection(ctx, o_.dims, y_tH, x_tH, h_TI, p_.down, p_.down_bias, scratch.projection);
}

void Mlp::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const BackwardScratch scratch = backward_scratch(ctx.scratch, o_);
  const Tensor dn_TH = o_.dims.tp > 1 ? scratch.partial_TH : f.dn_tH;
  Kernels& k = ctx.kernels;

  if (selective(o_)) {
    norm_.apply(k, local_rows(ctx, f.n_TH), s.x_tH, s.norm);
    gather_rows(ctx, f.n_TH, local_rows(ctx, f.n_TH));
  }
  gather_then(ctx, o_.dims, f.dout_TH, g_tH, [&](std::int64_t begin, std::int64_t rows) {
    k.linear_dgrad(scratch.dh_TI.narrow_rows(begin, rows), f.dout_TH.narrow_rows(begin, rows),
                   p_.down.weight);
  });
  k.activation_backward(f.dz_TZ, scratch.dh_TI, s.z_TZ, o_.activation);
  then_scatter_sum(
      ctx, o_.dims, f.dn_tH, dn_TH, scratch.received, [&](std::int64_t begin, std::int64_t rows) {
        k.linear_dgrad(dn_TH.narrow_rows(begin, rows), f.dz_TZ.narrow_rows(begin, rows), p_.up.weight);
      });
  norm_.dgrad(k, g_tH, f.dn_tH, s.x_tH, s.norm, kernels::Write::accumulate);
}

void Mlp::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Tensor scratch = weight_scratch(ctx.scratch, o_);
  const Tensor h_TI = selective(o_) ? scratch : s.h_TI;
  Kernels& k = ctx.kernels;
  if (selective(o_)) k.activation(h_TI, s.z_TZ, o_.activation);
  projection_wgrad(ctx, p_.down, p_.down_bias, f.dout_TH, h_TI);
  k.linear_wgrad(p_.up.grad, f.dz_TZ, selective(o_) ? f.n_TH : s.n_TH);
  bias_wgrad(k, p_.up_bias, f.dz_TZ);
  norm_.wgrad(k, f.dn_tH, s.x_tH, s.norm);
}

}  // namespace tessera::nn
