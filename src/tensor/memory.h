// Memory: where tensors lie, and how bytes get there and back. One object for each device that a rank
// computes on; its copies take their place in the order of the work that the rank's kernels queue there.
//
// Two reaches. own: the device's memory (of a GPU: the host cannot address it). shared: host and device both
// read and write it; the host must call synchronise() before it touches what queued work still reads or
// writes. On a CPU the two are the same, and nothing is ever queued.
//
//   const std::shared_ptr<Memory> memory = kernels.memory();
//   memory->copy(to, from);                                       // either may lie on the host
//   on_host(*memory, weights, Access::write, [&](Tensor w) { ... w.as<float>() ... });
// Thread safe.
#pragma once
#include <cstdint>
#include <memory>

#include "tensor/tensor.h"

namespace tessera::tensor {

inline constexpr std::int64_t kAlignment = 64;  // of every tensor: one cache line, one AVX-512 register

enum class Reach : std::uint8_t { own, shared };

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
  // Until all work queued so far is done.
  virtual void synchronise() = 0;

 private:
  virtual void do_copy(void* to, const void* from, Bytes size) = 0;
  virtual void do_clear(void* at, Bytes size) = 0;
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
