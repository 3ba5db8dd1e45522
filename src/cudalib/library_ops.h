// The products of linear layers by cuBLASLt and attention by cuDNN, for the CUDA backend.
//
//   std::unique_ptr<kernels::Kernels> k = cudalib::make_gpu_kernels(0);
//
// NOT EXECUTED YET: no GPU was at hand. Which calls come here, and which stay with the backend's own kernels,
// is tested with a library in their place; the layouts and plans by tests of this room.
//
// Order of sums: a library chooses it by the shape, so the split of rows over ranks changes last bits; on one
// layout they are the same in every run (the first algorithm of cuBLASLt's heuristics, sums of dq in a fixed
// order).
#pragma once
#include <cstdint>
#include <memory>

#include "cudalib/attention_graph.h"
#include "cudalib/gemm.h"
#include "kernels/cuda/library_ops.h"

namespace tessera::cudalib {

struct LibraryOptions {
  GemmChoice gemm = GemmChoice::first;
  DqSum dq_sum = DqSum::fixed_order;
  Bytes attention_workspace{std::int64_t{1} << 30};  // of fixed_order; a larger batch goes in parts
};

// What the libraries take, by shape and types alone.
[[nodiscard]] bool takes_product(const GemmShape& shape);
[[nodiscard]] bool takes_attention(const kernels::AttentionShape& shape, tensor::DType dtype);

// The CUDA backend on one GPU with the libraries, or without them where this build has none.
// Error{unsupported} where there is no such GPU.
[[nodiscard]] std::unique_ptr<kernels::Kernels> make_gpu_kernels(std::int32_t device,
                                                                 const LibraryOptions& options = {});

}  // namespace tessera::cudalib
