// T tokens of the micro-batch, t of this rank, H hidden, I expert width of this rank, K top-k, E experts, U
// balancing units, n rows sent, R rows of the local experts (buffers hold their bounds).
#include "moe/moe_layer.h"

#include <algorithm>
#include <utility>

#include "base/math.h"
#include "moe/experts.h"
#include "moe/routing.h"

namespace tessera::moe {

using nn::DType;
using nn::Frame;
using nn::Kernels;

// --- set-up

namespace {
Dispatch::Options dispatch_options(const Options& o, std::int64_t max_rows) {
  return {.dtype = o.dims.dtype,
          .hidden = o.dims.hidden,
          .tokens = o.dims.local_tokens(),
          .top_k = o.router.top_k,
          .num_experts = o.num_experts,
          .max_rows = max_rows};
}
}  // namespace

std::int64_t MoeLayer::max_rows(const Options& o, std::int32_t ep, std::int32_t etp) {
  const std::int64_t local_experts = div_exact(o.num_experts, ep);
  const std::int64_t dropless =
      std::int64_t{ep} * etp * o.dims.local_tokens() * std::min<std::int64_t>(o.router.top_k, local_experts);
  if (o.capacity_factor <= 0.0) return dropless;
  const std::int64_t capacity =
      capacity_rows(o.capacity_factor, o.dims.tokens(), o.router.top_k, o.num_experts);
  return std::min(dropless, local_experts * capacity * o.units_in_group);
}

MoeLayer::MoeLayer(Options options, Params params, comm::Communicator& ep, comm::Communicator& etp)
    : o_(options),
      p_(std::move(params)),
      max_rows_(max_rows(options, ep.size(), etp.size())),
      dispatch_(dispatch_options(options, max_rows_), ep, etp),
      frequency_(static_cast<std::size_t>(options.num_experts), 1.0 / options.num_experts) {
  TESSERA_CHECK_EQ(p_.experts.size(), o_.num_experts / ep.size(), "an ep rank holds E / ep experts");
  reset_stats();
}

void MoeLayer::reset_stats() {
  std::vector<std::int64_t> chosen = std::move(stats_.chosen);
  std::vector<std::int64_t> dropped = std::move(stats_.dropped);
  chosen.assign(static_cast<std::size_t>(o_.num_experts), 0);
  dropped.assign(static_cast<std::size_t>(o_.num_experts), 0);
  stats_ = Stats{};
  stats_.chosen = std::move(chosen);
  stats_.dropped = std::move(dropped);
}

void MoeLayer::set_global_frequency(std::span<const double> frequency) {
  TESSERA_CHECK_EQ(frequency.size(), frequency_.size(), "one frequency an expert");
  std::copy(frequency.begin(), frequency.end(), frequency_.begin());
}

void MoeLayer::reserve_saved(Arena& arena) {
  const nn::Dims& d = o_.dims;
  const std::int64_t t = d.local_tokens();
  Saved s;
  s.rstd_t = arena.take(d.dtype, {t});
  if (!selective()) s.n_tH = arena.take(d.dtype, {t, d.hidden});
  s.probs_tE = arena.take(d.dtype, {t, o_.num_experts});
  s.lse_t = arena.take(d.dtype, {t});
  s.index_tK = arena.take(DType::i32, {t, o_.router.top_k});
  s.weights_tK = arena.take(d.dtype, {t, o_.router.top_k});
  if (balanced()) s.aux_UE = arena.take(d.dtype, {num_units(o_), o_.num_experts});
  s.rows_RH = arena.take(d.dtype, {max_rows_, d.hidden});
  s.gate_up = arena.take(d.dtype, {max_rows_, 2 * o_.intermediate});
  if (!selective()) s.h_RI = arena.take(d.dtype, {max_rows_, o_.intermediate});
  s.sent_nH = arena.take(d.dtype, {t * o_.router.top_k, d.hidden});
  s.dispatch = dispatch_.reserve(arena);
  saved_.push_back(s);
}

void MoeLayer::reserve_deferred(Arena& arena) {
  const nn::Dims& d = o_.dims;
  Deferred f;
  f.dy_RH = arena.take(d.dtype, {max_rows_, d.hidden});
  f.dgate_up = arena.take(d.dtype, {max_rows_, 2 * o_.intermediate});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  f.dlogits_tE = arena.take(d.dtype, {d.local_tokens(), o_.num_experts});
  deferred_.push_back(f);
}

// --- scratch: measure_scratch and the calls take through the same functions, so they cannot differ

struct MoeLayer::RouteScratch {
  Tensor logits_tE;
  Tensor counts_UE;             // balancing over the unit itself
  Tensor index_TK, weights_TK;  // with capacity and tp > 1
  DropWork work;                // with capacity
};
MoeLayer::RouteScratch MoeLayer::route_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  const std::int64_t top_k = o_.router.top_k;
  const bool by_weight = o_.drop_policy == DropPolicy::probs;
  RouteScratch s;
  s.logits_tE = arena.take(d.dtype, {d.local_tokens(), o_.num_experts});
  if (counts_units()) s.counts_UE = arena.take(DType::i32, {num_units(o_), o_.num_experts});
  if (!drops()) return s;
  if (d.tp > 1) s.index_TK = arena.take(DType::i32, {d.tokens(), top_k});
  if (d.tp > 1 && by_weight) s.weights_TK = arena.take(d.dtype, {d.tokens(), top_k});
  s.work.start_E1 = arena.take(DType::i32, {o_.num_experts + 1});
  if (by_weight) s.work.order_n = arena.take(DType::i32, {d.tokens() * top_k});
  return s;
}

