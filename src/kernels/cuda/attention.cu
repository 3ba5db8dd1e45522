// Attention of the backend's own, for every dtype, mask and shape: a block for each query row and head (for
// keys: each key row and kv head), its warps share the keys. One pass with running maxima (Milakov and
// Gimelshein 2018), so nothing of the size of the scores is kept. Not the fast way on tensor cores.
#include <cmath>
#include <limits>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

constexpr int kAttentionThreads = 128;
constexpr int kAttentionWarps = kAttentionThreads / kWarp;

template <class S, class A = Acc<S>>
__device__ A warp_dot(const S* a, const S* b, int n) {
  A sum = 0;
  for (int d = lane(); d < n; d += kWarp) sum += a[d] * b[d];
  return warp_sum(sum);
}

// One query over keys [first, end) and what it saw before: log-sum-exp `before` (-inf: nothing), whose value
// is in `out` if `joins`, else nothing (a sink).
template <class S, class A = Acc<S>>
struct Query {
  S* out;
  A* lse;  // null: not wanted
  const S* q;
  std::int64_t first, end;
  A before;
  bool joins;
};

// keys.k(j), keys.v(j): rows of key j. All threads of the block. Shared memory: v_dim numbers a warp.
template <class S, class Keys, class A = Acc<S>>
__device__ void attend(const Query<S>& query, const Keys& keys, int head_dim, int v_dim, A scale) {
  __shared__ A warp_largest[kAttentionWarps];
  __shared__ A warp_total[kAttentionWarps];
  A* acc = block_memory<A>() + static_cast<std::int64_t>(warp()) * v_dim;
  for (int d = lane(); d < v_dim; d += kWarp) acc[d] = A(0);
  A largest = -std::numeric_limits<A>::infinity(), total = 0;
  for (std::int64_t j = query.first + warp(); j < query.end; j += kAttentionWarps) {
    const A score = scale * warp_dot(query.q, keys.k(j), head_dim);
    const A higher = score > largest ? score : largest;
    const A keep = std::exp(largest - higher), p = std::exp(score - higher);
    const S* v = keys.v(j);
    for (int d = lane(); d < v_dim; d += kWarp) acc[d] = acc[d] * keep + p * v[d];
    total = total * keep + p;
    largest = higher;
  }
  if (lane() == 0) {
    warp_largest[warp()] = largest;
    warp_total[warp()] = total;
  }
  __syncthreads();
  A top = query.before;
  for (int w = 0; w < kAttentionWarps; ++w) top = warp_largest[w] > top ? warp_largest[w] : top;
  const A held = std::exp(query.before - top);
  A sum = held;
  for (int w = 0; w < kAttentionWarps; ++w) sum += warp_total[w] * std::exp(warp_largest[w] - top);
  for (int d = static_cast<int>(threadIdx.x); d < v_dim; d += kAttentionThreads) {
    A value = query.joins ? held * query.out[d] : A(0);
    for (int w = 0; w < kAttentionWarps; ++w) {
      value += block_memory<A>()[static_cast<std::int64_t>(w) * v_dim + d] * std::exp(warp_largest[w] - top);
    }
    query.out[d] = value / sum;
  }
  if (query.lse != nullptr && threadIdx.x == 0) *query.lse = top + std::log(sum);
}

// `rows` queries and keys of each sequence (kernels.h, AttentionPart; the whole of it: distance 0). q: the
// first columns of rows of q_row numbers; k, v: of kv_row numbers.
template <class S, class A = Acc<S>>
struct View {
  const S *q, *k, *v;
  std::int64_t q_row, kv_row, seq, rows, q_first, k_first, distance, window;
  int heads, kv_heads, head_dim, v_dim;
  A scale;

