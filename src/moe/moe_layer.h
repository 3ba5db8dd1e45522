// Mixture of experts as a layer of the residual stream: y = x + sum over chosen experts of w * expert(rms_norm(x)).
// Each tp rank routes its own t = T / tp tokens; tokens travel to the rank that holds their expert (all_to_all_v over ep), experts sliced
// over etp see the rows of all etp ranks (all_gather_v / reduce_scatter_v), results travel back and are combined.
//
// Balancing (arXiv 2101.03961, K-normalised): A = c E / (K T^2) sum_e N_e sum_t P_te per unit of T tokens, value c at perfect
// balance, weighted 1 / units of the global batch, summed over layers. N_e counts choices before drops, no gradient.
//   sequence, micro_batch: N_e of the unit itself (counts summed over tp);
//   global_batch: N_e / T of the whole previous step (set_global_frequency), uniform in the first one.
// z-loss (arXiv 2202.08906): c_z / T sum_t lse(z_t)^2 over all tokens of the global batch.
// Capacity: C = ceil(capacity_factor * T * K / E) rows per expert, unit = the micro-batch of the whole replica (all tp ranks),
// whatever the layout: `position` keeps the first C choices in (token, choice) order; `probs` the C of highest weight, ties to the lower
// token index. A dropped choice contributes nothing; the others keep their weights.
// Row order inside an expert: etp rank, then ep rank, then token: the order of the concatenated batch.
// Errors: none of its own; a broken count is Error{internal}.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

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
  // Distinct micro-batches whose tokens can meet in this rank's etp x ep group (bounds the rows under capacity).
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

// Of this rank's tokens, summed over the forward passes since reset (one step). All layout-independent once summed over ranks.
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
  // Share of all choices of the previous step that went to each expert [E] (sums to 1); for the global_batch unit.
  void set_global_frequency(std::span<const double> frequency);
  // The most rows this rank's experts can receive: the size of its row buffers.
  [[nodiscard]] static std::int64_t max_rows(const Options& options, std::int32_t ep, std::int32_t etp);
  // Chosen experts and weights of a saved slot (tests and tools).
  [[nodiscard]] Tensor chosen_tK(std::int32_t saved_slot) const;
  [[nodiscard]] Tensor weights_tK(std::int32_t saved_slot) const;

 private:
  // Filled in by the author of this room; everything that lives between calls is in slots.
  Stats stats_;
};

}  // namespace tessera::moe
