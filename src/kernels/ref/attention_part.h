// Reference attention by parts of the keys (kernels.h, AttentionPart). q rows hold heads query vectors first,
// kv rows kv_heads key vectors, then kv_heads value vectors.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/ref/attention.h"

namespace tessera::kernels::ref {

struct PartOf {
  const AttentionShape& shape;
  const AttentionPart& part;
  // The first key of the part that query i of it sees, and one behind the last.
  [[nodiscard]] std::int64_t first_key(std::int64_t i) const {
    const std::int64_t hidden = shape.window > 0 ? i + part.distance - shape.window + 1 : 0;
    return std::clamp<std::int64_t>(hidden, 0, part.rows);
  }
  [[nodiscard]] std::int64_t end_key(std::int64_t i) const { return part.distance == 0 ? i + 1 : part.rows; }
};

// Rows of one (sequence b, query head h): q and out of query i, k and v of key j.
struct PartRows {
  PartRows(const PartOf& of, const Tensor& q_TN, const Tensor& kv_TN, std::int64_t b, std::int64_t h)
      : shape(of.shape),
        q_row(q_TN.dim(1)),
        kv_row(kv_TN.dim(1)),
        first_q(b * of.shape.seq + of.part.q_first),
        first_k(b * of.shape.seq + of.part.k_first),
        head(h) {}
  [[nodiscard]] std::int64_t q(std::int64_t i) const { return (first_q + i) * q_row + head * shape.head_dim; }
  [[nodiscard]] std::int64_t kv_head() const { return head / (shape.heads / shape.kv_heads); }
  [[nodiscard]] std::int64_t k(std::int64_t j) const {
    return (first_k + j) * kv_row + kv_head() * shape.head_dim;
  }
  [[nodiscard]] std::int64_t v(std::int64_t j) const {
    return (first_k + j) * kv_row + shape.k_dim() + kv_head() * shape.v_dim();
  }
  [[nodiscard]] std::int64_t lse(std::int64_t i) const { return (first_q + i) * shape.heads + head; }
  [[nodiscard]] std::int64_t out(std::int64_t i) const { return lse(i) * shape.v_dim(); }
  const AttentionShape& shape;
  std::int64_t q_row, kv_row, first_q, first_k, head;
};

// before: log-sum-exp of what was seen already, -inf: nothing.
template <class S>
void join_row(S* out, S& lse, S before, const S* score, const S* values, const PartOf& of, const PartRows& at,
              std::int64_t i) {
  const std::int64_t first = of.first_key(i), end = of.end_key(i);
  if (first >= end) return;
  const S largest = std::max(before, *std::max_element(score + first, score + end));
  S sum = std::exp(before - largest);
  for (std::int64_t j = first; j < end; ++j) sum += std::exp(score[j] - largest);
  for (std::int64_t d = 0; d < of.shape.v_dim(); ++d) {
    S value = std::exp(before - largest) / sum * out[d];
    for (std::int64_t j = first; j < end; ++j)
      value += std::exp(score[j] - largest) / sum * values[at.v(j) + d];
    out[d] = value;
  }
  lse = largest + std::log(sum);
}

template <class S>
void attention_part(const Tensor& out, const Tensor& lse, const Tensor& q, const Tensor& kv,
                    const Tensor& sinks_h, const PartOf& of, Write write) {
  const AttentionShape& shape = of.shape;
  std::vector<S> score(static_cast<std::size_t>(of.part.rows));
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const PartRows at(of, q, kv, b, h);
      for (std::int64_t i = 0; i < of.part.rows; ++i) {
        for (std::int64_t j = of.first_key(i); j < of.end_key(i); ++j) {
          score[static_cast<std::size_t>(j)] =
              static_cast<S>(shape.scale) * dot(q.as<S>() + at.q(i), kv.as<S>() + at.k(j), shape.head_dim);
        }
        S* o = out.as<S>() + at.out(i);
        S& s = lse.as<S>()[at.lse(i)];
        S before = s;
        if (write == Write::overwrite) {
          std::fill_n(o, shape.v_dim(), S(0));
          before = sinks_h.empty() ? -std::numeric_limits<S>::infinity() : sinks_h.as<S>()[h];
        }
        join_row(o, s, before, score.data(), kv.as<S>(), of, at, i);
      }
    }
  }
}

// The formulas of attention_head_backward, += for the pairs of the part.
template <class S>
void attention_part_backward(const Tensor& dq, const Tensor& dkv, const Tensor& dout, const Tensor& q,
                             const Tensor& kv, const Tensor& out, const Tensor& lse, const PartOf& of) {
  const AttentionShape& shape = of.shape;
  const auto scale = static_cast<S>(shape.scale);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const PartRows at(of, q, kv, b, h);
      for (std::int64_t i = 0; i < of.part.rows; ++i) {
        const S* dout_i = dout.as<S>() + at.out(i);
        const S* query = q.as<S>() + at.q(i);
        const S delta = dot(dout_i, out.as<S>() + at.out(i), shape.v_dim());
        for (std::int64_t j = of.first_key(i); j < of.end_key(i); ++j) {
          const S* key = kv.as<S>() + at.k(j);
          const S p = std::exp(scale * dot(query, key, shape.head_dim) - lse.as<S>()[at.lse(i)]);
          const S ds = p * (dot(dout_i, kv.as<S>() + at.v(j), shape.v_dim()) - delta);
          for (std::int64_t d = 0; d < shape.head_dim; ++d) {
            dq.as<S>()[at.q(i) + d] += scale * ds * key[d];
            dkv.as<S>()[at.k(j) + d] += scale * ds * query[d];
          }
          for (std::int64_t d = 0; d < shape.v_dim(); ++d) dkv.as<S>()[at.v(j) + d] += p * dout_i[d];
        }
      }
    }
  }
}

}  // namespace tessera::kernels::ref