  __device__ std::int64_t token(std::int64_t batch, std::int64_t i) const {
    return batch * seq + q_first + i;
  }
  __device__ const S* query(std::int64_t token, int head) const {
    return q + token * q_row + static_cast<std::int64_t>(head) * head_dim;
  }
  __device__ std::int64_t first_key(std::int64_t i) const {
    const std::int64_t hidden = window > 0 ? i + distance - window + 1 : 0;
    return hidden < 0 ? 0 : (hidden > rows ? rows : hidden);
  }
  __device__ std::int64_t end_key(std::int64_t i) const { return distance == 0 ? i + 1 : rows; }
  // The queries that see key j.
  __device__ std::int64_t first_query(std::int64_t j) const { return distance == 0 ? j : 0; }
  __device__ std::int64_t end_query(std::int64_t j) const {
    const std::int64_t end = window > 0 ? j - distance + window : rows;
    return end < rows ? end : rows;
  }
};

// Keys of one sequence and kv head.
template <class S, class A = Acc<S>>
struct RowKeys {
  const S *keys, *values;
  std::int64_t row;
  __device__ RowKeys(const View<S>& at, std::int64_t batch, int kv_head)
      : keys(at.k + (batch * at.seq + at.k_first) * at.kv_row +
             static_cast<std::int64_t>(kv_head) * at.head_dim),
        values(at.v + (batch * at.seq + at.k_first) * at.kv_row +
               static_cast<std::int64_t>(kv_head) * at.v_dim),
        row(at.kv_row) {}
  __device__ const S* k(std::int64_t j) const { return keys + j * row; }
  __device__ const S* v(std::int64_t j) const { return values + j * row; }
};

template <class S, class A = Acc<S>>
__global__ void attention_queries(S* out, A* lse, View<S> at, const A* sinks, bool joins) {
  const std::int64_t batch = blockIdx.x / at.rows, i = blockIdx.x % at.rows;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t token = at.token(batch, i), row = token * at.heads + head;
  if (at.first_key(i) >= at.end_key(i)) return;
  A before = -std::numeric_limits<A>::infinity();
  if (joins) before = lse[row];
  if (!joins && sinks != nullptr) before = sinks[head];
  // Every thread has read lse before the first one writes it: attend meets at a barrier in between.
  const Query<S> query = {
      out + row * at.v_dim, lse + row, at.query(token, head), at.first_key(i), at.end_key(i), before, joins};
  attend(query, RowKeys<S>(at, batch, head / (at.heads / at.kv_heads)), at.head_dim, at.v_dim, at.scale);
}

template <class S, class A = Acc<S>>
struct Upstream {
  const S *dout, *out;
  const A* lse;
};

// p and ds of one pair, the same on all lanes of the warp.
template <class S>
struct PairGradient {
  S p, ds;
};
template <class S, class A = Acc<S>>
__device__ PairGradient<A> pair_gradient(const View<S>& at, const S* q, const S* k, const S* v, const S* dout,
                                         A delta, A lse) {
  const A p = std::exp(at.scale * warp_dot(q, k, at.head_dim) - lse);
  return {p, p * (warp_dot(dout, v, at.v_dim) - delta)};
}

// Adds up what the warps hold in shared memory, [warps][n], and writes or adds factor times the sum.
template <class S, class A = Acc<S>>
__device__ void write_sum(S* to, const A* parts, int n, A factor, bool accumulate) {
  for (int d = static_cast<int>(threadIdx.x); d < n; d += kAttentionThreads) {
    A sum = 0;
    for (int w = 0; w < kAttentionWarps; ++w) sum += parts[static_cast<std::int64_t>(w) * n + d];
    to[d] = accumulate ? to[d] + factor * sum : factor * sum;
  }
}

