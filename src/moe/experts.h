// The experts of one rank: a gated MLP each, on its rows of the dispatched batch. Expert i owns the rows
// [begins[i], begins[i + 1]); one without rows does nothing. All tensors hold exactly R = begins.back()
// rows; I is the FFN width on this rank. No communication, no allocation.
#pragma once
#include <cstdint>
#include <span>

#include "moe/moe_layer.h"

namespace tessera::moe {

using Begins = std::span<const std::int32_t>;
using ExpertList = std::span<const ExpertParams>;

// gate_up = rows W_gate_up^T, h = silu(gate) up, y = h W_down^T.
struct ExpertForward {
  Tensor y_RH, h_RI, gate_up;  // out
  Tensor rows_RH;              // in
};
void experts_forward(kernels::Kernels& kernels, ExpertList experts, Begins begins, const ExpertForward& io);

// drows and dgate_up from dy; dh is work space.
struct ExpertInputGradient {
  Tensor drows_RH, dgate_up, dh_RI;  // out
  Tensor dy_RH, gate_up;             // in
};
void experts_backward_input(kernels::Kernels& kernels, ExpertList experts, Begins begins,
                            const ExpertInputGradient& io);

// Param::grad += for every expert that has rows.
struct ExpertWeightGradient {
  Tensor dy_RH, h_RI, dgate_up, rows_RH;  // in
};
void experts_backward_weight(kernels::Kernels& kernels, ExpertList experts, Begins begins,
                             const ExpertWeightGradient& in);

}  // namespace tessera::moe
