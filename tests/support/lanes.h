// The lanes of a device that is none (tensor/memory.h): queues of the calling threads' lanes, and events
// between them.
//
// late: nothing is done before somebody waits for it, and then no more than that needs, so whoever forgets to
// wait, or to make one lane wait for another, reads what was there before. beside: a thread of the device
// does it meanwhile, taking lanes in an order nobody knows; needed where ranks wait for each other's devices.
#pragma once
#include <cstdint>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "support/queue.h"
#include "tensor/memory.h"

namespace tessera::emulation {

enum class Pace : std::uint8_t { late, beside };

class Lanes {
 public:
  explicit Lanes(Pace pace);
  ~Lanes();
  Lanes(const Lanes&) = delete;
  Lanes& operator=(const Lanes&) = delete;

  [[nodiscard]] Queue& at(std::int32_t lane);
  // Until it is empty. check: as Memory has it. Error{internal} when nothing moves for half a minute.
  void finish(std::int32_t lane, const tensor::Memory::Check& check = {});
  void finish_all();
  // Of the lanes that threads are in, of this memory.
  [[nodiscard]] std::unique_ptr<tensor::Event> make_event(const tensor::Memory& memory);
  [[nodiscard]] std::unique_ptr<tensor::Mark> make_mark(const tensor::Memory& memory);

 private:
  void loop(const std::stop_token& stop);
  bool step_others(const Queue& mine);
  std::vector<Queue*> all();

  Pace pace_;
  std::mutex mutex_;  // of queues_ and error_
  std::map<std::int32_t, Queue> queues_;
  std::exception_ptr error_;
  std::jthread thread_;  // of `beside`. Last: it uses all of the above
};

// Memory of the host behind lanes. Base: tensor::Memory, or what has more to it. device: cpu does all at
// once.
template <class Base>
class LaneMemory : public Base {
 public:
  LaneMemory(tensor::Device device, Pace pace) : device_(device), lanes_(pace) {}
  ~LaneMemory() override {
    lanes_.finish_all();
    for (const Left& left : left_) host_->release(left.memory, left.size, tensor::Reach::own);
  }
  [[nodiscard]] tensor::Device device() const override { return device_; }
  [[nodiscard]] void* allocate(Bytes size, tensor::Reach reach) override {
    return host_->allocate(size, reach);
  }
  // As cudaFree waits; not where an error unwinds the caller, and what is queued may never end.
  void release(void* memory, Bytes size, tensor::Reach reach) noexcept override {
    if (std::uncaught_exceptions() > 0) {
      const std::lock_guard lock(mutex_);
      left_.push_back({memory, size});
      return;
    }
    lanes_.finish_all();
    host_->release(memory, size, reach);
  }
  void synchronise() override { lanes_.finish(this->lane(), this->check()); }
  [[nodiscard]] std::unique_ptr<tensor::Event> make_event() override { return lanes_.make_event(*this); }
  [[nodiscard]] std::unique_ptr<tensor::Mark> make_mark() override {
    return device_ == tensor::Device::cpu ? Base::make_mark() : lanes_.make_mark(*this);
  }
  [[nodiscard]] void* queue() override { return lane_queue(); }
  [[nodiscard]] bool idle() { return lanes_.at(this->lane()).empty(); }

 protected:
  [[nodiscard]] Queue* lane_queue() const {
    return device_ == tensor::Device::cpu ? nullptr : &lanes_.at(this->lane());
  }

 private:
  struct Left {
    void* memory;
    Bytes size;
  };
  void do_copy(void* to, const void* from, Bytes size) override {
    run_on(lane_queue(), [=] { std::memmove(to, from, static_cast<std::size_t>(size.value)); });
  }
  void do_clear(void* at, Bytes size) override {
    run_on(lane_queue(), [=] { std::memset(at, 0, static_cast<std::size_t>(size.value)); });
  }

  std::shared_ptr<tensor::Memory> host_ = tensor::make_host_memory();
  tensor::Device device_;
  std::mutex mutex_;  // of left_
  std::vector<Left> left_;
  mutable Lanes lanes_;
};

}  // namespace tessera::emulation
