// The public functions of norms, attention, activations and the router: checks, FLOPs, then the backend.
#include "kernels/checks.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

namespace {

// Two GEMMs (scores and values, or their two gradients) over the kept pairs.
Flops attention_flops(const AttentionShape& s) {
  return Flops(2 * s.batch * s.heads * (s.head_dim + s.v_dim()) * s.kept_pairs());
}

void check_attention(const Call& call, const AttentionShape& s) {
  call.require(
      s.batch >= 0 && s.seq >= 0 && s.heads > 0 && s.kv_heads > 0 && s.head_dim > 0 && s.v_head_dim >= 0,
      "an attention shape has positive dims");
  if (s.heads % s.kv_heads != 0) {
    call.fail(fmt::format("kv_heads={} does not divide heads={}", s.kv_heads, s.heads));
  }
  if (s.window < 0) call.fail(fmt::format("window={} is negative", s.window));
}

void check_within(const Call& call, std::string_view name, const Tensor& x, std::int64_t first,
                  std::int64_t width) {
  if (first < 0 || width < 0 || first + width > x.dim(1)) {
    call.fail(
        fmt::format("columns [{}, {}) are not inside {} {}", first, first + width, name, shape_text(x)));
  }
}

void check_groups(const Call& call, std::string_view name, const Tensor& x, const ColumnGroups& c) {
  call.require(c.groups >= 1 && c.width >= 1, "there is at least one group of at least one column");
  check_within(call, name, x, c.first, c.groups * c.width);
}

void check_count(const Call& call, const GroupNormOptions& options) {
  if (options.count < 1) call.fail(fmt::format("count={} of a norm is not positive", options.count));
}

std::int64_t activation_columns(const ActivationOptions& options, std::int64_t i) {
  return options.gated() ? 2 * i : i;
}

void check_activation(const Call& call, const ActivationOptions& options) {
  if (options.kind == Activation::clamped_swiglu && !(options.limit > 0)) {
    call.fail(fmt::format("limit={} of clamped_swiglu is not positive", options.limit));
  }
}

// K of [T, K] tensors is options.top_k, at most the experts that the kept groups hold.
void check_router(const Call& call, const RouterOptions& o, std::int64_t num_experts) {
  if (o.top_k < 1 || o.top_k > num_experts) {
    call.fail(fmt::format("top_k={} is not in 1 .. {} (experts)", o.top_k, num_experts));
  }
  if (o.n_group < 1 || num_experts % o.n_group != 0) {
    call.fail(fmt::format("n_group={} does not divide {} experts", o.n_group, num_experts));
  }
  if (o.topk_group < 1 || o.topk_group > o.n_group) {
    call.fail(fmt::format("topk_group={} is not in 1 .. {} (n_group)", o.topk_group, o.n_group));
  }
  const std::int64_t reachable = num_experts / o.n_group * o.topk_group;
  if (o.top_k > reachable) {
    call.fail(fmt::format("top_k={} is above the {} experts of {} groups", o.top_k, reachable, o.topk_group));
  }
}

}  // namespace

// --- bias

void Kernels::add_bias(Tensor y, Tensor b) {
  Call call("add_bias", takes_bf16());
  call.leads("y", y, 2);
  call.is_stats("b", b, {y.dim(1)});
  do_add_bias(y, b);
}

void Kernels::bias_wgrad(Tensor db, Tensor dy, Write write) {
  Call call("bias_wgrad", takes_bf16());
  call.leads("dy", dy, 2);
  call.is_stats("db", db, {dy.dim(1)});
  do_bias_wgrad(db, dy, write);
}

// --- RMSNorm

void Kernels::rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  Call call("rms_norm", takes_bf16());
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  do_rms_norm(y, rstd, x, w, eps);
}

void Kernels::rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) {
  Call call("rms_norm_apply", takes_bf16());
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  do_rms_norm_apply(y, x, rstd, w);
}

