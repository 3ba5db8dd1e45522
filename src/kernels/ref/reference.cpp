// The reference backend: naive templates over f32 and f64 (the f64 instance is the truth of all tests). Sums
// run in the scalar type in ascending order; no threads, no intrinsics, never fast-math. Only this file may
// include the templates: a copy made under other compiler options could replace these at link time.
#include "kernels/ref/activation.h"
#include "kernels/ref/attention.h"
#include "kernels/ref/attention_part.h"
#include "kernels/ref/columns.h"
#include "kernels/ref/decode.h"
#include "kernels/ref/elementwise.h"
#include "kernels/ref/group_norm.h"
#include "kernels/ref/layer_norm.h"
#include "kernels/ref/linear.h"
#include "kernels/ref/loss.h"
#include "kernels/ref/norm.h"
#include "kernels/ref/router.h"

#ifdef __FAST_MATH__
#error \
    "the reference must not be compiled with fast-math: it is the truth the other backends are compared with"
#endif

namespace tessera::kernels {
namespace {

// f(S{}) with S the scalar type of t, which the public functions have checked to be f64 or f32.
template <class F>
auto with_scalar(const Tensor& t, F f) {
  return t.dtype() == DType::f64 ? f(double{}) : f(float{});
}

class Reference final : public Kernels {
 public:
  [[nodiscard]] Bytes workspace_bytes() const override { return Bytes(0); }
  [[nodiscard]] Bytes packed_bytes(DType, std::int64_t, std::int64_t) const override { return Bytes(0); }

