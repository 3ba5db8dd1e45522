// Latent attention over a cache of latents. T rows, L kv_lora_rank, R rope_dim, W = L + R, N nope_dim.
#include "nn/kv_cache.h"
#include "nn/latent_attention.h"

namespace tessera::nn {

struct LatentAttention::CachedScratch {
  Tensor q;       // [T, heads (N + R)]
  Tensor row_TW;  // latent | key, as the cache keeps them
  Tensor key_TR;
  Tensor query;                  // [T, heads W]: what reads the cache
  Tensor seen;                   // [T, heads L]: latents that a head has weighed together
  Tensor nope_TN, lat_TL, v_TV;  // of one head
};
LatentAttention::CachedScratch LatentAttention::cached_scratch(Arena& arena) const {
  const Dims& d = o_.dims;
  const auto take = [&](std::int64_t columns) { return arena.take(d.dtype, {d.tokens(), columns}); };
  CachedScratch s;
  s.q = take(o_.heads * qk_dim());
  s.row_TW = take(o_.kv_lora_rank + o_.rope_dim);
  s.key_TR = take(o_.rope_dim);
  s.query = take(o_.heads * (o_.kv_lora_rank + o_.rope_dim));
  s.seen = take(o_.heads * o_.kv_lora_rank);
  s.nope_TN = take(o_.nope_dim);
  s.lat_TL = take(o_.kv_lora_rank);
  s.v_TV = take(o_.v_dim);
  return s;
}

void LatentAttention::measure_cached(Arena& counting) const {
  const Frame frame(counting);
  (void)cached_scratch(counting);
}

void LatentAttention::attend_cached(Context& ctx, const Saved& s, const Inputs& in,
                                    const Microbatch& mb) const {
  const std::int64_t lora = o_.kv_lora_rank, width = lora + o_.rope_dim, pair = o_.nope_dim + o_.v_dim;
  Kernels& k = ctx.kernels;
  const Frame frame(ctx.scratch);
  const CachedScratch c = cached_scratch(ctx.scratch);
  // Rows [first, first + rows) of the up-projection belong to one head's keys or values.
  const auto part = [&](std::int64_t first, std::int64_t rows) {
    return kernels::Weight{p_.kv_b.weight.value_NK.narrow_rows(first, rows), {}};
  };

  const Tensor own_tR = local_rows(ctx, c.key_TR);
  ctx.kernels.move_columns(own_tR, s.kv_raw_tL, {.width = o_.rope_dim, .to = {}, .from = {.first = lora}});
  gather_rows(ctx, c.key_TR, own_tR);
  turn_key(k, c.key_TR, false, mb.positions_T);
  ctx.kernels.move_columns(c.row_TW, in.kv_latent_TL, {.width = lora, .to = {}, .from = {}});
  ctx.kernels.move_columns(c.row_TW, c.key_TR, {.width = o_.rope_dim, .to = {.first = lora}, .from = {}});
  const KvCache::Layer& cache = mb.cache->layer(o_.layer);
  k.cache_append(cache.keys_SGCK, c.row_TW, 0, mb.slots_T, mb.positions_T);

  k.linear(c.q, q_has_latent() ? in.q_latent_TL : in.n, p_.q.weight);
  turn_queries(k, c.q, false, mb.positions_T);
  for (std::int64_t h = 0; h < o_.heads; ++h) {
    ctx.kernels.move_columns(c.nope_TN, c.q,
                             {.width = o_.nope_dim, .to = {}, .from = {.first = h * qk_dim()}});
    k.linear_dgrad(c.lat_TL, c.nope_TN, part(h * pair, o_.nope_dim));
    ctx.kernels.move_columns(c.query, c.lat_TL, {.width = lora, .to = {.first = h * width}, .from = {}});
  }
  ctx.kernels.move_columns(c.query, c.q,
                           {.blocks = o_.heads,
                            .width = o_.rope_dim,
                            .to = {.first = lora, .stride = width},
                            .from = {.first = o_.nope_dim, .stride = qk_dim()}});
  kernels::AttentionShape a = shape();
  a.kv_heads = 1;
  a.head_dim = width;
  a.v_head_dim = lora;
  k.decode_attention(c.seen, c.query, cache.keys_SGCK, cache.values_SGCV, Tensor(), mb.slots_T,
                     mb.positions_T, a);
  for (std::int64_t h = 0; h < o_.heads; ++h) {
    ctx.kernels.move_columns(c.lat_TL, c.seen, {.width = lora, .to = {}, .from = {.first = h * lora}});
    k.linear(c.v_TV, c.lat_TL, part(h * pair + o_.nope_dim, o_.v_dim));
    ctx.kernels.move_columns(s.out, c.v_TV, {.width = o_.v_dim, .to = {.first = h * o_.v_dim}, .from = {}});
  }
}

}  // namespace tessera::nn
