// T tokens of the micro-batch, t of this rank, H hidden, I intermediate of this rank.
#include "moe/shared_expert.h"

namespace tessera::moe {

using kernels::Kernels;
using nn::Frame;
using nn::Tensor;

namespace {
Tensor as_column(const Tensor& x_t) {
  return x_t.reshaped({x_t.rows(), 1});
}
}  // namespace

SharedExpert::SharedExpert(Options options, Params params) : o_(options), p_(params) {}

std::int64_t SharedExpert::z_columns() const {
  return (o_.activation.gated() ? 2 : 1) * o_.intermediate;
}

void SharedExpert::reserve_saved(Arena& arena) {
  const nn::Dims& d = o_.dims;
  Saved s;
  s.z = arena.take(d.dtype, {d.tokens(), z_columns()});
  if (!selective()) s.h_TI = arena.take(d.dtype, {d.tokens(), o_.intermediate});
  if (gated()) {
    s.f_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
    s.gate_t = arena.take(d.dtype, {d.local_tokens()});
  }
  saved_.push_back(s);
}

void SharedExpert::reserve_deferred(Arena& arena) {
  const nn::Dims& d = o_.dims;
  Deferred f;
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dz = arena.take(d.dtype, {d.tokens(), z_columns()});
  if (gated()) f.dgate_t = arena.take(d.dtype, {d.local_tokens()});
  deferred_.push_back(f);
}

// measure_scratch and the calls take through the same functions. I uses h for dh.
SharedExpert::Scratch SharedExpert::take_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  return {.h_TI = arena.take(d.dtype, {d.tokens(), o_.intermediate}),
          .partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden})};
}
Tensor SharedExpert::weight_scratch(Arena& arena) const {
  return selective() ? arena.take(o_.dims.dtype, {o_.dims.tokens(), o_.intermediate}) : Tensor();
}

void SharedExpert::measure_scratch(Arena& counting) const {
  const Frame frame(counting);
  (void)take_scratch(counting);
}

void SharedExpert::measure_weight_scratch(Arena& counting) const {
  const Frame frame(counting);
  (void)weight_scratch(counting);
}

void SharedExpert::forward(Context& ctx, std::int32_t slot, Tensor n_TH, Tensor f_tH) {
  Saved& s = nn::slot_at(saved_, slot);
  const Frame frame(ctx.scratch);
  const Scratch scratch = take_scratch(ctx.scratch);
  const Tensor h_TI = selective() ? scratch.h_TI : s.h_TI;
  Kernels& k = ctx.kernels;
  nn::gather_rows(ctx, n_TH, nn::local_rows(ctx, n_TH));
  k.linear(s.z, n_TH, p_.gate_up.weight);
  k.activation(h_TI, s.z, o_.activation);
  if (ctx.tp.size() == 1) {
    k.linear(f_tH, h_TI, p_.down.weight);
  } else {
    k.linear(scratch.partial_TH, h_TI, p_.down.weight);
    nn::scatter_sum(ctx, f_tH, scratch.partial_TH);
  }
  if (gated()) k.linear(as_column(s.gate_t), nn::local_rows(ctx, n_TH), p_.gate_1H.weight);
}

void SharedExpert::add(Context& ctx, std::int32_t slot, Tensor y_tH, Tensor f_tH) const {
  if (gated()) {
    ctx.kernels.sigmoid_gate(y_tH, f_tH, nn::slot_at(saved_, slot).gate_t);
  } else {
    ctx.kernels.accumulate(y_tH, f_tH);
  }
}

void SharedExpert::backward_input(Context& ctx, nn::Slots slots, Tensor dn_tH, Tensor dy_tH) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Scratch scratch = take_scratch(ctx.scratch);
  Kernels& k = ctx.kernels;
  if (gated()) {
    const Tensor df_tH = nn::local_rows(ctx, f.dout_TH);
    k.sigmoid_gate_backward(df_tH, f.dgate_t, dy_tH, s.f_tH, s.gate_t);
    nn::gather_rows(ctx, f.dout_TH, df_tH);
    k.linear_dgrad(dn_tH, as_column(f.dgate_t), p_.gate_1H.weight, kernels::Write::accumulate);
  } else {
    nn::gather_rows(ctx, f.dout_TH, dy_tH);
  }
  k.linear_dgrad(scratch.h_TI, f.dout_TH, p_.down.weight);
  k.activation_backward(f.dz, scratch.h_TI, s.z, o_.activation);
  k.linear_dgrad(scratch.partial_TH, f.dz, p_.gate_up.weight);
  const Tensor own_tH = nn::local_rows(ctx, scratch.partial_TH);
  nn::scatter_sum(ctx, own_tH, scratch.partial_TH);
  k.accumulate(dn_tH, own_tH);
}

void SharedExpert::backward_weight(Context& ctx, nn::Slots slots, Tensor n_TH) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Tensor scratch = weight_scratch(ctx.scratch);
  const Tensor h_TI = selective() ? scratch : s.h_TI;
  Kernels& k = ctx.kernels;
  if (selective()) k.activation(h_TI, s.z, o_.activation);
  k.linear_wgrad(p_.down.grad, f.dout_TH, h_TI);
  k.linear_wgrad(p_.gate_up.grad, f.dz, n_TH);
  if (gated()) k.linear_wgrad(p_.gate_1H.grad, as_column(f.dgate_t), nn::local_rows(ctx, n_TH));
}

}  // namespace tessera::moe
