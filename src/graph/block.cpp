#include "graph/block.h"

#include <algorithm>

#include "graph/block_size.h"
#include "graph/block_writer.h"

namespace tessera::graph {

namespace {

constexpr std::uint32_t bit(Module m) {
  return static_cast<std::uint32_t>(m);
}

std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Keys that one query of a layer sees on average: of `s` positions, those before it and inside of the span.
double average_keys(const spec::ModelSpec& m, spec::AttentionSpan span, std::int64_t s) {
  const auto triangle = [](double n) { return (n + 1.0) / 2.0; };
  const auto seq = static_cast<double>(s);
  switch (span) {
    case spec::AttentionSpan::full:
      return triangle(seq);
    case spec::AttentionSpan::sliding: {
      const double w = std::min(seq, static_cast<double>(m.sliding_window));
      return (w * triangle(w) + (seq - w) * w) / seq;
    }
    case spec::AttentionSpan::chunked:
      return triangle(std::min(seq, static_cast<double>(m.attention_chunk)));
  }
  return triangle(seq);
}

struct Heads {
  std::int64_t q, kv, qk_dim, v_dim;  // of this rank
};

Heads heads_of(const spec::ModelSpec& m, std::int32_t tp) {
  const std::int64_t q = ceil_div(m.num_attention_heads, tp);
  if (m.mla) {
    return {.q = q,
            .kv = q,
            .qk_dim = m.mla->qk_nope_head_dim + m.mla->qk_rope_head_dim,
            .v_dim = m.mla->v_head_dim};
  }
  return {.q = q,
          .kv = std::max<std::int64_t>(1, m.num_key_value_heads / tp),
          .qk_dim = m.head_dim,
          .v_dim = m.head_dim};
}

void add_mla_projections(BlockWriter& w, const spec::ModelSpec& m, const Heads& h) {
  const RankSizes& s = w.sizes();
  const spec::MlaSpec& mla = *m.mla;
  const std::uint32_t up = bit(Module::mla_up_proj);
  const std::int64_t latent = mla.kv_lora_rank + mla.qk_rope_head_dim;
  if (mla.q_lora_rank > 0) {
    w.linear("q_down", s.local_tokens, mla.q_lora_rank, s.hidden, 0);
    w.norm("q_norm", s.local_tokens, mla.q_lora_rank, up);
  }
  w.linear("kv_down", s.local_tokens, latent, s.hidden, 0);
  w.norm("kv_norm", s.local_tokens, mla.kv_lora_rank, up);
  w.enter_tp(latent + mla.q_lora_rank);
  w.linear("q_up", s.tokens, h.q * h.qk_dim, mla.q_lora_rank > 0 ? mla.q_lora_rank : s.hidden, up);
  w.linear("kv_up", s.tokens, h.q * (mla.qk_nope_head_dim + mla.v_head_dim), mla.kv_lora_rank, up);
}

// k and v of the other cp ranks, a ring beside the attention blocks; backward passes their gradients too. Or
// q, k, v and the output exchanged, heads for sequence, with nothing to hide under.
void add_cp(BlockWriter& w, const Heads& h) {
  const RankSizes& s = w.sizes();
  if (s.cp == 1) return;
  constexpr std::int64_t kElement = 2;
  if (w.practice().cp_all_to_all) {
    const std::int64_t width = h.q * (h.qk_dim + h.v_dim) + h.kv * (h.qk_dim + h.v_dim);
    const std::int64_t sent = (s.cp - 1) * s.tokens / s.cp * width * kElement;
    for (OpList* list : {&w.forward(), &w.backward_input()})
      w.collective(*list, "cp all-to-all", Axis::cp, Call::all_to_all_v, sent, Beside::nothing);
    return;
  }
  const std::int64_t sent = (s.cp - 1) * s.tokens * h.kv * (h.qk_dim + h.v_dim) * kElement;
  w.collective(w.forward(), "cp ring", Axis::cp, Call::send, sent, Beside::attention, bit(Module::core_attn));
  w.collective(w.backward_input(), "cp ring", Axis::cp, Call::send, 2 * sent, Beside::attention);
}

void add_attention(BlockWriter& w, const spec::ModelSpec& m, const spec::LayerClass& layer) {
  const RankSizes& s = w.sizes();
  const Heads h = heads_of(m, s.tp);
  w.norm("input_layernorm", s.local_tokens, s.hidden, bit(Module::layernorm));
  if (m.mla) {
    add_mla_projections(w, m, h);
  } else {
    w.enter_tp(s.hidden);
    w.linear("qkv", s.tokens, h.q * h.qk_dim + h.kv * (h.qk_dim + h.v_dim), s.hidden, 0);
  }
  const std::int64_t q_and_k = s.tokens * (h.q + h.kv) * h.qk_dim;
  if (m.qk_norm) w.elementwise("qk_norm", 2 * q_and_k, 4 * q_and_k, w.practice().fused_norm, 5);
  if (m.mla) {
    // The rotated part of q in place; k written anew from its two parts, the rotated one shared by all heads.
    const std::int64_t moved =
        s.tokens * h.q * (2 * m.mla->qk_rope_head_dim + m.mla->qk_nope_head_dim + h.qk_dim);
    w.elementwise("rope", moved, moved, w.practice().fused_rope, 4);
  } else if (m.position == spec::PositionKind::rope) {
    w.elementwise("rope", 2 * q_and_k, 2 * q_and_k, w.practice().fused_rope, 4);
  }
  // Heads are split and laid out anew, and their gradients put together.
  const std::int64_t qkv = s.tokens * (h.q * h.qk_dim + h.kv * (h.qk_dim + h.v_dim));
  if (!w.practice().fused_rope && !w.practice().compiled) w.elementwise("layout", 2 * qkv, 2 * qkv, true, 3);
  const AttentionShape shape{.batch = s.batch,
                             .heads = h.q,
                             .kv_heads = h.kv,
                             .queries = s.queries,
                             .keys = average_keys(m, layer.span, s.seq),
                             .qk_dim = h.qk_dim,
                             .v_dim = h.v_dim};
  w.attention(shape, static_cast<double>(s.seq));
  add_cp(w, h);
  w.linear("o", s.tokens, s.hidden, h.q * h.v_dim, 0);
  w.leave_tp(s.hidden);
}

// Bias, dropout and the sum with the residual: two read, one written.
void add_residual(BlockWriter& w) {
  const RankSizes& s = w.sizes();
  const std::int64_t n = s.local_tokens * s.hidden;
  w.elementwise("residual", w.practice().dropout ? 7 * n / 2 : 3 * n, w.practice().dropout ? 6 * n : 3 * n,
                true, 1);
}

void add_activation(BlockWriter& w, const spec::ModelSpec& m, std::int64_t elements, std::uint32_t modules) {
  // Clamped and biased (gpt_oss): bias, clamp twice, sigmoid, two products and a sum, no fused kernel.
  const bool clamped = m.moe && m.moe->expert_bias;
  const bool fused = w.practice().fused_activation && !clamped;
  const std::int32_t eager = clamped ? 7 : 2;
  if (m.gated_mlp) {
    w.elementwise("act", 3 * elements, 5 * elements, fused, eager, modules);
  } else {
    w.elementwise("act", 2 * elements, 3 * elements, fused, eager, modules);
  }
}

// Dense or shared MLP of `width`, cut by tp.
void add_mlp(BlockWriter& w, const spec::ModelSpec& m, std::int64_t width, std::uint32_t module) {
  const RankSizes& s = w.sizes();
  const std::int64_t f = ceil_div(width, s.tp);
  w.enter_tp(s.hidden);
  w.linear("up", s.tokens, m.gated_mlp ? 2 * f : f, s.hidden, module);
  add_activation(w, m, s.tokens * f, module | bit(Module::moe_act));
  w.linear("down", s.tokens, s.hidden, f, module);
  w.leave_tp(s.hidden);
}

void add_router(BlockWriter& w, const spec::MoeSpec& moe) {
  const RankSizes& s = w.sizes();
  const std::uint32_t module = bit(Module::moe);
  w.linear("router", s.local_tokens, moe.num_experts, s.hidden, module, false);
  // Scores, top-k, scatter to maps, counts, balancing loss, sorting of the choices, offsets.
  constexpr std::int32_t kRouterKernels = 40;
  w.elementwise("topk", s.local_tokens * moe.num_experts, s.local_tokens * moe.num_experts / 2, false,
                w.practice().fused_router ? kRouterKernels / 4 : kRouterKernels, module);
}

void add_experts(BlockWriter& w, const spec::ModelSpec& m, Beside beside) {
  const RankSizes& s = w.sizes();
  const spec::MoeSpec& moe = *m.moe;
  const std::uint32_t module = bit(Module::moe);
  const std::int64_t sent = s.local_tokens * moe.num_experts_per_tok;  // rows of this rank
  const std::int64_t rows = sent * s.etp;                              // of its experts, balanced
  const std::int64_t groups = ceil_div(moe.num_experts, s.ep);
  const std::int64_t f = ceil_div(spec::expert_intermediate_size(m), s.etp);
  const bool fused = w.practice().fused_permute;
  constexpr std::int32_t kChain = 3;  // gather by index, pad or sort, write; a sum by index on the way back
  w.elementwise("permute", 2 * sent * s.hidden, 2 * sent * s.hidden, fused, kChain, module);
  w.all_to_all("dispatch", sent, s.hidden * 2, beside, module);
  if (s.etp > 1) {
    const std::int64_t part = (s.etp - 1) * sent * s.hidden * 2;
    w.collective(w.forward(), "etp gather", Axis::etp, Call::all_gather_v, part, Beside::nothing, module);
    w.collective(w.backward_input(), "etp scatter", Axis::etp, Call::reduce_scatter_v, part, Beside::nothing);
  }
  if (groups > 1) w.elementwise("sort", 2 * rows * s.hidden, 2 * rows * s.hidden, fused, kChain, module);
  w.linear("experts up", rows, m.gated_mlp ? 2 * f : f, s.hidden, module, true, groups);
  add_activation(w, m, rows * f, module | bit(Module::moe_act));
  w.linear("experts down", rows, s.hidden, f, module, true, groups);
  if (groups > 1) w.elementwise("unsort", 2 * rows * s.hidden, 2 * rows * s.hidden, fused, kChain, module);
  if (s.etp > 1) {
    const std::int64_t part = (s.etp - 1) * sent * s.hidden * 2;
    w.collective(w.forward(), "etp scatter", Axis::etp, Call::reduce_scatter_v, part, Beside::nothing,
                 module);
    w.collective(w.backward_input(), "etp gather", Axis::etp, Call::all_gather_v, part, Beside::nothing);
  }
  w.all_to_all("combine", sent, s.hidden * 2, beside, module);
  w.elementwise("unpermute", (sent + s.local_tokens) * s.hidden, 2 * sent * s.hidden, fused, kChain, module);
}

void add_moe(BlockWriter& w, const spec::ModelSpec& m) {
  const RankSizes& s = w.sizes();
  add_router(w, *m.moe);
  const std::int64_t shared = m.moe->shared_intermediate_size;
  const Beside beside = w.practice().ep_overlap ? Beside::microbatch : Beside::nothing;
  add_experts(w, m, beside);
  if (shared > 0) {
    add_mlp(w, m, shared, bit(Module::shared_experts));
    w.elementwise("add shared", 3 * s.local_tokens * s.hidden, 0, true, 1);
  }
}

// Backward runs the list from its end: each linear layer's gradient comes after those of what follows it.
void reverse_backward(BlockWork& work) {
  std::reverse(work.ops.backward_input.begin(), work.ops.backward_input.end());
  std::reverse(work.ops.backward_weight.begin(), work.ops.backward_weight.end());
}

void add_layer(BlockWriter& w, const spec::ModelSpec& m, const spec::LayerClass& layer) {
  const RankSizes& s = w.sizes();
  add_attention(w, m, layer);
  add_residual(w);
  if (!m.parallel_residual || m.family == spec::Family::gpt_neox)
    w.norm("post_attention_layernorm", s.local_tokens, s.hidden, bit(Module::layernorm));
  if (layer.moe && m.moe) {
    add_moe(w, m);
  } else {
    add_mlp(w, m, m.intermediate_size, bit(Module::mlp));
  }
  add_residual(w);
}

}  // namespace

BlockWork layer_work(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut,
                     const Practice& practice) {
  BlockWork work;
  BlockWriter w(work, m, cut, practice);
  add_layer(w, m, layer);
  reverse_backward(work);
  work.params = layer_params(m, layer, cut);
  work.saved = layer_saved(m, layer, cut, practice);
  const Transients t = layer_transients(m, layer, cut, practice);
  work.transient_forward = t.forward;
  work.transient_backward = t.backward;
  return work;
}

BlockWork embedding_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  BlockWork work;
  BlockWriter w(work, m, cut, practice);
  const RankSizes& s = w.sizes();
  const std::int64_t n = s.tokens * s.hidden;
  w.elementwise("embedding", 2 * n, 3 * n, true, 1);
  if (m.embedding_norm) w.norm("embedding_norm", s.local_tokens, s.hidden, 0);
  w.leave_tp(s.hidden);
  reverse_backward(work);
  work.params = embedding_params(m, cut);
  work.saved = embedding_saved(m, cut, practice);
  return work;
}