struct MoeLayer::ForwardScratch {
  Tensor n_tH, h_RI;     // selective
  Tensor sent_nH, y_RH;  // with an exchange; else rows and results are written in place
};
MoeLayer::ForwardScratch MoeLayer::forward_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  ForwardScratch s;
  if (selective()) {
    s.n_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
    s.h_RI = arena.take(d.dtype, {max_rows_, o_.intermediate});
  }
  if (dispatch_.exchanges()) {
    s.sent_nH = arena.take(d.dtype, {d.local_tokens() * o_.router.top_k, d.hidden});
    s.y_RH = arena.take(d.dtype, {max_rows_, d.hidden});
  }
  return s;
}

struct MoeLayer::BackwardScratch {
  Tensor dweights_tK, unit_t;
  Tensor dh_RI, drows_RH;
  Tensor sent_nH;  // with an exchange: gradients on their way there, then back
};
MoeLayer::BackwardScratch MoeLayer::backward_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  const std::int64_t top_k = o_.router.top_k;
  BackwardScratch s;
  s.dweights_tK = arena.take(d.dtype, {d.local_tokens(), top_k});
  s.unit_t = arena.take(DType::i32, {d.local_tokens()});
  s.dh_RI = arena.take(d.dtype, {max_rows_, o_.intermediate});
  s.drows_RH = arena.take(d.dtype, {max_rows_, d.hidden});
  if (dispatch_.exchanges()) s.sent_nH = arena.take(d.dtype, {d.local_tokens() * top_k, d.hidden});
  return s;
}

struct MoeLayer::WeightScratch {
  Tensor n_tH, h_RI;  // selective
};
MoeLayer::WeightScratch MoeLayer::weight_scratch(Arena& arena) const {
  const nn::Dims& d = o_.dims;
  WeightScratch s;
  if (!selective()) return s;
  s.n_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  s.h_RI = arena.take(d.dtype, {max_rows_, o_.intermediate});
  return s;
}

void MoeLayer::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)forward_scratch(counting);
    {
      const Frame inner(counting);
      (void)route_scratch(counting);
    }
    dispatch_.measure_scratch(counting);
  }
  {
    const Frame frame(counting);
    (void)backward_scratch(counting);
    dispatch_.measure_scratch(counting);
  }
  const Frame frame(counting);
  (void)weight_scratch(counting);
}

// --- forward

std::int64_t MoeLayer::first_token(const Context& ctx) const {
  return ctx.tp.rank() * o_.dims.local_tokens();
}