void Kernels::rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) {
  Call call("rms_norm_dgrad", takes_bf16());
  call.leads("x", x, 2);
  call.is("dx", dx, x.shape());
  call.is("dy", dy, x.shape());
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  do_rms_norm_dgrad(dx, dy, x, rstd, w, write);
}

void Kernels::rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  Call call("rms_norm_wgrad", takes_bf16());
  call.leads("x", x, 2);
  call.is_stats("dw", dw, {x.dim(1)});
  call.is("dy", dy, x.shape());
  call.is_stats("rstd", rstd, {x.dim(0)});
  do_rms_norm_wgrad(dw, dy, x, rstd);
}

// --- LayerNorm

void Kernels::layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) {
  Call call("layer_norm", takes_bf16());
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is_stats("mean", mean, {x.dim(0)});
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  call.is_stats("b", b, {x.dim(1)});
  do_layer_norm(y, mean, rstd, x, w, b, eps);
}

void Kernels::layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) {
  Call call("layer_norm_apply", takes_bf16());
  call.leads("x", x, 2);
  call.is("y", y, x.shape());
  call.is_stats("mean", mean, {x.dim(0)});
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  call.is_stats("b", b, {x.dim(1)});
  do_layer_norm_apply(y, x, mean, rstd, w, b);
}

void Kernels::layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                               Write write) {
  Call call("layer_norm_dgrad", takes_bf16());
  call.leads("x", x, 2);
  call.is("dx", dx, x.shape());
  call.is("dy", dy, x.shape());
  call.is_stats("mean", mean, {x.dim(0)});
  call.is_stats("rstd", rstd, {x.dim(0)});
  call.is_stats("w", w, {x.dim(1)});
  do_layer_norm_dgrad(dx, dy, x, mean, rstd, w, write);
}

void Kernels::layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) {
  Call call("layer_norm_wgrad", takes_bf16());
  call.leads("x", x, 2);
  call.is_stats("dw", dw, {x.dim(1)});
  call.is_stats("db", db, {x.dim(1)});
  call.is("dy", dy, x.shape());
  call.is_stats("mean", mean, {x.dim(0)});
  call.is_stats("rstd", rstd, {x.dim(0)});
  do_layer_norm_wgrad(dw, db, dy, x, mean, rstd);
}

// --- norms of groups of columns

void Kernels::group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) {
  Call call("group_squares", takes_bf16());
  call.leads("x", x, 2);
  check_groups(call, "x", x, cols);
  call.is_stats("sums", sums, {x.dim(0), cols.groups});
  do_group_squares(sums, x, cols);
}

void Kernels::group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                         const ColumnGroups& cols) {
  Call call("group_norm", takes_bf16());
  call.leads("x", x, 2);
  check_groups(call, "x", x, cols);
  check_count(call, options);
  call.num_dims("y", y, 2);
  call.is("y", y, {x.dim(0), y.dim(1)});
  check_groups(call, "y", y, cols);
  call.is_stats("sums", sums, {x.dim(0), cols.groups});
  call.is_stats("w", w, {cols.width});
  do_group_norm(y, x, sums, w, options, cols);
}

void Kernels::group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) {
  Call call("group_norm_dots", takes_bf16());
  call.leads("x", x, 2);
  check_groups(call, "x", x, cols);
  call.num_dims("dy", dy, 2);
  call.is("dy", dy, {x.dim(0), dy.dim(1)});
  check_groups(call, "dy", dy, cols);
  call.is_stats("dots", dots, {x.dim(0), cols.groups});
  call.is_stats("w", w, {cols.width});
  do_group_norm_dots(dots, dy, x, w, cols);
}

