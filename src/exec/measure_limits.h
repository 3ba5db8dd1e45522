// What a rank's kernels and memory reach at their best: the limits beside which a profile stands.
#pragma once
#include <cstdint>

#include "base/quantity.h"
#include "kernels/kernels.h"

namespace tessera::exec {

struct DeviceLimits {
  BytesPerSecond copy;     // bytes read and written, between buffers larger than any cache
  FlopsPerSecond product;  // of a forward product with three equal sides
  std::int64_t side = 0;   // the first of 64, 128, ... 8192 whose product takes a millisecond
  Seconds launch;          // from one small call to the next, queued behind each other
};
// Of one rank alone, in a second or two. Values are spread over [-1, 1): zeros would be faster on a GPU.
[[nodiscard]] DeviceLimits measure_limits(kernels::Kernels& kernels, tensor::DType activations);

}  // namespace tessera::exec
