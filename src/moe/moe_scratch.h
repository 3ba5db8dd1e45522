// What the passes of MoeLayer take from scratch. Inside of this room.
#pragma once
#include "moe/moe_layer.h"
#include "moe/routing.h"

namespace tessera::moe {

// A row for each token of the micro-batch, of all tp and cp ranks: who holds which is layer.h's and
// base/sequence_cut.h's.
struct TokenTable {
  Tensor part_TK;        // of this cp rank; tp above 1
  Tensor gathered, all;  // of all cp ranks, by rank and in order of tokens; cp above 1
};
[[nodiscard]] TokenTable take_table(Arena& arena, nn::DType dtype, const nn::Dims& dims, std::int64_t width);
// This rank's rows mine_tK gathered: the rows of all tokens, in order. Collective over tp, then cp.
[[nodiscard]] Tensor gather_table(Context& ctx, const nn::Dims& dims, const TokenTable& table,
                                  Tensor mine_tK);
// mine_tK = this rank's rows of all_TK.
void pick_own_rows(const Context& ctx, const nn::Dims& dims, Tensor mine_tK, Tensor all_TK);

struct MoeLayer::RouteScratch {
  Tensor logits_tE;
  Tensor input_tH;            // with jitter: what the router sees
  Tensor slots_tK;            // of the chosen experts, where they do not lie in order
  Tensor counts_UE;           // balancing over the unit itself
  TokenTable index, weights;  // with capacity
  DropWork work;              // with capacity
};

struct MoeLayer::ForwardScratch {
  Tensor n_H, h_RI;              // selective
  Travel travel;                 // rows on their way
  Tensor arrived_RH, padded_RH;  // with padding: rows before it, results with it
  Tensor shared_tH;              // with a shared expert: its result
};

struct MoeLayer::BackwardScratch {
  Tensor dweights_tK;
  Tensor aux_UE;     // joined layers
  Tensor dinput_tH;  // with jitter
  Tensor dh_RI, drows_RH;
  Tensor compact_RH;  // with padding
  Travel travel;      // gradients on their way
};

struct MoeLayer::WeightScratch {
  Tensor input_tH;    // with jitter
  Tensor n_tH, h_RI;  // selective; n: without a shared expert
};

}  // namespace tessera::moe