// Chosen experts, weights, balancing coefficients and drops; then where every row goes.
void MoeLayer::route(Context& ctx, Saved& s, Tensor n_tH, Pass pass) {
  const Frame frame(ctx.scratch);
  const RouteScratch scratch = route_scratch(ctx.scratch);
  const std::int64_t first = first_token(ctx);
  Kernels& k = ctx.kernels;

  k.linear(scratch.logits_tE, n_tH, p_.router_EH.weight);
  k.router(s.probs_tE, s.lse_t, s.index_tK, s.weights_tK, scratch.logits_tE, o_.router);
  if (counts_units()) {
    count_choices(scratch.counts_UE, s.index_tK, o_, first);
    if (ctx.tp.size() > 1) ctx.tp.all_reduce_direct(scratch.counts_UE, comm::Op::sum);
    balance_from_counts(s.aux_UE, scratch.counts_UE, o_, ctx.weights.aux_unit);
  } else if (balanced()) {
    balance_from_frequency(s.aux_UE, frequency_, o_, ctx.weights.z_token);
  }

  const Tensor pos_tK = s.dispatch.pos_tK;
  if (drops()) {
    Tensor index_TK = s.index_tK;
    Tensor weights_TK = s.weights_tK;
    if (ctx.tp.size() > 1) {
      index_TK = scratch.index_TK;
      weights_TK = scratch.weights_TK;
      ctx.tp.all_gather(index_TK, s.index_tK);
      if (o_.drop_policy == DropPolicy::probs) ctx.tp.all_gather(weights_TK, s.weights_tK);
    }
    const std::int64_t capacity =
        capacity_rows(o_.capacity_factor, o_.dims.tokens(), o_.router.top_k, o_.num_experts);
    mark_drops(pos_tK, index_TK, weights_TK, scratch.work, o_.drop_policy, capacity, first);
  } else {
    std::fill_n(pos_tK.as<std::int32_t>(), pos_tK.num_elements(), 0);
  }
  dispatch_.plan(s.dispatch, s.index_tK);

  if (pass == Pass::recompute) return;
  add_to_stats(stats_,
               {.probs_tE = s.probs_tE,
                .lse_t = s.lse_t,
                .index_tK = s.index_tK,
                .pos_tK = pos_tK,
                .aux_UE = s.aux_UE,
                .first_token = first},
               o_, ctx.weights.z_token);
  stats_.received_rows += s.dispatch.received;
}

// sent_nH of the slot = results of the experts for the rows this rank sent.
void MoeLayer::run_experts(Context& ctx, Saved& s, Tensor n_tH, const ForwardScratch& scratch) {
  const bool exchange = dispatch_.exchanges();
  const std::int64_t rows = s.dispatch.received;
  const Tensor results_nH = s.sent_nH.narrow_rows(0, s.dispatch.sent);
  const Tensor rows_RH = s.rows_RH.narrow_rows(0, rows);
  const Tensor y_RH = exchange ? scratch.y_RH.narrow_rows(0, rows) : results_nH;
  Kernels& k = ctx.kernels;

  if (exchange) {
    const Tensor sent_nH = scratch.sent_nH.narrow_rows(0, s.dispatch.sent);
    k.gather_rows(sent_nH, n_tH, s.dispatch.tokens());
    dispatch_.to_experts(k, ctx.scratch, s.dispatch, rows_RH, sent_nH);
  } else {
    k.gather_rows(rows_RH, n_tH, s.dispatch.tokens());
  }
  experts_forward(k, p_.experts, s.dispatch.begins(),
                  {.y_RH = y_RH,
                   .h_RI = (selective() ? scratch.h_RI : s.h_RI).narrow_rows(0, rows),
                   .gate_up = s.gate_up.narrow_rows(0, rows),
                   .rows_RH = rows_RH});
  if (exchange) dispatch_.from_experts(k, ctx.scratch, s.dispatch, results_nH, y_RH);
}

void MoeLayer::forward(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor x_tH, Tensor y_tH,
                       Pass pass) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the mixture of experts was built for another tp group");
  Saved& s = nn::slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  const ForwardScratch scratch = forward_scratch(ctx.scratch);
  const Tensor n_tH = selective() ? scratch.n_tH : s.n_tH;
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  k.rms_norm(n_tH, s.rstd_t, x_tH, p_.norm_H.weight.value_NK, o_.norm_eps);
  route(ctx, s, n_tH, pass);
  run_experts(ctx, s, n_tH, scratch);
  k.combine(y_tH, x_tH, s.sent_nH.narrow_rows(0, s.dispatch.sent), s.dispatch.pos_tK, s.weights_tK);
}

