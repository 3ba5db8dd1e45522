// The devices of this machine, and the backend on one of them.
#include <string>

#include "base/text.h"
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
  explicit DevicePlace(std::int32_t device) : device_(device) {
    use_device();
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  DevicePlace(const DevicePlace&) = delete;
  DevicePlace& operator=(const DevicePlace&) = delete;
  ~DevicePlace() override {
    cudaSetDevice(device_);
    cudaStreamDestroy(stream_);
  }
  [[nodiscard]] tensor::Device device() const override { return tensor::Device::cuda; }
  [[nodiscard]] Stream stream() const override { return stream_; }

  [[nodiscard]] void* allocate(Bytes size, tensor::Reach reach) override {
    use_device();
    const auto n = static_cast<std::size_t>(size.value);
    void* memory = nullptr;
    const cudaError_t code = reach == tensor::Reach::own
                                 ? cudaMalloc(&memory, n)
                                 : cudaHostAlloc(&memory, n, cudaHostAllocMapped | cudaHostAllocPortable);
    if (code == cudaErrorMemoryAllocation) throw no_memory(size, reach);
    check(code, "cudaMalloc");
    do_clear(memory, size);
    synchronise();
    return memory;
  }
  void release(void* memory, Bytes /*size*/, tensor::Reach reach) noexcept override {
    cudaSetDevice(device_);
    if (reach == tensor::Reach::own) {
      cudaFree(memory);
    } else {
      cudaFreeHost(memory);
    }
  }
  void synchronise() override {
    use_device();
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

 private:
  // The runtime keeps the device for each thread, and helper threads copy too.
  void use_device() const { check(cudaSetDevice(device_), "cudaSetDevice"); }

  [[nodiscard]] Error no_memory(Bytes size, tensor::Reach reach) const {
    std::size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    return {ErrorKind::io,
            reach == tensor::Reach::own
                ? "cannot reserve " + human(size) + " on GPU " + std::to_string(device_) + ": " +
                      human(Bytes(static_cast<std::int64_t>(free))) + " of " +
                      human(Bytes(static_cast<std::int64_t>(total))) + " are free"
                : "cannot reserve " + human(size) + " of pinned memory",
            "GPU memory",
            "use a smaller model or micro-batch, more recomputation or more GPUs; nvidia-smi shows who else "
            "uses it"};
  }

  void do_copy(void* to, const void* from, Bytes size) override {
    use_device();
    check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(size.value), cudaMemcpyDefault, stream_),
          "cudaMemcpyAsync");
  }
  void do_clear(void* at, Bytes size) override {
    use_device();
    check(cudaMemsetAsync(at, 0, static_cast<std::size_t>(size.value), stream_), "cudaMemsetAsync");
  }

  std::int32_t device_;
  Stream stream_ = nullptr;
};

}  // namespace
}  // namespace cuda

DeviceList cuda_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) return {.count = 0, .names = {}, .why_none = cudaGetErrorString(code)};
  DeviceList list{.count = count, .names = {}, .why_none = count == 0 ? "no CUDA device" : ""};
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    cuda::check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    list.names.emplace_back(properties.name);
  }
  return list;
}

std::unique_ptr<Kernels> make_cuda(std::int32_t device, const MakeLibraryOps& library) {
  const DeviceList list = cuda_devices();
  if (device < 0 || device >= list.count) {
    throw Error(ErrorKind::unsupported,
                "CUDA device " + std::to_string(device) +
                    (list.count == 0 ? ": " + list.why_none : " of " + std::to_string(list.count)),
                "CUDA", "run on a machine with an NVIDIA GPU and its driver, or leave the GPU out");
  }
  const auto place = std::make_shared<cuda::DevicePlace>(device);
  return std::make_unique<cuda::Backend>(place, library ? library(place->stream(), place) : nullptr);
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
