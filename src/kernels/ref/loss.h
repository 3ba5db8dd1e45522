// Reference embedding and vocab-parallel cross entropy. A share holds the vocabulary rows [begin, begin + V).
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void embedding(const Tensor& y_TH, const Tensor& ids_T, const Tensor& table_VH, std::int64_t begin) {
  const std::int64_t num_h = table_VH.dim(1);
  for (std::int64_t t = 0; t < ids_T.dim(0); ++t) {
    const std::int64_t row = ids_T.as<std::int32_t>()[t] - begin;
    const bool here = row >= 0 && row < table_VH.dim(0);
    S* y = y_TH.as<S>() + t * num_h;
    for (std::int64_t h = 0; h < num_h; ++h) y[h] = here ? table_VH.as<S>()[row * num_h + h] : S(0);
  }
}

template <class S>
void embedding_wgrad(const Tensor& dtable_VH, const Tensor& dy_TH, const Tensor& ids_T, std::int64_t begin) {
  const std::int64_t num_h = dtable_VH.dim(1);
  for (std::int64_t t = 0; t < ids_T.dim(0); ++t) {
    const std::int64_t row = ids_T.as<std::int32_t>()[t] - begin;
    if (row < 0 || row >= dtable_VH.dim(0)) continue;
    S* dtable = dtable_VH.as<S>() + row * num_h;
    for (std::int64_t h = 0; h < num_h; ++h) dtable[h] += dy_TH.as<S>()[t * num_h + h];
  }
}

template <class S>
void cross_entropy_stats(const Tensor& stats_3T, const Tensor& logits_TV, const Tensor& targets_T,
                         std::int64_t begin) {
  const std::int64_t num_t = logits_TV.dim(0), num_v = logits_TV.dim(1);
  S* stats = stats_3T.as<S>();
  for (std::int64_t t = 0; t < num_t; ++t) {
    const S* z = logits_TV.as<S>() + t * num_v;
    const S largest = *std::max_element(z, z + num_v);
    S sum = 0;
    for (std::int64_t v = 0; v < num_v; ++v) sum += std::exp(z[v] - largest);
    const std::int64_t target = targets_T.as<std::int32_t>()[t];
    const bool here = target >= 0 && target >= begin && target < begin + num_v;
    stats[t] = largest;
    stats[num_t + t] = sum;
    stats[2 * num_t + t] = here ? z[target - begin] : S(0);
  }
}

// lse = M + log(sum_p sum_p exp(max_p - M)), M = max_p max_p.
template <class S>
void cross_entropy_join(const Tensor& loss_T, const Tensor& lse_T, const Tensor& stats_P3T,
                        const Tensor& targets_T) {
  const std::int64_t num_p = stats_P3T.dim(0), num_t = stats_P3T.dim(2);
  const auto stat = [&](std::int64_t p, std::int64_t row, std::int64_t t) {
    return stats_P3T.as<S>()[(p * 3 + row) * num_t + t];
  };
  for (std::int64_t t = 0; t < num_t; ++t) {
    S largest = stat(0, 0, t);
    for (std::int64_t p = 1; p < num_p; ++p) largest = std::max(largest, stat(p, 0, t));
    S sum = 0, target = 0;
    for (std::int64_t p = 0; p < num_p; ++p) {
      sum += stat(p, 1, t) * std::exp(stat(p, 0, t) - largest);
      target += stat(p, 2, t);
    }
    const S lse = largest + std::log(sum);
    lse_T.as<S>()[t] = lse;
    loss_T.as<S>()[t] = targets_T.as<std::int32_t>()[t] < 0 ? S(0) : lse - target;
  }
}

template <class S>
void cross_entropy_backward(const Tensor& logits_TV, const Tensor& lse_T, const Tensor& targets_T,
                            std::int64_t begin, double weight) {
  const std::int64_t num_v = logits_TV.dim(1);
  for (std::int64_t t = 0; t < logits_TV.dim(0); ++t) {
    S* z = logits_TV.as<S>() + t * num_v;
    const S lse = lse_T.as<S>()[t];
    const std::int64_t target = targets_T.as<std::int32_t>()[t];
    for (std::int64_t v = 0; v < num_v; ++v) {
      const S hit = target == begin + v ? S(1) : S(0);
      z[v] = target < 0 ? S(0) : static_cast<S>(weight) * (std::exp(z[v] - lse) - hit);
    }
  }
}

}  // namespace tessera::kernels::ref
