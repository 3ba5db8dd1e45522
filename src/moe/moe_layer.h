// Mixture of experts as a layer of the residual stream: y = x + sum over chosen experts of
// w * expert(rms_norm(x)). Each tp rank routes its own t = T / tp tokens; tokens travel to the rank that
// holds their expert (all_to_all_v over ep), experts sliced over etp see the rows of all etp ranks
// (all_gather_v / reduce_scatter_v), results travel back and are combined.
//
// Balancing (arXiv 2101.03961, K-normalised): A = c E / (K T^2) sum_e N_e sum_t P_te per unit of T tokens,
// value c at perfect balance, weighted 1 / units of the global batch, summed over layers. N_e counts choices
// before drops, no gradient.
//   sequence, micro_batch: N_e of the unit itself (counts summed over tp);
//   global_batch: N_e / (K T) of the whole previous step (set_global_frequency), uniform in the first one.
// z-loss (arXiv 2202.08906): c_z / T sum_t lse(z_t)^2 over all tokens of the global batch.
//
// Capacity: C = ceil(capacity_factor * T * K / E) rows per expert, unit = the micro-batch of the whole
// replica (all tp ranks), whatever the layout: `position` keeps the first C choices in (token, choice)
// order; `probs` the C of highest weight, ties to the lower token index. A dropped choice contributes
// nothing; the others keep their weights.
//
// Row order inside an expert: ep rank, then etp rank, then token: with ranks counted etp first that is the
// order of the concatenated batch of the group (dispatch.h).
//
// Bytes sent by one rank, b bytes per element, R_q rows that etp rank q brings (R_own: this rank's), n_other
// rows it sends to other ep ranks, m_other rows it receives from them:
//   F balance (sequence, micro_batch units with coefficient, tp > 1): all_reduce_direct of U E i32 over tp;
//   F capacity (tp > 1): all_gather (tp - 1) t K * 4, and with `probs` (tp - 1) t K b more, over tp;
//   F counts: all_gather (ep - 1) E * 4 over ep, (etp - 1) ep (E / ep) * 4 over etp;
//   F rows: all_to_all_v n_other H b and back m_other H b over ep; all_gather_v (etp - 1) R_own H b and
//   reduce_scatter_v (sum_q R_q - R_own) H b over etp;
//   I rows: as F rows. W: none. Nothing else depends on the recomputation mode.
// Errors: none of its own; a broken count is Error{internal}.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "moe/dispatch.h"
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
  double capacity_factor = 0.0;  // 0: dropless
  DropPolicy drop_policy = DropPolicy::position;
  // Distinct micro-batches whose tokens can meet in this rank's etp x ep group (bounds the rows under
  // capacity).
  std::int64_t units_in_group = 1;
};

struct ExpertParams {
  Param gate_up;  // [2 I', H] rows gate | up
  Param down;     // [H, I']
};
struct Params {
  Param norm_H, router_EH;
  std::vector<ExpertParams> experts;  // local ones, E / ep
};

// Of this rank's tokens, summed over the forward passes since reset (one step). Summed over ranks they are
// the same on every layout (received_rows: etp times the kept choices, since every slice of an expert sees a
// row).
struct Stats {
  std::vector<std::int64_t> chosen;   // [E] choices before drops
  std::vector<std::int64_t> dropped;  // [E]
  std::int64_t tokens = 0;
  double aux_loss = 0.0;  // weighted: sums over ranks to the term of the loss
  double z_loss = 0.0;
  double entropy = 0.0;            // sum over tokens of the entropy of softmax(z), in nats
  std::int64_t received_rows = 0;  // rows this rank's experts computed
};

class MoeLayer : public nn::Layer {
 public:
  // ep and etp outlive the layer.
  MoeLayer(Options options, Params params, comm::Communicator& ep, comm::Communicator& etp);
  void reserve_saved(Arena& arena) override;
  void reserve_deferred(Arena& arena) override;
  void measure_scratch(Arena& counting) const override;
  void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH, Pass pass) override;
  void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) override;
  void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) override;

  [[nodiscard]] const Stats& stats() const { return stats_; }
  void reset_stats();
  // Share of all choices of the previous step that went to each expert [E] (sums to 1); for the global_batch
  // unit.
  void set_global_frequency(std::span<const double> frequency);
  // The most rows this rank's experts can receive: the size of its row buffers.
  [[nodiscard]] static std::int64_t max_rows(const Options& options, std::int32_t ep, std::int32_t etp);
  // Chosen experts and weights of a saved slot (tests and tools).
  [[nodiscard]] Tensor chosen_tK(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor weights_tK(std::int32_t saved_slot) const;

 private:
  struct Saved {
    Tensor x_tH, rstd_t, n_tH;  // x: view; n: Recompute::none only
    Tensor probs_tE, lse_t, index_tK, weights_tK;
    Tensor aux_UE;                  // with a balancing loss
    Tensor rows_RH, gate_up, h_RI;  // expert order; h: Recompute::none only
    Tensor sent_nH;                 // results in send order
    DispatchSlot dispatch;
  };
  struct Deferred {
    Tensor dy_RH, dgate_up, dn_tH, dlogits_tE;
  };
  struct RouteScratch;
  struct ForwardScratch;
  struct BackwardScratch;
  struct WeightScratch;
  [[nodiscard]] RouteScratch route_scratch(Arena& arena) const;
  [[nodiscard]] ForwardScratch forward_scratch(Arena& arena) const;
  [[nodiscard]] BackwardScratch backward_scratch(Arena& arena) const;
  [[nodiscard]] WeightScratch weight_scratch(Arena& arena) const;
  void route(Context& ctx, Saved& s, Tensor n_tH, Pass pass);
  void run_experts(Context& ctx, Saved& s, Tensor n_tH, const ForwardScratch& scratch);
  [[nodiscard]] bool selective() const { return o_.recompute == nn::Recompute::selective; }
  [[nodiscard]] bool balanced() const { return o_.aux_loss_coef != 0.0; }
  [[nodiscard]] bool counts_units() const { return balanced() && o_.unit != BalanceUnit::global_batch; }
  [[nodiscard]] bool drops() const { return o_.capacity_factor > 0.0; }
  [[nodiscard]] std::int64_t first_token(const Context& ctx) const;

  Options o_;
  Params p_;
  std::int64_t max_rows_;
  Dispatch dispatch_;
  std::vector<double> frequency_;  // [E]
  std::vector<Saved> saved_;
  std::vector<Deferred> deferred_;
  Stats stats_;
};

}  // namespace tessera::moe
