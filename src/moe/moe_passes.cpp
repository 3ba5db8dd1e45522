// Forward, backward-input and backward-weight of the layer. Legend: moe_layer.cpp.
#include <algorithm>

#include "moe/experts.h"
#include "moe/moe_layer.h"
#include "moe/moe_scratch.h"
#include "moe/random_routing.h"
#include "moe/routing.h"

namespace tessera::moe {

using kernels::Write;
using nn::Frame;
using nn::Kernels;

namespace {
bool present(const Param& p) {
  return !p.weight.value_NK.empty();
}
}  // namespace

std::int64_t MoeLayer::first_token(const Context& ctx) const {
  return ctx.tp.rank() * o_.dims.local_tokens();
}

Tensor MoeLayer::own_rows(const Context& ctx, Tensor n_H) const {
  return shared_ ? nn::local_rows(ctx, n_H) : n_H;
}

DropPolicy MoeLayer::drop_policy() const {
  return o_.choice == Choice::expert_choice ? DropPolicy::probs : o_.drop_policy;
}

Tensor MoeLayer::begins(const Saved& s) const {
  return padded() ? padded_begin_e1_ : s.dispatch.begin_e1;
}

ExpertList MoeLayer::expert_list() const {
  return {.experts = experts_, .form = {.activation = o_.activation, .adds_down_bias = adds_down_bias_}};
}

// --- forward

// The experts of each token, before drops, and their weights.
void MoeLayer::choose(Context& ctx, Saved& s, const Microbatch& mb, Tensor logits_tE) {
  if (o_.choice != Choice::scores) nn::host_turn(ctx);
  switch (o_.choice) {
    case Choice::scores:
      break;
    case Choice::hash:
      hash_choices(s.index_tK, mb.ids_T.narrow_rows(first_token(ctx), o_.dims.local_tokens()), o_.num_experts,
                   {.seed = o_.seed, .layer = o_.layer});
      break;
    case Choice::expert_choice:
      choose_all(s.index_tK);
      break;
  }
  const Tensor bias_E = o_.choice == Choice::scores ? correction_E() : Tensor();
  ctx.kernels.router(s.probs_tE, s.lse_t, s.index_tK, s.weights_tK, logits_tE, bias_E, kernel_options_);
}

void MoeLayer::balance(Context& ctx, Saved& s, const Microbatch& mb, Tensor counts_UE, Pass pass) {
  if (!balanced()) return;
  if (!units_known_) fill_units(unit_t_, o_, first_token(ctx));
  units_known_ = true;
  if (!counts_units()) {
    ctx.kernels.scale_counts(s.aux_UE, frequency_1E_, frequency_scale(o_, ctx.weights.z_token));
    return;
  }
  ctx.kernels.count_choices(counts_UE, s.index_tK, unit_t_);
  if (ctx.tp.size() > 1) ctx.tp.all_reduce_direct(counts_UE, comm::Op::sum);
  if (o_.dims.cp > 1) nn::context_group(ctx, o_.dims.cp).all_reduce_direct(counts_UE, comm::Op::sum);
  if (!joined()) {
    ctx.kernels.scale_counts(s.aux_UE, counts_UE, balance_scale(o_, ctx.weights.aux_unit));
  } else if (pass == Pass::forward) {
    nn::host_turn(ctx);
    o_.joined->add(mb.index, counts_UE.span<std::int32_t>());
  }
}

// pos_tK = 0 for a choice that stays, -1 for one that is dropped.
void MoeLayer::drop(Context& ctx, Saved& s, const RouteScratch& scratch) {
  const Tensor pos_tK = s.dispatch.pos_tK;
  if (capacity(o_) == 0) {
    ctx.kernels.memory()->clear(pos_tK);
    return;
  }
  nn::host_turn(ctx);
  const nn::Dims& d = o_.dims;
  Tensor index_TK;
  if (o_.choice != Choice::expert_choice) {
    index_TK = gather_table(ctx, d, scratch.index, s.index_tK);
  } else {  // known without asking
    index_TK = d.cp > 1 ? scratch.index.all : d.tp > 1 ? scratch.index.part_TK : s.index_tK;
    choose_all(index_TK);
  }
  Tensor weights_TK;
  if (drop_policy() == DropPolicy::probs) weights_TK = gather_table(ctx, d, scratch.weights, s.weights_tK);
  if (d.cp == 1) {
    mark_drops(pos_tK, index_TK, weights_TK, scratch.work, drop_policy(), capacity(o_), first_token(ctx));
    return;
  }
  const Tensor pos_TK = scratch.index.gathered;  // what it held stands in order elsewhere
  mark_drops(pos_TK, index_TK, weights_TK, scratch.work, drop_policy(), capacity(o_), 0);
  pick_own_rows(ctx, d, pos_tK, pos_TK);
}

void MoeLayer::jitter(const Context& ctx, const Microbatch& mb, Tensor out_tH, Tensor x_tH) const {
  const SequenceCut cut = nn::sequence_cut(ctx, o_.dims);
  const std::int64_t first = first_token(ctx);
  for (std::int64_t i = 0; i < x_tH.rows();) {
    const std::int64_t rows = std::min(cut.run((first + i) % cut.rows()), x_tH.rows() - i);
    multiply_jitter(out_tH.narrow_rows(i, rows), x_tH.narrow_rows(i, rows), o_.router_jitter,
                    mb.first_token + cut.token(first + i), draw_key());
    i += rows;
  }
}

// Where the chosen experts lie.
Tensor MoeLayer::slots_of(const Context& ctx, const Microbatch& mb, Tensor index_tK,
                          const RouteScratch& scratch) const {
  if (o_.expert_of_slot.empty()) return index_tK;
  nn::host_turn(ctx);
  const std::int64_t first_row = first_token(ctx);
  const std::int32_t* index = index_tK.as<std::int32_t>();
  std::int32_t* slots = scratch.slots_tK.as<std::int32_t>();
  for (std::int64_t t = 0; t < index_tK.rows(); ++t) {
    std::int64_t turn = first_turn_ + t;
    if (mb.cache != nullptr) {
      turn = first_turn_ + mb.positions_T.as<std::int32_t>()[first_row + t] +
             mb.slots_T.as<std::int32_t>()[first_row + t];
    }
    for (std::int64_t i = t * width_; i < (t + 1) * width_; ++i) {
      const auto e = static_cast<std::size_t>(index[i]);
      const std::int64_t replica = turn % (first_E1_[e + 1] - first_E1_[e]);
      slots[i] = replicas_P_[static_cast<std::size_t>(first_E1_[e] + replica)];
    }
  }
  return scratch.slots_tK;
}

// Chosen experts, weights, balancing coefficients and drops; then where every row goes.
void MoeLayer::route(Context& ctx, Saved& s, const Microbatch& mb, Tensor n_tH, Pass pass) {
  const Frame frame(ctx.scratch);
  const RouteScratch scratch = route_scratch(ctx.scratch);
  const Tensor logits_tE = keeps_logits() ? s.logits_tE : scratch.logits_tE;
  Tensor input_tH = n_tH;
  if (jitters(ctx)) {
    input_tH = scratch.input_tH;
    jitter(ctx, mb, input_tH, n_tH);
  }
  ctx.kernels.linear(logits_tE, input_tH, p_.router_EH.weight);
  if (present(p_.router_bias_E)) ctx.kernels.add_bias(logits_tE, p_.router_bias_E.weight.value_NK);
  choose(ctx, s, mb, logits_tE);
  balance(ctx, s, mb, scratch.counts_UE, pass);
  drop(ctx, s, scratch);
  dispatch_->plan(ctx, s.dispatch, slots_of(ctx, mb, s.index_tK, scratch), s.weights_tK);
  if (pass != Pass::recompute) note_routing(ctx, s, logits_tE);
}

void MoeLayer::note_routing(Context& ctx, const Saved& s, Tensor logits_tE) {
  const kernels::RouterScore score = o_.router.score;
  ctx.kernels.router_stats(sums_.narrow_rows(0, kernels::kRouterSums), counts_,
                           {.probs_TE = s.probs_tE,
                            .lse_T = s.lse_t,
                            .logits_TE = logits_tE,
                            .index_TK = s.index_tK,
                            .pos_TK = s.dispatch.pos_tK},
                           {.score = score,
                            .counts_kept_only = o_.choice == Choice::expert_choice,
                            .z_scale = o_.z_loss_coef * ctx.weights.z_token});
  if (!s.aux_UE.empty()) ctx.kernels.balance_value(balance_sum(), s.probs_tE, s.aux_UE, unit_t_, score);
  stats_.tokens += s.index_tK.rows();
  stats_.received_rows += s.dispatch.received;
  for (std::int32_t n = 0; n < num_nodes_; ++n)
    stats_.node_rows[static_cast<std::size_t>(n)] += s.dispatch.send_rows_N.as<std::int64_t>()[n];
}

// The results of the experts for the rows that are on their way.
void MoeLayer::run_experts(Context& ctx, Saved& s, ForwardScratch& scratch) {
  const std::int64_t received = s.dispatch.received;
  const std::int64_t rows = padded() ? buffer_rows_ : received;
  const Tensor rows_RH = s.rows_RH.narrow_rows(0, rows);
  const Tensor arrived_RH = padded() ? scratch.arrived_RH.narrow_rows(0, received) : rows_RH;
  const Tensor done_RH = dispatch_->result_rows(scratch.travel, s.dispatch);
  const Tensor y_RH = padded() ? scratch.padded_RH.narrow_rows(0, rows) : done_RH;
  Kernels& k = ctx.kernels;

  dispatch_->end_rows(ctx, scratch.travel, s.dispatch, arrived_RH);
  if (padded()) pad_rows(k, rows_RH, begins(s), arrived_RH, s.dispatch.begin_e1);
  experts_forward(k, expert_list(), begins(s),
                  {.y_RH = y_RH,
                   .h_RI = (selective() ? scratch.h_RI : s.h_RI).narrow_rows(0, rows),
                   .gate_up = s.gate_up.narrow_rows(0, rows),
                   .rows_RH = rows_RH});
  if (padded()) unpad_rows(k, done_RH, s.dispatch.begin_e1, y_RH, begins(s));
}

void MoeLayer::forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the mixture of experts was built for another tp group");
  Saved& s = nn::slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  ForwardScratch scratch = forward_scratch(ctx.scratch);
  const Tensor n_H = selective() ? scratch.n_H : s.n_H;
  const Tensor n_tH = own_rows(ctx, n_H);
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  k.rms_norm(n_tH, s.rstd_t, x_tH, p_.norm_H.weight.value_NK, o_.norm_eps);
  route(ctx, s, mb, n_tH, pass);
  dispatch_->begin_rows(ctx, scratch.travel, s.dispatch, n_tH);
  Tensor shared_tH;
  if (shared_) {
    const Tensor kept_tH = shared_->kept_result(slots.saved);
    shared_tH = kept_tH.empty() ? scratch.shared_tH : kept_tH;
    shared_->forward(ctx, slots.saved, n_H, shared_tH);
  }
  run_experts(ctx, s, scratch);
  dispatch_->combine(ctx, scratch.travel, s.dispatch, y_tH, x_tH, s.weights_tK);
  stats_.hidden_transfer_ns += scratch.travel.hidden_ns;
  if (shared_) shared_->add(ctx, slots.saved, y_tH, shared_tH);
}

