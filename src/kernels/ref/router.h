// Reference MoE router and the row moves of dispatch and combine. T tokens, E experts, K chosen, R rows.
#pragma once
#include <algorithm>
#include <cmath>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

// The k largest logits, best first, the lower index first among equals.
template <class S>
void choose(std::int32_t* index, const S* z, std::int64_t num_e, std::int64_t num_k) {
  for (std::int64_t k = 0; k < num_k; ++k) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < num_e; ++e) {
      const bool taken = std::find(index, index + k, static_cast<std::int32_t>(e)) != index + k;
      if (!taken && (best < 0 || z[e] > z[best])) best = e;
    }
    index[k] = static_cast<std::int32_t>(best);
  }
}

template <class S>
void router(const Tensor& probs_TE, const Tensor& lse_T, const Tensor& index_TK, const Tensor& weights_TK,
            const Tensor& logits_TE, const RouterOptions& options) {
  const std::int64_t num_e = logits_TE.dim(1), num_k = options.top_k;
  for (std::int64_t t = 0; t < logits_TE.dim(0); ++t) {
    const S* z = logits_TE.as<S>() + t * num_e;
    S* probs = probs_TE.as<S>() + t * num_e;
    std::int32_t* index = index_TK.as<std::int32_t>() + t * num_k;
    S* weights = weights_TK.as<S>() + t * num_k;
    const S largest = *std::max_element(z, z + num_e);
    S sum = 0;
    for (std::int64_t e = 0; e < num_e; ++e) sum += std::exp(z[e] - largest);
    for (std::int64_t e = 0; e < num_e; ++e) probs[e] = std::exp(z[e] - largest) / sum;
    lse_T.as<S>()[t] = largest + std::log(sum);

    choose(index, z, num_e, num_k);
    const bool over_chosen = options.score == RouterScore::topk_then_softmax;
    S chosen_sum = 0;
    for (std::int64_t k = 0; k < num_k; ++k) {
      weights[k] = over_chosen ? std::exp(z[index[k]] - z[index[0]]) : probs[index[k]];
      chosen_sum += weights[k];
    }
    if (!over_chosen && !options.renormalise) continue;
    for (std::int64_t k = 0; k < num_k; ++k) weights[k] /= chosen_sum;
  }
}

// Through the weights. Normalised over the chosen: w is the softmax of the chosen logits, so
// dz_k = w_k (dw_k - sum_j dw_j w_j). Else w = P[chosen]: dz_e = P_e (dP_e - sum_j dP_j P_j).
template <class S>
void router_weights_backward(S* dz, const S* dw, const S* probs, const S* w, const std::int32_t* index,
                             std::int64_t num_e, const RouterOptions& options) {
  const bool normalised = options.score == RouterScore::topk_then_softmax || options.renormalise;
  S inner = 0;
  for (std::int64_t k = 0; k < options.top_k; ++k) inner += dw[k] * (normalised ? w[k] : probs[index[k]]);
  for (std::int64_t e = 0; e < num_e; ++e) dz[e] = normalised ? S(0) : -probs[e] * inner;
  for (std::int64_t k = 0; k < options.top_k; ++k) {
    const std::int64_t e = index[k];
    dz[e] = normalised ? w[k] * (dw[k] - inner) : probs[e] * (dw[k] - inner);
  }
}