void Kernels::group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                               const GroupNormOptions& options, const ColumnGroups& cols) {
  Call call("group_norm_dgrad", takes_bf16());
  call.leads("x", x, 2);
  check_groups(call, "x", x, cols);
  check_count(call, options);
  call.num_dims("dx", dx, 2);
  call.is("dx", dx, {x.dim(0), dx.dim(1)});
  check_groups(call, "dx", dx, cols);
  call.num_dims("dy", dy, 2);
  call.is("dy", dy, {x.dim(0), dy.dim(1)});
  check_groups(call, "dy", dy, cols);
  call.is_stats("sums", sums, {x.dim(0), cols.groups});
  call.is_stats("dots", dots, {x.dim(0), cols.groups});
  call.is_stats("w", w, {cols.width});
  do_group_norm_dgrad(dx, dy, x, sums, dots, w, options, cols);
}

void Kernels::group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums, const GroupNormOptions& options,
                               const ColumnGroups& cols, Write write) {
  Call call("group_norm_wgrad", takes_bf16());
  call.leads("x", x, 2);
  check_groups(call, "x", x, cols);
  check_count(call, options);
  call.num_dims("dy", dy, 2);
  call.is("dy", dy, {x.dim(0), dy.dim(1)});
  check_groups(call, "dy", dy, cols);
  call.is_stats("sums", sums, {x.dim(0), cols.groups});
  call.is_stats("dw", dw, {cols.width});
  do_group_norm_wgrad(dw, dy, x, sums, options, cols, write);
}

void Kernels::clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) {
  Call call("clamp", takes_bf16());
  call.leads("x", x, 2);
  check_within(call, "x", x, first, width);
  do_clamp(x, limit, first, width);
}

void Kernels::clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) {
  Call call("clamp_backward", takes_bf16());
  call.leads("x", x, 2);
  check_within(call, "x", x, first, width);
  call.num_dims("dx", dx, 2);
  call.is("dx", dx, {x.dim(0), dx.dim(1)});
  check_within(call, "dx", dx, first, width);
  do_clamp_backward(dx, x, limit, first, width);
}

// --- attention

void Kernels::rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint, Tensor positions) {
  Call call("rope", takes_bf16());
  call.require(shape.seq >= 0 && shape.heads >= 0 && shape.first >= 0 && shape.rotated >= 0,
               "a rope shape has no negative dims");
  if (shape.rotated % 2 != 0) call.fail(fmt::format("rotated={} is odd", shape.rotated));
  if (shape.heads > 1 && shape.stride < shape.rotated) {
    call.fail(fmt::format("stride={} is below rotated={}", shape.stride, shape.rotated));
  }
  call.leads("x", x, 2);
  if (shape.heads > 0) {
    check_within(call, "x", x, shape.first, (shape.heads - 1) * shape.stride + shape.rotated);
  }
  call.num_dims("cos", cos, 2);
  call.is_stats("cos", cos, {cos.dim(0), shape.rotated / 2});
  call.is_stats("sin", sin, cos.shape());
  if (!positions.empty()) {
    call.is_index("positions", positions, {x.dim(0)});
    call.in_range("positions", positions, 0, cos.dim(0));
  } else if (cos.dim(0) < shape.seq || (shape.seq == 0 && x.dim(0) > 0)) {
    call.fail(fmt::format("cos {} has too few rows for seq={}", shape_text(cos), shape.seq));
  }
  do_rope(x, cos, sin, shape, adjoint, positions);
}

void Kernels::attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) {
  Call call("attention", takes_bf16());
  check_attention(call, shape);
  const std::int64_t t = shape.batch * shape.seq;
  call.leads("qkv", qkv, 2);
  call.is("qkv", qkv, {t, shape.qkv_dim()});
  call.is("out", out, {t, shape.out_dim()});
  call.is_stats("lse", lse, {t, shape.heads});
  if (!sinks.empty()) call.is_stats("sinks", sinks, {shape.heads});
  flops_ += attention_flops(shape);
  do_attention(out, lse, qkv, sinks, shape);
}

