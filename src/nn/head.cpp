// T tokens of the micro-batch, t of this rank, H hidden, V vocabulary rows of this rank, P = tp.
// Cross entropy: Megatron-LM's decomposition, joined in rank order.
#include "nn/layers.h"

namespace tessera::nn {

namespace {

// measure_scratch and the calls take through the same functions, so they cannot differ.
Tensor stats_scratch(Arena& arena, const Dims& d) {
  return arena.take(d.stats(), {d.tp, 3, d.tokens()});
}
// With one rank the norm's gradient is written in place.
Tensor backward_scratch(Arena& arena, const Dims& d) {
  return d.tp > 1 ? arena.take(d.dtype, {d.tokens(), d.hidden}) : Tensor();
}

}  // namespace

Head::Head(Options options, Params params)
    : o_(options), p_(params), norm_(options.norm, options.norm_eps, params.norm_H, params.norm_bias_H) {}

void Head::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  Saved s;
  s.norm = norm_.reserve(arena, d.dtype, d.local_tokens());
  s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.logits_TV = arena.take(d.dtype, {d.tokens(), o_.vocab});
  s.lse_T = arena.take(d.stats(), {d.tokens()});
  s.loss_T = arena.take(d.stats(), {d.tokens()});
  s.loss_1 = arena.take_shared(DType::f64, {1});
  saved_.push_back(s);
}

void Head::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  deferred_.push_back({.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden})});
}

void Head::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)stats_scratch(counting, o_.dims);
  }
  const Frame frame(counting);
  (void)backward_scratch(counting, o_.dims);
}

void Head::forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor /*y_tH*/,
                   Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the head was built for another tp group");
  Saved& s = slot_at(saved_, slots.saved);
  const Dims& d = o_.dims;
  const Frame frame(ctx.scratch);
  const Tensor stats_P3T = stats_scratch(ctx.scratch, d);
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  norm_.forward(k, local_rows(ctx, s.n_TH), s.norm, x_tH);
  gather_rows(ctx, s.n_TH, local_rows(ctx, s.n_TH));
  k.linear(s.logits_TV, s.n_TH, p_.head_VH.weight);
  const Tensor mine_13T = stats_P3T.narrow_rows(ctx.tp.rank(), 1);
  k.cross_entropy_stats(mine_13T.reshaped({3, d.tokens()}), s.logits_TV, mb.targets_T, o_.vocab_begin);
  gather_rows(ctx, stats_P3T, mine_13T);
  k.cross_entropy_join(s.loss_T, s.lse_T, stats_P3T, mb.targets_T);
  k.sum_to(s.loss_1, s.loss_T, ctx.weights.ce, kernels::Write::overwrite);
}

void Head::backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const Tensor scratch = backward_scratch(ctx.scratch, o_.dims);
  const Tensor dn_TH = o_.dims.tp > 1 ? scratch : f.dn_tH;
  Kernels& k = ctx.kernels;

  k.cross_entropy_backward(s.logits_TV, s.lse_T, mb.targets_T, o_.vocab_begin, ctx.weights.ce);
  k.linear_dgrad(dn_TH, s.logits_TV, p_.head_VH.weight);
  scatter_sum(ctx, f.dn_tH, dn_TH);
  norm_.dgrad(k, g_tH, f.dn_tH, s.x_tH, s.norm, kernels::Write::overwrite);
}

void Head::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  Kernels& k = ctx.kernels;
  k.linear_wgrad(p_.head_VH.grad, s.logits_TV, s.n_TH);  // logits hold their gradient since backward_input
  norm_.wgrad(k, f.dn_tH, s.x_tH, s.norm);
}

double Head::loss(std::int32_t saved_slot) const {
  return *loss_1(saved_slot).as<double>();
}

Tensor Head::loss_1(std::int32_t saved_slot) const {
  return slot_at(saved_, saved_slot).loss_1;
}

Tensor Head::loss_T(std::int32_t saved_slot) const {
  return slot_at(saved_, saved_slot).loss_T;
}

Tensor Head::logits(std::int32_t saved_slot) const {
  return slot_at(saved_, saved_slot).logits_TV;
}

}  // namespace tessera::nn
