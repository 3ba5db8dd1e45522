// In place of the CUDA sources where the build has no CUDA toolkit.
#include "kernels/cuda/cuda_kernels.h"

namespace tessera::kernels {
namespace {

constexpr const char* kMend =
    "install the CUDA toolkit (nvcc), configure again and read what CMake says of it";

}  // namespace

DeviceList cuda_devices() {
  return {.count = 0, .names = {}, .why_none = "this build has no CUDA"};
}

std::unique_ptr<Kernels> make_cuda(std::int32_t, const MakeLibraryOps&) {
  throw Error(ErrorKind::unsupported, "this build has no CUDA", "CUDA", kMend);
}

void* allocate_mapped(std::size_t) {
  throw Error(ErrorKind::unsupported, "this build has no CUDA", "CUDA", kMend);
}

void free_mapped(void*) {}

}  // namespace tessera::kernels
