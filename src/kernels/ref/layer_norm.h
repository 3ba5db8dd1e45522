// Reference LayerNorm (Ba, Kiros and Hinton 2016). T rows of H. The variance is the mean of squared
// differences from the mean, summed in a second pass: nothing cancels.
#pragma once
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void layer_norm_apply(const Tensor& y_TH, const Tensor& x_TH, const Tensor& mean_T, const Tensor& rstd_T,
                      const Tensor& w_H, const Tensor& b_H) {
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    const S mean = mean_T.as<S>()[t], rstd = rstd_T.as<S>()[t];
    for (std::int64_t h = 0; h < num_h; ++h) {
      const S n = (x_TH.as<S>()[t * num_h + h] - mean) * rstd;
      y_TH.as<S>()[t * num_h + h] = n * w_H.as<S>()[h] + b_H.as<S>()[h];
    }
  }
}

template <class S>
void layer_norm(const Tensor& y_TH, const Tensor& mean_T, const Tensor& rstd_T, const Tensor& x_TH,
                const Tensor& w_H, const Tensor& b_H, double eps) {
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    const S* x = x_TH.as<S>() + t * num_h;
    S sum = 0, squares = 0;
    for (std::int64_t h = 0; h < num_h; ++h) sum += x[h];
    const S mean = sum / static_cast<S>(num_h);
    for (std::int64_t h = 0; h < num_h; ++h) squares += (x[h] - mean) * (x[h] - mean);
    mean_T.as<S>()[t] = mean;
    rstd_T.as<S>()[t] = S(1) / std::sqrt(squares / static_cast<S>(num_h) + static_cast<S>(eps));
  }
  layer_norm_apply<S>(y_TH, x_TH, mean_T, rstd_T, w_H, b_H);
}

// With g = dy w and n = (x - mean) rstd: dx = rstd (g - mean(g) - n mean(g n)).
template <class S>
void layer_norm_dgrad(const Tensor& dx_TH, const Tensor& dy_TH, const Tensor& x_TH, const Tensor& mean_T,
                      const Tensor& rstd_T, const Tensor& w_H, Write write) {
  const std::int64_t num_h = x_TH.dim(1);
  const S* w = w_H.as<S>();
  for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
    const S mean = mean_T.as<S>()[t], rstd = rstd_T.as<S>()[t];
    const S* x = x_TH.as<S>() + t * num_h;
    const S* dy = dy_TH.as<S>() + t * num_h;
    S* dx = dx_TH.as<S>() + t * num_h;
    S sum = 0, dots = 0;
    for (std::int64_t h = 0; h < num_h; ++h) {
      sum += dy[h] * w[h];
      dots += dy[h] * w[h] * ((x[h] - mean) * rstd);
    }
    const S mean_g = sum / static_cast<S>(num_h), mean_gn = dots / static_cast<S>(num_h);
    for (std::int64_t h = 0; h < num_h; ++h) {
      const S value = rstd * (dy[h] * w[h] - mean_g - (x[h] - mean) * rstd * mean_gn);
      dx[h] = write == Write::accumulate ? dx[h] + value : value;
    }
  }
}

template <class S>
void layer_norm_wgrad(const Tensor& dw_H, const Tensor& db_H, const Tensor& dy_TH, const Tensor& x_TH,
                      const Tensor& mean_T, const Tensor& rstd_T) {
  const std::int64_t num_h = x_TH.dim(1);
  for (std::int64_t h = 0; h < num_h; ++h) {
    S dw = 0, db = 0;
    for (std::int64_t t = 0; t < x_TH.dim(0); ++t) {
      const S dy = dy_TH.as<S>()[t * num_h + h];
      dw += dy * ((x_TH.as<S>()[t * num_h + h] - mean_T.as<S>()[t]) * rstd_T.as<S>()[t]);
      db += dy;
    }
    dw_H.as<S>()[h] += dw;
    db_H.as<S>()[h] += db;
  }
}

}  // namespace tessera::kernels::ref
