// Reference MoE router and the row moves of dispatch and combine. T tokens, E experts, K chosen, R rows.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

// The k largest scores, best first, the lower index first among equals.
template <class S>
void choose(std::int32_t* index, const S* score, std::int64_t num_e, std::int64_t num_k) {
  for (std::int64_t k = 0; k < num_k; ++k) {
    std::int64_t best = -1;
    for (std::int64_t e = 0; e < num_e; ++e) {
      const bool taken = std::find(index, index + k, static_cast<std::int32_t>(e)) != index + k;
      if (!taken && (best < 0 || score[e] > score[best])) best = e;
    }
    index[k] = static_cast<std::int32_t>(best);
  }
}

template <class S>
S group_score(const S* score, std::int64_t size, GroupScore how) {
  S first = score[0], second = -std::numeric_limits<S>::infinity();
  for (std::int64_t e = 1; e < size; ++e) {
    second = std::max(second, std::min(first, score[e]));
    first = std::max(first, score[e]);
  }
  return how == GroupScore::max || size == 1 ? first : first + second;
}

// Choice scores of one token; those outside the best topk_group groups become minus infinity. Without bias
// and groups the logits themselves: they order as any score of them does, without its rounding.
template <class S>
void choice_scores(std::vector<S>& score, const S* z, const S* probs, const S* bias, const RouterOptions& o) {
  const auto num_e = static_cast<std::int64_t>(score.size());
  const bool plain = bias == nullptr && o.n_group == 1 && o.score != RouterScore::sigmoid;
  const S* from = plain || o.score == RouterScore::topk_then_softmax ? z : probs;
  for (std::int64_t e = 0; e < num_e; ++e) {
    score[static_cast<std::size_t>(e)] = bias == nullptr ? from[e] : from[e] + bias[e];
  }
  if (o.topk_group == o.n_group) return;
  const std::int64_t size = num_e / o.n_group;
  std::vector<S> groups(static_cast<std::size_t>(o.n_group));
  for (std::int64_t g = 0; g < o.n_group; ++g) {
    groups[static_cast<std::size_t>(g)] = group_score(score.data() + g * size, size, o.group_score);
  }
  std::vector<std::int32_t> kept(static_cast<std::size_t>(o.topk_group));
  choose(kept.data(), groups.data(), o.n_group, o.topk_group);
  for (std::int64_t e = 0; e < num_e; ++e) {
    const auto group = static_cast<std::int32_t>(e / size);
    if (std::find(kept.begin(), kept.end(), group) != kept.end()) continue;
    score[static_cast<std::size_t>(e)] = -std::numeric_limits<S>::infinity();
  }
}

// What keeps the sum of chosen sigmoid scores from zero.
inline constexpr double kSigmoidSum = 1e-20;

template <class S>
void router_weights(S* weights, const std::int32_t* index, const S* z, const S* probs,
                    const RouterOptions& o) {
  const bool over_chosen = o.score == RouterScore::topk_then_softmax;
  S largest = z[index[0]];
  for (std::int64_t k = 1; k < o.top_k; ++k) largest = std::max(largest, z[index[k]]);
  S sum = o.score == RouterScore::sigmoid ? static_cast<S>(kSigmoidSum) : S(0);
  for (std::int64_t k = 0; k < o.top_k; ++k) {
    weights[k] = over_chosen ? std::exp(z[index[k]] - largest) : probs[index[k]];
    sum += weights[k];
  }
  for (std::int64_t k = 0; k < o.top_k; ++k) {
    if (over_chosen || o.renormalise) weights[k] /= sum;
    weights[k] *= static_cast<S>(o.scale);
  }
}

template <class S>
void router(const Tensor& probs_TE, const Tensor& lse_T, const Tensor& index_TK, const Tensor& weights_TK,
            const Tensor& logits_TE, const Tensor& bias_E, const RouterOptions& options) {
  const std::int64_t num_e = logits_TE.dim(1), num_k = options.top_k;
  std::vector<S> score(static_cast<std::size_t>(num_e));
  for (std::int64_t t = 0; t < logits_TE.dim(0); ++t) {
    const S* z = logits_TE.as<S>() + t * num_e;
    S* probs = probs_TE.as<S>() + t * num_e;
    std::int32_t* index = index_TK.as<std::int32_t>() + t * num_k;
    const S largest = *std::max_element(z, z + num_e);
    S sum = 0;
    for (std::int64_t e = 0; e < num_e; ++e) sum += std::exp(z[e] - largest);
    for (std::int64_t e = 0; e < num_e; ++e) {
      probs[e] = options.score == RouterScore::sigmoid ? S(1) / (S(1) + std::exp(-z[e]))
                                                       : std::exp(z[e] - largest) / sum;
    }
    lse_T.as<S>()[t] = largest + std::log(sum);
    if (!options.given_index) {
      choice_scores(score, z, probs, bias_E.empty() ? nullptr : bias_E.as<S>(), options);
      choose(index, score.data(), num_e, num_k);
    }
    router_weights(weights_TK.as<S>() + t * num_k, index, z, probs, options);
  }
}

