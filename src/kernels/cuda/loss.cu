// Embedding and vocab-parallel cross entropy: a block for each token.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

template <class S, class A = Acc<S>>
__global__ void embedding_all(S* y, const std::int32_t* ids, const A* table, std::int64_t begin,
                              std::int64_t vocab, std::int64_t tokens, std::int64_t width, bool wide) {
  for (std::int64_t t = first_row(); t < tokens; t += row_stride()) {
    const std::int64_t row = ids[t] - begin;
    for (std::int64_t p = first_pack(); p < packs_of(width); p += pack_stride()) {
      A value[kPack] = {};
      if (row >= 0 && row < vocab) load(value, table + row * width, p * kPack, width, wide);
      store(y + t * width, p * kPack, width, wide, value);
    }
  }
}

// The tokens of one id are a chain in ascending order: the block of the first one walks it and alone writes
// the id's row, so the order of the additions is fixed.
struct Chains {
  std::int32_t *previous, *next;  // -1: none
};

__global__ void link_backward(Chains chains, const std::int32_t* ids, std::int64_t tokens) {
  for (std::int64_t t = first_element(); t < tokens; t += element_stride()) {
    std::int64_t u = t - 1;
    while (u >= 0 && ids[u] != ids[t]) --u;
    chains.previous[t] = static_cast<std::int32_t>(u);
    chains.next[t] = -1;
  }
}

__global__ void link_forward(Chains chains, std::int64_t tokens) {
  for (std::int64_t t = first_element(); t < tokens; t += element_stride()) {
    if (chains.previous[t] >= 0) chains.next[chains.previous[t]] = static_cast<std::int32_t>(t);
  }
}

template <class S, class A = Acc<S>>
__global__ void embedding_wgrad_chains(A* dtable, const S* dy, const std::int32_t* ids, Chains chains,
                                       std::int64_t begin, std::int64_t vocab, std::int64_t width,
                                       bool wide) {
  const std::int64_t t = blockIdx.x, row = ids[t] - begin;
  if (row < 0 || row >= vocab || chains.previous[t] >= 0) return;
  for (std::int64_t p = threadIdx.x; p < packs_of(width); p += blockDim.x) {
    A sum[kPack];
    load(sum, dtable + row * width, p * kPack, width, wide);
    for (std::int64_t u = t; u >= 0; u = chains.next[u]) {
      A grad[kPack];
      load(grad, dy + u * width, p * kPack, width, wide);
      for (int i = 0; i < kPack; ++i) sum[i] += grad[i];
    }
    store(dtable + row * width, p * kPack, width, wide, sum);
  }
}

// One pass: each thread keeps its largest logit and the sum of exp below it.
template <class S, class A = Acc<S>>
__global__ void cross_entropy_stats_rows(A* stats, const S* logits, const std::int32_t* targets,
                                         std::int64_t begin, std::int64_t tokens, std::int64_t vocab,
                                         bool wide) {
  const A lowest = -std::numeric_limits<A>::infinity();
  const std::int64_t t = blockIdx.x;
  const S* z = logits + t * vocab;
  A mine = lowest, below = 0;
  for (std::int64_t p = threadIdx.x; p < packs_of(vocab); p += blockDim.x) {
    A value[kPack];
    load(value, z, p * kPack, vocab, wide);
    A largest = mine;
    for (int i = 0; i < kPack; ++i) {
      if (p * kPack + i >= vocab) value[i] = lowest;
      largest = value[i] > largest || value[i] != value[i] ? value[i] : largest;  // NaN stays
    }
    if (largest == lowest) continue;
    below *= std::exp(mine - largest);
    for (int i = 0; i < kPack; ++i) below += std::exp(value[i] - largest);
    mine = largest;
  }
  const A largest = block_max(mine);
  const A sum = block_sum(mine == lowest ? A(0) : below * std::exp(mine - largest));
  if (threadIdx.x != 0) return;
  const std::int64_t target = targets[t];
  const bool here = target >= 0 && target >= begin && target < begin + vocab;
  stats[t] = largest;
  stats[tokens + t] = sum;
  stats[2 * tokens + t] = here ? A(z[target - begin]) : A(0);
}

