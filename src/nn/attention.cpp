// T tokens of the micro-batch, t of this rank, H hidden, D = heads * head_dim of this rank; qkv has
// D + 2 kv_heads * head_dim columns; h query heads; G groups that a norm of q or k runs over.
#include "nn/attention.h"

#include <cmath>

#include "nn/kv_cache.h"
#include "nn/projection.h"
#include "nn/tp_overlap.h"

namespace tessera::nn {

namespace {

using kernels::ColumnGroups;
using kernels::GroupNormOptions;

ColumnGroups q_groups(const Attention::Options& o) {
  const std::int64_t columns = o.heads * o.head_dim;
  return o.qk_norm == QkNorm::whole ? ColumnGroups{.first = 0, .groups = 1, .width = columns}
                                    : ColumnGroups{.first = 0, .groups = o.heads, .width = o.head_dim};
}
ColumnGroups k_groups(const Attention::Options& o) {
  const std::int64_t first = o.heads * o.head_dim;
  const std::int64_t columns = o.kv_heads * o.head_dim;
  return o.qk_norm == QkNorm::whole ? ColumnGroups{.first = first, .groups = 1, .width = columns}
                                    : ColumnGroups{.first = first, .groups = o.kv_heads, .width = o.head_dim};
}
// The mean is over the columns of all tp ranks.
GroupNormOptions norm_options(const Attention::Options& o, const ColumnGroups& g) {
  return {.eps = o.norm_eps, .count = o.qk_norm == QkNorm::whole ? g.width * o.dims.tp : g.width};
}

// A number for each row and group, of q and of k behind it: one tensor, so that one call sums it over tp.
Tensor q_part(Tensor both, const Attention::Options& o) {
  const std::int64_t groups = q_groups(o).groups;
  return both.narrow_rows(0, o.dims.tokens() * groups).reshaped({o.dims.tokens(), groups});
}
Tensor k_part(Tensor both, const Attention::Options& o) {
  const std::int64_t first = o.dims.tokens() * q_groups(o).groups;
  const std::int64_t groups = k_groups(o).groups;
  return both.narrow_rows(first, o.dims.tokens() * groups).reshaped({o.dims.tokens(), groups});
}
void sum_groups(Context& ctx, const Attention::Options& o, Tensor both) {
  if (o.qk_norm == QkNorm::whole && ctx.tp.size() > 1) ctx.tp.all_reduce_direct(both, comm::Op::sum);
}

Tensor value(const std::optional<Param>& p) {
  return p ? p->weight.value_NK : Tensor();
}

}  // namespace

struct Attention::ForwardScratch {
  Tensor n_TH, qkv;  // selective, qkv with norms or clamps only
  ProjectionScratch projection;
  ContextRing::Buffers ring;
};
Attention::ForwardScratch Attention::forward_scratch(Arena& arena) const {
  const Dims& d = o_.dims;
  ForwardScratch s;
  if (selective()) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  if (selective() && reworked()) s.qkv = arena.take(d.dtype, {d.tokens(), shape().qkv_dim()});
  s.projection = projection_scratch(arena, d);
  s.ring = ring_.forward_buffers(arena);
  return s;
}

struct Attention::BackwardScratch {
  Tensor dattn_TD;
  Tensor received;    // of the scatter
  Tensor partial_TH;  // with one rank the norm's gradient is written in place
  Tensor qkv;         // selective with norms or clamps
  Tensor normed;      // with norms and clamps: q and k in between, to see what was clamped
  Tensor dots;        // with norms
  ContextRing::Buffers ring;
};
Attention::BackwardScratch Attention::backward_scratch(Arena& arena) const {
  const Dims& d = o_.dims;
  BackwardScratch s;
  s.dattn_TD = arena.take(d.dtype, {d.tokens(), shape().out_dim()});
  if (d.tp > 1) s.partial_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  s.received = scatter_scratch(arena, d);
  if (selective() && reworked()) s.qkv = arena.take(d.dtype, {d.tokens(), shape().qkv_dim()});
  s.ring = ring_.backward_buffers(arena);
  if (o_.qk_norm == QkNorm::none) return s;
  s.dots = take_groups(arena);
  if (o_.clip_qkv > 0.0) {
    s.normed = selective() ? s.qkv : arena.take(d.dtype, {d.tokens(), shape().qkv_dim()});
  }
  return s;
}

Attention::Attention(Options options, Params params, Tensor cos_SP, Tensor sin_SP)
    : o_(options),
      p_(params),
      norm_(options.norm, options.norm_eps, params.norm_H, params.norm_bias_H),
      ring_(options.dims.dtype, shape(), options.dims.cp),
      cos_(cos_SP),
      sin_(sin_SP) {
  const bool norms = o_.qk_norm != QkNorm::none;
  TESSERA_CHECK(p_.q_norm.has_value() == norms && p_.k_norm.has_value() == norms,
                "attention has weights for the norms of q and k when it has these norms");
}

kernels::AttentionShape Attention::shape() const {
  return {.batch = o_.dims.batch,
          .seq = o_.dims.seq,
          .heads = o_.heads,
          .kv_heads = o_.kv_heads,
          .head_dim = o_.head_dim,
          .scale = o_.scale > 0.0 ? o_.scale : 1.0 / std::sqrt(static_cast<double>(o_.head_dim)),
          .window = o_.window};
}

// Keys lie directly behind queries.
kernels::RopeShape Attention::rope_shape() const {
  return {.seq = o_.dims.seq,
          .heads = o_.heads + o_.kv_heads,
          .first = 0,
          .stride = o_.head_dim,
          .rotated = 2 * cos_.row_elements(),
          .pairs = *o_.rope};
}

Tensor Attention::take_groups(Arena& arena) const {
  return arena.take(o_.dims.stats(), {o_.dims.tokens() * (q_groups(o_).groups + k_groups(o_).groups)});
}

void Attention::reserve_saved(Arena& arena) {
  const Dims& d = o_.dims;
  const kernels::AttentionShape a = shape();
  Saved s;
  s.norm = norm_.reserve(arena, d.dtype, d.local_tokens());
  if (!selective()) s.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  if (reworked()) s.raw = arena.take(d.dtype, {d.tokens(), a.qkv_dim()});
  if (o_.qk_norm != QkNorm::none) s.squares = take_groups(arena);
  if (!selective() || !reworked()) s.qkv = arena.take(d.dtype, {d.tokens(), a.qkv_dim()});
  s.out = arena.take(d.dtype, {d.tokens(), a.out_dim()});
  s.lse = arena.take(d.stats(), {d.tokens(), a.heads});
  saved_.push_back(s);
}

void Attention::reserve_deferred(Arena& arena) {
  const Dims& d = o_.dims;
  Deferred f;
  if (selective()) f.n_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dout_TH = arena.take(d.dtype, {d.tokens(), d.hidden});
  f.dqkv = arena.take(d.dtype, {d.tokens(), shape().qkv_dim()});
  f.dn_tH = arena.take(d.dtype, {d.local_tokens(), d.hidden});
  if (o_.qk_norm != QkNorm::none) {
    f.dq_norm = arena.take(d.stats(), {q_groups(o_).width});
    f.dk_norm = arena.take(d.stats(), {k_groups(o_).width});
  }
  if (p_.sinks_h) f.dsinks_h = arena.take(d.stats(), {o_.heads});
  deferred_.push_back(f);
}

void Attention::measure_scratch(Arena& counting) const {
  {
    const Frame frame(counting);
    (void)forward_scratch(counting);
  }
  const Frame frame(counting);
  (void)backward_scratch(counting);
}

// ---------------------------------------------------------------------------------------------- forward

void Attention::project(Kernels& k, Tensor raw, Tensor n_TH) const {
  k.linear(raw, n_TH, p_.qkv.weight);
  add_bias(k, raw, p_.qkv_bias);
}

void Attention::measure_heads(Context& ctx, Tensor squares, Tensor raw) const {
  if (o_.qk_norm == QkNorm::none) return;
  ctx.kernels.group_squares(q_part(squares, o_), raw, q_groups(o_));
  ctx.kernels.group_squares(k_part(squares, o_), raw, k_groups(o_));
  sum_groups(ctx, o_, squares);
}

void Attention::normalise_heads(Kernels& k, Tensor qkv, Tensor raw, Tensor squares) const {
  const ColumnGroups q = q_groups(o_);
  const ColumnGroups key = k_groups(o_);
  k.group_norm(qkv, raw, q_part(squares, o_), value(p_.q_norm), norm_options(o_, q), q);
  k.group_norm(qkv, raw, k_part(squares, o_), value(p_.k_norm), norm_options(o_, key), key);
}

void Attention::position(Kernels& k, Tensor qkv, Tensor raw, Tensor squares, Tensor positions_T) const {
  const std::int64_t all = shape().qkv_dim();
  if (o_.qk_norm != QkNorm::none) {
    normalise_heads(k, qkv, raw, squares);
    const std::int64_t v = (o_.heads + o_.kv_heads) * o_.head_dim;
    k.move_columns(qkv, raw, {.width = all - v, .to = {.first = v}, .from = {.first = v}});
  } else if (reworked()) {
    k.move_columns(qkv, raw, {.width = all, .to = {}, .from = {}});
  }
  if (o_.clip_qkv > 0.0) k.clamp(qkv, o_.clip_qkv, 0, all);
  if (o_.rope) k.rope(qkv, cos_, sin_, rope_shape(), false, positions_T);
}

void Attention::attend(Context& ctx, const Saved& s, Tensor qkv, const Microbatch& mb,
                       const ContextRing::Buffers& ring) const {
  if (mb.cache == nullptr) {
    ring_.forward(ctx, ring, s.out, s.lse, qkv, value(p_.sinks_h));
    return;
  }
  Kernels& k = ctx.kernels;
  const kernels::AttentionShape a = shape();
  const KvCache::Layer& c = mb.cache->layer(o_.layer);
  k.cache_append(c.keys_SGCK, qkv, a.q_dim(), mb.slots_T, mb.positions_T);
  k.cache_append(c.values_SGCV, qkv, a.q_dim() + a.k_dim(), mb.slots_T, mb.positions_T);
  k.decode_attention(s.out, qkv, c.keys_SGCK, c.values_SGCV, value(p_.sinks_h), mb.slots_T, mb.positions_T,
                     a);
}

void Attention::forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH,
                        Pass /*pass*/) {
  TESSERA_CHECK_EQ(ctx.tp.size(), o_.dims.tp, "the attention layer was built for another tp group");
  Saved& s = slot_at(saved_, slots.saved);
  const Frame frame(ctx.scratch);
  const ForwardScratch scratch = forward_scratch(ctx.scratch);
  const Tensor n_TH = selective() ? scratch.n_TH : s.n_TH;
  const Tensor qkv = selective() && reworked() ? scratch.qkv : s.qkv;
  const Tensor raw = reworked() ? s.raw : qkv;
  Kernels& k = ctx.kernels;

  s.x_tH = x_tH;
  norm_.forward(k, local_rows(ctx, n_TH), s.norm, x_tH);
  gather_then(ctx, o_.dims, n_TH, local_rows(ctx, n_TH), [&](std::int64_t begin, std::int64_t rows) {
    project(k, raw.narrow_rows(begin, rows), n_TH.narrow_rows(begin, rows));
  });
  measure_heads(ctx, s.squares, raw);
  position(k, qkv, raw, s.squares, mb.positions_T);
  attend(ctx, s, qkv, mb, scratch.ring);
  add_projection(ctx, o_.dims, y_tH, x_tH, s.out, p_.o, p_.o_bias, scratch.projection);
}

