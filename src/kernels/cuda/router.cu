// The MoE router, a warp for each token, and the row moves of dispatch and combine.
#include <cmath>
#include <limits>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

constexpr int kRouterThreads = 128;
constexpr double kSigmoidSum = 1e-20;  // keeps the sum of chosen sigmoid scores from zero

inline Grid over_tokens(std::int64_t tokens, std::size_t shared_per_warp) {
  constexpr int warps = kRouterThreads / kWarp;
  return {{static_cast<unsigned>((tokens + warps - 1) / warps)}, {kRouterThreads}, warps * shared_per_warp};
}
__device__ inline std::int64_t token_of_warp() {
  return static_cast<std::int64_t>(blockIdx.x) * num_warps() + warp();
}

// The index of the largest of score[0..n) that is not taken (taken[i] != 0), the lowest among equals, the
// same on all lanes.
template <class S>
__device__ int best_of(const S* score, const char* taken, int n) {
  int best = -1;
  for (int i = lane(); i < n; i += kWarp) {
    if (taken[i] == 0 && (best < 0 || score[i] > score[best])) best = i;
  }
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const int other = __shfl_xor_sync(kAllLanes, best, mask);
    if (other < 0) continue;
    const bool larger = best >= 0 && score[best] > score[other];
    const bool smaller = best < 0 || score[other] > score[best];
    if (smaller || (!larger && other < best)) best = other;
  }
  return best;
}

template <class S>
__device__ S score_of_group(const S* score, int size, GroupScore how) {
  S first = score[0], second = -std::numeric_limits<S>::infinity();
  for (int e = 1; e < size; ++e) {
    const S lower = score[e] < first ? score[e] : first;
    second = lower > second ? lower : second;
    first = score[e] > first ? score[e] : first;
  }
  return how == GroupScore::max || size == 1 ? first : first + second;
}

// What a warp keeps in shared memory: scores of the experts and groups, and what of them is taken.
template <class S>
struct Choice {
  S* score;
  S* group;
  char* taken;
  char* kept;
};
template <class S>
std::size_t choice_bytes(std::int64_t experts, std::int64_t groups) {
  const std::size_t bytes = static_cast<std::size_t>(experts + groups) * (sizeof(S) + 1);
  return (bytes + 15) / 16 * 16;
}
template <class S>
__device__ Choice<S> choice_of_warp(int experts, int groups) {
  const std::size_t bytes = static_cast<std::size_t>(experts + groups) * (sizeof(S) + 1);
  char* at = block_memory<char>() + static_cast<std::size_t>(warp()) * ((bytes + 15) / 16 * 16);
  S* score = reinterpret_cast<S*>(at);
  char* flags = reinterpret_cast<char*>(score + experts + groups);
  return {score, score + experts, flags, flags + experts};
}

// Outside of the best topk_group groups every expert counts as taken.
template <class S>
__device__ void leave_groups(const Choice<S>& c, int experts, const RouterOptions& o) {
  const int size = experts / o.n_group;
  for (int g = lane(); g < o.n_group; g += kWarp) {
    c.group[g] = score_of_group(c.score + g * size, size, o.group_score);
    c.kept[g] = 0;
  }
  __syncwarp();
  for (int k = 0; k < o.topk_group; ++k) {
    const int best = best_of(c.group, c.kept, o.n_group);
    __syncwarp();
    if (lane() == 0) c.kept[best] = 1;
    __syncwarp();
  }
  for (int e = lane(); e < experts; e += kWarp) c.taken[e] = c.kept[e / size] != 0 ? 0 : 1;
  __syncwarp();
}

template <class S>
__device__ void choose_experts(std::int32_t* index, const S* z, const S* probs, const S* bias, int experts,
                               const RouterOptions& o) {
  const Choice<S> c = choice_of_warp<S>(experts, o.n_group);
  const bool plain = bias == nullptr && o.n_group == 1 && o.score != RouterScore::sigmoid;
  const S* from = plain || o.score == RouterScore::topk_then_softmax ? z : probs;
  for (int e = lane(); e < experts; e += kWarp) {
    c.score[e] = bias == nullptr ? from[e] : from[e] + bias[e];
    c.taken[e] = 0;
  }
  __syncwarp();
  if (o.topk_group != o.n_group) leave_groups(c, experts, o);
  for (int k = 0; k < o.top_k; ++k) {
    const int best = best_of(c.score, c.taken, experts);
    __syncwarp();
    if (lane() == 0) {
      index[k] = best;
      c.taken[best] = 1;
    }
    __syncwarp();
  }
}

// The weights of a token, by one lane: a few numbers in the order of k.
template <class S>
__device__ void weigh(S* weights, const std::int32_t* index, const S* z, const S* probs,
                      const RouterOptions& o) {
  const bool over_chosen = o.score == RouterScore::topk_then_softmax;
  S largest = z[index[0]];
  for (int k = 1; k < o.top_k; ++k) largest = z[index[k]] > largest ? z[index[k]] : largest;
  S sum = o.score == RouterScore::sigmoid ? static_cast<S>(kSigmoidSum) : S(0);
  for (int k = 0; k < o.top_k; ++k) {
    weights[k] = over_chosen ? std::exp(z[index[k]] - largest) : probs[index[k]];
    sum += weights[k];
  }
  for (int k = 0; k < o.top_k; ++k) {
    if (over_chosen || o.renormalise) weights[k] /= sum;
    weights[k] *= static_cast<S>(o.scale);
  }
}

