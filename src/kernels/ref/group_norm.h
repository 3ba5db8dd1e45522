// Reference norms of groups of columns, clamp and bias. T rows, C columns, G groups of D columns.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
S* group_at(const Tensor& x_TC, std::int64_t t, std::int64_t g, const ColumnGroups& cols) {
  return x_TC.as<S>() + t * x_TC.dim(1) + cols.first + g * cols.width;
}

template <class S>
S group_rstd(S sum, const GroupNormOptions& options) {
  return S(1) / std::sqrt(sum / static_cast<S>(options.count) + static_cast<S>(options.eps));
}

template <class S>
void group_squares(const Tensor& sums_TG, const Tensor& x_TC, const ColumnGroups& cols) {
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    for (std::int64_t g = 0; g < cols.groups; ++g) {
      const S* x = group_at<S>(x_TC, t, g, cols);
      S sum = 0;
      for (std::int64_t j = 0; j < cols.width; ++j) sum += x[j] * x[j];
      sums_TG.as<S>()[t * cols.groups + g] = sum;
    }
  }
}

template <class S>
void group_norm(const Tensor& y_TC, const Tensor& x_TC, const Tensor& sums_TG, const Tensor& w_D,
                const GroupNormOptions& options, const ColumnGroups& cols) {
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    for (std::int64_t g = 0; g < cols.groups; ++g) {
      const S rstd = group_rstd(sums_TG.as<S>()[t * cols.groups + g], options);
      const S* x = group_at<S>(x_TC, t, g, cols);
      S* y = group_at<S>(y_TC, t, g, cols);
      for (std::int64_t j = 0; j < cols.width; ++j) y[j] = x[j] * rstd * w_D.as<S>()[j];
    }
  }
}

template <class S>
void group_norm_dots(const Tensor& dots_TG, const Tensor& dy_TC, const Tensor& x_TC, const Tensor& w_D,
                     const ColumnGroups& cols) {
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    for (std::int64_t g = 0; g < cols.groups; ++g) {
      const S* x = group_at<S>(x_TC, t, g, cols);
      const S* dy = group_at<S>(dy_TC, t, g, cols);
      S sum = 0;
      for (std::int64_t j = 0; j < cols.width; ++j) sum += dy[j] * w_D.as<S>()[j] * x[j];
      dots_TG.as<S>()[t * cols.groups + g] = sum;
    }
  }
}

template <class S>
void group_norm_dgrad(const Tensor& dx_TC, const Tensor& dy_TC, const Tensor& x_TC, const Tensor& sums_TG,
                      const Tensor& dots_TG, const Tensor& w_D, const GroupNormOptions& options,
                      const ColumnGroups& cols) {
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    for (std::int64_t g = 0; g < cols.groups; ++g) {
      const S rstd = group_rstd(sums_TG.as<S>()[t * cols.groups + g], options);
      const S mean = dots_TG.as<S>()[t * cols.groups + g] / static_cast<S>(options.count);
      const S* x = group_at<S>(x_TC, t, g, cols);
      const S* dy = group_at<S>(dy_TC, t, g, cols);
      S* dx = group_at<S>(dx_TC, t, g, cols);
      for (std::int64_t j = 0; j < cols.width; ++j) {
        dx[j] = rstd * (w_D.as<S>()[j] * dy[j] - x[j] * rstd * rstd * mean);
      }
    }
  }
}

template <class S>
void group_norm_wgrad(const Tensor& dw_D, const Tensor& dy_TC, const Tensor& x_TC, const Tensor& sums_TG,
                      const GroupNormOptions& options, const ColumnGroups& cols, Write write) {
  for (std::int64_t j = 0; j < cols.width; ++j) {
    S sum = 0;
    for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
      for (std::int64_t g = 0; g < cols.groups; ++g) {
        const S rstd = group_rstd(sums_TG.as<S>()[t * cols.groups + g], options);
        sum += group_at<S>(dy_TC, t, g, cols)[j] * (group_at<S>(x_TC, t, g, cols)[j] * rstd);
      }
    }
    S& dw = dw_D.as<S>()[j];
    dw = write == Write::accumulate ? dw + sum : sum;
  }
}

template <class S>
void clamp(const Tensor& x_TC, double limit, std::int64_t first, std::int64_t width) {
  const auto most = static_cast<S>(limit);
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    S* x = x_TC.as<S>() + t * x_TC.dim(1) + first;
    for (std::int64_t j = 0; j < width; ++j) x[j] = std::clamp(x[j], -most, most);
  }
}

template <class S>
void clamp_backward(const Tensor& dx_TC, const Tensor& x_TC, double limit, std::int64_t first,
                    std::int64_t width) {
  const auto most = static_cast<S>(limit);
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    const S* x = x_TC.as<S>() + t * x_TC.dim(1) + first;
    S* dx = dx_TC.as<S>() + t * dx_TC.dim(1) + first;
    for (std::int64_t j = 0; j < width; ++j) {
      if (std::abs(x[j]) >= most) dx[j] = S(0);
    }
  }
}

template <class S>
void add_bias(const Tensor& y_TN, const Tensor& b_N) {
  const std::int64_t num_n = y_TN.dim(1);
  for (std::int64_t i = 0; i < y_TN.num_elements(); ++i) y_TN.as<S>()[i] += b_N.as<S>()[i % num_n];
}

template <class S>
void bias_wgrad(const Tensor& db_N, const Tensor& dy_TN, Write write) {
  const std::int64_t num_n = dy_TN.dim(1);
  for (std::int64_t n = 0; n < num_n; ++n) {
    S sum = 0;
    for (std::int64_t t = 0; t < dy_TN.dim(0); ++t) sum += dy_TN.as<S>()[t * num_n + n];
    S& db = db_N.as<S>()[n];
    db = write == Write::accumulate ? db + sum : sum;
  }
}

}  // namespace tessera::kernels::ref
