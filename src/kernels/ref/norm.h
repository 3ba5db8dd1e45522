// Reference RMSNorm (Zhang and Sennrich 2019). T rows of H.
#pragma once
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void rms_norm_apply(const Tensor& y_TH, const Tensor& x_TH, const Tensor& rstd_T, const Tensor& w_H) {
  S* y = y_TH.as<S>();
  const S* x = x_TH.as<S>();
  const S* rstd = rstd_T.as<S>();
  const S* w = w_H.as<S>();
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    for (std::int64_t h = 0; h < num_h; ++h) y[t * num_h + h] = x[t * num_h + h] * rstd[t] * w[h];
  }
}

template <class S>
void rms_norm(const Tensor& y_TH, const Tensor& rstd_T, const Tensor& x_TH, const Tensor& w_H, double eps) {
  const S* x = x_TH.as<S>();
  S* rstd = rstd_T.as<S>();
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    S sum = 0;
    for (std::int64_t h = 0; h < num_h; ++h) sum += x[t * num_h + h] * x[t * num_h + h];
    rstd[t] = S(1) / std::sqrt(sum / static_cast<S>(num_h) + static_cast<S>(eps));
  }
  rms_norm_apply<S>(y_TH, x_TH, rstd_T, w_H);
}

// With g = dy * w and n = x * rstd: dx = rstd (g - n mean(g n)).
template <class S>
void rms_norm_dgrad(const Tensor& dx_TH, const Tensor& dy_TH, const Tensor& x_TH, const Tensor& rstd_T,
                    const Tensor& w_H, Write write) {
  S* dx = dx_TH.as<S>();
  const S* dy = dy_TH.as<S>();
  const S* x = x_TH.as<S>();
  const S* rstd = rstd_T.as<S>();
  const S* w = w_H.as<S>();
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    const std::int64_t at = t * num_h;
    S sum = 0;
    for (std::int64_t h = 0; h < num_h; ++h) sum += dy[at + h] * w[h] * (x[at + h] * rstd[t]);
    const S mean = sum / static_cast<S>(num_h);
    for (std::int64_t h = 0; h < num_h; ++h) {
      const S value = rstd[t] * (dy[at + h] * w[h] - x[at + h] * rstd[t] * mean);
      dx[at + h] = write == Write::accumulate ? dx[at + h] + value : value;
    }
  }
}

template <class S>
void rms_norm_wgrad(const Tensor& dw_H, const Tensor& dy_TH, const Tensor& x_TH, const Tensor& rstd_T) {
  S* dw = dw_H.as<S>();
  const S* dy = dy_TH.as<S>();
  const S* x = x_TH.as<S>();
  const S* rstd = rstd_T.as<S>();
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t h = 0; h < num_h; ++h) {
    S sum = 0;
    for (std::int64_t t = 0; t < x_TH.dim(0); ++t) sum += dy[t * num_h + h] * (x[t * num_h + h] * rstd[t]);
    dw[h] += sum;
  }
}

}  // namespace tessera::kernels::ref
