// The public functions of attention over a cache: checks, FLOPs, then the backend.
#include <limits>

#include "kernels/checks.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

namespace {

// Every row names a slot of the cache and a position of its sequence.
void check_rows(const Call& call, Tensor cache, Tensor slots, Tensor positions, std::int64_t rows) {
  call.is_index("slots", slots, {rows});
  call.is_index("positions", positions, {rows});
  call.in_range("slots", slots, 0, cache.dim(0));
  call.in_range("positions", positions, 0, std::numeric_limits<std::int32_t>::max());
  if (cache.dim(2) <= 0 || cache.dim(2) % kCacheBlock != 0) {
    call.fail(fmt::format("cache {} has {} rows, expected a multiple of {}", shape_text(cache), cache.dim(2),
                          kCacheBlock));
  }
}

// What a query sees must still be there: a cache shorter than the sequence is for windows.
void check_capacity(const Call& call, Tensor keys, Tensor positions, const AttentionShape& shape) {
  const std::int32_t* at = positions.as<std::int32_t>();
  for (std::int64_t t = 0; t < positions.num_elements(); ++t) {
    const std::int64_t seen = at[t] + 1 - shape.first_key(at[t]);
    if (seen > keys.dim(2)) {
      call.fail(fmt::format("position {} sees {} keys, the cache {} holds {}", at[t], seen, shape_text(keys),
                            keys.dim(2)));
    }
  }
}

}  // namespace

void Kernels::cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) {
  Call call("cache_append", takes_bf16());
  call.leads("cache", cache, 4);
  call.num_dims("x", x, 2);
  call.is("x", x, {x.dim(0), x.dim(1)});
  check_rows(call, cache, slots, positions, x.dim(0));
  if (first < 0 || first + cache.dim(1) * cache.dim(3) > x.dim(1)) {
    call.fail(fmt::format("columns from {} of x {} do not hold a row of cache {}", first, shape_text(x),
                          shape_text(cache)));
  }
  do_cache_append(cache, x, first, slots, positions);
}

void Kernels::decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks, Tensor slots,
                               Tensor positions, const AttentionShape& shape) {
  Call call("decode_attention", takes_bf16());
  call.require(
      shape.heads > 0 && shape.kv_heads > 0 && shape.heads % shape.kv_heads == 0 && shape.head_dim > 0,
      "kv_heads divides heads, and a head has columns");
  const std::int64_t rows = shape.batch * shape.seq;
  call.leads("keys", keys, 4);
  call.is("keys", keys, {keys.dim(0), shape.kv_heads, keys.dim(2), shape.head_dim});
  call.num_dims("values", values, 4);
  call.is("values", values, {keys.dim(0), shape.kv_heads, keys.dim(2), values.dim(3)});
  call.require(values.dim(3) >= shape.v_dim(), "values have the columns of a head");
  call.num_dims("q", q, 2);
  call.is("q", q, {rows, q.dim(1)});
  call.require(q.dim(1) >= shape.q_dim(), "q has the columns of all heads");
  call.is("out", out, {rows, shape.out_dim()});
  if (!sinks.empty()) call.is_stats("sinks", sinks, {shape.heads});
  check_rows(call, keys, slots, positions, rows);
  check_capacity(call, keys, positions, shape);
  const std::int32_t* at = positions.as<std::int32_t>();
  for (std::int64_t t = 0; t < rows; ++t) {
    const std::int64_t seen = at[t] + 1 - shape.first_key(at[t]);
    flops_ += Flops(2 * (shape.head_dim + shape.v_dim()) * shape.heads * seen);
  }
  do_decode_attention(out, q, keys, values, sinks, slots, positions, shape);
}

}  // namespace tessera::kernels