// --- backward

void MoeLayer::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const BackwardScratch scratch = backward_scratch(ctx.scratch);
  const bool exchange = dispatch_.exchanges();
  const std::int64_t sent = s.dispatch.sent;
  const std::int64_t rows = s.dispatch.received;
  const Tensor pos_tK = s.dispatch.pos_tK;
  const Tensor dy_RH = f.dy_RH.narrow_rows(0, rows);
  const Tensor drows_RH = scratch.drows_RH.narrow_rows(0, rows);
  const Tensor travel_nH = exchange ? scratch.sent_nH.narrow_rows(0, sent) : Tensor();
  const Tensor norm_H = p_.norm_H.weight.value_NK;
  Kernels& k = ctx.kernels;

  // Every row in send order belongs to one kept choice, so all of them are written.
  k.combine_backward(exchange ? travel_nH : dy_RH, scratch.dweights_tK, g_tH, s.sent_nH.narrow_rows(0, sent),
                     pos_tK, s.weights_tK);
  if (exchange) dispatch_.to_experts(k, ctx.scratch, s.dispatch, dy_RH, travel_nH);
  experts_backward_input(k, p_.experts, s.dispatch.begins(),
                         {.drows_RH = drows_RH,
                          .dgate_up = f.dgate_up.narrow_rows(0, rows),
                          .dh_RI = scratch.dh_RI.narrow_rows(0, rows),
                          .dy_RH = dy_RH,
                          .gate_up = s.gate_up.narrow_rows(0, rows)});
  if (exchange) dispatch_.from_experts(k, ctx.scratch, s.dispatch, travel_nH, drows_RH);
  k.sum_rows(f.dn_tH, exchange ? travel_nH : drows_RH, pos_tK, kernels::Write::overwrite);

  if (balanced()) fill_units(scratch.unit_t, o_, first_token(ctx));
  k.router_backward(f.dlogits_tE, scratch.dweights_tK, s.probs_tE, s.lse_t, s.index_tK, s.weights_tK,
                    s.aux_UE, scratch.unit_t, o_.z_loss_coef * ctx.weights.z_token, o_.router);
  k.linear_dgrad(f.dn_tH, f.dlogits_tE, p_.router_EH.weight, kernels::Write::accumulate);
  k.rms_norm_dgrad(g_tH, f.dn_tH, s.x_tH, s.rstd_t, norm_H, kernels::Write::accumulate);
}

void MoeLayer::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const WeightScratch scratch = weight_scratch(ctx.scratch);
  const std::int64_t rows = s.dispatch.received;
  const Tensor n_tH = selective() ? scratch.n_tH : s.n_tH;
  const Tensor h_RI = (selective() ? scratch.h_RI : s.h_RI).narrow_rows(0, rows);
  Kernels& k = ctx.kernels;

  if (selective()) {
    k.rms_norm_apply(n_tH, s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK);
    k.swiglu(h_RI, s.gate_up.narrow_rows(0, rows));
  }
  experts_backward_weight(k, p_.experts, s.dispatch.begins(),
                          {.dy_RH = f.dy_RH.narrow_rows(0, rows),
                           .h_RI = h_RI,
                           .dgate_up = f.dgate_up.narrow_rows(0, rows),
                           .rows_RH = s.rows_RH.narrow_rows(0, rows)});
  k.linear_wgrad(p_.router_EH.grad, f.dlogits_tE, n_tH);
  k.rms_norm_wgrad(p_.norm_H.grad, f.dn_tH, s.x_tH, s.rstd_t);
}

Tensor MoeLayer::chosen_tK(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).index_tK;
}

Tensor MoeLayer::weights_tK(std::int32_t saved_slot) const {
  return nn::slot_at(saved_, saved_slot).weights_tK;
}

}  // namespace tessera::moe
