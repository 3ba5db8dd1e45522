// Reference of attention over cached keys: rows are single tokens, each with a slot and a position.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "kernels/kernels.h"

namespace tessera::kernels::ref {

template <class S>
void cache_append(const Tensor& cache, const Tensor& x, std::int64_t first, const Tensor& slots,
                  const Tensor& positions) {
  const std::int64_t heads = cache.dim(1), capacity = cache.dim(2), width = cache.dim(3);
  for (std::int64_t t = 0; t < x.dim(0); ++t) {
    const std::int64_t slot = slots.as<std::int32_t>()[t];
    const std::int64_t row = positions.as<std::int32_t>()[t] % capacity;
    for (std::int64_t g = 0; g < heads; ++g) {
      const S* from = x.as<S>() + t * x.dim(1) + first + g * width;
      std::copy_n(from, width, cache.as<S>() + ((slot * heads + g) * capacity + row) * width);
    }
  }
}

// One head of one row: keys and values are those of its slot and key/value head.
template <class S>
void decode_head(S* out, const S* q, const S* keys, const S* values, const S* sink, std::int64_t position,
                 const Tensor& key_cache, const Tensor& value_cache, const AttentionShape& shape) {
  const std::int64_t first = shape.window > 0 ? std::max<std::int64_t>(0, position - shape.window + 1) : 0;
  std::vector<S> weight;
  S largest = sink != nullptr ? *sink : -std::numeric_limits<S>::infinity();
  for (std::int64_t p = first; p <= position; ++p) {
    const S* k = keys + p % key_cache.dim(2) * key_cache.dim(3);
    S sum = 0;
    for (std::int64_t d = 0; d < shape.head_dim; ++d) sum += q[d] * k[d];
    weight.push_back(static_cast<S>(shape.scale) * sum);
    largest = std::max(largest, weight.back());
  }
  S total = sink != nullptr ? std::exp(*sink - largest) : S(0);
  for (S& w : weight) {
    w = std::exp(w - largest);
    total += w;
  }
  for (std::int64_t d = 0; d < shape.v_dim(); ++d) {
    S sum = 0;
    for (std::int64_t p = first; p <= position; ++p) {
      sum += weight[static_cast<std::size_t>(p - first)] / total *
             values[p % value_cache.dim(2) * value_cache.dim(3) + d];
    }
    out[d] = sum;
  }
}

template <class S>
void decode_attention(const Tensor& out, const Tensor& q, const Tensor& keys, const Tensor& values,
                      const Tensor& sinks, const Tensor& slots, const Tensor& positions,
                      const AttentionShape& shape) {
  for (std::int64_t t = 0; t < out.dim(0); ++t) {
    const std::int64_t slot = slots.as<std::int32_t>()[t];
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const std::int64_t g = slot * shape.kv_heads + h / (shape.heads / shape.kv_heads);
      decode_head<S>(
          out.as<S>() + t * out.dim(1) + h * shape.v_dim(), q.as<S>() + t * q.dim(1) + h * shape.head_dim,
          keys.as<S>() + g * keys.dim(2) * keys.dim(3), values.as<S>() + g * values.dim(2) * values.dim(3),
          sinks.empty() ? nullptr : sinks.as<S>() + h, positions.as<std::int32_t>()[t], keys, values, shape);
    }
  }
}

}  // namespace tessera::kernels::ref
