// A device for tests of what moves tensors there and back: memory that the host refuses to touch through a
// Tensor, and work that is done no sooner than somebody synchronises.
#pragma once
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "support/tensors.h"
#include "tensor/memory.h"

namespace tessera::test {

class FakeDevice final : public tensor::Memory {
 public:
  [[nodiscard]] tensor::Device device() const override { return tensor::Device::cuda; }
  [[nodiscard]] void* allocate(Bytes size, tensor::Reach reach) override {
    return host_->allocate(size, reach);
  }
  void release(void* memory, Bytes size, tensor::Reach reach) noexcept override {
    synchronise();
    host_->release(memory, size, reach);
  }
  void synchronise() override {
    const std::lock_guard lock(mutex_);
    for (; !queue_.empty(); queue_.pop_front()) queue_.front()();
  }
  [[nodiscard]] std::size_t queued() {
    const std::lock_guard lock(mutex_);
    return queue_.size();
  }

 private:
  void put(std::function<void()> work) {
    const std::lock_guard lock(mutex_);
    queue_.push_back(std::move(work));
  }
  void do_copy(void* to, const void* from, Bytes size) override {
    put([=] { std::memmove(to, from, static_cast<std::size_t>(size.value)); });
  }
  void do_clear(void* at, Bytes size) override {
    put([=] { std::memset(at, 0, static_cast<std::size_t>(size.value)); });
  }

  std::shared_ptr<tensor::Memory> host_ = tensor::make_host_memory();
  std::mutex mutex_;
  std::deque<std::function<void()>> queue_;
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
