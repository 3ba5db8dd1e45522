#include "kernels/kernels.h"

#include <fmt/format.h>

#include <limits>
#include <string>
#include <string_view>

namespace tessera::kernels {

using tensor::Shape;

namespace {

std::string text(const Tensor& t) {
  return fmt::format("{} {}", tensor::name(t.dtype()), t.shape().text());
}

// The checks of one call. Dims are read from one named tensor and every other one is compared with it.
class Call {
 public:
  explicit Call(std::string_view op) : op_(op) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::internal, fmt::format("{}: {}", op_, what), fmt::format("kernels: {}", op_),
                "this is a defect of the calling layer: please report it with the job");
  }
  void require(bool good, std::string_view what) const {
    if (!good) fail(std::string(what));
  }
  void has_memory(std::string_view name, const Tensor& t) const {
    if (t.raw() == nullptr && t.num_elements() > 0) fail(fmt::format("{} {} has no memory", name, text(t)));
  }
  // The tensor that sets the dtype of the call: f64 or f32, of so many dims.
  void leads(std::string_view name, const Tensor& t, std::int32_t num_dims) {
    lead_name_ = name;
    lead_ = t;
    if (t.dtype() != DType::f64 && t.dtype() != DType::f32) {
      fail(fmt::format("{} is {}, expected f64 or f32", name, text(t)));
    }
    if (t.shape().num_dims() != num_dims) {
      fail(fmt::format("{} is {}, expected {} dims", name, text(t), num_dims));
    }
    has_memory(name, t);
  }
  void leads(std::string_view name, const Tensor& t) { leads(name, t, t.shape().num_dims()); }
  void is(std::string_view name, const Tensor& t, DType dtype, const Shape& shape) const {
    if (t.dtype() != dtype || t.shape() != shape) {
      fail(fmt::format("{} is {}, expected {} {} with {} {}", name, text(t), tensor::name(dtype),
                       shape.text(), lead_name_, text(lead_)));
    }
    has_memory(name, t);
  }
  void is(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, lead_.dtype(), shape);
  }
  void is_index(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, DType::i32, shape);
  }
  void num_dims(std::string_view name, const Tensor& t, std::int32_t want) const {
    if (t.shape().num_dims() != want) {
      fail(
          fmt::format("{} is {}, expected {} dims with {} {}", name, text(t), want, lead_name_, text(lead_)));
    }
  }
  // Every index is in [lowest, end).
  void in_range(std::string_view name, const Tensor& index, std::int64_t lowest, std::int64_t end) const {
    const std::int32_t* at = index.as<std::int32_t>();
    for (std::int64_t i = 0; i < index.num_elements(); ++i) {
      if (at[i] < lowest || at[i] >= end) {
        fail(fmt::format("{} {} holds {} at {}, expected values in [{}, {})", name, text(index), at[i], i,
                         lowest, end));
      }
    }
  }
  void attention_shape(const AttentionShape& s) const {
    require(s.batch >= 0 && s.seq >= 0 && s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0,
            "an attention shape has positive dims");
    if (s.heads % s.kv_heads != 0) {
      fail(fmt::format("kv_heads={} does not divide heads={}", s.kv_heads, s.heads));
    }
  }
  // K of [T, K] tensors is options.top_k, at most E.
  void router_options(const RouterOptions& options, std::int64_t num_experts) const {
    if (options.top_k < 1 || options.top_k > num_experts) {
      fail(fmt::format("top_k={} is not in 1 .. {} (experts)", options.top_k, num_experts));
    }
  }

 private:
  std::string_view op_;
  std::string_view lead_name_;
  Tensor lead_;
};

constexpr std::int32_t kDropped = std::numeric_limits<std::int32_t>::min();  // any negative position

Flops gemm_flops(const Tensor& x_TK, const Tensor& w_NK) {
  return Flops(2 * x_TK.dim(0) * w_NK.dim(0) * w_NK.dim(1));
}
// Two GEMMs (scores and values, or their two gradients) over the kept half.
Flops attention_flops(const AttentionShape& s) {
  return Flops(4 * s.batch * s.heads * s.head_dim * (s.seq * (s.seq + 1) / 2));
}

}  // namespace

