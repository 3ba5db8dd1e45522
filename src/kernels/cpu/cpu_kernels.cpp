#include "kernels/cpu/cpu_kernels.h"

#include <fmt/format.h>

#include <cstring>
#include <type_traits>

#include "base/math.h"

namespace tessera::kernels::cpu {

namespace {

// Calls f(T{}) with the scalar type of a floating tensor.
template <class F>
auto with_scalar(const Tensor& t, F f) {
  return t.dtype() == DType::f64 ? f(double{}) : f(float{});
}

class CpuKernels final : public Kernels {
 public:
  explicit CpuKernels(const Isa& isa) : isa_(isa), workspace_(Bytes(kWorkspaceBytes)) {}

  [[nodiscard]] Bytes workspace_bytes() const override { return workspace_.size(); }

  // Panels of W^T for linear, then panels of W for linear_dgrad.
  [[nodiscard]] Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const override {
    const std::int64_t width = dtype == DType::f64 ? isa_.f64->panel_width : isa_.f32->panel_width;
    return Bytes((round_up(n, width) * k + round_up(k, width) * n) * tensor::size_of(dtype));
  }

 protected:
  void do_pack(Weight& w) override {
    if (w.packed.empty()) return;
    with_scalar(w.value_NK, [&]<class T>(T) {
      const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
      loops<T>().pack_weight(forward_panels<T>(w), dgrad_panels<T>(w), w.value_NK.as<T>(), n, k);
    });
  }

  void do_linear(Tensor y, Tensor x, const Weight& w) override {
    with_scalar(y, [&]<class T>(T) {
      const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
      loops<T>().product({.m = x.dim(0),
                          .n = n,
                          .k = k,
                          .a = x.as<T>(),
                          .lda = k,
                          .a_order = Order::rows,
                          .b = w.value_NK.as<T>(),
                          .ldb = k,
                          .b_order = Order::columns,
                          .panels = w.packed.empty() ? nullptr : forward_panels<T>(w),
                          .c = y.as<T>(),
                          .ldc = n,
                          .accumulate = false,
                          .workspace = workspace<T>()});
    });
  }
  void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) override {
    with_scalar(dx, [&]<class T>(T) {
      const std::int64_t n = w.value_NK.dim(0), k = w.value_NK.dim(1);
      loops<T>().product({.m = dy.dim(0),
                          .n = k,
                          .k = n,
                          .a = dy.as<T>(),
                          .lda = n,
                          .a_order = Order::rows,
                          .b = w.value_NK.as<T>(),
                          .ldb = k,
                          .b_order = Order::rows,
                          .panels = w.packed.empty() ? nullptr : dgrad_panels<T>(w),
                          .c = dx.as<T>(),
                          .ldc = k,
                          .accumulate = write == Write::accumulate,
                          .workspace = workspace<T>()});
    });
  }
  void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) override {
    with_scalar(dw, [&]<class T>(T) {
      const std::int64_t n = dw.dim(0), k = dw.dim(1);
      loops<T>().product({.m = n,
                          .n = k,
                          .k = x.dim(0),
                          .a = dy.as<T>(),
                          .lda = n,
                          .a_order = Order::columns,
                          .b = x.as<T>(),
                          .ldb = k,
                          .b_order = Order::rows,
                          .panels = nullptr,
                          .c = dw.as<T>(),
                          .ldc = k,
                          .accumulate = true,
                          .workspace = workspace<T>()});
    });
  }