// ---------------------------------------------------------------------------------------------- backward

void Attention::backward_input(Context& ctx, Slots slots, const Microbatch& /*mb*/, Tensor g_tH) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  const Frame frame(ctx.scratch);
  const BackwardScratch scratch = backward_scratch(ctx.scratch);
  const Tensor dn_TH = o_.dims.tp > 1 ? scratch.partial_TH : f.dn_tH;
  const Tensor qkv = selective() && reworked() ? scratch.qkv : s.qkv;
  Kernels& k = ctx.kernels;

  if (selective()) {
    norm_.apply(k, local_rows(ctx, f.n_TH), s.x_tH, s.norm);
    gather_rows(ctx, f.n_TH, local_rows(ctx, f.n_TH));
    if (reworked()) position(k, qkv, s.raw, s.squares, Tensor());
  }
  gather_then(ctx, o_.dims, f.dout_TH, g_tH, [&](std::int64_t begin, std::int64_t rows) {
    k.linear_dgrad(scratch.dattn_TD.narrow_rows(begin, rows), f.dout_TH.narrow_rows(begin, rows),
                   p_.o.weight);
  });
  ring_.backward(ctx, scratch.ring, f.dqkv, f.dsinks_h, scratch.dattn_TD, qkv, s.out, s.lse,
                 value(p_.sinks_h));
  position_backward(ctx, f, s, scratch);
  then_scatter_sum(
      ctx, o_.dims, f.dn_tH, dn_TH, scratch.received, [&](std::int64_t begin, std::int64_t rows) {
        k.linear_dgrad(dn_TH.narrow_rows(begin, rows), f.dqkv.narrow_rows(begin, rows), p_.qkv.weight);
      });
  norm_.dgrad(k, g_tH, f.dn_tH, s.x_tH, s.norm, kernels::Write::accumulate);
}

