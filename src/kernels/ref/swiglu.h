// Reference gated MLP: h = silu(gate) * up over rows [gate(I) | up(I)], silu(g) = g / (1 + exp(-g)).
#pragma once
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void swiglu(const Tensor& h_TI, const Tensor& gate_up) {
  S* h = h_TI.as<S>();
  const std::int64_t num_i = h_TI.dim(1);
  for (std::int64_t t = 0; t < h_TI.dim(0); ++t) {
    const S* gate = gate_up.as<S>() + t * 2 * num_i;
    const S* up = gate + num_i;
    for (std::int64_t i = 0; i < num_i; ++i) h[t * num_i + i] = gate[i] / (S(1) + std::exp(-gate[i])) * up[i];
  }
}

// With s = 1 / (1 + exp(-gate)): dup = dh gate s, dgate = dh up s (1 + gate (1 - s)).
template <class S>
void swiglu_backward(const Tensor& dgate_up, const Tensor& dh_TI, const Tensor& gate_up) {
  const std::int64_t num_i = dh_TI.dim(1);
  for (std::int64_t t = 0; t < dh_TI.dim(0); ++t) {
    const S* dh = dh_TI.as<S>() + t * num_i;
    const S* gate = gate_up.as<S>() + t * 2 * num_i;
    const S* up = gate + num_i;
    S* dgate = dgate_up.as<S>() + t * 2 * num_i;
    S* dup = dgate + num_i;
    for (std::int64_t i = 0; i < num_i; ++i) {
      const S g = gate[i];
      const S s = S(1) / (S(1) + std::exp(-g));
      const S grad = dh[i];
      dgate[i] = grad * up[i] * s * (S(1) + g * (S(1) - s));
      dup[i] = grad * g * s;
    }
  }
}

}  // namespace tessera::kernels::ref
