#include "support/emulated_place.h"

#include "kernels/cuda/backend.h"
#include "support/lanes.h"

namespace tessera::kernels::emulated {
namespace {

// On tensors of the host a launch is done when it returns; a memory of its own has lanes.
class HostPlace final : public emulation::LaneMemory<Place> {
 public:
  explicit HostPlace(tensor::Device device, emulation::Pace pace = emulation::Pace::late,
                     std::atomic<std::int64_t>* waits = nullptr)
      : LaneMemory(device, pace), waits_(waits) {}
  [[nodiscard]] Stream stream() const override { return lane_queue(); }
  void synchronise() override {
    if (waits_ != nullptr) ++*waits_;
    LaneMemory::synchronise();
  }

 private:
  std::atomic<std::int64_t>* waits_;
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

std::unique_ptr<Kernels> make_device_beside() {
  return std::make_unique<Backend>(
      std::make_shared<HostPlace>(tensor::Device::cuda, emulation::Pace::beside));
}

std::unique_ptr<Kernels> make_counting_device(std::atomic<std::int64_t>& waits) {
  return std::make_unique<Backend>(
      std::make_shared<HostPlace>(tensor::Device::cuda, emulation::Pace::late, &waits));
}

}  // namespace tessera::kernels::emulated
