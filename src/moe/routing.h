// Which choices of the router count: choices per balancing unit, coefficients of the balancing loss, capacity
// and drops. All of it is defined on units that do not depend on the layout (moe_layer.h).
//
// Legend: T tokens of the micro-batch, t of this rank (rows [first_token, first_token + t) of T; with cp, T
// where units are told apart are the tokens of this cp rank), K top-k, E experts of all ranks, U balancing
// units of the micro-batch. Indices and counts are i32 tensors in memory of
// the caller: nothing here allocates. Pure functions: thread safe.
#pragma once
#include <cstdint>
#include <span>

#include "moe/moe_layer.h"

namespace tessera::moe {

// C = ceil(factor * T * K / E); a product within rounding of an integer is that integer (1.1 * 10 rows are
// 11).
[[nodiscard]] std::int64_t capacity_rows(double factor, std::int64_t tokens, std::int64_t top_k,
                                         std::int64_t num_experts);

// Choices that a token has: K, or E where experts choose.
[[nodiscard]] std::int64_t choice_width(const Options& options);
// Slots of all ep ranks: E, with replicas more.
[[nodiscard]] std::int32_t num_slots(const Options& options);
// Rows that an expert takes of one micro-batch; 0: dropless.
[[nodiscard]] std::int64_t capacity(const Options& options);
// What the kernel does for this choice: given experts keep the formula of the weights; experts that choose
// weigh with the plain scores.
[[nodiscard]] RouterOptions kernel_options(const Options& options);
// Token t chooses every expert, in order: the table from which experts take their best (mark_drops).
void choose_all(Tensor index_tE);

// Balancing units of one micro-batch: its sequences, or 1.
[[nodiscard]] std::int64_t num_units(const Options& options);
// unit_t[i] = unit of token first_token + i.
void fill_units(Tensor unit_t, const Options& options, std::int64_t first_token);

// Of the balancing loss sum_t sum_e a_{u(t) e} P_te: a_ue = N_ue times weight c E / (K T_u^2), with N_ue the
// choices and T_u the tokens of a whole unit;
[[nodiscard]] double balance_scale(const Options& options, double weight);
// for the global batch a_e = f_e times c E token_weight, f_e = share of all choices of the previous step;
[[nodiscard]] double frequency_scale(const Options& options, double token_weight);
// over all layers together a_ue = weight c E N_ue / (L T_u)^2, N_ue summed over the L layers.
void balance_from_totals(Tensor aux_UE, std::span<const std::int64_t> totals, std::int32_t num_layers,
                         const Options& options, double weight);

// Decides over all T tokens of the micro-batch, writes this rank's part: pos_tK = 0 for a kept choice, -1
// for a dropped one. index_TK, weights_TK: the decisions of the whole micro-batch (weights: `probs` policy
// only).
struct DropWork {
  Tensor order_n;   // i32 [T * K]
  Tensor start_E1;  // i32 [E + 1]
};
void mark_drops(Tensor pos_tK, Tensor index_TK, Tensor weights_TK, const DropWork& work, DropPolicy policy,
                std::int64_t capacity, std::int64_t first_token);

}  // namespace tessera::moe