BlockWork head_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  BlockWork work;
  BlockWriter w(work, m, cut, practice);
  const RankSizes& s = w.sizes();
  const std::int64_t v = ceil_div(m.vocab_size, s.tp);
  w.norm("norm", s.local_tokens, s.hidden, 0);
  w.enter_tp(s.hidden);
  w.linear("head", s.tokens, v, s.hidden, 0, false);
  // Elements of 2 bytes. Fused: read, and the gradient written in place. Else cast to f32, largest value,
  // exp and sum, product with the gradient, cast back: each over 4-byte values.
  const std::int64_t n = s.tokens * v;
  if (practice.fused_cross_entropy || practice.compiled) {
    w.elementwise("loss", 2 * n, 2 * n, true, 1);
  } else {
    w.elementwise("loss", 9 * n, 6 * n, true, 1);
  }
  if (s.tp > 1) {
    w.collective(w.forward(), "loss statistics", Axis::tp, Call::all_reduce, 3 * s.tokens * 4,
                 Beside::nothing);
  }
  reverse_backward(work);
  work.params = head_params(m, cut, TiedHead::own_copy);
  work.saved = head_saved(m, cut, practice);
  const Transients t = head_transients(m, cut, practice);
  work.transient_forward = t.forward;
  work.transient_backward = t.backward;
  return work;
}

