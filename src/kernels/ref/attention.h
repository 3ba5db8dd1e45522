// Reference rotary embedding and causal attention. Rows t = b * seq + s of qkv hold heads query vectors, then
// kv_heads key vectors, then kv_heads value vectors, each of head_dim.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void rope(const Tensor& qkv, const Tensor& cos_SP, const Tensor& sin_SP, const AttentionShape& shape,
          bool inverse) {
  const std::int64_t num_p = shape.head_dim / 2;
  for (std::int64_t t = 0; t < shape.batch * shape.seq; ++t) {
    const S* cos = cos_SP.as<S>() + t % shape.seq * num_p;
    const S* sin = sin_SP.as<S>() + t % shape.seq * num_p;
    for (std::int64_t h = 0; h < shape.heads + shape.kv_heads; ++h) {
      S* x = qkv.as<S>() + t * shape.qkv_dim() + h * shape.head_dim;
      for (std::int64_t j = 0; j < num_p; ++j) {
        const S a = x[j], b = x[j + num_p];
        const S s = inverse ? -sin[j] : sin[j];
        x[j] = a * cos[j] - b * s;
        x[j + num_p] = b * cos[j] + a * s;
      }
    }
  }
}

// Offsets of one (sequence b, query head h) in qkv [T, q | k | v], out [T, heads * head_dim], lse [T, heads].
struct HeadOffsets {
  HeadOffsets(const AttentionShape& s, std::int64_t b, std::int64_t h) : shape(s), row(b * s.seq), head(h) {}
  [[nodiscard]] std::int64_t q(std::int64_t i) const {
    return (row + i) * shape.qkv_dim() + head * shape.head_dim;
  }
  [[nodiscard]] std::int64_t k(std::int64_t i) const {
    const std::int64_t kv = head / (shape.heads / shape.kv_heads);
    return (row + i) * shape.qkv_dim() + (shape.heads + kv) * shape.head_dim;
  }
  [[nodiscard]] std::int64_t v(std::int64_t i) const { return k(i) + shape.kv_heads * shape.head_dim; }
  [[nodiscard]] std::int64_t out(std::int64_t i) const {
    return (row + i) * shape.q_dim() + head * shape.head_dim;
  }
  [[nodiscard]] std::int64_t lse(std::int64_t i) const { return (row + i) * shape.heads + head; }
  const AttentionShape& shape;
  std::int64_t row;
  std::int64_t head;
};

template <class S>
S dot(const S* a, const S* b, std::int64_t n) {
  S sum = 0;
  for (std::int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// out_i = sum_{j <= i} p_ij v_j, p_ij = exp(s_ij - lse_i), s_ij = scale q_i k_j: first the largest score and
// the sum of exponentials, then the values.
template <class S>
void attention_head(S* out, S* lse, const S* qkv, const HeadOffsets& at) {
  const AttentionShape& shape = at.shape;
  std::vector<S> score(static_cast<std::size_t>(shape.seq));
  for (std::int64_t i = 0; i < shape.seq; ++i) {
    const auto keys = static_cast<std::size_t>(i) + 1;
    for (std::size_t j = 0; j < keys; ++j) {
      score[j] = static_cast<S>(shape.scale) *
                 dot(qkv + at.q(i), qkv + at.k(static_cast<std::int64_t>(j)), shape.head_dim);
    }
    const S largest = *std::max_element(score.begin(), score.begin() + static_cast<std::ptrdiff_t>(keys));
    S sum = 0;
    for (std::size_t j = 0; j < keys; ++j) sum += std::exp(score[j] - largest);
    lse[at.lse(i)] = largest + std::log(sum);
    for (std::int64_t d = 0; d < shape.head_dim; ++d) {
      S value = 0;
      for (std::size_t j = 0; j < keys; ++j) {
        value += std::exp(score[j] - largest) / sum * qkv[at.v(static_cast<std::int64_t>(j)) + d];
      }
      out[at.out(i) + d] = value;
    }
  }
}

template <class S>
void attention(const Tensor& out, const Tensor& lse, const Tensor& qkv, const AttentionShape& shape) {
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      attention_head<S>(out.as<S>(), lse.as<S>(), qkv.as<S>(), HeadOffsets(shape, b, h));
    }
  }
}

// With p_ij from the saved lse and ds_ij = p_ij (dout_i v_j - dout_i out_i):
//   dq_i = scale sum_j ds_ij k_j,   dk_j = scale sum_i ds_ij q_i,   dv_j = sum_i p_ij dout_i.
template <class S>
void attention_head_backward(S* dqkv, const S* dout, const S* qkv, const S* out, const S* lse,
                             const HeadOffsets& at) {
  const AttentionShape& shape = at.shape;
  const auto scale = static_cast<S>(shape.scale);
  for (std::int64_t i = 0; i < shape.seq; ++i) {
    const S* dout_i = dout + at.out(i);
    const S delta = dot(dout_i, out + at.out(i), shape.head_dim);
    for (std::int64_t j = 0; j <= i; ++j) {
      const S* q = qkv + at.q(i);
      const S* k = qkv + at.k(j);
      const S p = std::exp(scale * dot(q, k, shape.head_dim) - lse[at.lse(i)]);
      const S ds = p * (dot(dout_i, qkv + at.v(j), shape.head_dim) - delta);
      for (std::int64_t d = 0; d < shape.head_dim; ++d) {
        dqkv[at.q(i) + d] += scale * ds * k[d];
        dqkv[at.k(j) + d] += scale * ds * q[d];
        dqkv[at.v(j) + d] += p * dout_i[d];
      }
    }
  }
}

template <class S>
void attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                        const Tensor& lse, const AttentionShape& shape) {
  std::fill_n(dqkv.as<S>(), dqkv.num_elements(), S(0));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      attention_head_backward<S>(dqkv.as<S>(), dout.as<S>(), qkv.as<S>(), out.as<S>(), lse.as<S>(),
                                 HeadOffsets(shape, b, h));
    }
  }
}

}  // namespace tessera::kernels::ref
