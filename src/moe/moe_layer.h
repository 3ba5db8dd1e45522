// Mixture of experts as a layer of the residual stream:
//   y = x + sum over chosen experts of w * expert(n) [+ shared expert(n)], n = rms_norm(x).
// Each tp rank routes its own t = T / tp tokens; tokens travel to the rank that holds their expert
// (all_to_all_v over ep), experts sliced over etp see the rows of all etp ranks (all_gather_v /
// reduce_scatter_v), results travel back and are combined. docs/moe.md has every method with its source.
//
// Who chooses (Choice): the router's scores (softmax or sigmoid, groups, correction bias, see
// kernels::RouterOptions); a hash of the token id (arXiv 2106.04426), weights by the same formula over the
// given choice; or each expert its C best tokens of the micro-batch (arXiv 2202.09368), weights = scores.
// Jitter (arXiv 2101.03961): the router alone sees n * u, u uniform in [1 - eps, 1 + eps), in training;
// u depends on seed, layer, token of the run and column.
//
// Balancing (arXiv 2101.03961, K-normalised): A = c E / (K T^2) sum_e N_e sum_t P_te per unit of T tokens,
// value c at perfect balance, weighted 1 / units of the global batch, summed over layers. P: softmax, or
// sigmoid scores divided by their sum. N_e counts choices before drops, no gradient.
//   sequence, micro_batch: N_e of the unit itself (counts summed over tp and cp);
//   global_batch: N_e / (K T) of the whole previous step (set_global_frequency), uniform in the first one.
//   joined layers (LayerCounts): A = c E sum_e f_e P_e, f_e = N_e / (L T), P_e = sum P_te / (L T) over the
//   T tokens of all L layers together (value c K at balance); needs the forward passes of all L layers of a
//   micro-batch before the first backward.
// z-loss (arXiv 2202.08906): c_z / T sum_t lse(z_t)^2 over all tokens of the global batch.
//
// Capacity: C = ceil(capacity_factor * T * K / E) rows per expert, unit = the micro-batch of the whole
// replica (all tp and cp ranks), whatever the layout: `position` keeps the first C choices in (token, choice)
// order; `probs` the C of highest weight, ties to the lower token index. A dropped choice contributes
// nothing; the others keep their weights. pad_to_capacity: every expert computes C rows for each micro-batch
// that meets in its group, zero rows after its own; the results are the same.
//
// Row order inside an expert: ep rank, then etp rank, then token: with ranks counted etp first that is the
// order of the concatenated batch of the group (dispatch.h).
//
// Bytes sent by one rank, b bytes per element, R_q rows that etp rank q brings (R_own: this rank's), n_other
// rows it sends to other ep ranks, m_other rows it receives from them:
//   F balance (sequence, micro_batch units with coefficient, tp > 1): all_reduce_direct of U E i32 over tp;
//   F capacity (tp > 1): all_gather (tp - 1) t K * 4, and with `probs` (tp - 1) t K b more, over tp; expert
//   choice: (tp - 1) t E b alone;
//   with cp > 1 both over cp as well: all_reduce_direct of U E i32; all_gather of the T = tp t rows of this
//   cp rank, (cp - 1) T K * 4 and (cp - 1) T K b;
//   F counts: all_gather (ep - 1) E * 4 over ep, (etp - 1) ep (E / ep) * 4 over etp;
//   F rows: all_to_all_v n_other H b and back m_other H b over ep; all_gather_v (etp - 1) R_own H b and
//   reduce_scatter_v (sum_q R_q - R_own) H b over etp;
//   I rows: as F rows. W: none. Shared expert: shared_expert.h. Otherwise nothing depends on the
//   recomputation mode.
// Errors: none of its own; a broken count is Error{internal}.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "moe/dispatch.h"
#include "moe/layer_counts.h"
#include "moe/random_routing.h"
#include "moe/shared_expert.h"
#include "nn/layer.h"