 protected:
  void do_pack(Weight&) override {}
  void do_linear(Tensor y, Tensor x, const Weight& w) override {
    with_scalar(y, [&](auto zero) { ref::linear<decltype(zero)>(y, x, w.value_NK); });
  }
  void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) override {
    with_scalar(dx, [&](auto zero) { ref::linear_dgrad<decltype(zero)>(dx, dy, w.value_NK, write); });
  }
  void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) override {
    with_scalar(dw, [&](auto zero) { ref::linear_wgrad<decltype(zero)>(dw, dy, x); });
  }
  void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) override {
    with_scalar(y, [&](auto zero) { ref::rms_norm<decltype(zero)>(y, rstd, x, w, eps); });
  }
  void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) override {
    with_scalar(y, [&](auto zero) { ref::rms_norm_apply<decltype(zero)>(y, x, rstd, w); });
  }
  void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) override {
    with_scalar(dx, [&](auto zero) { ref::rms_norm_dgrad<decltype(zero)>(dx, dy, x, rstd, w, write); });
  }
  void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) override {
    with_scalar(dw, [&](auto zero) { ref::rms_norm_wgrad<decltype(zero)>(dw, dy, x, rstd); });
  }
  void do_add_bias(Tensor y, Tensor b) override {
    with_scalar(y, [&](auto zero) { ref::add_bias<decltype(zero)>(y, b); });
  }
  void do_bias_wgrad(Tensor db, Tensor dy, Write write) override {
    with_scalar(db, [&](auto zero) { ref::bias_wgrad<decltype(zero)>(db, dy, write); });
  }
  void do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) override {
    with_scalar(y, [&](auto zero) { ref::layer_norm<decltype(zero)>(y, mean, rstd, x, w, b, eps); });
  }
  void do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) override {
    with_scalar(y, [&](auto zero) { ref::layer_norm_apply<decltype(zero)>(y, x, mean, rstd, w, b); });
  }
  void do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                           Write write) override {
    with_scalar(dx,
                [&](auto zero) { ref::layer_norm_dgrad<decltype(zero)>(dx, dy, x, mean, rstd, w, write); });
  }
  void do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) override {
    with_scalar(dw, [&](auto zero) { ref::layer_norm_wgrad<decltype(zero)>(dw, db, dy, x, mean, rstd); });
  }
  void do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) override {
    with_scalar(x, [&](auto zero) { ref::group_squares<decltype(zero)>(sums, x, cols); });
  }
  void do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                     const ColumnGroups& cols) override {
    with_scalar(y, [&](auto zero) { ref::group_norm<decltype(zero)>(y, x, sums, w, options, cols); });
  }
  void do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) override {
    with_scalar(x, [&](auto zero) { ref::group_norm_dots<decltype(zero)>(dots, dy, x, w, cols); });
  }
  void do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                           const GroupNormOptions& options, const ColumnGroups& cols) override {
    with_scalar(dx, [&](auto zero) {
      ref::group_norm_dgrad<decltype(zero)>(dx, dy, x, sums, dots, w, options, cols);
    });
  }
  void do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums, const GroupNormOptions& options,
                           const ColumnGroups& cols, Write write) override {
    with_scalar(
        dw, [&](auto zero) { ref::group_norm_wgrad<decltype(zero)>(dw, dy, x, sums, options, cols, write); });
  }
  void do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    with_scalar(x, [&](auto zero) { ref::clamp<decltype(zero)>(x, limit, first, width); });
  }
  void do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    with_scalar(x, [&](auto zero) { ref::clamp_backward<decltype(zero)>(dx, x, limit, first, width); });
  }
  void do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
               Tensor positions) override {
    with_scalar(x, [&](auto zero) { ref::rope<decltype(zero)>(x, cos, sin, shape, adjoint, positions); });
  }
  void do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) override {
    with_scalar(out, [&](auto zero) { ref::attention<decltype(zero)>(out, lse, qkv, sinks, shape); });
  }
  void do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                             Tensor sinks, const AttentionShape& shape) override {
    with_scalar(dqkv, [&](auto zero) {
      ref::attention_backward<decltype(zero)>(dqkv, dsinks, dout, qkv, out, lse, sinks, shape);
    });
  }
  void do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                         const AttentionShape& shape, const AttentionPart& part, Write write) override {
    with_scalar(out, [&](auto zero) {
      ref::attention_part<decltype(zero)>(out, lse, q, kv, sinks, {shape, part}, write);
    });
  }
  void do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                  Tensor lse, const AttentionShape& shape,
                                  const AttentionPart& part) override {
    with_scalar(out, [&](auto zero) {
      ref::attention_part_backward<decltype(zero)>(dq, dkv, dout, q, kv, out, lse, {shape, part});
    });
  }
  void do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                   const AttentionShape& shape) override {
    with_scalar(
        out, [&](auto zero) { ref::sinks_backward<decltype(zero)>(dsinks, dout, out, lse, sinks, shape); });
  }
  void do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) override {
    with_scalar(x, [&](auto zero) { ref::cache_append<decltype(zero)>(cache, x, first, slots, positions); });
  }
  void do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks, Tensor slots,
                           Tensor positions, const AttentionShape& shape) override {
    with_scalar(out, [&](auto zero) {
      ref::decode_attention<decltype(zero)>(out, q, keys, values, sinks, slots, positions, shape);
    });
  }
  void do_activation(Tensor h, Tensor z, const ActivationOptions& options) override {
    with_scalar(h, [&](auto zero) { ref::activation<decltype(zero)>(h, z, options); });
  }
  void do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) override {
    with_scalar(dz, [&](auto zero) { ref::activation_backward<decltype(zero)>(dz, dh, z, options); });
  }
  void do_sigmoid_gate(Tensor y, Tensor f, Tensor z) override {
    with_scalar(y, [&](auto zero) { ref::sigmoid_gate<decltype(zero)>(y, f, z); });
  }
  void do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) override {
    with_scalar(dy, [&](auto zero) { ref::sigmoid_gate_backward<decltype(zero)>(df, dz, dy, f, z); });
  }
  void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) override {
    with_scalar(y, [&](auto zero) { ref::embedding<decltype(zero)>(y, ids, table, vocab_begin); });
  }
  void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) override {
    with_scalar(dtable,
                [&](auto zero) { ref::embedding_wgrad<decltype(zero)>(dtable, dy, ids, vocab_begin); });
  }
  void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                              std::int64_t vocab_begin) override {
    with_scalar(stats, [&](auto zero) {
      ref::cross_entropy_stats<decltype(zero)>(stats, logits, targets, vocab_begin);
    });
  }
  void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) override {
    with_scalar(loss, [&](auto zero) { ref::cross_entropy_join<decltype(zero)>(loss, lse, stats, targets); });
  }
  void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                 double weight) override {
    with_scalar(logits, [&](auto zero) {
      ref::cross_entropy_backward<decltype(zero)>(logits, lse, targets, vocab_begin, weight);
    });
  }
  void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                 const RouterOptions& options) override {
    with_scalar(probs, [&](auto zero) {
      ref::router<decltype(zero)>(probs, lse, index, weights, logits, bias, options);
    });
  }
  void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                          Tensor weights, Tensor aux, Tensor unit, double z_scale,
                          const RouterOptions& options, Tensor logits) override {
    with_scalar(dlogits, [&](auto zero) {
      ref::router_backward<decltype(zero)>(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale,
                                           options, logits);
    });
  }
  void do_gather_rows(Tensor dst, Tensor src, Tensor index) override {
    with_scalar(dst, [&](auto zero) { ref::gather_rows<decltype(zero)>(dst, src, index); });
  }
  void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) override {
    with_scalar(y, [&](auto zero) { ref::combine<decltype(zero)>(y, x, rows, pos, weights); });
  }
  void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                           Tensor weights) override {
    with_scalar(drows, [&](auto zero) {
      ref::combine_backward<decltype(zero)>(drows, dweights, dy, rows, pos, weights);
    });
  }
  void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) override {
    with_scalar(dx, [&](auto zero) { ref::sum_rows<decltype(zero)>(dx, rows, pos, write); });
  }
  void do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) override {
    with_scalar(dst, [&](auto zero) { ref::move_columns<decltype(zero)>(dst, src, move); });
  }
  void do_add(Tensor y, Tensor a, Tensor b) override {
    with_scalar(y, [&](auto zero) { ref::add<decltype(zero)>(y, a, b); });
  }
  void do_accumulate(Tensor y, Tensor x) override {
    with_scalar(y, [&](auto zero) { ref::accumulate<decltype(zero)>(y, x); });
  }
  void do_fill(Tensor y, double value) override {
    with_scalar(y, [&](auto zero) { ref::fill<decltype(zero)>(y, value); });
  }
  double do_sum(Tensor x) override {
    return with_scalar(
        x, [&](auto zero) { return ref::blocked_sum<decltype(zero)>(x, [](double v) { return v; }); });
  }
  double do_sum_squares(Tensor x) override {
    return with_scalar(
        x, [&](auto zero) { return ref::blocked_sum<decltype(zero)>(x, [](double v) { return v * v; }); });
  }
  void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) override {
    with_scalar(p, [&](auto zero) { ref::adamw<decltype(zero)>(p, g, m, v, options); });
  }
};

}  // namespace

std::unique_ptr<Kernels> make_reference() {
  return std::make_unique<Reference>();
}

}  // namespace tessera::kernels