// --- backward

// Through the combine, the experts and the shared expert: dn_tH = and dweights_tK =.
void MoeLayer::experts_input(Context& ctx, const Saved& s, Slots slots, BackwardScratch& scratch,
                             Tensor g_tH) {
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const std::int64_t received = s.dispatch.received;
  const std::int64_t rows = padded() ? buffer_rows_ : received;
  const Tensor dy_RH = f.dy_RH.narrow_rows(0, rows);
  const Tensor drows_RH = scratch.drows_RH.narrow_rows(0, rows);
  const Tensor compact_RH = padded() ? scratch.compact_RH.narrow_rows(0, received) : Tensor();
  const Tensor arrived_RH = padded() ? compact_RH : dy_RH;
  const Tensor done_RH = padded() ? compact_RH : drows_RH;
  Kernels& k = ctx.kernels;

  dispatch_->begin_gradient(ctx, scratch.travel, s.dispatch, g_tH, s.weights_tK, scratch.dweights_tK);
  if (shared_) {  // while the gradients travel
    k.fill(f.dn_tH, 0.0);
    shared_->backward_input(ctx, slots, f.dn_tH, g_tH);
  }
  dispatch_->end_gradient(ctx, scratch.travel, s.dispatch, arrived_RH, s.weights_tK, scratch.dweights_tK);
  if (padded()) pad_rows(k, dy_RH, begins(s), arrived_RH, s.dispatch.begin_e1);
  experts_backward_input(k, expert_list(), begins(s),
                         {.drows_RH = drows_RH,
                          .dgate_up = f.dgate_up.narrow_rows(0, rows),
                          .dh_RI = scratch.dh_RI.narrow_rows(0, rows),
                          .dy_RH = dy_RH,
                          .gate_up = s.gate_up.narrow_rows(0, rows)});
  if (padded()) unpad_rows(k, done_RH, s.dispatch.begin_e1, drows_RH, begins(s));
  dispatch_->scatter(ctx, scratch.travel, s.dispatch, f.dn_tH, done_RH,
                     shared_ ? Write::accumulate : Write::overwrite);
  stats_.hidden_transfer_ns += scratch.travel.hidden_ns;
}