// --- linear

void Kernels::pack(Weight& w) {
  Call call("pack");
  call.leads("value", w.value_NK, 2);
  if (w.packed.empty()) return;
  const Bytes want = packed_bytes(w.value_NK.dtype(), w.value_NK.dim(0), w.value_NK.dim(1));
  call.is("packed", w.packed, DType::u8, {want.value});
  do_pack(w);
}

void Kernels::linear(Tensor y, Tensor x, const Weight& w) {
  Call call("linear");
  call.leads("w", w.value_NK, 2);
  call.num_dims("x", x, 2);
  call.is("x", x, {x.dim(0), w.value_NK.dim(1)});
  call.is("y", y, {x.dim(0), w.value_NK.dim(0)});
  flops_ += gemm_flops(x, w.value_NK);
  do_linear(y, x, w);
}

void Kernels::linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) {
  Call call("linear_dgrad");
  call.leads("w", w.value_NK, 2);
  call.num_dims("dy", dy, 2);
  call.is("dy", dy, {dy.dim(0), w.value_NK.dim(0)});
  call.is("dx", dx, {dy.dim(0), w.value_NK.dim(1)});
  flops_ += gemm_flops(dx, w.value_NK);
  do_linear_dgrad(dx, dy, w, write);
}

void Kernels::linear_wgrad(Tensor dw, Tensor dy, Tensor x) {
  Call call("linear_wgrad");
  call.leads("dw", dw, 2);
  call.num_dims("x", x, 2);
  call.is("x", x, {x.dim(0), dw.dim(1)});
  call.is("dy", dy, {x.dim(0), dw.dim(0)});
  flops_ += gemm_flops(x, dw);
  do_linear_wgrad(dw, dy, x);
}

// --- RMSNorm

void Kernels::rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  Call call("rms_norm");
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is("rstd", rstd, {x.dim(0)});
  call.is("w", w, {x.dim(1)});
  do_rms_norm(y, rstd, x, w, eps);
}

void Kernels::rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) {
  Call call("rms_norm_apply");
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is("rstd", rstd, {x.dim(0)});
  call.is("w", w, {x.dim(1)});
  do_rms_norm_apply(y, x, rstd, w);
}

void Kernels::rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) {
  Call call("rms_norm_dgrad");
  call.leads("x", x, 2);
  call.is("dx", dx, x.shape());
  call.is("dy", dy, x.shape());
  call.is("rstd", rstd, {x.dim(0)});
  call.is("w", w, {x.dim(1)});
  do_rms_norm_dgrad(dx, dy, x, rstd, w, write);
}

void Kernels::rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  Call call("rms_norm_wgrad");
  call.leads("x", x, 2);
  call.is("dw", dw, {x.dim(1)});
  call.is("dy", dy, x.shape());
  call.is("rstd", rstd, {x.dim(0)});
  do_rms_norm_wgrad(dw, dy, x, rstd);
}

// --- attention

void Kernels::rope(Tensor qkv, Tensor cos, Tensor sin, const AttentionShape& shape, bool inverse) {
  Call call("rope");
  call.attention_shape(shape);
  if (shape.head_dim % 2 != 0) call.fail(fmt::format("head_dim={} is odd", shape.head_dim));
  call.leads("qkv", qkv, 2);
  call.is("qkv", qkv, {shape.batch * shape.seq, shape.qkv_dim()});
  call.is("cos", cos, {shape.seq, shape.head_dim / 2});
  call.is("sin", sin, {shape.seq, shape.head_dim / 2});
  do_rope(qkv, cos, sin, shape, inverse);
}

void Kernels::attention(Tensor out, Tensor lse, Tensor qkv, const AttentionShape& shape) {
  Call call("attention");
  call.attention_shape(shape);
  const std::int64_t t = shape.batch * shape.seq;
  call.leads("qkv", qkv, 2);
  call.is("qkv", qkv, {t, shape.qkv_dim()});
  call.is("out", out, {t, shape.q_dim()});
  call.is("lse", lse, {t, shape.heads});
  flops_ += attention_flops(shape);
  do_attention(out, lse, qkv, shape);
}

