// Memory of one rank. Buffer owns pages that are touched once at start; Arena hands out tensors from a Buffer
// in order.
//
// The same set-up code runs twice: over a counting arena (no memory, null tensors) to learn the size, then
// over a real one. After set-up only Scratch frames move, so a steady step neither allocates nor faults a
// page. Not thread safe.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace tessera::tensor {

inline constexpr std::int64_t kAlignment = 64;  // of every tensor: one cache line, one AVX-512 register

// Zeroed, 64-byte aligned, pages touched. Throws Error{io} when the system has no memory left.
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(Bytes size);
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer();
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] Bytes size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  Bytes size_;
  Bytes mapped_;
};

class Arena {
 public:
  Arena() = default;               // counting: tensors have null data
  explicit Arena(Bytes capacity);  // real

  // A tensor of `shape`, aligned. Error{internal} when a real arena is too small: the plan was wrong.
  [[nodiscard]] Tensor take(DType dtype, Shape shape);

  [[nodiscard]] bool counting() const { return buffer_.data() == nullptr; }
  [[nodiscard]] Bytes used() const { return Bytes(used_); }
  [[nodiscard]] Bytes peak() const { return Bytes(peak_); }

  // Stack discipline: release(mark()) gives back what was taken in between.
  [[nodiscard]] std::int64_t mark() const { return used_; }
  void release(std::int64_t mark);

 private:
  Buffer buffer_;
  std::int64_t used_ = 0;
  std::int64_t peak_ = 0;
};

// Gives back on scope exit what was taken from the arena inside the scope.
class Frame {
 public:
  explicit Frame(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~Frame() { arena_.release(mark_); }
  Frame(const Frame&) = delete;
  Frame& operator=(const Frame&) = delete;

 private:
  Arena& arena_;
  std::int64_t mark_;
};

}  // namespace tessera::tensor
