// Reference elementwise operations, sums and AdamW.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void add(const Tensor& y, const Tensor& a, const Tensor& b) {
  for (std::int64_t i = 0; i < y.num_elements(); ++i) y.as<S>()[i] = a.as<S>()[i] + b.as<S>()[i];
}

template <class S>
void accumulate(const Tensor& y, const Tensor& x) {
  for (std::int64_t i = 0; i < y.num_elements(); ++i) y.as<S>()[i] += x.as<S>()[i];
}

template <class S>
void fill(const Tensor& y, double value) {
  std::fill_n(y.as<S>(), y.num_elements(), static_cast<S>(value));
}

// Sum of f(x_i) in f64: within blocks of 256, then over the blocks.
template <class S, class F>
double blocked_sum(const Tensor& x, F f) {
  constexpr std::int64_t kBlock = 256;
  double total = 0;
  for (std::int64_t begin = 0; begin < x.num_elements(); begin += kBlock) {
    double block = 0;
    for (std::int64_t i = begin; i < std::min(begin + kBlock, x.num_elements()); ++i) {
      block += f(static_cast<double>(x.as<S>()[i]));
    }
    total += block;
  }
  return total;
}

template <class S>
void adamw(const Tensor& p_n, const Tensor& g_n, const Tensor& m_n, const Tensor& v_n,
           const AdamWOptions& o) {
  const auto lr = static_cast<S>(o.lr), eps = static_cast<S>(o.eps), wd = static_cast<S>(o.weight_decay);
  const auto b1 = static_cast<S>(o.beta1), b2 = static_cast<S>(o.beta2);
  const auto one_b1 = static_cast<S>(1 - o.beta1), one_b2 = static_cast<S>(1 - o.beta2);
  const auto bc1 = static_cast<S>(o.bias_correction1), bc2 = static_cast<S>(o.bias_correction2);
  for (std::int64_t i = 0; i < p_n.num_elements(); ++i) {
    S& p = p_n.as<S>()[i];
    S& m = m_n.as<S>()[i];
    S& v = v_n.as<S>()[i];
    const S g = static_cast<S>(o.grad_scale) * g_n.as<S>()[i];
    m = b1 * m + one_b1 * g;
    v = b2 * v + one_b2 * g * g;
    p -= lr * (m / bc1 / (std::sqrt(v / bc2) + eps) + wd * p);
  }
}

}  // namespace tessera::kernels::ref
