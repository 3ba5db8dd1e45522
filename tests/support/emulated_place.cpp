#include "support/emulated_place.h"

#include <cstring>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::emulated {
namespace {

// On tensors of the host a launch is done when it returns; a memory of its own has a queue.
class HostPlace final : public Place {
 public:
  explicit HostPlace(tensor::Device device, std::atomic<std::int64_t>* waits = nullptr)
      : device_(device), waits_(waits) {}
  ~HostPlace() override { queue_.finish(); }
  HostPlace(const HostPlace&) = delete;
  HostPlace& operator=(const HostPlace&) = delete;
  [[nodiscard]] tensor::Device device() const override { return device_; }
  [[nodiscard]] Stream stream() const override { return device_ == tensor::Device::cpu ? nullptr : &queue_; }
  [[nodiscard]] void* allocate(Bytes size, tensor::Reach reach) override {
    return host_->allocate(size, reach);
  }
  void release(void* memory, Bytes size, tensor::Reach reach) noexcept override {
    queue_.finish();  // as cudaFree does
    host_->release(memory, size, reach);
  }
  void synchronise() override {
    if (waits_ != nullptr) ++*waits_;
    queue_.finish();
  }

 private:
  void do_copy(void* to, const void* from, Bytes size) override {
    emulation::run_on(stream(), [=] { std::memmove(to, from, static_cast<std::size_t>(size.value)); });
  }
  void do_clear(void* at, Bytes size) override {
    emulation::run_on(stream(), [=] { std::memset(at, 0, static_cast<std::size_t>(size.value)); });
  }

  tensor::Device device_;
  std::atomic<std::int64_t>* waits_;
  mutable emulation::Queue queue_;
  std::shared_ptr<tensor::Memory> host_ = tensor::make_host_memory();
};

}  // namespace

std::unique_ptr<Kernels> make() {
  return std::make_unique<Backend>(std::make_shared<HostPlace>(tensor::Device::cpu));
}

std::unique_ptr<Kernels> make_with(std::unique_ptr<LibraryOps> library) {
  return std::make_unique<Backend>(std::make_shared<HostPlace>(tensor::Device::cpu), std::move(library));
}

std::unique_ptr<Kernels> make_device() {
  return std::make_unique<Backend>(std::make_shared<HostPlace>(tensor::Device::cuda));
}

std::unique_ptr<Kernels> make_counting_device(std::atomic<std::int64_t>& waits) {
  return std::make_unique<Backend>(std::make_shared<HostPlace>(tensor::Device::cuda, &waits));
}

}  // namespace tessera::kernels::emulated
