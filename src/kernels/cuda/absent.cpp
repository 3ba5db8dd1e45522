// In place of the CUDA sources where the build has no CUDA toolkit.
#include "kernels/cuda/cuda_kernels.h"

namespace tessera::kernels {

DeviceList cuda_devices() {
  return {.count = 0, .why_none = "this build has no CUDA"};
}

std::unique_ptr<Kernels> make_cuda(std::int32_t) {
  throw Error(ErrorKind::unsupported, "this build has no CUDA", "CUDA",
              "install the CUDA toolkit (nvcc), configure again and read what CMake says about CUDA");
}

}  // namespace tessera::kernels
