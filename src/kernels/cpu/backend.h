// The fast backend over the loops of one instruction set (isa.h): walks rows, heads and groups and calls the
// loops. Products, tables, losses and rows are in cpu_kernels.cpp, the operations of layers in
// cpu_layers.cpp.
#pragma once
#include <cstring>
#include <memory>
#include <type_traits>

#include "base/math.h"
#include "kernels/cpu/isa.h"
#include "kernels/kernels.h"

namespace tessera::kernels::cpu {

// Calls f(T{}) with the scalar type of a floating tensor.
template <class F>
auto with_scalar(const Tensor& t, F f) {
  return t.dtype() == DType::f64 ? f(double{}) : f(float{});
}
template <class T>
void copy(T* to, const T* from, std::int64_t n) {
  std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

class CpuKernels final : public Kernels {
 public:
  explicit CpuKernels(const Isa& isa) : isa_(isa), workspace_(Bytes(kWorkspaceBytes)) {}
  [[nodiscard]] Bytes workspace_bytes() const override { return workspace_.size(); }
  [[nodiscard]] Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const override;

 protected:
  void do_pack(Weight& w) override;
  void do_linear(Tensor y, Tensor x, const Weight& w) override;
  void do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) override;
  void do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) override;
  void do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) override;
  void do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) override;
  void do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) override;
  void do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) override;
  void do_add_bias(Tensor y, Tensor b) override;
  void do_bias_wgrad(Tensor db, Tensor dy, Write write) override;
  void do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) override;
  void do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) override;
  void do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                           Write write) override;
  void do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) override;
  void do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) override;
  void do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                     const ColumnGroups& cols) override;
  void do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) override;
  void do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                           const GroupNormOptions& options, const ColumnGroups& cols) override;
  void do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums, const GroupNormOptions& options,
                           const ColumnGroups& cols, Write write) override;
  void do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) override;
  void do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) override;
  void do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
               Tensor positions) override;
  void do_attention(Tensor out, Tensor lse, Tensor qkv, Tensor sinks, const AttentionShape& shape) override;
  void do_attention_backward(Tensor dqkv, Tensor dsinks, Tensor dout, Tensor qkv, Tensor out, Tensor lse,
                             Tensor sinks, const AttentionShape& shape) override;
  void do_attention_part(Tensor out, Tensor lse, Tensor q, Tensor kv, Tensor sinks,
                         const AttentionShape& shape, const AttentionPart& part, Write write) override;
  void do_attention_part_backward(Tensor dq, Tensor dkv, Tensor dout, Tensor q, Tensor kv, Tensor out,
                                  Tensor lse, const AttentionShape& shape,
                                  const AttentionPart& part) override;
  void do_attention_sinks_backward(Tensor dsinks, Tensor dout, Tensor out, Tensor lse, Tensor sinks,
                                   const AttentionShape& shape) override;
  void do_cache_append(Tensor cache, Tensor x, std::int64_t first, Tensor slots, Tensor positions) override;
  void do_decode_attention(Tensor out, Tensor q, Tensor keys, Tensor values, Tensor sinks, Tensor slots,
                           Tensor positions, const AttentionShape& shape) override;
  void do_activation(Tensor h, Tensor z, const ActivationOptions& options) override;
  void do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& options) override;
  void do_sigmoid_gate(Tensor y, Tensor f, Tensor z) override;
  void do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) override;
  void do_embedding(Tensor y, Tensor ids, Tensor table, std::int64_t vocab_begin) override;
  void do_embedding_wgrad(Tensor dtable, Tensor dy, Tensor ids, std::int64_t vocab_begin) override;
  void do_cross_entropy_stats(Tensor stats, Tensor logits, Tensor targets, std::int64_t vocab_begin) override;
  void do_cross_entropy_join(Tensor loss, Tensor lse, Tensor stats, Tensor targets) override;
  void do_cross_entropy_backward(Tensor logits, Tensor lse, Tensor targets, std::int64_t vocab_begin,
                                 double weight) override;
  void do_router(Tensor probs, Tensor lse, Tensor index, Tensor weights, Tensor logits, Tensor bias,
                 const RouterOptions& options) override;
  void do_router_backward(Tensor dlogits, Tensor dweights, Tensor probs, Tensor lse, Tensor index,
                          Tensor weights, Tensor aux, Tensor unit, double z_scale,
                          const RouterOptions& options, Tensor logits) override;
  void do_gather_rows(Tensor dst, Tensor src, Tensor index) override;
  void do_combine(Tensor y, Tensor x, Tensor rows, Tensor pos, Tensor weights) override;
  void do_combine_backward(Tensor drows, Tensor dweights, Tensor dy, Tensor rows, Tensor pos,
                           Tensor weights) override;
  void do_sum_rows(Tensor dx, Tensor rows, Tensor pos, Write write) override;
  void do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) override {
    small_->move_columns(dst, src, move);  // copies of parts of rows
  }
  void do_add(Tensor y, Tensor a, Tensor b) override;
  void do_accumulate(Tensor y, Tensor x) override;
  void do_fill(Tensor y, double value) override;
  double do_sum(Tensor x) override;
  double do_sum_squares(Tensor x) override;
  void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& o) override;

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
  [[nodiscard]] AttentionCall<T> attention_call(const Tensor& q, const Tensor& out, const Tensor& lse,
                                                const Tensor& sinks, const AttentionShape& s) const;
  // Calls f(row, group, its first column) for all groups.
  template <class F>
  static void for_groups(std::int64_t rows, const ColumnGroups& cols, F f) {
    for (std::int64_t t = 0; t < rows; t++) {
      for (std::int64_t g = 0; g < cols.groups; g++) f(t, g, cols.first + g * cols.width);
    }
  }

  const Isa& isa_;
  tensor::Buffer workspace_;
  std::unique_ptr<Kernels> small_ = make_reference();  // operations with a few numbers a token
};

}  // namespace tessera::kernels::cpu
