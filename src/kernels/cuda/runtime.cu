// The devices of this machine, and the backend on one of them.
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
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

class DevicePlace;

class DeviceEvent final : public tensor::Event {
 public:
  explicit DeviceEvent(const DevicePlace& place);
  DeviceEvent(const DeviceEvent&) = delete;
  DeviceEvent& operator=(const DeviceEvent&) = delete;
  ~DeviceEvent() override { cudaEventDestroy(event_); }
  void record() override;
  void wait() override;
  [[nodiscard]] bool done() override;

 private:
  const DevicePlace& place_;
  cudaEvent_t event_ = nullptr;
};

class DeviceMark final : public tensor::Mark {
 public:
  explicit DeviceMark(const DevicePlace& place);
  DeviceMark(const DeviceMark&) = delete;
  DeviceMark& operator=(const DeviceMark&) = delete;
  ~DeviceMark() override { cudaEventDestroy(event_); }
  void record() override;
  [[nodiscard]] std::int64_t ns_since(const tensor::Mark& start) const override;

 private:
  const DevicePlace& place_;
  cudaEvent_t event_ = nullptr;
};

class DevicePlace final : public Place {
 public:
  explicit DevicePlace(std::int32_t device) : device_(device) { (void)stream(); }
  DevicePlace(const DevicePlace&) = delete;
  DevicePlace& operator=(const DevicePlace&) = delete;
  ~DevicePlace() override {
    for (const auto& [memory, reach] : left_) free(memory, reach);
    for (const Stream stream : streams_) {
      if (stream != nullptr) cudaStreamDestroy(stream);
    }
  }
  [[nodiscard]] tensor::Device device() const override { return tensor::Device::cuda; }
  // Made when a thread is in the lane for the first time. What moves data goes before what computes.
  [[nodiscard]] Stream stream() const override {
    const auto at = static_cast<std::size_t>(lane());
    const std::lock_guard lock(mutex_);
    if (at >= streams_.size()) streams_.resize(at + 1);
    Stream& stream = streams_[at];
    if (stream != nullptr) return stream;
    use_device();
    int lowest = 0, highest = 0;
    cuda::check(cudaDeviceGetStreamPriorityRange(&lowest, &highest), "cudaDeviceGetStreamPriorityRange");
    cuda::check(cudaStreamCreateWithPriority(&stream, cudaStreamNonBlocking, at == 0 ? lowest : highest),
                "cudaStreamCreateWithPriority");
    return stream;
  }
  [[nodiscard]] void* queue() override { return stream(); }
  void use_here() override { use_device(); }
  [[nodiscard]] std::unique_ptr<tensor::Event> make_event() override {
    return std::make_unique<DeviceEvent>(*this);
  }
  [[nodiscard]] std::unique_ptr<tensor::Mark> make_mark() override {
    return std::make_unique<DeviceMark>(*this);
  }

  [[nodiscard]] void* allocate(Bytes size, tensor::Reach reach) override {
    use_device();
    const auto n = static_cast<std::size_t>(size.value);
    void* memory = nullptr;
    const cudaError_t code = reach == tensor::Reach::own
                                 ? cudaMalloc(&memory, n)
                                 : cudaHostAlloc(&memory, n, cudaHostAllocMapped | cudaHostAllocPortable);
    if (code == cudaErrorMemoryAllocation) throw no_memory(size, reach);
    cuda::check(code, "cudaMalloc");
    do_clear(memory, size);
    synchronise();
    return memory;
  }
  // Freeing waits for the device, which waits for ever where an error unwinds this rank among collectives:
  // then the memory goes when the place does, behind them.
  void release(void* memory, Bytes /*size*/, tensor::Reach reach) noexcept override {
    if (std::uncaught_exceptions() == 0) return free(memory, reach);
    const std::lock_guard lock(mutex_);
    left_.emplace_back(memory, reach);
  }
  void synchronise() override {
    use_device();
    if (!Memory::check()) return cuda::check(cudaStreamSynchronize(stream()), "cudaStreamSynchronize");
    // A stream that waits for a peer that is gone would never end.
    const std::int64_t start = wall_ns();
    for (std::int64_t asked = start;;) {
      const cudaError_t code = cudaStreamQuery(stream());
      if (code != cudaErrorNotReady) return cuda::check(code, "cudaStreamQuery");
      const std::int64_t now = wall_ns();
      if (now - asked > kAskAfterNs) {
        asked = now;
        Memory::check()(now - start);
      }
      std::this_thread::yield();
    }
  }
  // The runtime keeps the device for each thread, and helper threads copy too.
  void use_device() const { cuda::check(cudaSetDevice(device_), "cudaSetDevice"); }