void Kernels::attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                                 Tensor sinks, const AttentionShape& shape) {
  Call call("attention_backward", takes_bf16());
  check_attention(call, shape);
  const std::int64_t t = shape.batch * shape.seq;
  call.leads("qkv", qkv, 2);
  call.is("qkv", qkv, {t, shape.qkv_dim()});
  call.is("dqkv", dqkv, {t, shape.qkv_dim()});
  call.is("dout", dout, {t, shape.out_dim()});
  call.is("out", out, {t, shape.out_dim()});
  call.is_stats("lse", lse, {t, shape.heads});
  if (!sinks.empty() || !dsinks.empty()) {
    call.is_stats("sinks", sinks, {shape.heads});
    call.is_stats("dsinks", dsinks, {shape.heads});
  }
  flops_ += 2 * attention_flops(shape);
  do_attention_backward(dqkv, dsinks, dout, qkv, out, lse, sinks, shape);
}

// --- activations

void Kernels::activation(Tensor h, Tensor z, const ActivationOptions& options) {
  Call call("activation", takes_bf16());
  check_activation(call, options);
  call.leads("h", h, 2);
  call.is("z", z, {h.dim(0), activation_columns(options, h.dim(1))});
  do_activation(h, z, options);
}

void Kernels::activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) {
  Call call("activation_backward", takes_bf16());
  check_activation(call, options);
  call.leads("dh", dh, 2);
  const Shape columns = {dh.dim(0), activation_columns(options, dh.dim(1))};
  call.is("dz", dz, columns);
  call.is("z", z, columns);
  do_activation_backward(dz, dh, z, options);
}

void Kernels::sigmoid_gate(Tensor y, Tensor f, Tensor z) {
  Call call("sigmoid_gate", takes_bf16());
  call.leads("y", y, 2);
  call.is("f", f, y.shape());
  call.is("z", z, {y.dim(0)});
  do_sigmoid_gate(y, f, z);
}

void Kernels::sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) {
  Call call("sigmoid_gate_backward", takes_bf16());
  call.leads("dy", dy, 2);
  call.is("df", df, dy.shape());
  call.is("dz", dz, {dy.dim(0)});
  call.is("f", f, dy.shape());
  call.is("z", z, {dy.dim(0)});
  do_sigmoid_gate_backward(df, dz, dy, f, z);
}

// --- router

void Kernels::router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                     const RouterOptions& options) {
  Call call("router", takes_bf16());
  call.leads_stats("logits", logits, 2);
  check_router(call, options, logits.dim(1));
  const Shape chosen = {logits.dim(0), options.top_k};
  call.is("probs", probs, logits.shape());
  call.is_stats("lse", lse, {logits.dim(0)});
  call.is_index("index", index, chosen);
  call.is("weights", weights, chosen);
  if (!bias.empty()) call.is("bias", bias, {logits.dim(1)});
  if (options.given_index) call.in_range("index", index, 0, logits.dim(1));
  do_router(probs, lse, index, weights, logits, bias, options);
}

void Kernels::router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                              Tensor weights, Tensor aux, Tensor unit, double z_scale,
                              const RouterOptions& options, Tensor logits) {
  Call call("router_backward", takes_bf16());
  call.leads_stats("probs", probs, 2);
  check_router(call, options, probs.dim(1));
  const Shape chosen = {probs.dim(0), options.top_k};
  call.is("dlogits", dlogits, probs.shape());
  call.is("dweights", dweights, chosen);
  call.is_stats("lse", lse, {probs.dim(0)});
  call.is_index("index", index, chosen);
  if (sees_values()) call.in_range("index", index, 0, probs.dim(1));
  call.is("weights", weights, chosen);
  if (!aux.empty()) {
    call.num_dims("aux", aux, 2);
    call.is("aux", aux, {aux.dim(0), probs.dim(1)});
    call.is_index("unit", unit, {probs.dim(0)});
    if (sees_values()) call.in_range("unit", unit, 0, aux.dim(0));
  }
  if (options.score == RouterScore::sigmoid && z_scale != 0) call.is("logits", logits, probs.shape());
  do_router_backward(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale, options, logits);
}

}  // namespace tessera::kernels
