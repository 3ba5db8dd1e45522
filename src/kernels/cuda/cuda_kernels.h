// The GPU backend: every operation of Kernels on one stream of one device. Memory of all tensors must be
// readable by the device. Calls return when the work is queued; sum and sum_squares wait for their result.
// The numbers of f32 and f64; sums in the order of the reference up to the blocks of a reduction tree, the
// same in every run.
//
//   if (const DeviceList list = cuda_devices(); list.count > 0) auto kernels = make_cuda(0);
#pragma once
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/kernels.h"

namespace tessera::kernels {

struct DeviceList {
  std::int32_t count = 0;
  std::string why_none;  // of count 0: "this build has no CUDA", "no driver", ...
};
[[nodiscard]] DeviceList cuda_devices();

// Error{unsupported} naming the reason where there is no such device. Calls of one object come from one
// thread; synchronise() of the result of make_cuda waits for all of its work.
[[nodiscard]] std::unique_ptr<Kernels> make_cuda(std::int32_t device);

}  // namespace tessera::kernels