namespace tessera::moe {

using kernels::RouterOptions;
using nn::Arena;
using nn::Context;
using nn::Microbatch;
using nn::Param;
using nn::Pass;
using nn::Slots;
using nn::Tensor;

enum class BalanceUnit : std::uint8_t { sequence, micro_batch, global_batch };
enum class DropPolicy : std::uint8_t { position, probs };
enum class Choice : std::uint8_t { scores, hash, expert_choice };
enum class Padding : std::uint8_t { none, to_capacity };

struct Options {
  nn::Dims dims;
  std::int32_t num_experts;   // E, over all ranks
  std::int64_t intermediate;  // FFN width of one expert on this rank (I / etp)
  RouterOptions router;
  double norm_eps;
  nn::Recompute recompute;
  BalanceUnit unit = BalanceUnit::micro_batch;
  double aux_loss_coef = 0.0;
  double z_loss_coef = 0.0;
  double capacity_factor = 0.0;  // 0: dropless; expert choice: 1
  DropPolicy drop_policy = DropPolicy::position;
  // Distinct micro-batches whose tokens can meet in this rank's etp x ep group (bounds the rows under
  // capacity).
  std::int64_t units_in_group = 1;
  kernels::ActivationOptions activation = {.kind = kernels::Activation::swiglu};
  std::int64_t shared_intermediate = 0;  // width of the shared expert on this rank (over tp); 0: none
  Choice choice = Choice::scores;
  Padding padding = Padding::none;
  DispatchForm dispatch = DispatchForm::all_to_all;
  double router_jitter = 0.0;     // eps
  std::uint64_t seed = 0;         // of jitter and hash
  std::int32_t layer = 0;         // likewise, of the model
  LayerCounts* joined = nullptr;  // balancing over all layers together; outlives the layer
  // [P] the expert of each slot: ep rank r has slots [r P / ep, (r + 1) P / ep). Empty: P = E, in order of
  // experts. P > E: replicas, forward only and without capacity; those of an expert, in order of slots, take
  // turns by position and sequence of the token, so a token goes the same way whatever runs beside it.
  std::vector<std::int32_t> expert_of_slot = {};
};

// A parameter that the model does not have is an empty Param. Z: columns that the activation reads, 2 I where
// it is gated.
struct ExpertParams {
  Param gate_up;  // [Z, H], gated: rows gate | up
  Param down;     // [H, I]
  Param gate_up_bias_Z;
  Param down_bias_H;  // added by etp rank 0, its gradient is whole on each etp rank
};
struct Params {
  Param norm_H, router_EH;
  std::vector<ExpertParams> experts;  // local ones, E / ep
  Param router_bias_E;
  Param correction_E;  // of the choice alone: no gradient
  SharedExpert::Params shared;
};

// The parameters of all local experts by kind, as products of many experts take them; biases are empty where
// the model has none.
struct ExpertTable {
  ExpertTable() = default;
  explicit ExpertTable(std::span<const ExpertParams> experts);
  std::vector<kernels::Weight> gate_up, down;
  std::vector<Tensor> gate_up_grad, down_grad;
  std::vector<Tensor> gate_up_bias, down_bias, gate_up_bias_grad, down_bias_grad;
};
struct ExpertList;

// Of this rank's tokens, summed over the forward passes since reset (one step). Summed over ranks they are
// the same on every layout (received_rows: etp times the kept choices, since every slice of an expert sees a
// row); max_abs_logit likewise as the largest over ranks.
struct Stats {
  std::vector<std::int64_t> chosen;   // [E] choices before drops; expert choice: those that were kept
  std::vector<std::int64_t> dropped;  // [E]
  std::int64_t tokens = 0;
  std::int64_t unserved = 0;  // tokens that no expert computes
  double aux_loss = 0.0;      // weighted: sums over ranks to the term of the loss (joined: after backward)
  double z_loss = 0.0;
  double entropy = 0.0;        // sum over tokens of the entropy of P, in nats
  double logit_squares = 0.0;  // sum over tokens and experts
  double max_abs_logit = 0.0;
  std::int64_t hidden_transfer_ns = 0;  // rows travelled while this thread computed
  std::int64_t received_rows = 0;       // rows this rank's experts computed, without padding
  std::vector<std::int64_t> node_rows;  // [N] hierarchical: rows sent to each node
};

class MoeLayer : public nn::Layer {
 public:
  MoeLayer(Options options, Params params, const ExpertGroups& groups);
  // What all micro-batches share, apart from the slots where their memory serves other layers too. Else the
  // first slot takes it.
  void reserve_routing(Arena& arena);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

