#include "cudalib/library_ops.h"

#include <algorithm>
#include <array>
#include <bit>
#include <map>
#include <optional>
#include <utility>

#include "cudalib/device_properties.h"
#include "kernels/cuda/cuda_kernels.h"

namespace tessera::cudalib {

namespace {

using kernels::AttentionShape;
using kernels::Write;
using tensor::Buffer;
using tensor::DType;
using tensor::Tensor;

constexpr std::int64_t kAligned = 16;  // bytes that the fast kernels load at once
constexpr std::int64_t kLargestHead = 256;

bool aligned(const Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.raw()) % kAligned == 0;
}

class Libraries final : public kernels::LibraryOps {
 public:
  Libraries(void* stream, std::shared_ptr<tensor::Memory> memory, DeviceProperties device,
            const LibraryOptions& options)
      : options_(options),
        memory_(std::move(memory)),
        device_(std::move(device)),
        gemm_(stream, device_.name, options.gemm),
        cudnn_(stream),
        gemm_workspace_(memory_, Bytes(kGemmWorkspaceBytes), tensor::Reach::own) {}

  bool linear(const Tensor& y, const Tensor& x, const Tensor& w) override {
    return product({GemmPass::forward, x.dim(0), w.dim(0), w.dim(1), x.dtype(), y.dtype()}, x, w, y);
  }
  bool linear_dgrad(const Tensor& dx, const Tensor& dy, const Tensor& w, Write write) override {
    return product({GemmPass::input_gradient, dy.dim(0), w.dim(0), w.dim(1), dy.dtype(), dx.dtype(), write},
                   dx, w, dy);
  }
  bool linear_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) override {
    if (dy.dtype() != x.dtype()) return false;
    return product(
        {GemmPass::weight_gradient, x.dim(0), dw.dim(0), dw.dim(1), x.dtype(), dw.dtype(), Write::accumulate},
        x, dw, dy);
  }

  bool attention(const Tensor& out, const Tensor& lse, const Tensor& qkv,
                 const AttentionShape& shape) override {
    Plans* plans = plans_for(shape, qkv.dtype());
    if (plans == nullptr || !aligned(qkv) || !aligned(out)) return false;
    plans->forward.run(cudnn_, {.qkv = qkv.raw(), .out = out.raw(), .lse = lse.raw()}, scratch_.data());
    return true;
  }
  bool attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& qkv, const Tensor& out,
                          const Tensor& lse, const AttentionShape& shape) override {
    Plans* plans = plans_for(shape, qkv.dtype());
    if (plans == nullptr) return false;
    for (const Tensor& t : {dqkv, dout, qkv, out})
      TESSERA_CHECK(aligned(t), "what the library took forward it takes backward");
    plans->backward.run(
        cudnn_,
        {.qkv = qkv.raw(), .out = out.raw(), .lse = lse.raw(), .dout = dout.raw(), .dqkv = dqkv.raw()},
        scratch_.data());
    return true;
  }

 private:
  struct Plans {
    AttentionPlan forward, backward;
  };
  using Key = std::array<std::int64_t, 8>;

  // x and y: or their gradients, as GemmPointers has them.
  bool product(const GemmShape& shape, const Tensor& x, const Tensor& w, const Tensor& y) {
    if (!takes_product(shape) ||
        w.dtype() != (shape.pass == GemmPass::weight_gradient ? shape.out : shape.in))
      return false;
    if (!aligned(x) || !aligned(w) || !aligned(y)) return false;
    gemm_.run(shape, {.x = x.raw(), .w = w.raw(), .y = y.raw()}, gemm_workspace_.data());
    return true;
  }

  // Null: not a case of cuDNN.
  Plans* plans_for(const AttentionShape& s, DType dtype) {
    if (!takes_attention(s, dtype)) return nullptr;
    const Key key{s.batch,    s.seq,     s.heads,  s.kv_heads,
                  s.head_dim, s.v_dim(), s.window, std::bit_cast<std::int64_t>(s.scale)};
    const auto known = plans_.find(key);
    if (known != plans_.end()) return known->second ? &*known->second : nullptr;
    std::optional<Plans>& made = plans_[key];
    try {
      made.emplace(Plans{AttentionPlan::build(s, {.pass = AttentionPass::forward}, device_),
                         AttentionPlan::build(s,
                                              {.pass = AttentionPass::backward,
                                               .dq_sum = options_.dq_sum,
                                               .workspace_limit = options_.attention_workspace},
                                              device_)});
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::unsupported && e.kind() != ErrorKind::config) throw;
      return nullptr;  // cuDNN has no kernel: the backend's own does it
    }
    const Bytes need = std::max(made->forward.scratch(), made->backward.scratch());
    if (need > scratch_.size()) {
      memory_->synchronise();  // the old one may be in use
      scratch_ = Buffer(memory_, need, tensor::Reach::own);
    }
    return &*made;
  }

  LibraryOptions options_;
  std::shared_ptr<tensor::Memory> memory_;
  DeviceProperties device_;
  GemmEngine gemm_;
  CudnnHandle cudnn_;
  Buffer gemm_workspace_, scratch_;
  std::map<Key, std::optional<Plans>> plans_;
};

}  // namespace

bool takes_product(const GemmShape& s) {
  if (s.rows < 1 || s.outputs < 1 || s.inputs < 1) return false;
  if (s.in == DType::bf16) {
    const bool result = s.out == DType::f32 || (s.out == DType::bf16 && s.pass != GemmPass::weight_gradient);
    return result && s.outputs % 8 == 0 && s.inputs % 8 == 0;
  }
  return s.in == s.out && (s.in == DType::f32 || s.in == DType::f64);
}

bool takes_attention(const AttentionShape& s, DType dtype) {
  return dtype == DType::bf16 && s.batch > 0 && s.seq > 0 && s.head_dim % 8 == 0 && s.v_dim() % 8 == 0 &&
         s.head_dim <= kLargestHead && s.v_dim() <= kLargestHead;
}

std::unique_ptr<kernels::Kernels> make_gpu_kernels(std::int32_t device, const LibraryOptions& options) {
  if (!is_built_in()) return kernels::make_cuda(device);
  return kernels::make_cuda(device, [&](void* stream, const std::shared_ptr<tensor::Memory>& memory) {
    return std::make_unique<Libraries>(stream, memory, DeviceProperties::of_device(device), options);
  });
}

}  // namespace tessera::cudalib