// dq_i = scale sum_j ds_ij k_j, ds_ij = p_ij (dout_i v_j - dout_i out_i).
template <class S, class A = Acc<S>>
__global__ void attention_dq(S* dq, View<S> at, Upstream<S> up, bool accumulate) {
  const std::int64_t batch = blockIdx.x / at.rows, i = blockIdx.x % at.rows;
  const int head = static_cast<int>(blockIdx.y);
  const std::int64_t token = at.token(batch, i), row = token * at.heads + head;
  const RowKeys<S> keys(at, batch, head / (at.heads / at.kv_heads));
  const S* dout = up.dout + row * at.v_dim;
  const A delta = warp_dot(dout, up.out + row * at.v_dim, at.v_dim);
  A* acc = block_memory<A>() + static_cast<std::int64_t>(warp()) * at.head_dim;
  for (int d = lane(); d < at.head_dim; d += kWarp) acc[d] = A(0);
  for (std::int64_t j = at.first_key(i) + warp(); j < at.end_key(i); j += kAttentionWarps) {
    const S* k = keys.k(j);
    const A ds = pair_gradient(at, at.query(token, head), k, keys.v(j), dout, delta, up.lse[row]).ds;
    for (int d = lane(); d < at.head_dim; d += kWarp) acc[d] += ds * k[d];
  }
  __syncthreads();
  write_sum(dq + token * at.q_row + static_cast<std::int64_t>(head) * at.head_dim, block_memory<A>(),
            at.head_dim, at.scale, accumulate);
}

// dk_j = scale sum_i ds_ij q_i, dv_j = sum_i p_ij dout_i, over the query heads that read this kv head.
template <class S, class A = Acc<S>>
__global__ void attention_dkv(S* dk, S* dv, View<S> at, Upstream<S> up, bool accumulate) {
  const std::int64_t batch = blockIdx.x / at.rows, j = blockIdx.x % at.rows;
  const int kv_head = static_cast<int>(blockIdx.y), group = at.heads / at.kv_heads;
  const RowKeys<S> keys(at, batch, kv_head);
  A* dk_parts = block_memory<A>();
  A* dv_parts = dk_parts + static_cast<std::int64_t>(kAttentionWarps) * at.head_dim;
  A* dk_acc = dk_parts + static_cast<std::int64_t>(warp()) * at.head_dim;
  A* dv_acc = dv_parts + static_cast<std::int64_t>(warp()) * at.v_dim;
  for (int d = lane(); d < at.head_dim; d += kWarp) dk_acc[d] = A(0);
  for (int d = lane(); d < at.v_dim; d += kWarp) dv_acc[d] = A(0);
  const std::int64_t first = at.first_query(j), seen = at.end_query(j) - first;
  for (std::int64_t pair = warp(); pair < seen * group; pair += kAttentionWarps) {
    const std::int64_t token = at.token(batch, first + pair % seen);
    const int head = kv_head * group + static_cast<int>(pair / seen);
    const std::int64_t row = token * at.heads + head;
    const S* dout = up.dout + row * at.v_dim;
    const S* q = at.query(token, head);
    const A delta = warp_dot(dout, up.out + row * at.v_dim, at.v_dim);
    const PairGradient<A> g = pair_gradient(at, q, keys.k(j), keys.v(j), dout, delta, up.lse[row]);
    for (int d = lane(); d < at.head_dim; d += kWarp) dk_acc[d] += g.ds * q[d];
    for (int d = lane(); d < at.v_dim; d += kWarp) dv_acc[d] += g.p * dout[d];
  }
  __syncthreads();
  const std::int64_t key_row = (batch * at.seq + at.k_first + j) * at.kv_row;
  write_sum(dk + key_row + static_cast<std::int64_t>(kv_head) * at.head_dim, dk_parts, at.head_dim, at.scale,
            accumulate);
  write_sum(dv + key_row + static_cast<std::int64_t>(kv_head) * at.v_dim, dv_parts, at.v_dim, A(1),
            accumulate);
}