template <class S>
void router_backward(const Tensor& dlogits_TE, const Tensor& dweights_TK, const Tensor& probs_TE,
                     const Tensor& lse_T, const Tensor& index_TK, const Tensor& weights_TK,
                     const Tensor& aux_UE, const Tensor& unit_T, double z_scale,
                     const RouterOptions& options) {
  const std::int64_t num_e = probs_TE.dim(1), num_k = options.top_k;
  for (std::int64_t t = 0; t < probs_TE.dim(0); ++t) {
    S* dz = dlogits_TE.as<S>() + t * num_e;
    const S* probs = probs_TE.as<S>() + t * num_e;
    router_weights_backward<S>(dz, dweights_TK.as<S>() + t * num_k, probs, weights_TK.as<S>() + t * num_k,
                               index_TK.as<std::int32_t>() + t * num_k, num_e, options);
    if (!aux_UE.empty()) {
      const S* a = aux_UE.as<S>() + unit_T.as<std::int32_t>()[t] * num_e;
      S mean = 0;
      for (std::int64_t e = 0; e < num_e; ++e) mean += a[e] * probs[e];
      for (std::int64_t e = 0; e < num_e; ++e) dz[e] += probs[e] * (a[e] - mean);
    }
    const S z = static_cast<S>(2 * z_scale) * lse_T.as<S>()[t];
    for (std::int64_t e = 0; e < num_e; ++e) dz[e] += z * probs[e];
  }
}

template <class S>
void gather_rows(const Tensor& dst_RH, const Tensor& src_TH, const Tensor& index_R) {
  const std::int64_t num_h = src_TH.dim(1);
  for (std::int64_t r = 0; r < dst_RH.dim(0); ++r) {
    std::copy_n(src_TH.as<S>() + index_R.as<std::int32_t>()[r] * num_h, num_h, dst_RH.as<S>() + r * num_h);
  }
}

template <class S>
void combine(const Tensor& y_TH, const Tensor& x_TH, const Tensor& rows_RH, const Tensor& pos_TK,
             const Tensor& weights_TK) {
  const std::int64_t num_h = y_TH.dim(1), num_k = pos_TK.dim(1);
  for (std::int64_t t = 0; t < y_TH.dim(0); ++t) {
    for (std::int64_t h = 0; h < num_h; ++h) {
      S sum = x_TH.empty() ? S(0) : x_TH.as<S>()[t * num_h + h];
      for (std::int64_t k = 0; k < num_k; ++k) {
        const std::int64_t r = pos_TK.as<std::int32_t>()[t * num_k + k];
        if (r >= 0) sum += weights_TK.as<S>()[t * num_k + k] * rows_RH.as<S>()[r * num_h + h];
      }
      y_TH.as<S>()[t * num_h + h] = sum;
    }
  }
}

template <class S>
void combine_backward(const Tensor& drows_RH, const Tensor& dweights_TK, const Tensor& dy_TH,
                      const Tensor& rows_RH, const Tensor& pos_TK, const Tensor& weights_TK) {
  const std::int64_t num_h = dy_TH.dim(1), num_k = pos_TK.dim(1);
  for (std::int64_t t = 0; t < dy_TH.dim(0); ++t) {
    const S* dy = dy_TH.as<S>() + t * num_h;
    for (std::int64_t k = 0; k < num_k; ++k) {
      const std::int64_t r = pos_TK.as<std::int32_t>()[t * num_k + k];
      S sum = 0;
      for (std::int64_t h = 0; r >= 0 && h < num_h; ++h) {
        sum += dy[h] * rows_RH.as<S>()[r * num_h + h];
        drows_RH.as<S>()[r * num_h + h] = weights_TK.as<S>()[t * num_k + k] * dy[h];
      }
      dweights_TK.as<S>()[t * num_k + k] = sum;
    }
  }
}

template <class S>
void sum_rows(const Tensor& dx_TH, const Tensor& rows_RH, const Tensor& pos_TK, Write write) {
  const std::int64_t num_h = dx_TH.dim(1), num_k = pos_TK.dim(1);
  for (std::int64_t t = 0; t < dx_TH.dim(0); ++t) {
    for (std::int64_t h = 0; h < num_h; ++h) {
      S& dx = dx_TH.as<S>()[t * num_h + h];
      S sum = write == Write::accumulate ? dx : S(0);
      for (std::int64_t k = 0; k < num_k; ++k) {
        const std::int64_t r = pos_TK.as<std::int32_t>()[t * num_k + k];
        if (r >= 0) sum += rows_RH.as<S>()[r * num_h + h];
      }
      dx = sum;
    }
  }
}

}  // namespace tessera::kernels::ref
