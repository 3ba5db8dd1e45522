// The class behind make_cuda. Its members stand in the .cu file of their topic.
#pragma once
#include <memory>
#include <utility>

#include "kernels/cuda/language.h"
#include "kernels/cuda/library_ops.h"
#include "kernels/kernels.h"
#include "tensor/bf16.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

using tensor::Bf16;

// What a kernel over elements of S computes in, and keeps statistics and parameters in (tensor::stats_of).
template <class S>
struct AccOf {
  using type = S;
};
template <>
struct AccOf<Bf16> {
  using type = float;
};
template <class S>
using Acc = typename AccOf<S>::type;

// f(S{}) with S the scalar type of t, which the public functions have checked.
template <class F>
void with_stats(const Tensor& t, F f) {
  if (t.dtype() == DType::f64) {
    f(double{});
  } else {
    f(float{});
  }
}
template <class F>
void with_scalar(const Tensor& t, F f) {
  if (t.dtype() == DType::bf16) {
    f(Bf16{});
  } else {
    with_stats(t, f);
  }
}

template <class A>
A* address_or_null(const Tensor& t) {
  return t.raw() == nullptr ? nullptr : t.address<A>();
}

// The memory of a device with the streams that its work and copies queue in.
class Place : public tensor::Memory {
 public:
  [[nodiscard]] virtual Stream stream() const = 0;  // of the calling thread's lane
};

class Backend final : public Kernels {
 public:
  // library: null, or asked before this backend's own products and attention.
  explicit Backend(const std::shared_ptr<Place>& place, std::unique_ptr<LibraryOps> library = nullptr)
      : Kernels(place),
        place_(*place),
        stream_(place->stream()),
        shared_(place, Bytes(64), tensor::Reach::shared),
        workspace_(place, Bytes(kWorkspace), tensor::Reach::own),
        library_(std::move(library)) {}
  [[nodiscard]] Bytes workspace_bytes() const override { return workspace_.size(); }
  [[nodiscard]] bool takes_bf16() const override { return true; }
  // The bf16 copy of a weight of f32.
  [[nodiscard]] Bytes packed_bytes(DType dtype, std::int64_t n, std::int64_t k) const override {
    return dtype == DType::bf16 ? Bytes(n * k * size_of(dtype)) : Bytes(0);
  }

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
  void do_sort_choices(Tensor pos, Tensor token, Tensor begin, Tensor index) override;
  void do_count_choices(Tensor counts, Tensor index, Tensor unit) override;
  void do_scale_counts(Tensor a, Tensor share, double scale) override;
  void do_router_stats(Tensor sums, Tensor counts, const RoutedTokens& tokens,
                       const RouterStatsOptions& options) override;
  void do_balance_value(Tensor value, Tensor probs, Tensor aux, Tensor unit, RouterScore score) override;
  void do_experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin) override;
  void do_experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin) override;
  void do_experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin) override;
  void do_experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin) override;
  void do_experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin) override;
  void do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) override;
  void do_add(Tensor y, Tensor a, Tensor b) override;
  void do_accumulate(Tensor y, Tensor x) override;
  void do_fill(Tensor y, double value) override;
  double do_sum(Tensor x) override;
  double do_sum_squares(Tensor x) override;
  void do_sum_to(Tensor to, Tensor x, double scale, Write write) override;
  void do_sum_squares_to(Tensor to, Tensor x, Write write) override;
  void do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& options) override;

 private:
  // What kernels of one operation leave to each other.
  static constexpr std::int64_t kWorkspace = std::int64_t{4} << 20U;
  template <class T>
  [[nodiscard]] T* work() const {
    return reinterpret_cast<T*>(workspace_.data());
  }

  void launch_sum(double* to, const Tensor& x, bool squares, double scale, Write write);
  // Beside a library, which is made for many rows. seen: the weight as the activations read it. False: there
  // are more.
  static constexpr std::int64_t kFewRows = 8;
  bool linear_of_few_rows(const Tensor& y, const Tensor& x, const Tensor& seen);
  // False: the library does not take it.
  bool library_attention(const Tensor& out, const Tensor& lse, const Tensor& qkv, const Tensor& sinks,
                         const AttentionShape& shape);
  bool library_attention_backward(const Tensor& dqkv, const Tensor& dsinks, const Tensor& dout,
                                  const Tensor& qkv, const Tensor& out, const Tensor& lse,
                                  const Tensor& sinks, const AttentionShape& shape);
  // RMSNorm has no mean and no bias: empty.
  struct NormStats {
    Tensor mean, rstd;
  };
  void norm(const Tensor& y, const NormStats& stats, const Tensor& x, const Tensor& w, const Tensor& b,
            double eps);
  void norm_apply(const Tensor& y, const NormStats& stats, const Tensor& x, const Tensor& w, const Tensor& b);
  void norm_dgrad(const Tensor& dx, const Tensor& dy, const Tensor& x, const NormStats& stats,
                  const Tensor& w, Write write);
  void norm_wgrad(const Tensor& dw, const Tensor& db, const Tensor& dy, const Tensor& x,
                  const NormStats& stats);
  // What a kernel wrote there, once it is done.
  [[nodiscard]] double* result() const { return reinterpret_cast<double*>(shared_.data()); }
  [[nodiscard]] double wait_for_result() const {
    memory()->synchronise();
    return *result();
  }

  Place& place_;  // which Kernels keeps
  Stream stream_;
  tensor::Buffer shared_, workspace_;
  std::unique_ptr<LibraryOps> library_;
};

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
