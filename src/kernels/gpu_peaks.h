// Published peaks of GPUs, dense, without sparsity: what a share of the peak is taken of. NVIDIA's data
// sheets of A100 (2020), H100 and H200 (2023). bf16 on tensor cores with f32 sums; f32 and f64 on the CUDA
// cores, where this backend's kernels of those types run.
#pragma once
#include <optional>
#include <string_view>

#include "base/quantity.h"
#include "tensor/tensor.h"

namespace tessera::kernels {

// device: the name that its driver gives. None of a GPU that is not listed.
[[nodiscard]] std::optional<FlopsPerSecond> published_peak(std::string_view device, tensor::DType dtype);

}  // namespace tessera::kernels
