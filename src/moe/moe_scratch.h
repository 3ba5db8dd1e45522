// What the passes of MoeLayer take from scratch. Inside of this room.
#pragma once
#include "moe/moe_layer.h"
#include "moe/routing.h"

namespace tessera::moe {

struct MoeLayer::RouteScratch {
  Tensor logits_tE;
  Tensor input_tH;              // with jitter: what the router sees
  Tensor slots_tK;              // of the chosen experts, where they do not live in order
  Tensor counts_UE;             // balancing over the unit itself
  Tensor index_TK, weights_TK;  // with capacity and tp > 1
  DropWork work;                // with capacity
};

struct MoeLayer::ForwardScratch {
  Tensor n_H, h_RI;              // selective
  Travel travel;                 // rows on their way
  Tensor arrived_RH, padded_RH;  // with padding: rows before it, results with it
  Tensor shared_tH;              // with a shared expert: its result
};

struct MoeLayer::BackwardScratch {
  Tensor dweights_tK, unit_t;
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