template <class S>
__global__ void cross_entropy_join_all(S* loss, S* lse, const S* stats, const std::int32_t* targets,
                                       std::int64_t shares, std::int64_t tokens) {
  for (std::int64_t t = first_element(); t < tokens; t += element_stride()) {
    S largest = stats[t];
    for (std::int64_t p = 1; p < shares; ++p) {
      const S other = stats[p * 3 * tokens + t];
      largest = other > largest ? other : largest;
    }
    S sum = 0, target = 0;
    for (std::int64_t p = 0; p < shares; ++p) {
      const S* at = stats + p * 3 * tokens + t;
      sum += at[tokens] * std::exp(at[0] - largest);
      target += at[2 * tokens];
    }
    lse[t] = largest + std::log(sum);
    loss[t] = targets[t] < 0 ? S(0) : lse[t] - target;
  }
}

template <class S, class A = Acc<S>>
__global__ void cross_entropy_backward_all(S* logits, const A* lse, const std::int32_t* targets,
                                           std::int64_t begin, A weight, std::int64_t tokens,
                                           std::int64_t vocab, bool wide) {
  for (std::int64_t t = first_row(); t < tokens; t += row_stride()) {
    const std::int64_t target = targets[t];
    S* row = logits + t * vocab;
    for (std::int64_t p = first_pack(); p < packs_of(vocab); p += pack_stride()) {
      A value[kPack];
      load(value, row, p * kPack, vocab, wide);
      for (int i = 0; i < kPack; ++i) {
        const A hit = target == begin + p * kPack + i ? A(1) : A(0);
        value[i] = target < 0 ? A(0) : weight * (std::exp(value[i] - lse[t]) - hit);
      }
      store(row, p * kPack, vocab, wide, value);
    }
  }
}

}  // namespace

void Backend::do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = table.dim(1);
    S* to = y.address<S>();
    A* from = table.address<A>();
    launch(stream_, over_matrix(y.dim(0), packs_of(width)), &embedding_all<S>, to,
           ids.address<std::int32_t>(), from, vocab_begin, table.dim(0), y.dim(0), width,
           is_wide(to, width) && is_wide(from, width));
  });
}

void Backend::do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) {
  const std::int64_t tokens = ids.dim(0), width = dtable.dim(1);
  const std::int64_t most = workspace_.size().value / static_cast<std::int64_t>(2 * sizeof(std::int32_t));
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    A* to = dtable.address<A>();
    for (std::int64_t first = 0; first < tokens; first += most) {
      const std::int64_t n = std::min(most, tokens - first);
      auto* links = work<std::int32_t>();
      const Chains chains{links, links + n};
      const std::int32_t* id = ids.address<std::int32_t>() + first;
      const S* grad = dy.address<S>() + first * width;
      launch(stream_, over_elements(n), &link_backward, chains, id, n);
      launch(stream_, over_elements(n), &link_forward, chains, n);
      launch(stream_, over_wide_rows(n, width), &embedding_wgrad_chains<S>, to, grad, id, chains, vocab_begin,
             dtable.dim(0), width, is_wide(to, width) && is_wide(grad, width));
    }
  });
}

void Backend::do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets, std::int64_t vocab_begin) {
  with_scalar(logits, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const S* z = logits.address<S>();
    const std::int64_t vocab = logits.dim(1);
    launch(stream_, over_wide_rows(logits.dim(0), vocab), &cross_entropy_stats_rows<S>, stats.address<A>(), z,
           targets.address<std::int32_t>(), vocab_begin, logits.dim(0), vocab, is_wide(z, vocab));
  });
}

void Backend::do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) {
  with_stats(loss, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_elements(stats.dim(2)), &cross_entropy_join_all<S>, loss.address<A>(),
           lse.address<A>(), stats.address<A>(), targets.address<std::int32_t>(), stats.dim(0), stats.dim(2));
  });
}

void Backend::do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                        double weight) {
  with_scalar(logits, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    S* z = logits.address<S>();
    const std::int64_t vocab = logits.dim(1);
    launch(stream_, over_matrix(logits.dim(0), packs_of(vocab)), &cross_entropy_backward_all<S>, z,
           lse.address<A>(), targets.address<std::int32_t>(), vocab_begin, static_cast<A>(weight),
           logits.dim(0), vocab, is_wide(z, vocab));
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