void Kernels::attention_backward(Tensor dqkv, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                 const AttentionShape& shape) {
  Call call("attention_backward");
  call.attention_shape(shape);
  const std::int64_t t = shape.batch * shape.seq;
  call.leads("qkv", qkv, 2);
  call.is("qkv", qkv, {t, shape.qkv_dim()});
  call.is("dqkv", dqkv, {t, shape.qkv_dim()});
  call.is("dout", dout, {t, shape.q_dim()});
  call.is("out", out, {t, shape.q_dim()});
  call.is("lse", lse, {t, shape.heads});
  flops_ += 2 * attention_flops(shape);
  do_attention_backward(dqkv, dout, qkv, out, lse, shape);
}

// --- gated MLP

void Kernels::swiglu(Tensor h, Tensor gate_up) {
  Call call("swiglu");
  call.leads("h", h, 2);
  call.is("gate_up", gate_up, {h.dim(0), 2 * h.dim(1)});
  do_swiglu(h, gate_up);
}

void Kernels::swiglu_backward(Tensor dgate_up, Tensor dh, Tensor gate_up) {
  Call call("swiglu_backward");
  call.leads("dh", dh, 2);
  call.is("dgate_up", dgate_up, {dh.dim(0), 2 * dh.dim(1)});
  call.is("gate_up", gate_up, {dh.dim(0), 2 * dh.dim(1)});
  do_swiglu_backward(dgate_up, dh, gate_up);
}

// --- embedding

void Kernels::embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) {
  Call call("embedding");
  call.leads("table", table, 2);
  call.num_dims("ids", ids, 1);
  call.is_index("ids", ids, {ids.dim(0)});
  call.is("y", y, {ids.dim(0), table.dim(1)});
  do_embedding(y, ids, table, vocab_begin);
}

void Kernels::embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) {
  Call call("embedding_wgrad");
  call.leads("dtable", dtable, 2);
  call.num_dims("ids", ids, 1);
  call.is_index("ids", ids, {ids.dim(0)});
  call.is("dy", dy, {ids.dim(0), dtable.dim(1)});
  do_embedding_wgrad(dtable, dy, ids, vocab_begin);
}

// --- cross entropy

void Kernels::cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets, std::int64_t vocab_begin) {
  Call call("cross_entropy_stats");
  call.leads("logits", logits, 2);
  call.require(logits.dim(1) > 0, "a vocabulary share has at least one row");
  call.is("stats", stats, {3, logits.dim(0)});
  call.is_index("targets", targets, {logits.dim(0)});
  do_cross_entropy_stats(stats, logits, targets, vocab_begin);
}

void Kernels::cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) {
  Call call("cross_entropy_join");
  call.leads("stats", stats, 3);
  const std::int64_t t = stats.dim(2);
  call.require(stats.dim(0) > 0, "there is at least one vocabulary share");
  call.is("stats", stats, {stats.dim(0), 3, t});
  call.is("loss", loss, {t});
  call.is("lse", lse, {t});
  call.is_index("targets", targets, {t});
  do_cross_entropy_join(loss, lse, stats, targets);
}

void Kernels::cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                     double weight) {
  Call call("cross_entropy_backward");
  call.leads("logits", logits, 2);
  call.is("lse", lse, {logits.dim(0)});
  call.is_index("targets", targets, {logits.dim(0)});
  do_cross_entropy_backward(logits, lse, targets, vocab_begin, weight);
}

// --- router

void Kernels::router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits,
                     const RouterOptions& options) {
  Call call("router");
  call.leads("logits", logits, 2);
  call.router_options(options, logits.dim(1));
  const Shape chosen = {logits.dim(0), options.top_k};
  call.is("probs", probs, logits.shape());
  call.is("lse", lse, {logits.dim(0)});
  call.is_index("index", index, chosen);
  call.is("weights", weights, chosen);
  do_router(probs, lse, index, weights, logits, options);
}