template <class S>
__global__ void router_tokens(S* all_probs, S* lse, std::int32_t* all_index, S* all_weights, const S* logits,
                              const S* bias, std::int64_t tokens, int experts, RouterOptions o) {
  const std::int64_t t = token_of_warp();
  if (t >= tokens) return;
  const S* z = logits + t * experts;
  S* probs = all_probs + t * experts;
  std::int32_t* index = all_index + t * o.top_k;
  S largest = -std::numeric_limits<S>::infinity();
  for (int e = lane(); e < experts; e += kWarp) largest = z[e] > largest ? z[e] : largest;
  largest = warp_max(largest);
  S sum = 0;
  for (int e = lane(); e < experts; e += kWarp) sum += std::exp(z[e] - largest);
  sum = warp_sum(sum);
  for (int e = lane(); e < experts; e += kWarp) {
    probs[e] =
        o.score == RouterScore::sigmoid ? S(1) / (S(1) + std::exp(-z[e])) : std::exp(z[e] - largest) / sum;
  }
  __syncwarp();
  if (!o.given_index) choose_experts(index, z, probs, bias, experts, o);
  if (lane() != 0) return;
  lse[t] = largest + std::log(sum);
  weigh(all_weights + t * o.top_k, index, z, probs, o);
}

// What the weights hand back to the logits of the chosen experts (formulas of kernels/ref/router.h); dz of
// all others has been written before.
template <class S>
__device__ void weights_backward(S* dz, const S* dw, const S* probs, const S* w, const std::int32_t* index,
                                 S inner, S sum, const RouterOptions& o) {
  const bool sigmoid = o.score == RouterScore::sigmoid;
  const bool normalised = o.score == RouterScore::topk_then_softmax || o.renormalise;
  const S scale = static_cast<S>(o.scale);
  for (int k = 0; k < o.top_k; ++k) {
    const int e = index[k];
    if (sigmoid) {
      const S slope = scale * probs[e] * (S(1) - probs[e]);
      dz[e] = o.renormalise ? slope / sum * (dw[k] - inner) : slope * dw[k];
    } else {
      dz[e] = (normalised ? w[k] : scale * probs[e]) * (dw[k] - inner);
    }
  }
}

template <class S>
struct RouterGradient {
  S* dlogits;
  const S* dweights;
  const S* probs;
  const S* lse;
  const std::int32_t* index;
  const S* weights;
  const S* aux;  // null: no balancing loss
  const std::int32_t* unit;
  const S* logits;  // for the z-loss of sigmoid scores
  S z_scale;
  std::int64_t tokens;
  int experts;
};

// dz += the gradient of sum_e a_e P_e, P = softmax(z), or the sigmoid scores over their sum.
template <class S>
__device__ void balance_backward(S* dz, const S* a, const S* probs, int experts, bool sigmoid) {
  S sum = sigmoid ? S(0) : S(1), mean = 0;
  if (sigmoid) {
    for (int e = lane(); e < experts; e += kWarp) sum += probs[e];
    sum = warp_sum(sum);
  }
  for (int e = lane(); e < experts; e += kWarp) mean += a[e] * (probs[e] / sum);
  mean = warp_sum(mean);
  for (int e = lane(); e < experts; e += kWarp) {
    dz[e] += probs[e] / sum * (sigmoid ? S(1) - probs[e] : S(1)) * (a[e] - mean);
  }
}

template <class S>
__global__ void router_backward_tokens(RouterGradient<S> r, RouterOptions o) {
  const std::int64_t t = token_of_warp();
  if (t >= r.tokens) return;
  const bool sigmoid = o.score == RouterScore::sigmoid;
  const bool normalised = o.score == RouterScore::topk_then_softmax || o.renormalise;
  S* dz = r.dlogits + t * r.experts;
  const S* dw = r.dweights + t * o.top_k;
  const S* probs = r.probs + t * r.experts;
  const S* w = r.weights + t * o.top_k;
  const std::int32_t* index = r.index + t * o.top_k;
  const S scale = static_cast<S>(o.scale);
  S sum = static_cast<S>(kSigmoidSum), inner = 0;
  for (int k = 0; sigmoid && k < o.top_k; ++k) sum += probs[index[k]];
  for (int k = 0; k < o.top_k; ++k) {
    const S share = sigmoid ? probs[index[k]] / sum : (normalised ? w[k] / scale : probs[index[k]]);
    inner += dw[k] * share;
  }
  for (int e = lane(); e < r.experts; e += kWarp) {
    dz[e] = sigmoid || normalised ? S(0) : -scale * probs[e] * inner;
  }
  __syncwarp();
  if (lane() == 0) weights_backward(dz, dw, probs, w, index, inner, sum, o);
  __syncwarp();
  if (r.aux != nullptr) {
    balance_backward(dz, r.aux + std::int64_t{r.unit[t]} * r.experts, probs, r.experts, sigmoid);
  }
  if (r.z_scale == S(0)) return;
  for (int e = lane(); e < r.experts; e += kWarp) {
    const S p = sigmoid ? std::exp(r.logits[t * r.experts + e] - r.lse[t]) : probs[e];
    dz[e] += r.z_scale * r.lse[t] * p;
  }
}