  void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) override {
    with_scalar(y, [&]<class T>(T) {
      loops<T>().rms_norm(y.as<T>(), rstd.as<T>(), x.as<T>(), w.as<T>(), x.dim(0), x.dim(1), eps);
    });
  }
  void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) override {
    with_scalar(y, [&]<class T>(T) {
      loops<T>().rms_norm_apply(y.as<T>(), x.as<T>(), rstd.as<T>(), w.as<T>(), x.dim(0), x.dim(1));
    });
  }
  void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) override {
    with_scalar(dx, [&]<class T>(T) {
      loops<T>().rms_norm_dgrad(dx.as<T>(), dy.as<T>(), x.as<T>(), rstd.as<T>(), w.as<T>(), x.dim(0),
                                x.dim(1), write == Write::accumulate);
    });
  }
  void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) override {
    with_scalar(dw, [&]<class T>(T) {
      loops<T>().rms_norm_wgrad(dw.as<T>(), dy.as<T>(), x.as<T>(), rstd.as<T>(), x.dim(0), x.dim(1),
                                workspace<T>());
    });
  }

  void do_add_bias(Tensor y, Tensor b) override { small_->add_bias(y, b); }
  void do_bias_wgrad(Tensor db, Tensor dy, Write write) override { small_->bias_wgrad(db, dy, write); }
  void do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) override {
    small_->layer_norm(y, mean, rstd, x, w, b, eps);
  }
  void do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) override {
    small_->layer_norm_apply(y, x, mean, rstd, w, b);
  }
  void do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                           Write write) override {
    small_->layer_norm_dgrad(dx, dy, x, mean, rstd, w, write);
  }
  void do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) override {
    small_->layer_norm_wgrad(dw, db, dy, x, mean, rstd);
  }
  void do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) override {
    small_->group_squares(sums, x, cols);
  }
  void do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                     const ColumnGroups& cols) override {
    small_->group_norm(y, x, sums, w, options, cols);
  }
  void do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) override {
    small_->group_norm_dots(dots, dy, x, w, cols);
  }
  void do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                           const GroupNormOptions& options, const ColumnGroups& cols) override {
    small_->group_norm_dgrad(dx, dy, x, sums, dots, w, options, cols);
  }
  void do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums, const GroupNormOptions& options,
                           const ColumnGroups& cols, Write write) override {
    small_->group_norm_wgrad(dw, dy, x, sums, options, cols, write);
  }
  void do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    small_->clamp(x, limit, first, width);
  }
  void do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) override {
    small_->clamp_backward(dx, x, limit, first, width);
  }
  void do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
               Tensor positions) override {
    if (shape.pairs != RopePairs::halves || shape.first != 0 || shape.stride != shape.rotated ||
        !positions.empty()) {
      small_->rope(x, cos, sin, shape, adjoint, positions);
      return;
    }
    with_scalar(x, [&]<class T>(T) {
      const std::int64_t half = shape.rotated / 2;
      for (std::int64_t t = 0; t < x.dim(0); t++) {
        const std::int64_t at = (t % shape.seq) * half;
        loops<T>().rope(x.as<T>() + t * x.dim(1), shape.heads, shape.rotated, cos.as<T>() + at,
                        sin.as<T>() + at, adjoint ? T(-1) : T(1));
      }
    });
  }
  void do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) override {
    if (!sinks.empty() || shape.window > 0 || shape.v_dim() != shape.head_dim) {
      small_->attention(out, lse, qkv, sinks, shape);
      return;
    }
    with_scalar(out, [&]<class T>(T) {
      AttentionCall<T> call = attention_call<T>(qkv, out, lse, shape);
      loops<T>().attention(call);
    });
  }
  void do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                             Tensor sinks, const AttentionShape& shape) override {
    if (!sinks.empty() || shape.window > 0 || shape.v_dim() != shape.head_dim) {
      small_->attention_backward(dqkv, dsinks, dout, qkv, out, lse, sinks, shape);
      return;
    }
    with_scalar(out, [&]<class T>(T) {
      AttentionCall<T> call = attention_call<T>(qkv, out, lse, shape);
      call.dout = dout.as<T>();
      call.dqkv = dqkv.as<T>();
      loops<T>().attention_backward(call);
    });
  }
  void do_activation(Tensor h, Tensor z, const ActivationOptions& options) override {
    if (options.kind != Activation::swiglu) {
      small_->activation(h, z, options);
      return;
    }
    with_scalar(h, [&]<class T>(T) { loops<T>().swiglu(h.as<T>(), z.as<T>(), h.dim(0), h.dim(1)); });
  }
  void do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) override {
    if (options.kind != Activation::swiglu) {
      small_->activation_backward(dz, dh, z, options);
      return;
    }
    with_scalar(dh, [&]<class T>(T) {
      loops<T>().swiglu_backward(dz.as<T>(), dh.as<T>(), z.as<T>(), dh.dim(0), dh.dim(1));
    });
  }
  void do_sigmoid_gate(Tensor y, Tensor f, Tensor z) override { small_->sigmoid_gate(y, f, z); }
  void do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) override {
    small_->sigmoid_gate_backward(df, dz, dy, f, z);
  }
  void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) override {
    with_scalar(y, [&]<class T>(T) {
      const std::int32_t* id = ids.as<std::int32_t>();
      const std::int64_t h = y.dim(1), vocab = table.dim(0);
      for (std::int64_t t = 0; t < y.dim(0); t++) {
        const std::int64_t row = id[t] - vocab_begin;
        T* to = y.as<T>() + t * h;
        if (row >= 0 && row < vocab) {
          copy(to, table.as<T>() + row * h, h);
        } else {
          loops<T>().fill(to, T(0), h);
        }
      }
    });
  }
  void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) override {
    with_scalar(dy, [&]<class T>(T) {
      const std::int32_t* id = ids.as<std::int32_t>();
      const std::int64_t h = dy.dim(1), vocab = dtable.dim(0);
      for (std::int64_t t = 0; t < dy.dim(0); t++) {
        const std::int64_t row = id[t] - vocab_begin;
        if (row < 0 || row >= vocab) continue;
        T* to = dtable.as<T>() + row * h;
        loops<T>().add(to, to, dy.as<T>() + t * h, h);
      }
    });
  }

  void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets,
                              std::int64_t vocab_begin) override {
    with_scalar(logits, [&]<class T>(T) {
      const std::int32_t* target = targets.as<std::int32_t>();
      const std::int64_t tokens = logits.dim(0), vocab = logits.dim(1);
      T* s = stats.as<T>();
      for (std::int64_t t = 0; t < tokens; t++) {
        const T* z = logits.as<T>() + t * vocab;
        loops<T>().softmax_stats(z, vocab, s + t, s + tokens + t);
        const std::int64_t at = target[t] - vocab_begin;
        s[2 * tokens + t] = target[t] >= 0 && at >= 0 && at < vocab ? z[at] : T(0);
      }
    });
  }
  void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) override {
    small_->cross_entropy_join(loss, lse, stats, targets);
  }
  void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                 double weight) override {
    with_scalar(logits, [&]<class T>(T) {
      const std::int32_t* target = targets.as<std::int32_t>();
      const std::int64_t vocab = logits.dim(1);
      for (std::int64_t t = 0; t < logits.dim(0); t++) {
        T* z = logits.as<T>() + t * vocab;
        if (target[t] < 0) {
          loops<T>().fill(z, T(0), vocab);
          continue;
        }
        loops<T>().softmax_scaled(z, vocab, lse.as<T>()[t], static_cast<T>(weight));
        const std::int64_t at = target[t] - vocab_begin;
        if (at >= 0 && at < vocab) z[at] -= static_cast<T>(weight);
      }
    });
  }

  void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                 const RouterOptions& options) override {
    small_->router(probs, lse, index, weights, logits, bias, options);
  }
  void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                          Tensor weights, Tensor aux, Tensor unit, double z_scale,
                          const RouterOptions& options, Tensor logits) override {
    small_->router_backward(dlogits, dweights, probs, lse, index, weights, aux, unit, z_scale, options,
                            logits);
  }

  void do_gather_rows(Tensor dst, Tensor src, Tensor index) override {
    with_scalar(dst, [&]<class T>(T) {
      const std::int32_t* from = index.as<std::int32_t>();
      const std::int64_t h = src.dim(1);
      for (std::int64_t r = 0; r < dst.dim(0); r++) copy(dst.as<T>() + r * h, src.as<T>() + from[r] * h, h);
    });
  }
  void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) override {
    with_scalar(y, [&]<class T>(T) {
      const std::int32_t* at = pos.as<std::int32_t>();
      const std::int64_t h = y.dim(1), top_k = pos.dim(1);
      for (std::int64_t t = 0; t < y.dim(0); t++) {
        T* to = y.as<T>() + t * h;
        const T* base = x.empty() ? nullptr : x.as<T>() + t * h;
        for (std::int64_t i = t * top_k; i < (t + 1) * top_k; i++) {
          if (at[i] < 0) continue;
          const T* row = rows.as<T>() + at[i] * h;
          if (base == nullptr) {
            loops<T>().scale(to, weights.as<T>()[i], row, h);
          } else {
            loops<T>().add_scaled(to, base, weights.as<T>()[i], row, h);
          }
          base = to;
        }
        if (base == nullptr) {
          loops<T>().fill(to, T(0), h);
        } else if (base != to) {
          copy(to, base, h);
        }
      }
    });
  }
  void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                           Tensor weights) override {
    with_scalar(dy, [&]<class T>(T) {
      const std::int32_t* at = pos.as<std::int32_t>();
      const std::int64_t h = dy.dim(1), top_k = pos.dim(1);
      for (std::int64_t i = 0; i < pos.num_elements(); i++) {
        const T* d = dy.as<T>() + i / top_k * h;
        T* dw = dweights.as<T>() + i;
        *dw = T(0);
        if (at[i] < 0) continue;
        *dw = loops<T>().dot(d, rows.as<T>() + at[i] * h, h);
        loops<T>().scale(drows.as<T>() + at[i] * h, weights.as<T>()[i], d, h);
      }
    });
  }
  void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) override {
    with_scalar(dx, [&]<class T>(T) {
      const std::int32_t* at = pos.as<std::int32_t>();
      const std::int64_t h = dx.dim(1), top_k = pos.dim(1);
      for (std::int64_t t = 0; t < dx.dim(0); t++) {
        T* to = dx.as<T>() + t * h;
        bool first = write == Write::overwrite;
        for (std::int64_t i = t * top_k; i < (t + 1) * top_k; i++) {
          if (at[i] < 0) continue;
          const T* row = rows.as<T>() + at[i] * h;
          if (first) {
            copy(to, row, h);
          } else {
            loops<T>().add(to, to, row, h);
          }
          first = false;
        }
        if (first) loops<T>().fill(to, T(0), h);
      }
    });
  }

  void do_add(Tensor y, Tensor a, Tensor b) override {
    with_scalar(y, [&]<class T>(T) { loops<T>().add(y.as<T>(), a.as<T>(), b.as<T>(), y.num_elements()); });
  }
  void do_accumulate(Tensor y, Tensor x) override { do_add(y, y, x); }
  void do_fill(Tensor y, double value) override {
    with_scalar(y, [&]<class T>(T) { loops<T>().fill(y.as<T>(), static_cast<T>(value), y.num_elements()); });
  }
  double do_sum(Tensor x) override {
    return with_scalar(x, [&]<class T>(T) { return loops<T>().sum(x.as<T>(), x.num_elements()); });
  }
  double do_sum_squares(Tensor x) override {
    return with_scalar(x, [&]<class T>(T) { return loops<T>().sum_squares(x.as<T>(), x.num_elements()); });
  }
  void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& o) override {
    with_scalar(p, [&]<class T>(T) {
      loops<T>().adamw({.p = p.as<T>(),
                        .m = m.as<T>(),
                        .v = v.as<T>(),
                        .g = g.as<T>(),
                        .n = p.num_elements(),
                        .lr = o.lr,
                        .beta1 = o.beta1,
                        .beta2 = o.beta2,
                        .eps = o.eps,
                        .weight_decay = o.weight_decay,
                        .bias_correction1 = o.bias_correction1,
                        .bias_correction2 = o.bias_correction2,
                        .grad_scale = o.grad_scale});
    });
  }

 private:
  template <class T>
  [[nodiscard]] const Loops<T>& loops() const {
    if constexpr (std::is_same_v<T, double>) {
      return *isa_.f64;
    } else {
      return *isa_.f32;
    }
  }
  template <class T>
  [[nodiscard]] T* workspace() const {
    return reinterpret_cast<T*>(workspace_.data());
  }
  template <class T>
  [[nodiscard]] static T* forward_panels(const Weight& w) {
    return reinterpret_cast<T*>(w.packed.as<std::uint8_t>());
  }
  template <class T>
  [[nodiscard]] T* dgrad_panels(const Weight& w) const {
    return forward_panels<T>(w) + round_up(w.value_NK.dim(0), loops<T>().panel_width) * w.value_NK.dim(1);
  }
  template <class T>
  static void copy(T* to, const T* from, std::int64_t n) {
    std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
  }
  template <class T>
  [[nodiscard]] AttentionCall<T> attention_call(const Tensor& qkv, const Tensor& out, const Tensor& lse,
                                                const AttentionShape& s) const {
    if (s.head_dim > kMaxHeadDim) {
      throw Error(ErrorKind::unsupported, fmt::format("head_dim={} is above {}", s.head_dim, kMaxHeadDim),
                  "attention on the CPU", "use more, smaller heads");
    }
    return {.batch = s.batch,
            .seq = s.seq,
            .heads = s.heads,
            .kv_heads = s.kv_heads,
            .head_dim = s.head_dim,
            .scale = s.scale,
            .qkv = qkv.as<T>(),
            .out = out.as<T>(),
            .lse = lse.as<T>(),
            .dout = nullptr,
            .dqkv = nullptr,
            .workspace = workspace<T>()};
  }

  const Isa& isa_;
  tensor::Buffer workspace_;
  std::unique_ptr<Kernels> small_ = make_reference();  // operations with a few numbers a token
};

}  // namespace

std::unique_ptr<Kernels> make_cpu(const Isa& isa) {
  if (!supported(isa)) {
    throw Error(ErrorKind::unsupported, fmt::format("this processor has no {}", isa.name), "CPU kernels",
                "let Tessera choose the instruction set");
  }
  return std::make_unique<CpuKernels>(isa);
}

}  // namespace tessera::kernels::cpu

namespace tessera::kernels {

std::unique_ptr<Kernels> make_cpu() {
  return cpu::make_cpu(cpu::best());
}

}  // namespace tessera::kernels