void Kernels::router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                              Tensor weights, Tensor aux, Tensor unit, double z_scale,
                              const RouterOptions& options) {
  Call call("router_backward");
  call.leads("probs", probs, 2);
  call.router_options(options, probs.dim(1));
  const Shape chosen = {probs.dim(0), options.top_k};
  call.is("dlogits", dlogits, probs.shape());
  call.is("dweights", dweights, chosen);
  call.is("lse", lse, {probs.dim(0)});
  call.is_index("index", index, chosen);
  call.in_range("index", index, 0, probs.dim(1));
  call.is("weights", weights, chosen);
  if (!aux.empty()) {
    call.num_dims("aux", aux, 2);
    call.is("aux", aux, {aux.dim(0), probs.dim(1)});
    call.is_index("unit", unit, {probs.dim(0)});
    call.in_range("unit", unit, 0, aux.dim(0));
  }
  do_router_backward(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale, options);
}

// --- rows

void Kernels::gather_rows(Tensor dst, Tensor src, Tensor index) {
  Call call("gather_rows");
  call.leads("src", src, 2);
  call.num_dims("dst", dst, 2);
  call.is("dst", dst, {dst.dim(0), src.dim(1)});
  call.is_index("index", index, {dst.dim(0)});
  call.in_range("index", index, 0, src.dim(0));
  do_gather_rows(dst, src, index);
}

void Kernels::combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) {
  Call call("combine");
  call.leads("y", y, 2);
  if (!x.empty()) call.is("x", x, y.shape());
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), y.dim(1)});
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {y.dim(0), pos.dim(1)});
  call.in_range("pos", pos, kDropped, rows.dim(0));
  call.is("weights", weights, pos.shape());
  do_combine(y, x, rows, pos, weights);
}

void Kernels::combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                               Tensor weights) {
  Call call("combine_backward");
  call.leads("dy", dy, 2);
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), dy.dim(1)});
  call.is("drows", drows, rows.shape());
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {dy.dim(0), pos.dim(1)});
  call.in_range("pos", pos, kDropped, rows.dim(0));
  call.is("weights", weights, pos.shape());
  call.is("dweights", dweights, pos.shape());
  do_combine_backward(drows, dweights, dy, rows, pos, weights);
}

void Kernels::sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) {
  Call call("sum_rows");
  call.leads("dx", dx, 2);
  call.num_dims("rows", rows, 2);
  call.is("rows", rows, {rows.dim(0), dx.dim(1)});
  call.num_dims("pos", pos, 2);
  call.is_index("pos", pos, {dx.dim(0), pos.dim(1)});
  call.in_range("pos", pos, kDropped, rows.dim(0));
  do_sum_rows(dx, rows, pos, write);
}

// --- elementwise

void Kernels::add(Tensor y, Tensor a, Tensor b) {
  Call call("add");
  call.leads("y", y);
  call.is("a", a, y.shape());
  call.is("b", b, y.shape());
  do_add(y, a, b);
}

void Kernels::accumulate(Tensor y, Tensor x) {
  Call call("accumulate");
  call.leads("y", y);
  call.is("x", x, y.shape());
  do_accumulate(y, x);
}

void Kernels::fill(Tensor y, double value) {
  Call call("fill");
  call.leads("y", y);
  do_fill(y, value);
}

double Kernels::sum(Tensor x) {
  Call call("sum");
  call.leads("x", x);
  return do_sum(x);
}

double Kernels::sum_squares(Tensor x) {
  Call call("sum_squares");
  call.leads("x", x);
  return do_sum_squares(x);
}

void Kernels::adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) {
  Call call("adamw");
  call.leads("p", p);
  call.is("g", g, p.shape());
  call.is("m", m, p.shape());
  call.is("v", v, p.shape());
  do_adamw(p, g, m, v, options);
}

}  // namespace tessera::kernels
