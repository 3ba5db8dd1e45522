// Reference activations of the MLP. Gated kinds read rows [gate(I) | up(I)].
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
S sigmoid(S x) {
  return S(1) / (S(1) + std::exp(-x));
}

// h(gate, up) and its two derivatives; the ungated kinds have no up.
template <class S>
struct ActivationValue {
  S h, dgate, dup;
};

template <class S>
ActivationValue<S> swiglu(S gate, S up) {
  const S s = sigmoid(gate);
  return {.h = gate * s * up, .dgate = up * s * (S(1) + gate * (S(1) - s)), .dup = gate * s};
}

// z Phi(z), Phi(z) = erfc(-z / sqrt(2)) / 2: no cancellation for z far below zero.
template <class S>
ActivationValue<S> gelu(S z) {
  const S phi = std::erfc(-z * S(0.70710678118654752440)) / S(2);
  const S density = std::exp(-z * z / S(2)) * S(0.39894228040143267794);  // (2 pi)^-1/2
  return {.h = z * phi, .dgate = phi + z * density, .dup = S(0)};
}

// (1 + tanh(a)) / 2 = sigmoid(2 a).
template <class S>
ActivationValue<S> gelu_tanh(S z) {
  const S c = S(1.59576912160573071176);  // 2 sqrt(2 / pi)
  const S s = sigmoid(c * (z + S(0.044715) * z * z * z));
  const S slope = c * (S(1) + S(3 * 0.044715) * z * z);
  return {.h = z * s, .dgate = s + z * s * (S(1) - s) * slope, .dup = S(0)};
}

// At and beyond a limit the derivative through the clamp is zero.
template <class S>
ActivationValue<S> clamped_swiglu(S gate, S up, S limit) {
  const S g = std::min(gate, limit);
  const S u = std::clamp(up, -limit, limit);
  const S s = sigmoid(S(1.702) * g);
  const S dg = (u + S(1)) * s * (S(1) + S(1.702) * g * (S(1) - s));
  return {
      .h = (u + S(1)) * g * s, .dgate = gate < limit ? dg : S(0), .dup = std::abs(up) < limit ? g * s : S(0)};
}

template <class S>
ActivationValue<S> activate(S gate, S up, const ActivationOptions& options) {
  switch (options.kind) {
    case Activation::swiglu:
      return swiglu(gate, up);
    case Activation::gelu:
      return gelu(gate);
    case Activation::gelu_tanh:
      return gelu_tanh(gate);
    case Activation::clamped_swiglu:
      return clamped_swiglu(gate, up, static_cast<S>(options.limit));
  }
  return {};
}

template <class S>
void activation(const Tensor& h_TI, const Tensor& z_TC, const ActivationOptions& options) {
  const std::int64_t num_i = h_TI.dim(1), num_c = z_TC.dim(1);
  for (std::int64_t t = 0; t < h_TI.dim(0); ++t) {
    const S* gate = z_TC.as<S>() + t * num_c;
    const S* up = options.gated() ? gate + num_i : gate;
    for (std::int64_t i = 0; i < num_i; ++i) {
      h_TI.as<S>()[t * num_i + i] = activate(gate[i], up[i], options).h;
    }
  }
}

template <class S>
void activation_backward(const Tensor& dz_TC, const Tensor& dh_TI, const Tensor& z_TC,
                         const ActivationOptions& options) {
  const std::int64_t num_i = dh_TI.dim(1), num_c = z_TC.dim(1);
  for (std::int64_t t = 0; t < dh_TI.dim(0); ++t) {
    const S* gate = z_TC.as<S>() + t * num_c;
    const S* up = options.gated() ? gate + num_i : gate;
    S* dz = dz_TC.as<S>() + t * num_c;
    for (std::int64_t i = 0; i < num_i; ++i) {
      const S dh = dh_TI.as<S>()[t * num_i + i];
      const ActivationValue<S> a = activate(gate[i], up[i], options);
      dz[i] = dh * a.dgate;
      if (options.gated()) dz[num_i + i] = dh * a.dup;
    }
  }
}

template <class S>
void sigmoid_gate(const Tensor& y_TH, const Tensor& f_TH, const Tensor& z_T) {
  const std::int64_t num_h = y_TH.dim(1);
  for (std::int64_t t = 0; t < y_TH.dim(0); ++t) {
    const S s = sigmoid(z_T.as<S>()[t]);
    for (std::int64_t h = 0; h < num_h; ++h) {
      y_TH.as<S>()[t * num_h + h] += s * f_TH.as<S>()[t * num_h + h];
    }
  }
}

template <class S>
void sigmoid_gate_backward(const Tensor& df_TH, const Tensor& dz_T, const Tensor& dy_TH, const Tensor& f_TH,
                           const Tensor& z_T) {
  const std::int64_t num_h = dy_TH.dim(1);
  for (std::int64_t t = 0; t < dy_TH.dim(0); ++t) {
    const S s = sigmoid(z_T.as<S>()[t]);
    const S* dy = dy_TH.as<S>() + t * num_h;
    S sum = 0;
    for (std::int64_t h = 0; h < num_h; ++h) {
      sum += dy[h] * f_TH.as<S>()[t * num_h + h];
      df_TH.as<S>()[t * num_h + h] = s * dy[h];
    }
    dz_T.as<S>()[t] = s * (S(1) - s) * sum;
  }
}

}  // namespace tessera::kernels::ref
