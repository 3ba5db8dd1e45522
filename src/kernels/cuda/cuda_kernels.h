// The GPU backend: every operation of Kernels on one stream of one device. Memory of all tensors must be
// readable by the device. Calls return when the work is queued; sum and sum_squares wait for their result.
// The numbers of f32 and f64; sums in the order of the reference up to the blocks of a reduction tree, the
// same in every run.
//
//   if (const DeviceList list = cuda_devices(); list.count > 0) auto kernels = make_cuda(0);
#pragma once
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/cuda/library_ops.h"
#include "kernels/kernels.h"

namespace tessera::kernels {

struct DeviceList {
  std::int32_t count = 0;
  std::vector<std::string> names;  // [count] as the driver says: "NVIDIA H100 80GB HBM3"
  std::string why_none;            // of count 0: "this build has no CUDA", "no driver", ...
};
[[nodiscard]] DeviceList cuda_devices();

// Error{unsupported} naming the reason where there is no such device. Calls of one object come from one
// thread.
[[nodiscard]] std::unique_ptr<Kernels> make_cuda(std::int32_t device, const MakeLibraryOps& library = {});

// Memory that host and device both address, across the bus: for tests, not for training. Error{io} when there
// is none.
[[nodiscard]] void* allocate_mapped(std::size_t bytes);
void free_mapped(void* memory);

}  // namespace tessera::kernels
