// Reference rotary embedding and causal attention. Rows t = b * seq + s of qkv hold heads query vectors, then
// kv_heads key vectors, each of head_dim, then kv_heads value vectors of v_dim.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

// Pair j of a head is at columns (j, j + rotated / 2) or (2 j, 2 j + 1).
template <class S>
void rope(const Tensor& x_TC, const Tensor& cos_SP, const Tensor& sin_SP, const RopeShape& shape,
          bool adjoint, const Tensor& positions_T) {
  const std::int64_t num_p = shape.rotated / 2;
  const bool halves = shape.pairs == RopePairs::halves;
  for (std::int64_t t = 0; t < x_TC.dim(0); ++t) {
    const std::int64_t position = positions_T.empty() ? t % shape.seq : positions_T.as<std::int32_t>()[t];
    const S* cos = cos_SP.as<S>() + position * num_p;
    const S* sin = sin_SP.as<S>() + position * num_p;
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      S* x = x_TC.as<S>() + t * x_TC.dim(1) + shape.first + h * shape.stride;
      for (std::int64_t j = 0; j < num_p; ++j) {
        S& first = x[halves ? j : 2 * j];
        S& second = x[halves ? j + num_p : 2 * j + 1];
        const S a = first, b = second;
        const S s = adjoint ? -sin[j] : sin[j];
        first = a * cos[j] - b * s;
        second = b * cos[j] + a * s;
      }
    }
  }
}

// Offsets of one (sequence b, query head h) in qkv [T, q | k | v], out [T, heads * v_dim], lse [T, heads].
struct HeadOffsets {
  HeadOffsets(const AttentionShape& s, std::int64_t b, std::int64_t h) : shape(s), row(b * s.seq), head(h) {}
  [[nodiscard]] std::int64_t q(std::int64_t i) const {
    return (row + i) * shape.qkv_dim() + head * shape.head_dim;
  }
  [[nodiscard]] std::int64_t kv() const { return head / (shape.heads / shape.kv_heads); }
  [[nodiscard]] std::int64_t k(std::int64_t i) const {
    return (row + i) * shape.qkv_dim() + shape.q_dim() + kv() * shape.head_dim;
  }
  [[nodiscard]] std::int64_t v(std::int64_t i) const {
    return (row + i) * shape.qkv_dim() + shape.q_dim() + shape.k_dim() + kv() * shape.v_dim();
  }
  [[nodiscard]] std::int64_t out(std::int64_t i) const {
    return (row + i) * shape.out_dim() + head * shape.v_dim();
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

// out_i = sum_j p_ij v_j over the keys j that i sees, p_ij = exp(s_ij - lse_i), s_ij = scale q_i k_j: first
// the largest score and the sum of exponentials, then the values. sink (or null): one more score of each row.
template <class S>
void attention_head(S* out, S* lse, const S* qkv, const S* sink, const HeadOffsets& at) {
  const AttentionShape& shape = at.shape;
  std::vector<S> score(static_cast<std::size_t>(shape.seq));
  for (std::int64_t i = 0; i < shape.seq; ++i) {
    const std::int64_t first = shape.first_key(i);
    S* s = score.data();
    for (std::int64_t j = first; j <= i; ++j) {
      s[j] = static_cast<S>(shape.scale) * dot(qkv + at.q(i), qkv + at.k(j), shape.head_dim);
    }
    S largest = *std::max_element(s + first, s + i + 1);
    if (sink != nullptr) largest = std::max(largest, sink[at.head]);
    S sum = 0;
    for (std::int64_t j = first; j <= i; ++j) sum += std::exp(s[j] - largest);
    if (sink != nullptr) sum += std::exp(sink[at.head] - largest);
    lse[at.lse(i)] = largest + std::log(sum);
    for (std::int64_t d = 0; d < shape.v_dim(); ++d) {
      S value = 0;
      for (std::int64_t j = first; j <= i; ++j) value += std::exp(s[j] - largest) / sum * qkv[at.v(j) + d];
      out[at.out(i) + d] = value;
    }
  }
}

template <class S>
void attention(const Tensor& out, const Tensor& lse, const Tensor& qkv, const Tensor& sinks_h,
               const AttentionShape& shape) {
  const S* sinks = sinks_h.empty() ? nullptr : sinks_h.as<S>();
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      attention_head<S>(out.as<S>(), lse.as<S>(), qkv.as<S>(), sinks, HeadOffsets(shape, b, h));
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
    const S delta = dot(dout_i, out + at.out(i), shape.v_dim());
    for (std::int64_t j = shape.first_key(i); j <= i; ++j) {
      const S* q = qkv + at.q(i);
      const S* k = qkv + at.k(j);
      const S p = std::exp(scale * dot(q, k, shape.head_dim) - lse[at.lse(i)]);
      const S ds = p * (dot(dout_i, qkv + at.v(j), shape.v_dim()) - delta);
      for (std::int64_t d = 0; d < shape.head_dim; ++d) {
        dqkv[at.q(i) + d] += scale * ds * k[d];
        dqkv[at.k(j) + d] += scale * ds * q[d];
      }
      for (std::int64_t d = 0; d < shape.v_dim(); ++d) dqkv[at.v(j) + d] += p * dout_i[d];
    }
  }
}

// The sink's value is zero, so its score's derivative in row t is p_t (0 - dout_t out_t).
template <class S>
void sinks_backward(const Tensor& dsinks_h, const Tensor& dout, const Tensor& out, const Tensor& lse,
                    const Tensor& sinks_h, const AttentionShape& shape) {
  const std::int64_t num_v = shape.v_dim();
  for (std::int64_t h = 0; h < shape.heads; ++h) {
    S sum = 0;
    for (std::int64_t t = 0; t < out.dim(0); ++t) {
      const std::int64_t at = t * shape.out_dim() + h * num_v;
      const S p = std::exp(sinks_h.as<S>()[h] - lse.as<S>()[t * shape.heads + h]);
      sum -= p * dot(dout.as<S>() + at, out.as<S>() + at, num_v);
    }
    dsinks_h.as<S>()[h] = sum;
  }
}

template <class S>
void attention_backward(const Tensor& dqkv, const Tensor& dsinks_h, const Tensor& dout, const Tensor& qkv,
                        const Tensor& out, const Tensor& lse, const Tensor& sinks_h,
                        const AttentionShape& shape) {
  std::fill_n(dqkv.as<S>(), dqkv.num_elements(), S(0));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      attention_head_backward<S>(dqkv.as<S>(), dout.as<S>(), qkv.as<S>(), out.as<S>(), lse.as<S>(),
                                 HeadOffsets(shape, b, h));
    }
  }
  if (!sinks_h.empty()) sinks_backward<S>(dsinks_h, dout, out, lse, sinks_h, shape);
}

}  // namespace tessera::kernels::ref