// The coefficients of the loss over all layers together, which only now are known; its value as well.
Tensor MoeLayer::joined_aux(Context& ctx, const Saved& s, const Microbatch& mb, Tensor aux_UE) {
  nn::host_turn(ctx);
  balance_from_totals(aux_UE, o_.joined->totals(mb.index), o_.joined->num_layers(), o_, ctx.weights.aux_unit);
  ctx.kernels.balance_value(balance_sum(), s.probs_tE, aux_UE, unit_t_, o_.router.score);
  return aux_UE;
}

// Through the router: dlogits_tE =, dn_tH +=.
void MoeLayer::router_input(Context& ctx, const Saved& s, const Deferred& f, const Microbatch& mb,
                            const BackwardScratch& scratch) {
  Kernels& k = ctx.kernels;
  const Tensor aux_UE = joined() ? joined_aux(ctx, s, mb, scratch.aux_UE) : s.aux_UE;
  k.router_backward(f.dlogits_tE, scratch.dweights_tK, s.probs_tE, s.lse_t, s.index_tK, s.weights_tK, aux_UE,
                    unit_t_, o_.z_loss_coef * ctx.weights.z_token, kernel_options_, s.logits_tE);
  if (!jitters(ctx)) {
    k.linear_dgrad(f.dn_tH, f.dlogits_tE, p_.router_EH.weight, Write::accumulate);
    return;
  }
  k.linear_dgrad(scratch.dinput_tH, f.dlogits_tE, p_.router_EH.weight);
  jitter(ctx, mb, scratch.dinput_tH, scratch.dinput_tH);
  k.accumulate(f.dn_tH, scratch.dinput_tH);
}