// Through the weights, c the scale. Normalised over the chosen, v = w / c being the softmax of the chosen
// logits: dz_k = w_k (dw_k - sum_j dw_j v_j). Else w = c P[chosen]: dz_e = c P_e (dP_e - sum_j dP_j P_j).
template <class S>
void softmax_weights_backward(S* dz, const S* dw, const S* probs, const S* w, const std::int32_t* index,
                              std::int64_t num_e, const RouterOptions& options) {
  const bool normalised = options.score == RouterScore::topk_then_softmax || options.renormalise;
  const auto scale = static_cast<S>(options.scale);
  S inner = 0;
  for (std::int64_t k = 0; k < options.top_k; ++k) {
    inner += dw[k] * (normalised ? w[k] / scale : probs[index[k]]);
  }
  for (std::int64_t e = 0; e < num_e; ++e) dz[e] = normalised ? S(0) : -scale * probs[e] * inner;
  for (std::int64_t k = 0; k < options.top_k; ++k) {
    const std::int64_t e = index[k];
    dz[e] = (normalised ? w[k] : scale * probs[e]) * (dw[k] - inner);
  }
}

// w = c s, or c s / D with D the sum of the chosen s: dz_e = c / D (dw_e - sum_j dw_j s_j / D) s_e (1 - s_e).
template <class S>
void sigmoid_weights_backward(S* dz, const S* dw, const S* s, const std::int32_t* index, std::int64_t num_e,
                              const RouterOptions& options) {
  S sum = static_cast<S>(kSigmoidSum), inner = 0;
  for (std::int64_t k = 0; k < options.top_k; ++k) sum += s[index[k]];
  for (std::int64_t k = 0; k < options.top_k; ++k) inner += dw[k] * (s[index[k]] / sum);
  std::fill_n(dz, num_e, S(0));
  for (std::int64_t k = 0; k < options.top_k; ++k) {
    const std::int64_t e = index[k];
    const S slope = static_cast<S>(options.scale) * s[e] * (S(1) - s[e]);
    dz[e] = options.renormalise ? slope / sum * (dw[k] - inner) : slope * dw[k];
  }
}

// dz += the gradient of sum_e a_e P_e, P = softmax(z), or the sigmoid scores over their sum.
template <class S>
void balance_backward(S* dz, const S* a, const S* probs, std::int64_t num_e, const RouterOptions& options) {
  const bool sigmoid = options.score == RouterScore::sigmoid;
  S sum = sigmoid ? S(0) : S(1), mean = 0;
  for (std::int64_t e = 0; sigmoid && e < num_e; ++e) sum += probs[e];
  for (std::int64_t e = 0; e < num_e; ++e) mean += a[e] * (probs[e] / sum);
  for (std::int64_t e = 0; e < num_e; ++e) {
    dz[e] += probs[e] / sum * (sigmoid ? S(1) - probs[e] : S(1)) * (a[e] - mean);
  }
}

template <class S>
void router_backward(const Tensor& dlogits_TE, const Tensor& dweights_TK, const Tensor& probs_TE,
                     const Tensor& lse_T, const Tensor& index_TK, const Tensor& weights_TK,
                     const Tensor& aux_UE, const Tensor& unit_T, double z_scale, const RouterOptions& options,
                     const Tensor& logits_TE) {
  const std::int64_t num_e = probs_TE.dim(1), num_k = options.top_k;
  const bool sigmoid = options.score == RouterScore::sigmoid;
  for (std::int64_t t = 0; t < probs_TE.dim(0); ++t) {
    S* dz = dlogits_TE.as<S>() + t * num_e;
    const S* dw = dweights_TK.as<S>() + t * num_k;
    const S* probs = probs_TE.as<S>() + t * num_e;
    const std::int32_t* index = index_TK.as<std::int32_t>() + t * num_k;
    if (sigmoid) {
      sigmoid_weights_backward<S>(dz, dw, probs, index, num_e, options);
    } else {
      softmax_weights_backward<S>(dz, dw, probs, weights_TK.as<S>() + t * num_k, index, num_e, options);
    }
    if (!aux_UE.empty()) {
      balance_backward<S>(dz, aux_UE.as<S>() + unit_T.as<std::int32_t>()[t] * num_e, probs, num_e, options);
    }
    if (z_scale == 0) continue;
    const S lse = lse_T.as<S>()[t];
    for (std::int64_t e = 0; e < num_e; ++e) {
      const S p = sigmoid ? std::exp(logits_TE.as<S>()[t * num_e + e] - lse) : probs[e];
      dz[e] += static_cast<S>(2 * z_scale) * lse * p;
    }
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
