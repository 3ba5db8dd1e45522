// Memory: where tensors lie, and how bytes get there and back. One object for each device that a rank
// computes on; its copies take their place in the order of the work that the rank's kernels queue there.
//
// Two reaches. own: the device's memory (of a GPU: the host cannot address it). shared: host and device both
// read and write it; the host must call synchronise() before it touches what queued work still reads or
// writes. On a CPU the two are the same, and nothing is ever queued.
//
// Lanes: what is queued in one lane is done in order; lanes run beside each other, but for events. A thread
// queues in the lane it is in: 0 unless it says otherwise, so that a helper thread's copies and collectives
// do not stand in the way of what computes.
//
//   const std::shared_ptr<Memory> memory = kernels.memory();
//   memory->copy(to, from);                                       // either may lie on the host
//   on_host(*memory, weights, Access::write, [&](Tensor w) { ... w.as<float>() ... });
// Thread safe.
#pragma once
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "tensor/tensor.h"

namespace tessera::tensor {

inline constexpr std::int64_t kAlignment = 64;  // of every tensor: one cache line, one AVX-512 register

enum class Reach : std::uint8_t { own, shared };

// A point of a lane that others wait for. Recorded and waited for again and again; one that was never
// recorded is done.
class Event {
 public:
  virtual ~Event() = default;
  virtual void record() = 0;  // behind all that this thread's lane holds
  virtual void wait() = 0;    // this thread's lane goes on when what was recorded last is done
  [[nodiscard]] virtual bool done() = 0;
};

// A point of time of a lane, to measure what is queued between two of them without a wait for each.
class Mark {
 public:
  virtual ~Mark() = default;
  virtual void record() = 0;  // the time at which this thread's lane gets here
  // From the time that `start`, of the same memory, recorded last to the one that this did; waits until the
  // lane was there. A device's own clock; on a CPU that of the thread, so that other threads do not count.
  [[nodiscard]] virtual std::int64_t ns_since(const Mark& start) const = 0;
};

class Memory {
 public:
  virtual ~Memory() = default;
  [[nodiscard]] virtual Device device() const = 0;  // of tensors in its own memory

  // Zeroed, aligned to kAlignment at least, its pages touched. Error{io} when there is no memory left.
  [[nodiscard]] virtual void* allocate(Bytes size, Reach reach) = 0;
  virtual void release(void* memory, Bytes size, Reach reach) noexcept = 0;

  // Queues to = from, equal bytes; nothing where they are the same memory. Tensors on the host stay as they
  // are until synchronise(). Error{internal} when sizes differ.
  void copy(Tensor to, Tensor from);
  void clear(Tensor t);  // queues zero bytes
  // Until all work queued so far in this thread's lane is done.
  virtual void synchronise() = 0;

  // Before a thread other than the one that made the memory queues kernels in it: a GPU is chosen by thread.
  virtual void use_here() {}

  [[nodiscard]] std::int32_t new_lane() { return ++lanes_; }
  [[nodiscard]] std::int32_t lane() const;  // that the calling thread is in
  [[nodiscard]] virtual std::unique_ptr<Event> make_event();
  [[nodiscard]] virtual std::unique_ptr<Mark> make_mark();  // the memory outlives it
  // Of this thread's lane, for libraries: a cudaStream_t. Null: nothing is ever queued.
  [[nodiscard]] virtual void* queue() { return nullptr; }

  // Asked now and then while a thread waits in synchronise, with the time that it has waited: an error ends
  // the wait, which a peer that is gone would not. Empty: nobody is asked. Before threads wait.
  using Check = std::function<void(std::int64_t waited_ns)>;
  void set_check(Check check) { check_ = std::move(check); }

 protected:
  [[nodiscard]] const Check& check() const { return check_; }

 private:
  virtual void do_copy(void* to, const void* from, Bytes size) = 0;
  virtual void do_clear(void* at, Bytes size) = 0;

  friend class InLane;
  void enter(std::int32_t lane);  // 0: leave

  std::atomic<std::int32_t> lanes_{0};  // besides lane 0
  mutable std::mutex mutex_;            // of inside_
  std::vector<std::pair<std::thread::id, std::int32_t>> inside_;
  std::atomic<std::int32_t> num_inside_{0};  // so that it need not be asked where all are in lane 0
  Check check_;
};

// The calling thread's lane, for a while.
class InLane {
 public:
  InLane(Memory& memory, std::int32_t lane);
  ~InLane();
  InLane(const InLane&) = delete;
  InLane& operator=(const InLane&) = delete;

 private:
  Memory& memory_;
  std::int32_t before_;
};

[[nodiscard]] std::shared_ptr<Memory> make_host_memory();

// Owns a piece of memory.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Bytes size) : Buffer(make_host_memory(), size, Reach::own) {}
  Buffer(std::shared_ptr<Memory> memory, Bytes size, Reach reach);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] Bytes size() const { return size_; }

 private:
  std::shared_ptr<Memory> memory_;
  std::byte* data_ = nullptr;
  Bytes size_;
  Reach reach_ = Reach::own;
};

enum class Access : std::uint8_t { read, write, read_write };

// use(h) with h the values of t where the host can touch them: t itself, or a copy that goes back after a
// write. Waits for queued work. Not for steady steps: it may allocate.
template <class Use>
void on_host(Memory& memory, const Tensor& t, Access access, const Use& use) {
  if (t.device() == Device::cpu || t.empty()) {
    memory.synchronise();
    use(t);
    return;
  }
  const Buffer buffer(t.bytes());
  const Tensor here(buffer.data(), t.dtype(), t.shape());
  if (access != Access::write) memory.copy(here, t);
  memory.synchronise();
  use(here);
  if (access == Access::read) return;
  memory.copy(t, here);
  memory.synchronise();  // before `here` goes
}

}  // namespace tessera::tensor