void Attention::position_backward(Context& ctx, const Deferred& f, const Saved& s,
                                  const BackwardScratch& scratch) const {
  Kernels& k = ctx.kernels;
  const bool norms = o_.qk_norm != QkNorm::none;
  if (o_.rope) k.rope(f.dqkv, cos_, sin_, rope_shape(), true, Tensor());
  if (o_.clip_qkv > 0.0) {
    const std::int64_t v = (o_.heads + o_.kv_heads) * o_.head_dim;
    if (norms) normalise_heads(k, scratch.normed, s.raw, s.squares);
    k.clamp_backward(f.dqkv, norms ? scratch.normed : s.raw, o_.clip_qkv, 0, v);
    k.clamp_backward(f.dqkv, s.raw, o_.clip_qkv, v, shape().qkv_dim() - v);
  }
  if (norms) normalise_backward(ctx, f, s, scratch.dots);
}

void Attention::normalise_backward(Context& ctx, const Deferred& f, const Saved& s, Tensor dots) const {
  Kernels& k = ctx.kernels;
  const auto each = [&](const auto& body) {
    const ColumnGroups q = q_groups(o_);
    const ColumnGroups key = k_groups(o_);
    body(q, norm_options(o_, q), q_part(s.squares, o_), q_part(dots, o_), value(p_.q_norm), f.dq_norm);
    body(key, norm_options(o_, key), k_part(s.squares, o_), k_part(dots, o_), value(p_.k_norm), f.dk_norm);
  };
  each([&](const ColumnGroups& g, const GroupNormOptions& o, Tensor squares, Tensor dots_TG, Tensor w,
           Tensor dw) {
    k.group_norm_wgrad(dw, f.dqkv, s.raw, squares, o, g, kernels::Write::overwrite);
    k.group_norm_dots(dots_TG, f.dqkv, s.raw, w, g);
  });
  sum_groups(ctx, o_, dots);
  each([&](const ColumnGroups& g, const GroupNormOptions& o, Tensor squares, Tensor dots_TG, Tensor w,
           Tensor /*dw*/) { k.group_norm_dgrad(f.dqkv, f.dqkv, s.raw, squares, dots_TG, w, o, g); });
}

void Attention::backward_weight(Context& ctx, Slots slots, const Microbatch& /*mb*/) {
  const Saved& s = slot_at(saved_, slots.saved);
  const Deferred& f = slot_at(deferred_, slots.deferred);
  Kernels& k = ctx.kernels;
  projection_wgrad(ctx, p_.o, p_.o_bias, f.dout_TH, s.out);
  k.linear_wgrad(p_.qkv.grad, f.dqkv, selective() ? f.n_TH : s.n_TH);
  bias_wgrad(k, p_.qkv_bias, f.dqkv);
  norm_.wgrad(k, f.dn_tH, s.x_tH, s.norm);
  if (p_.q_norm) k.accumulate(p_.q_norm->grad, f.dq_norm);
  if (p_.k_norm) k.accumulate(p_.k_norm->grad, f.dk_norm);
  if (p_.sinks_h) k.accumulate(p_.sinks_h->grad, f.dsinks_h);
}

}  // namespace tessera::nn