BlockWork mtp_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  BlockWork work;
  BlockWriter w(work, m, cut, practice);
  const RankSizes& s = w.sizes();
  // Norms of the stream and of the next token's embedding, their concatenation projected to H.
  w.norm("enorm", s.local_tokens, s.hidden, 0);
  w.norm("hnorm", s.local_tokens, s.hidden, 0);
  w.linear("eh_proj", s.local_tokens, s.hidden, 2 * s.hidden, 0);
  add_layer(w, m, spec::layer_class(m, m.num_hidden_layers - 1));
  const std::int64_t v = ceil_div(m.vocab_size, s.tp);
  w.norm("norm", s.local_tokens, s.hidden, 0);
  w.enter_tp(s.hidden);
  w.linear("head", s.tokens, v, s.hidden, 0, false);
  w.elementwise("loss", (practice.fused_cross_entropy ? 2 : 9) * s.tokens * v,
                (practice.fused_cross_entropy ? 2 : 6) * s.tokens * v, true, 1);
  reverse_backward(work);
  work.params = mtp_params(m, cut);
  work.saved = mtp_saved(m, cut, practice);
  const Transients t = head_transients(m, cut, practice);
  work.transient_forward = t.forward;
  work.transient_backward = t.backward;
  return work;
}

OpList recomputed(const BlockWork& work, spec::Recompute recompute, std::uint32_t modules) {
  OpList again;
  switch (recompute) {
    case spec::Recompute::none:
      return again;
    case spec::Recompute::full:
      again = work.ops.forward;
      break;
    case spec::Recompute::selective:
      for (const Op& op : work.ops.forward)
        if ((op.modules & modules) != 0) again.push_back(op);
      break;
  }
  for (Op& op : again) op.recomputed = true;
  return again;
}

}  // namespace tessera::graph
