// Reference GEMMs: one accumulator of the scalar type per output element, terms in ascending order. N output
// features, K input features, T rows.
#pragma once
#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void linear(const Tensor& y_TN, const Tensor& x_TK, const Tensor& w_NK) {
  S* y = y_TN.as<S>();
  const S* x = x_TK.as<S>();
  const S* w = w_NK.as<S>();
  const std::int64_t num_n = w_NK.dim(0), num_k = w_NK.dim(1);
  for (std::int64_t t = 0; t < x_TK.dim(0); ++t) {
    for (std::int64_t n = 0; n < num_n; ++n) {
      S sum = 0;
      for (std::int64_t k = 0; k < num_k; ++k) sum += x[t * num_k + k] * w[n * num_k + k];
      y[t * num_n + n] = sum;
    }
  }
}

template <class S>
void linear_dgrad(const Tensor& dx_TK, const Tensor& dy_TN, const Tensor& w_NK, Write write) {
  S* dx = dx_TK.as<S>();
  const S* dy = dy_TN.as<S>();
  const S* w = w_NK.as<S>();
  const std::int64_t num_n = w_NK.dim(0), num_k = w_NK.dim(1);
  for (std::int64_t t = 0; t < dy_TN.dim(0); ++t) {
    for (std::int64_t k = 0; k < num_k; ++k) {
      S sum = 0;
      for (std::int64_t n = 0; n < num_n; ++n) sum += dy[t * num_n + n] * w[n * num_k + k];
      S& out = dx[t * num_k + k];
      out = write == Write::accumulate ? out + sum : sum;
    }
  }
}

template <class S>
void linear_wgrad(const Tensor& dw_NK, const Tensor& dy_TN, const Tensor& x_TK) {
  S* dw = dw_NK.as<S>();
  const S* dy = dy_TN.as<S>();
  const S* x = x_TK.as<S>();
  const std::int64_t num_n = dw_NK.dim(0), num_k = dw_NK.dim(1);
  for (std::int64_t n = 0; n < num_n; ++n) {
    for (std::int64_t k = 0; k < num_k; ++k) {
      S sum = 0;
      for (std::int64_t t = 0; t < x_TK.dim(0); ++t) sum += dy[t * num_n + n] * x[t * num_k + k];
      dw[n * num_k + k] += sum;
    }
  }
}

}  // namespace tessera::kernels::ref