// A block for each row and kv head. Of rows that fall on the same place of the cache, the last one stays.
template <class S, class A = Acc<S>>
__global__ void cache_append_rows(S* cache, const S* x, std::int64_t x_row, std::int64_t first,
                                  const std::int32_t* slots, const std::int32_t* positions,
                                  std::int64_t tokens, std::int64_t heads, std::int64_t capacity,
                                  std::int64_t width) {
  const std::int64_t t = blockIdx.x, g = blockIdx.y, place = positions[t] % capacity;
  int later = 0;
  for (std::int64_t u = t + 1 + threadIdx.x; u < tokens; u += blockDim.x) {
    later += slots[u] == slots[t] && positions[u] % capacity == place ? 1 : 0;
  }
  if (block_sum(later) > 0) return;
  S* to = cache + ((slots[t] * heads + g) * capacity + place) * width;
  for (std::int64_t d = threadIdx.x; d < width; d += blockDim.x) to[d] = x[t * x_row + first + g * width + d];
}

template <class S, class A = Acc<S>>
struct CacheKeys {
  const S *keys, *values;
  std::int64_t key_capacity, key_width, value_capacity, value_width;
  __device__ const S* k(std::int64_t p) const { return keys + p % key_capacity * key_width; }
  __device__ const S* v(std::int64_t p) const { return values + p % value_capacity * value_width; }
};

template <class S, class A = Acc<S>>
__global__ void decode_rows(S* out, const S* q, std::int64_t q_row, CacheKeys<S> cache, const A* sinks,
                            const std::int32_t* slots, const std::int32_t* positions, AttentionShape shape) {
  const std::int64_t t = blockIdx.x, head = blockIdx.y, position = positions[t];
  const std::int64_t g = slots[t] * shape.kv_heads + head / (shape.heads / shape.kv_heads);
  const std::int64_t hidden = shape.window > 0 ? position - shape.window + 1 : 0;
  const std::int64_t v_dim = shape.v_head_dim > 0 ? shape.v_head_dim : shape.head_dim;
  cache.keys += g * cache.key_capacity * cache.key_width;
  cache.values += g * cache.value_capacity * cache.value_width;
  const Query<S> query = {out + (t * shape.heads + head) * v_dim,
                          nullptr,
                          q + t * q_row + head * shape.head_dim,
                          hidden > 0 ? hidden : 0,
                          position + 1,
                          sinks == nullptr ? -std::numeric_limits<A>::infinity() : sinks[head],
                          false};
  attend(query, cache, static_cast<int>(shape.head_dim), static_cast<int>(v_dim),
         static_cast<A>(shape.scale));
}

template <class S, class A = Acc<S>>
View<S> view_of(const Tensor& q, const S* k, const S* v, std::int64_t kv_row, const AttentionShape& shape,
                const AttentionPart& part) {
  return {.q = q.address<S>(),
          .k = k,
          .v = v,
          .q_row = q.dim(1),
          .kv_row = kv_row,
          .seq = shape.seq,
          .rows = part.rows,
          .q_first = part.q_first,
          .k_first = part.k_first,
          .distance = part.distance,
          .window = shape.window,
          .heads = static_cast<int>(shape.heads),
          .kv_heads = static_cast<int>(shape.kv_heads),
          .head_dim = static_cast<int>(shape.head_dim),
          .v_dim = static_cast<int>(shape.v_dim()),
          .scale = static_cast<A>(shape.scale)};
}
template <class S, class A = Acc<S>>
View<S> whole_view(const Tensor& qkv, const AttentionShape& shape) {
  const S* k = qkv.address<S>() + shape.q_dim();
  return view_of<S>(qkv, k, k + shape.k_dim(), qkv.dim(1), shape, {shape.seq, 0, 0, 0});
}
template <class S, class A = Acc<S>>
View<S> part_view(const Tensor& q, const Tensor& kv, const AttentionShape& shape, const AttentionPart& part) {
  return view_of<S>(q, kv.address<S>(), kv.address<S>() + shape.k_dim(), kv.dim(1), shape, part);
}

