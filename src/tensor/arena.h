// Memory of one rank, taken once: an Arena hands out tensors in order.
//
// The same set-up code runs twice: over a counting arena (no memory, null tensors) to learn the size, then
// over a real one. After set-up only Scratch frames move, so a steady step neither allocates nor faults a
// page. Not thread safe.
//
// On a GPU floating tensors lie in its own memory, integer ones (ids, positions, counts) where the host reads
// and writes them too; take_shared puts any tensor there, take with a Reach where that says.
#pragma once
#include <array>
#include <cstdint>
#include <memory>

#include "tensor/memory.h"
#include "tensor/tensor.h"

namespace tessera::tensor {

// What an arena must hold: at most `all` at a time, and of it in the device's own and in shared memory.
struct ArenaSize {
  Bytes all, own, shared;
  // Large enough for either of two.
  [[nodiscard]] ArenaSize join(const ArenaSize& other) const;
};

class Arena {
 public:
  Arena() = default;               // counting: tensors have null data
  explicit Arena(Bytes capacity);  // real, on the host
  Arena(const std::shared_ptr<Memory>& memory, const ArenaSize& size);

  // A tensor of `shape`, aligned. Error{internal} when a real arena is too small: the plan was wrong.
  [[nodiscard]] Tensor take(DType dtype, Shape shape);
  [[nodiscard]] Tensor take_shared(DType dtype, Shape shape);
  [[nodiscard]] Tensor take(Reach reach, DType dtype, const Shape& shape);

  [[nodiscard]] bool counting() const { return buffers_[0].data() == nullptr; }
  [[nodiscard]] Bytes used() const { return used_.all; }
  [[nodiscard]] Bytes peak() const { return peak_.all; }
  [[nodiscard]] const ArenaSize& size() const { return peak_; }  // that a real arena for the same needs

  // Stack discipline: release(mark()) gives back what was taken in between.
  [[nodiscard]] ArenaSize mark() const { return used_; }
  void release(const ArenaSize& mark);
  // Takes what lies between here and `end`, which was a mark before a release.
  void cover(const ArenaSize& end);

 private:
  std::array<Buffer, 2> buffers_;  // own, shared; on the host the first holds both
  Device device_ = Device::cpu;
  ArenaSize used_, peak_;
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
  ArenaSize mark_;
};

}  // namespace tessera::tensor
