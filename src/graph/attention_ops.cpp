// Operators of attention and of latent attention, in the order of nn/attention.cpp and
// nn/latent_attention.cpp.
#include "graph/layers.h"
#include "graph/op_writer.h"

namespace tessera::graph {

AttentionSizes attention_sizes(const spec::ModelSpec& m, const spec::LayerClass& layer) {
  AttentionSizes a;
  a.qkv_bias = m.attention_qkv_bias;
  a.out_bias = m.attention_out_bias;
  a.sinks = m.attention_sinks;
  a.clip = m.clip_qkv > 0.0;
  a.rope = m.position == spec::PositionKind::rope;
  a.window = layer.span == spec::AttentionSpan::sliding ? m.sliding_window : 0;
  if (m.qk_norm) a.qk_norm = m.qk_norm_whole ? QkNorm::whole : QkNorm::per_head;
  if (m.mla) {
    a.q_lora_rank = m.mla->q_lora_rank;
    a.kv_lora_rank = m.mla->kv_lora_rank;
    a.nope_dim = m.mla->qk_nope_head_dim;
    a.rope_dim = m.mla->qk_rope_head_dim;
    a.v_dim = m.mla->v_head_dim;
  }
  return a;
}

namespace {

// Elements of the tensors of one micro-batch.
struct Dense {
  explicit Dense(const Sizes& s)
      : T(s.tokens()),
        t(s.local_tokens()),
        H(s.hidden),
        out(s.heads * s.head_dim),
        qk(T * (s.heads + s.kv_heads) * s.head_dim),
        columns((s.heads + 2 * s.kv_heads) * s.head_dim),
        norms(s.attention.qk_norm != QkNorm::none),
        whole(s.attention.qk_norm == QkNorm::whole),
        reworked(norms || s.attention.clip),
        sums(T * (whole ? 2 : s.heads + s.kv_heads)),
        heads{.heads = s.heads,
              .kv_heads = s.kv_heads,
              .qk_dim = s.head_dim,
              .v_dim = s.head_dim,
              .window = s.attention.window} {}
  std::int64_t T, t, H, out;
  std::int64_t qk;       // elements of q and k
  std::int64_t columns;  // of q|k|v
  bool norms, whole;
  bool reworked;  // other values in q|k|v than the projection gave
  std::int64_t sums;
  HeadSizes heads;
  [[nodiscard]] std::int64_t qkv() const { return T * columns; }
};

void sum_over_tp(OpWriter& w, const Sizes& s, const Dense& d, const char* name) {
  if (!d.whole || s.tp == 1) return;
  w.collective(name, Axis::tp, Call::all_reduce_direct, (s.tp - 1) * d.sums * s.element);
}

// From what the projection gave to what attention reads.
void position(OpWriter& w, const Sizes& s, const Dense& d) {
  if (d.norms) w.memory("q k norm", 2 * d.qkv());
  if (!d.norms && s.attention.clip) w.memory("copy", 2 * d.qkv());
  if (s.attention.clip) w.memory("clip", 2 * d.qkv());
  if (s.attention.rope) w.memory("rope", 2 * d.qk);
}

void attention_forward(OpWriter f, const Sizes& s, const Dense& d) {
  f.norm("norm");
  if (!s.selective) f.keep(d.T * d.H);
  f.tp_gather_beside("gather", d.t * d.H);
  f.gemm("qkv", d.T, d.columns, d.H);
  f.keep(d.qkv());
  if (d.reworked && !s.selective) f.keep(d.qkv());
  if (s.attention.qkv_bias) f.memory("qkv bias", 2 * d.qkv());
  if (d.norms) {
    f.memory("q k sums", d.qk);
    f.keep(d.sums);
    sum_over_tp(f, s, d, "q k sums over tp");
  }
  position(f, s, d);
  f.attention("attention", 1, d.heads);
  f.keep(d.T * d.out);
  f.keep(d.T * s.heads);
  f.ring(1, d.heads);
  f.gemm("o", d.T, d.H, d.out);
  f.tp_scatter_beside("scatter", d.t * d.H);
  if (s.attention.out_bias) f.memory("o bias", 2 * d.t * d.H);
  f.memory("add", 3 * d.t * d.H);
}

void attention_backward_input(OpWriter i, const Sizes& s, const Dense& d) {
  if (s.selective) {
    i.memory("norm again", 2 * d.t * d.H);
    i.keep(d.T * d.H);
    i.tp_gather("gather again", d.t * d.H);
    if (d.reworked) position(i, s, d);
  }
  i.tp_gather_beside("gather gradient", d.t * d.H);
  i.gemm("o dgrad", d.T, d.out, d.H);
  i.keep(d.T * d.H);
  i.attention("attention backward", 2, d.heads);
  i.keep(d.qkv());
  if (s.attention.sinks) i.keep(s.heads);
  i.ring(2, d.heads);
  if (s.attention.rope) i.memory("rope backward", 2 * d.qk);
  if (s.attention.clip && d.norms) i.memory("q k norm again", 2 * d.qk);
  if (s.attention.clip) i.memory("clip backward", 3 * d.qkv());
  if (d.norms) {
    i.memory("q k norm backward", 7 * d.qk);
    i.keep(d.whole ? s.heads * s.head_dim : s.head_dim);
    i.keep(d.whole ? s.kv_heads * s.head_dim : s.head_dim);
    sum_over_tp(i, s, d, "q k dot products over tp");
  }
  i.gemm("qkv dgrad", d.T, d.H, d.columns);
  i.tp_scatter_beside("scatter gradient", d.t * d.H);
  i.memory("norm backward", 4 * d.t * d.H);
  i.keep(d.t * d.H);
}

void attention_backward_weight(OpWriter w, const Sizes& s, const Dense& d) {
  w.gemm("o wgrad", d.H, d.out, d.T);
  if (s.attention.out_bias) w.memory("o bias wgrad", d.t * d.H);
  w.gemm("qkv wgrad", d.columns, d.H, d.T);
  if (s.attention.qkv_bias) w.memory("qkv bias wgrad", d.qkv());
  w.memory("norm wgrad", 2 * d.t * d.H);
}

// Of latent attention: columns of the latents and of what the up-projections give.
struct Latent {
  explicit Latent(const Sizes& s)
      : T(s.tokens()),
        t(s.local_tokens()),
        H(s.hidden),
        q_latent(s.attention.q_lora_rank),
        kv_latent(s.attention.kv_lora_rank),
        key(s.attention.rope_dim),
        q(s.heads * (s.attention.nope_dim + s.attention.rope_dim)),
        kv(s.heads * (s.attention.nope_dim + s.attention.v_dim)),
        out(s.heads * s.attention.v_dim),
        heads{.heads = s.heads,
              .kv_heads = s.heads,
              .qk_dim = s.attention.nope_dim + s.attention.rope_dim,
              .v_dim = s.attention.v_dim,
              .window = s.attention.window} {}
  std::int64_t T, t, H;
  std::int64_t q_latent;  // 0: none
  std::int64_t kv_latent, key, q, kv, out;
  HeadSizes heads;
  [[nodiscard]] bool q_has_latent() const { return q_latent > 0; }
  [[nodiscard]] std::int64_t q_input() const { return q_has_latent() ? q_latent : H; }
  [[nodiscard]] std::int64_t qkv() const { return 2 * q + out; }
};

// Norms of the latents and gathers; `kept`: by the list that these operators are in.
enum class Kept : std::uint8_t { yes, no };
void normalise_latents(OpWriter& w, const Latent& l, Kept kept) {
  const auto keep = [&](std::int64_t elements) {
    if (kept == Kept::yes) w.keep(elements);
  };
  w.memory("norm of latents", 2 * l.t * (l.q_latent + l.kv_latent));
  keep((l.q_has_latent() ? l.t : l.T) * l.H);
  if (l.q_has_latent()) keep(l.T * l.q_latent);
  keep(l.T * l.kv_latent);
  if (l.q_has_latent()) {
    w.tp_gather("gather q latent", l.t * l.q_latent);
  } else {
    w.tp_gather("gather", l.t * l.H);
  }
  w.tp_gather("gather kv latent", l.t * l.kv_latent);
}

enum class Again : std::uint8_t { yes, no };
void expand(OpWriter& w, const Latent& l, Again again) {
  const auto up = [&](const char* name, std::int64_t n, std::int64_t k) {
    w.gemm(name, l.T, n, k);
    if (again == Again::yes) w.recomputed();
  };
  w.tp_gather("gather key", l.t * l.key);
  up("q up", l.q, l.q_input());
  up("kv up", l.kv, l.kv_latent);
  w.memory("heads and rope", l.T * (2 * l.qkv() + 2 * l.heads.heads * l.key));
}

void latent_forward(OpWriter f, const Sizes& s, const Latent& l) {
  f.norm("norm");
  if (l.q_has_latent()) {
    f.gemm("q down", l.t, l.q_latent, l.H);
    f.keep(l.t * l.q_latent);
    f.keep(l.t);
  }
  f.gemm("kv down", l.t, l.kv_latent + l.key, l.H);
  f.keep(l.t * (l.kv_latent + l.key));
  f.keep(l.t);
  if (s.attention.qkv_bias) f.memory("latent bias", 2 * l.t * (l.q_latent + l.kv_latent + l.key));
  normalise_latents(f, l, s.selective ? Kept::no : Kept::yes);
  expand(f, l, Again::no);
  if (!s.selective) f.keep(l.T * l.qkv());
  f.attention("attention", 1, l.heads);
  f.keep(l.T * l.out);
  f.keep(l.T * s.heads);
  f.ring(1, l.heads);
  f.gemm("o", l.T, l.H, l.out);
  f.tp_scatter_beside("scatter", l.t * l.H);
  if (s.attention.out_bias) f.memory("o bias", 2 * l.t * l.H);
  f.memory("add", 3 * l.t * l.H);
}

void latent_backward_input(OpWriter i, const Sizes& s, const Latent& l) {
  if (s.selective) {
    i.memory("norm again", 2 * l.t * l.H);
    normalise_latents(i, l, Kept::yes);
    expand(i, l, Again::yes);
  }
  i.tp_gather_beside("gather gradient", l.t * l.H);
  i.gemm("o dgrad", l.T, l.out, l.H);
  i.keep(l.T * l.H);
  i.attention("attention backward", 2, l.heads);
  i.ring(2, l.heads);
  i.memory("heads and rope backward", l.T * (2 * l.qkv() + 2 * l.heads.heads * l.key));
  i.keep(l.T * l.q);
  i.keep(l.T * l.kv);
  i.gemm("kv up dgrad", l.T, l.kv_latent, l.kv);
  i.tp_scatter("scatter kv latent gradient", l.t * l.kv_latent);
  i.memory("kv latent norm backward", 7 * l.t * l.kv_latent);
  i.keep(l.t * (l.kv_latent + l.key));
  i.keep(l.kv_latent);
  i.tp_scatter("scatter key gradient", l.t * l.key);
  i.gemm("q up dgrad", l.T, l.q_input(), l.q);
  i.tp_scatter("scatter q gradient", l.t * l.q_input());
  if (l.q_has_latent()) {
    i.memory("q latent norm backward", 7 * l.t * l.q_latent);
    i.keep(l.t * l.q_latent);
    i.keep(l.q_latent);
    i.gemm("q down dgrad", l.t, l.H, l.q_latent);
  }
  i.gemm("kv down dgrad", l.t, l.H, l.kv_latent + l.key);
  i.memory("norm backward", 4 * l.t * l.H);
  i.keep(l.t * l.H);
}

void latent_backward_weight(OpWriter w, const Sizes& s, const Latent& l) {
  w.gemm("o wgrad", l.H, l.out, l.T);
  if (s.attention.out_bias) w.memory("o bias wgrad", l.t * l.H);
  w.gemm("q up wgrad", l.q, l.q_input(), l.T);
  w.gemm("kv up wgrad", l.kv, l.kv_latent, l.T);
  if (l.q_has_latent()) w.gemm("q down wgrad", l.q_latent, l.H, l.t);
  w.gemm("kv down wgrad", l.kv_latent + l.key, l.H, l.t);
  if (s.attention.qkv_bias) w.memory("latent bias wgrad", l.t * (l.q_latent + l.kv_latent + l.key));
  w.memory("norm wgrad", 2 * l.t * l.H);
}

}  // namespace

LayerOps attention_ops(const Sizes& s, const std::string& prefix) {
  LayerOps ops;
  const Dense d(s);
  attention_forward(OpWriter(ops.forward, s, prefix), s, d);
  attention_backward_input(OpWriter(ops.backward_input, s, prefix), s, d);
  attention_backward_weight(OpWriter(ops.backward_weight, s, prefix), s, d);
  return ops;
}

LayerOps latent_attention_ops(const Sizes& s, const std::string& prefix) {
  LayerOps ops;
  const Latent l(s);
  latent_forward(OpWriter(ops.forward, s, prefix), s, l);
  latent_backward_input(OpWriter(ops.backward_input, s, prefix), s, l);
  latent_backward_weight(OpWriter(ops.backward_weight, s, prefix), s, l);
  return ops;
}

}  // namespace tessera::graph
