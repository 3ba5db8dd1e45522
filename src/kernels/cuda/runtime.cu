// The devices of this machine, and the backend on one of them.
#include <string>

#include "kernels/cuda/backend.h"
#include "kernels/cuda/cuda_kernels.h"

namespace tessera::kernels {
namespace cuda {

void check(cudaError_t code, std::string_view call) {
  if (code == cudaSuccess) return;
  throw Error(
      ErrorKind::io, std::string(call) + ": " + cudaGetErrorString(code), "CUDA",
      "nvidia-smi shows the state of the device; with CUDA_LAUNCH_BLOCKING=1 the call that failed is named");
}

namespace {

class DevicePlace final : public Place {
 public:
  explicit DevicePlace(std::int32_t device) {
    check(cudaSetDevice(device), "cudaSetDevice");
    check(cudaHostAlloc(reinterpret_cast<void**>(&result_), sizeof(double), cudaHostAllocMapped),
          "cudaHostAlloc");
    const cudaError_t code = cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking);
    if (code != cudaSuccess) cudaFreeHost(result_);
    check(code, "cudaStreamCreate");
  }
  DevicePlace(const DevicePlace&) = delete;
  DevicePlace& operator=(const DevicePlace&) = delete;
  ~DevicePlace() override {
    cudaStreamDestroy(stream_);
    cudaFreeHost(result_);
  }
  [[nodiscard]] Stream stream() const override { return stream_; }
  [[nodiscard]] double* result() const override { return result_; }
  void synchronise() override { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  Stream stream_ = nullptr;
  double* result_ = nullptr;
};

}  // namespace
}  // namespace cuda

DeviceList cuda_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) return {.count = 0, .why_none = cudaGetErrorString(code)};
  return {.count = count, .why_none = count == 0 ? "no CUDA device" : ""};
}

std::unique_ptr<Kernels> make_cuda(std::int32_t device) {
  const DeviceList list = cuda_devices();
  if (device < 0 || device >= list.count) {
    throw Error(ErrorKind::unsupported,
                "CUDA device " + std::to_string(device) +
                    (list.count == 0 ? ": " + list.why_none : " of " + std::to_string(list.count)),
                "CUDA", "run on a machine with an NVIDIA GPU and its driver, or leave the GPU out");
  }
  return std::make_unique<cuda::Backend>(std::make_unique<cuda::DevicePlace>(device));
}

void* allocate_mapped(std::size_t bytes) {
  void* memory = nullptr;
  cuda::check(cudaHostAlloc(&memory, bytes, cudaHostAllocMapped), "cudaHostAlloc");
  return memory;
}

void free_mapped(void* memory) {
  cudaFreeHost(memory);
}

}  // namespace tessera::kernels
