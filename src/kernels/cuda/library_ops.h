// Operations that a library of the vendor does on tensor cores, for a backend that asks it first and falls
// back on its own kernels (cudalib/library_ops.h is the one there is).
#pragma once
#include <functional>
#include <memory>

#include "kernels/kernels.h"
#include "tensor/memory.h"

namespace tessera::kernels {

// Each call queues the operation of the same name in kernels.h and gives true, or does nothing and gives
// false: not one of its cases. Weights are [N, K] as the activations read them (bf16 beside bf16). One thread
// at a time.
class LibraryOps {
 public:
  virtual ~LibraryOps() = default;
  virtual bool linear(const Tensor& y, const Tensor& x, const Tensor& w_NK) = 0;
  virtual bool linear_dgrad(const Tensor& dx, const Tensor& dy, const Tensor& w_NK, Write write) = 0;
  virtual bool linear_wgrad(const Tensor& dw, const Tensor& dy, const Tensor& x) = 0;  // +=
  // Without sinks, which the backend adds: backward gets out and lse with them. lse stands as [batch, heads,
  // seq]. Who takes a shape forward takes it backward.
  virtual bool attention(const Tensor& out, const Tensor& lse, const Tensor& qkv,
                         const AttentionShape& shape) = 0;
  virtual bool attention_backward(const Tensor& dqkv, const Tensor& dout, const Tensor& qkv,
                                  const Tensor& out, const Tensor& lse, const AttentionShape& shape) = 0;
};

// stream: a cudaStream_t of the device, which is current on the calling thread. memory: its own.
using MakeLibraryOps =
    std::function<std::unique_ptr<LibraryOps>(void* stream, const std::shared_ptr<tensor::Memory>& memory)>;

}  // namespace tessera::kernels