 private:
  static constexpr std::int64_t kAskAfterNs = 10'000'000;

  void free(void* memory, tensor::Reach reach) const {
    cudaSetDevice(device_);
    if (reach == tensor::Reach::own) {
      cudaFree(memory);
    } else {
      cudaFreeHost(memory);
    }
  }

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
    cuda::check(cudaMemcpyAsync(to, from, static_cast<std::size_t>(size.value), cudaMemcpyDefault, stream()),
                "cudaMemcpyAsync");
  }
  void do_clear(void* at, Bytes size) override {
    use_device();
    cuda::check(cudaMemsetAsync(at, 0, static_cast<std::size_t>(size.value), stream()), "cudaMemsetAsync");
  }

  std::int32_t device_;
  mutable std::mutex mutex_;
  mutable std::vector<Stream> streams_;  // [lane]
  std::vector<std::pair<void*, tensor::Reach>> left_;
};

DeviceEvent::DeviceEvent(const DevicePlace& place) : place_(place) {
  place.use_device();
  check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreate");
}
void DeviceEvent::record() {
  place_.use_device();
  check(cudaEventRecord(event_, place_.stream()), "cudaEventRecord");
}
void DeviceEvent::wait() {
  place_.use_device();
  check(cudaStreamWaitEvent(place_.stream(), event_, 0), "cudaStreamWaitEvent");
}
bool DeviceEvent::done() {
  const cudaError_t code = cudaEventQuery(event_);
  if (code != cudaErrorNotReady) check(code, "cudaEventQuery");
  return code == cudaSuccess;
}

DeviceMark::DeviceMark(const DevicePlace& place) : place_(place) {
  place.use_device();
  check(cudaEventCreate(&event_), "cudaEventCreate");
}
void DeviceMark::record() {
  place_.use_device();
  check(cudaEventRecord(event_, place_.stream()), "cudaEventRecord");
}
std::int64_t DeviceMark::ns_since(const tensor::Mark& start) const {
  place_.use_device();
  check(cudaEventSynchronize(event_), "cudaEventSynchronize");
  float ms = 0.0F;
  check(cudaEventElapsedTime(&ms, dynamic_cast<const DeviceMark&>(start).event_, event_),
        "cudaEventElapsedTime");
  return static_cast<std::int64_t>(static_cast<double>(ms) * 1e6);
}

}  // namespace
}  // namespace cuda

namespace {
// The runtime calls a driver that is missing one that is too old.
std::string why_none(cudaError_t code) {
  const auto text = [](int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
  };
  int driver = 0, runtime = 0;
  if (code != cudaErrorInsufficientDriver || cudaDriverGetVersion(&driver) != cudaSuccess ||
      cudaRuntimeGetVersion(&runtime) != cudaSuccess)
    return cudaGetErrorString(code);
  if (driver == 0) return "no NVIDIA driver is installed";
  return "the NVIDIA driver knows CUDA " + text(driver) + ", this build needs " + text(runtime);
}
}  // namespace

DeviceList cuda_devices() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) return {.count = 0, .names = {}, .why_none = why_none(code)};
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