  // Both once the kernels queued so far are done: they add to what these read and clear.
  [[nodiscard]] const Stats& stats() const;
  void reset_stats();
  // Between steps: the slots have other experts now, whose weights are there. REQUIRES as many as
  // Options::expert_of_slot gave, which was not empty.
  void place_experts(std::vector<std::int32_t> expert_of_slot);
  // Share of all choices of the previous step that went to each expert [E] (sums to 1); for the global_batch
  // unit. Likewise between steps.
  void set_global_frequency(std::span<const double> frequency);
  // The most rows this rank's experts can receive, and the rows that its buffers hold: more with padding.
  [[nodiscard]] static std::int64_t max_rows(const Options& options, std::int32_t ep, std::int32_t etp);
  [[nodiscard]] static std::int64_t buffer_rows(const Options& options, std::int32_t ep, std::int32_t etp);
  // Of a saved slot (tests and tools): chosen experts and weights, and where < 0 the choice was dropped.
  // Expert choice: E choices a token, in order of experts.
  [[nodiscard]] Tensor chosen_tK(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor weights_tK(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor kept_tK(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor probs_tE(std::int32_t saved_slot) const;  // softmax or sigmoid scores
  // Empty where the model has none.
  [[nodiscard]] Tensor correction_E() const { return p_.correction_E.weight.value_NK; }

 private:
  struct Saved {
    Tensor x_tH, rstd_t;  // x: view
    Tensor n_H;           // Recompute::none only; all T rows with a shared expert, else this rank's t
    Tensor probs_tE, lse_t, index_tK, weights_tK;
    Tensor logits_tE;               // sigmoid scores with a z-loss
    Tensor aux_UE;                  // with a balancing loss of this layer alone
    Tensor rows_RH, gate_up, h_RI;  // expert order; h: Recompute::none only
    DispatchSlot dispatch;
  };
  struct Deferred {
    Tensor dy_RH, dgate_up, dn_tH, dlogits_tE;
    Tensor n_TH;  // selective, with a shared expert
  };
  struct RouteScratch;
  struct ForwardScratch;
  struct BackwardScratch;
  struct WeightScratch;
  [[nodiscard]] RouteScratch route_scratch(Arena& arena) const;
  [[nodiscard]] ForwardScratch forward_scratch(Arena& arena) const;
  [[nodiscard]] BackwardScratch backward_scratch(Arena& arena) const;
  [[nodiscard]] WeightScratch weight_scratch(Arena& arena) const;

  [[nodiscard]] Tensor slots_of(const Context& ctx, const Microbatch& mb, Tensor index_tK,
                                const RouteScratch& scratch) const;
  void route(Context& ctx, Saved& s, const Microbatch& mb, Tensor n_tH, Pass pass);
  void choose(Context& ctx, Saved& s, const Microbatch& mb, Tensor logits_tE);
  void balance(Context& ctx, Saved& s, const Microbatch& mb, Tensor counts_UE, Pass pass);
  void note_routing(Context& ctx, const Saved& s, Tensor logits_tE);
  void drop(Context& ctx, Saved& s, const RouteScratch& scratch);
  void run_experts(Context& ctx, Saved& s, ForwardScratch& scratch);
  void experts_input(Context& ctx, const Saved& s, Slots slots, BackwardScratch& scratch, Tensor g_tH);
  [[nodiscard]] Tensor joined_aux(Context& ctx, const Saved& s, const Microbatch& mb, Tensor aux_UE);
  void router_input(Context& ctx, const Saved& s, const Deferred& f, const Microbatch& mb,
                    const BackwardScratch& scratch);
  void router_weight(Context& ctx, const Deferred& f, const Microbatch& mb, Tensor n_tH,
                     const WeightScratch& scratch);
  [[nodiscard]] ExpertList expert_list() const;
  [[nodiscard]] DropPolicy drop_policy() const;
  [[nodiscard]] DrawKey draw_key() const { return {.seed = o_.seed, .layer = o_.layer}; }
  // The rows of the norm's output that belong to this rank, in a buffer with those of all or its own.
  [[nodiscard]] Tensor own_rows(const Context& ctx, Tensor n_H) const;
  [[nodiscard]] Tensor begins(const Saved& s) const;  // of the rows that the experts compute
  [[nodiscard]] Tensor balance_sum() const { return sums_.narrow_rows(kernels::kRouterSums, 1); }
  [[nodiscard]] bool selective() const { return o_.recompute == nn::Recompute::selective; }
  [[nodiscard]] bool padded() const { return o_.padding == Padding::to_capacity; }
  [[nodiscard]] bool balanced() const { return o_.aux_loss_coef != 0.0; }
  [[nodiscard]] bool joined() const { return o_.joined != nullptr && balanced(); }
  [[nodiscard]] bool counts_units() const {
    return balanced() && (o_.unit != BalanceUnit::global_batch || joined());
  }
  [[nodiscard]] bool jitters(const Context& ctx) const { return ctx.training && o_.router_jitter > 0.0; }
  [[nodiscard]] bool keeps_logits() const {
    return o_.router.score == kernels::RouterScore::sigmoid && o_.z_loss_coef != 0.0;
  }
  [[nodiscard]] std::int64_t norm_rows() const;
  // Where what the router says lies: beside the kernels that alone read it, or where the host sees it too.
  [[nodiscard]] tensor::Reach reach() const;
  [[nodiscard]] std::int64_t first_token(const Context& ctx) const;  // of the tokens of this cp rank
  void jitter(const Context& ctx, const Microbatch& mb, Tensor out_tH, Tensor x_tH) const;

  Options o_;
  Params p_;
  ExpertTable experts_;
  RouterOptions kernel_options_;  // of the choice
  std::int64_t width_;            // choices a token: K, or E where experts choose
  std::int64_t max_rows_, buffer_rows_;
  bool adds_down_bias_;
  bool all_local_;                                   // ep and etp of one rank
  std::int32_t first_turn_;                          // among replicas
  std::vector<std::int32_t> replicas_P_, first_E1_;  // slots by expert, and where each expert's begin
  std::int32_t num_nodes_;                           // 0: not hierarchical
  std::unique_ptr<Dispatch> dispatch_;
  std::optional<SharedExpert> shared_;
  std::vector<double> frequency_;  // [E]
  Tensor frequency_1E_;            // f64, the same for kernels; global_batch unit
  Tensor unit_t_;                  // i32: unit of each token, with a balancing loss
  bool units_known_ = false;
  Tensor padded_begin_e1_;  // with padding: as begin_e1 of the dispatch
  bool routing_reserved_ = false;
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
  Tensor sums_, counts_;  // what kernels add up: of kernels::router_stats, and last the balancing loss
  mutable Stats stats_;   // what the host counts; sums_ and counts_ when they are read
};

}  // namespace tessera::moe
