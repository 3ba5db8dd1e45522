// The experts of one rank: an MLP each, on its rows of the dispatched batch. Expert i owns the rows from
// begin_e1[i] to begin_e1[i + 1]; one without rows does nothing. All tensors hold exactly R rows, where
// begin_e1 ends; I is the FFN width on this rank, z has 2 I columns where the activation is gated. All of it
// is queued: the host need not know the begins. No communication, no allocation.
#pragma once
#include <cstdint>
#include <span>

#include "moe/moe_layer.h"

namespace tessera::moe {

struct ExpertForm {
  kernels::ActivationOptions activation;
  bool adds_down_bias;  // of the ranks that share an expert, one adds it
};
struct ExpertList {
  const ExpertTable& experts;
  ExpertForm form;
};

// z = gate_up = rows W_gate_up^T [+ b], h = act(z), y = h W_down^T [+ b].
struct ExpertForward {
  Tensor y_RH, h_RI, gate_up;  // out
  Tensor rows_RH;              // in
};
void experts_forward(kernels::Kernels& kernels, const ExpertList& list, Tensor begin_e1,
                     const ExpertForward& io);

// drows and dgate_up from dy; dh is work space.
struct ExpertInputGradient {
  Tensor drows_RH, dgate_up, dh_RI;  // out
  Tensor dy_RH, gate_up;             // in
};
void experts_backward_input(kernels::Kernels& kernels, const ExpertList& list, Tensor begin_e1,
                            const ExpertInputGradient& io);

// Param::grad += for every expert that has rows; biases: column sums of dy and dz.
struct ExpertWeightGradient {
  Tensor dy_RH, h_RI, dgate_up, rows_RH;  // in
};
void experts_backward_weight(kernels::Kernels& kernels, const ExpertList& list, Tensor begin_e1,
                             const ExpertWeightGradient& in);

// Rows between two sets of begins that the host sees, expert by expert: padded_RH = the rows of compact_RH
// with zeros after those of each expert, and back.
void pad_rows(kernels::Kernels& kernels, Tensor padded_RH, Tensor padded_e1, Tensor compact_RH,
              Tensor compact_e1);
void unpad_rows(kernels::Kernels& kernels, Tensor compact_RH, Tensor compact_e1, Tensor padded_RH,
                Tensor padded_e1);

}  // namespace tessera::moe