Grid attention_grid(std::int64_t rows, std::int64_t heads, std::int64_t numbers_per_warp, std::size_t size) {
  return {{static_cast<unsigned>(rows), static_cast<unsigned>(heads)},
          {kAttentionThreads},
          static_cast<std::size_t>(kAttentionWarps * numbers_per_warp) * size};
}

template <class S, class A = Acc<S>>
void backward(Stream stream, S* dq, S* dk, S* dv, const View<S>& at, const Upstream<S>& up,
              const AttentionShape& shape, bool accumulate) {
  const std::int64_t rows = shape.batch * at.rows;
  launch(stream, attention_grid(rows, shape.heads, shape.head_dim, sizeof(A)), &attention_dq<S>, dq, at, up,
         accumulate);
  launch(stream, attention_grid(rows, shape.kv_heads, shape.head_dim + shape.v_dim(), sizeof(A)),
         &attention_dkv<S>, dk, dv, at, up, accumulate);
}

}  // namespace

void Backend::do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) {
  if (library_attention(out, lse, qkv, sinks, shape)) return;
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, attention_grid(shape.batch * shape.seq, shape.heads, shape.v_dim(), sizeof(A)),
           &attention_queries<S>, out.address<S>(), lse.address<A>(), whole_view<S>(qkv, shape),
           sinks.empty() ? nullptr : sinks.address<A>(), false);
  });
}

void Backend::do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out,
                                    Tensor lse, Tensor sinks, const AttentionShape& shape) {
  if (library_attention_backward(dqkv, dsinks, dout, qkv, out, lse, sinks, shape)) return;
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    S* dk = dqkv.address<S>() + shape.q_dim();
    backward<S>(stream_, dqkv.address<S>(), dk, dk + shape.k_dim(), whole_view<S>(qkv, shape),
                {dout.address<S>(), out.address<S>(), lse.address<A>()}, shape, false);
  });
  if (!sinks.empty()) do_attention_sinks_backward(dsinks, dout, out, lse, sinks, shape);
}

void Backend::do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                                const AttentionShape& shape, const AttentionPart& part, Write write) {
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, attention_grid(shape.batch * part.rows, shape.heads, shape.v_dim(), sizeof(A)),
           &attention_queries<S>, out.address<S>(), lse.address<A>(), part_view<S>(q, kv, shape, part),
           sinks.empty() ? nullptr : sinks.address<A>(), write == Write::accumulate);
  });
}

void Backend::do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                         Tensor lse, const AttentionShape& shape, const AttentionPart& part) {
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    backward<S>(stream_, dq.address<S>(), dkv.address<S>(), dkv.address<S>() + shape.k_dim(),
                part_view<S>(q, kv, shape, part), {dout.address<S>(), out.address<S>(), lse.address<A>()},
                shape, true);
  });
}

void Backend::do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const Grid grid = {{static_cast<unsigned>(x.dim(0)), static_cast<unsigned>(cache.dim(1))},
                       {kAttentionThreads}};
    launch(stream_, grid, &cache_append_rows<S>, cache.address<S>(), x.address<S>(), x.dim(1), first,
           slots.address<std::int32_t>(), positions.address<std::int32_t>(), x.dim(0), cache.dim(1),
           cache.dim(2), cache.dim(3));
  });
}

void Backend::do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks,
                                  Tensor slots, Tensor positions, const AttentionShape& shape) {
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const CacheKeys<S> cache = {keys.address<S>(), values.address<S>(), keys.dim(2),
                                keys.dim(3),       values.dim(2),       values.dim(3)};
    launch(stream_, attention_grid(out.dim(0), shape.heads, shape.v_dim(), sizeof(A)), &decode_rows<S>,
           out.address<S>(), q.address<S>(), q.dim(1), cache, sinks.empty() ? nullptr : sinks.address<A>(),
           slots.address<std::int32_t>(), positions.address<std::int32_t>(), shape);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