void MoeLayer::backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  BackwardScratch scratch = backward_scratch(ctx.scratch);
  const Tensor norm_H = p_.norm_H.weight.value_NK;
  Kernels& k = ctx.kernels;

  if (shared_ && selective()) {
    const Tensor n_tH = nn::local_rows(ctx, f.n_TH);
    k.rms_norm_apply(n_tH, s.x_tH, s.rstd_t, norm_H);
    nn::gather_rows(ctx, f.n_TH, n_tH);
  }
  experts_input(ctx, s, slots, scratch, g_tH);
  router_input(ctx, s, f, mb, scratch);
  k.rms_norm_dgrad(g_tH, f.dn_tH, s.x_tH, s.rstd_t, norm_H, Write::accumulate);
}

void MoeLayer::router_weight(Context& ctx, const Deferred& f, const Microbatch& mb, Tensor n_tH,
                             const WeightScratch& scratch) {
  Kernels& k = ctx.kernels;
  Tensor input_tH = n_tH;
  if (jitters(ctx)) {
    input_tH = scratch.input_tH;
    jitter(ctx, mb, input_tH, n_tH);
  }
  k.linear_wgrad(p_.router_EH.grad, f.dlogits_tE, input_tH);
  if (present(p_.router_bias_E)) k.bias_wgrad(p_.router_bias_E.grad, f.dlogits_tE, Write::accumulate);
}

void MoeLayer::backward_weight(Context& ctx, Slots slots, const Microbatch& mb) {
  const Saved& s = nn::slot_at(saved_, slots.saved);
  const Deferred& f = nn::slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const WeightScratch scratch = weight_scratch(ctx.scratch);
  const std::int64_t rows = padded() ? buffer_rows_ : s.dispatch.received;
  const Tensor n_H = !selective() ? s.n_H : shared_ ? f.n_TH : scratch.n_tH;
  const Tensor h_RI = (selective() ? scratch.h_RI : s.h_RI).narrow_rows(0, rows);
  Kernels& k = ctx.kernels;

  if (selective()) {
    if (!shared_) k.rms_norm_apply(n_H, s.x_tH, s.rstd_t, p_.norm_H.weight.value_NK);
    k.activation(h_RI, s.gate_up.narrow_rows(0, rows), o_.activation);
  }
  experts_backward_weight(k, expert_list(), begins(s),
                          {.dy_RH = f.dy_RH.narrow_rows(0, rows),
                           .h_RI = h_RI,
                           .dgate_up = f.dgate_up.narrow_rows(0, rows),
                           .rows_RH = s.rows_RH.narrow_rows(0, rows)});
  if (shared_) shared_->backward_weight(ctx, slots, n_H);
  router_weight(ctx, f, mb, own_rows(ctx, n_H), scratch);
  k.rms_norm_wgrad(p_.norm_H.grad, f.dn_tH, s.x_tH, s.rstd_t);
}

}  // namespace tessera::moe
