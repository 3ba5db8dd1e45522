// A device for tests of what moves tensors there and back: memory that the host refuses to touch through a
// Tensor, and work that is done in lanes (support/lanes.h).
#pragma once
#include <memory>
#include <utility>
#include <vector>

#include "support/lanes.h"
#include "support/tensors.h"
#include "tensor/memory.h"

namespace tessera::test {

class FakeDevice final : public emulation::LaneMemory<tensor::Memory> {
 public:
  explicit FakeDevice(emulation::Pace pace = emulation::Pace::late)
      : LaneMemory(tensor::Device::cuda, pace) {}
};

// A tensor in a device's memory.
class OnDevice {
 public:
  OnDevice(std::shared_ptr<tensor::Memory> memory, tensor::DType dtype, const tensor::Shape& shape)
      : memory_(std::move(memory)),
        buffer_(memory_, tensor::Tensor(nullptr, dtype, shape).bytes(), tensor::Reach::own),
        tensor_(buffer_.data(), dtype, shape, memory_->device()) {}
  OnDevice(std::shared_ptr<tensor::Memory> memory, const tensor::Tensor& values)
      : OnDevice(std::move(memory), values.dtype(), values.shape()) {
    memory_->copy(tensor_, values);
    memory_->synchronise();
  }
  operator tensor::Tensor() const { return tensor_; }  // NOLINT: tests read better
  [[nodiscard]] std::vector<double> values() const {
    std::vector<double> out;
    on_host(*memory_, tensor_, tensor::Access::read, [&](const tensor::Tensor& h) { out = test::values(h); });
    return out;
  }

 private:
  std::shared_ptr<tensor::Memory> memory_;
  tensor::Buffer buffer_;
  tensor::Tensor tensor_;
};

}  // namespace tessera::test