template <class S, class A = Acc<S>>
__global__ void gather_rows_all(S* dst, const S* src, const std::int32_t* index, std::int64_t n,
                                std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    dst[i] = src[index[i / width] * width + i % width];
  }
}

// y = x + sum_k w_k rows[pos_k]; x null: 0, weights null: all 1.
template <class S, class A = Acc<S>>
__global__ void combine_all(S* y, const S* x, const S* rows, const std::int32_t* pos, const A* weights,
                            std::int64_t top_k, std::int64_t n, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t t = i / width;
    A sum = x == nullptr ? A(0) : x[i];
    for (std::int64_t k = 0; k < top_k; ++k) {
      const std::int64_t r = pos[t * top_k + k];
      if (r < 0) continue;
      const A row = rows[r * width + i % width];
      sum += weights == nullptr ? row : weights[t * top_k + k] * row;
    }
    y[i] = sum;
  }
}

// A block for each choice of each token.
template <class S, class A = Acc<S>>
__global__ void combine_backward_choices(S* drows, A* dweights, const S* dy, const S* rows,
                                         const std::int32_t* pos, const A* weights, std::int64_t top_k,
                                         std::int64_t width) {
  const std::int64_t choice = blockIdx.x, t = choice / top_k, r = pos[choice];
  A sum = 0;
  for (std::int64_t h = threadIdx.x; r >= 0 && h < width; h += blockDim.x) {
    const A grad = dy[t * width + h];
    sum += grad * rows[r * width + h];
    drows[r * width + h] = weights[choice] * grad;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) dweights[choice] = sum;
}

}  // namespace

void Backend::do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                        const RouterOptions& options) {
  with_stats(probs, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t experts = logits.dim(1);
    launch(stream_, over_tokens(logits.dim(0), choice_bytes<S>(experts, options.n_group)), &router_tokens<S>,
           probs.address<S>(), lse.address<S>(), index.address<std::int32_t>(), weights.address<S>(),
           logits.address<S>(), bias.empty() ? nullptr : bias.address<S>(), logits.dim(0),
           static_cast<int>(experts), options);
  });
}

void Backend::do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                                 Tensor weights, Tensor aux, Tensor unit, double z_scale,
                                 const RouterOptions& options, Tensor logits) {
  with_stats(dlogits, [&](auto zero) {
    using S = decltype(zero);
    const RouterGradient<S> r{.dlogits = dlogits.address<S>(),
                              .dweights = dweights.address<S>(),
                              .probs = probs.address<S>(),
                              .lse = lse.address<S>(),
                              .index = index.address<std::int32_t>(),
                              .weights = weights.address<S>(),
                              .aux = aux.empty() ? nullptr : aux.address<S>(),
                              .unit = aux.empty() ? nullptr : unit.address<std::int32_t>(),
                              .logits = logits.empty() ? nullptr : logits.address<S>(),
                              .z_scale = static_cast<S>(2 * z_scale),
                              .tokens = probs.dim(0),
                              .experts = static_cast<int>(probs.dim(1))};
    launch(stream_, over_tokens(r.tokens, 0), &router_backward_tokens<S>, r, options);
  });
}

void Backend::do_gather_rows(Tensor dst, Tensor src, Tensor index) {
  with_scalar(dst, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t n = dst.num_elements();
    launch(stream_, over_elements(n), &gather_rows_all<S>, dst.address<S>(), src.address<S>(),
           index.address<std::int32_t>(), n, src.dim(1));
  });
}

void Backend::do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = y.num_elements();
    launch(stream_, over_elements(n), &combine_all<S>, y.address<S>(), x.empty() ? nullptr : x.address<S>(),
           rows.address<S>(), pos.address<std::int32_t>(), weights.address<A>(), pos.dim(1), n, y.dim(1));
  });
}

void Backend::do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                                  Tensor weights) {
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_rows(pos.num_elements()), &combine_backward_choices<S>, drows.address<S>(),
           dweights.address<A>(), dy.address<S>(), rows.address<S>(), pos.address<std::int32_t>(),
           weights.address<A>(), pos.dim(1), dy.dim(1));
  });
}

void Backend::do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const A* unweighted = nullptr;
    const std::int64_t n = dx.num_elements();
    launch(stream_, over_elements(n), &combine_all<S>, dx.address<S>(),
           write == Write::accumulate ? dx.address<S>() : nullptr, rows.address<S>(),
           pos.address<std::int32_t>(), unweighted, pos.dim(1), n, dx.dim(1));
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
