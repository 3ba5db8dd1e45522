#include "support/emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <memory>
#include <vector>

#include "base/error.h"

namespace tessera::emulation {
namespace {

enum class State : std::uint8_t { ready, at_block, at_warp, done };

constexpr std::size_t kStack = std::size_t{64} << 10U;

// One launch on one thread of the process. A fiber is entered by swapcontext the first time; afterwards only
// setjmp and longjmp move between it and the scheduler, which costs no system call.
class Launch {
 public:
  struct Fiber {
    std::unique_ptr<std::byte[]> stack;
    ucontext_t start{};
    jmp_buf at{};
    bool entered = false;
    std::size_t exchanges = 0;
    State state = State::done;
    Position position;
  };

  void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
    kernel_ = &kernel;
    shared_.resize(shared_bytes + 64);
    const std::size_t threads = std::size_t{block.x} * block.y * block.z;
    grow(threads);
    half_ = (threads + 31) / 32 * 32;
    words_.resize(2 * half_);
    for (unsigned z = 0; z < grid.z; ++z) {
      for (unsigned y = 0; y < grid.y; ++y) {
        for (unsigned x = 0; x < grid.x; ++x) run_block({x, y, z}, grid, block, threads);
      }
    }
  }

  [[nodiscard]] Fiber& current() { return *current_; }
  [[nodiscard]] std::uint64_t* words() {
    const std::size_t set = current_->exchanges++ % 2;
    return words_.data() + set * half_ + flat(current_->position) / 32 * 32;
  }
  [[nodiscard]] void* shared() {
    const auto at = reinterpret_cast<std::uintptr_t>(shared_.data());
    return reinterpret_cast<void*>((at + 63) / 64 * 64);
  }
  void wait(State state) {
    current_->state = state;
    if (_setjmp(current_->at) == 0) _longjmp(scheduler_, 1);
  }

 private:
  static std::size_t flat(const Position& p) {
    return p.thread.x + std::size_t{p.block_dim.x} * (p.thread.y + std::size_t{p.block_dim.y} * p.thread.z);
  }

  void grow(std::size_t threads) {
    while (fibers_.size() < threads) {
      Fiber& fiber = *fibers_.emplace_back(std::make_unique<Fiber>());
      fiber.stack = std::make_unique<std::byte[]>(kStack);
    }
  }

  // A fiber serves one thread after the other.
  static void serve(unsigned high, unsigned low) {
    auto* launch = reinterpret_cast<Launch*>((std::uint64_t{high} << 32) | low);
    for (;;) {
      (*launch->kernel_)();
      launch->wait(State::done);
    }
  }

  void enter(Fiber& fiber) {
    current_ = &fiber;
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.entered) _longjmp(fiber.at, 1);
    fiber.entered = true;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    const auto self = reinterpret_cast<std::uint64_t>(this);
    makecontext(&fiber.start, reinterpret_cast<void (*)()>(&Launch::serve), 2,
                static_cast<unsigned>(self >> 32), static_cast<unsigned>(self));
    setcontext(&fiber.start);
  }

  void run_block(dim3 index, dim3 grid, dim3 block, std::size_t threads) {
    std::fill(shared_.begin(), shared_.end(), std::byte{0xff});  // NaN, for whoever reads what nobody wrote
    std::size_t i = 0;
    for (unsigned z = 0; z < block.z; ++z) {
      for (unsigned y = 0; y < block.y; ++y) {
        for (unsigned x = 0; x < block.x; ++x, ++i) {
          fibers_[i]->position = {{x, y, z}, index, block, grid};
          fibers_[i]->state = State::ready;
          fibers_[i]->exchanges = 0;
        }
      }
    }
    const bool descending = index.x % 2 == 1;
    for (;;) {
      for (std::size_t k = 0; k < threads; ++k) {
        Fiber& fiber = *fibers_[descending ? threads - 1 - k : k];
        if (fiber.state == State::ready) enter(fiber);
      }
      if (!release(threads)) return;
    }
  }

  // Lets go who has met all others. False: the block is done.
  bool release(std::size_t threads) {
    std::size_t done = 0, at_block = 0, released = 0;
    for (std::size_t w = 0; w < threads; w += 32) {
      const std::size_t end = std::min(threads, w + 32);
      std::size_t here = 0;
      for (std::size_t i = w; i < end; ++i) {
        done += fibers_[i]->state == State::done;
        at_block += fibers_[i]->state == State::at_block;
        here += fibers_[i]->state == State::at_warp;
      }
      if (here < end - w) continue;
      for (std::size_t i = w; i < end; ++i) fibers_[i]->state = State::ready;
      released += here;
    }
    if (done == threads) return false;
    if (at_block == threads) {
      for (std::size_t i = 0; i < threads; ++i) fibers_[i]->state = State::ready;
      released = threads;
    }
    if (released == 0) fibers_.clear();  // they would go on where they stand
    TESSERA_CHECK(released > 0, "threads of an emulated block wait at different points");
    return true;
  }

  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::byte> shared_;
  std::vector<std::uint64_t> words_;  // two sets of half_
  std::size_t half_ = 0;
  const std::function<void()>* kernel_ = nullptr;
  Fiber* current_ = nullptr;
  jmp_buf scheduler_{};
};

Launch& launch() {
  static thread_local Launch one;
  return one;
}

}  // namespace

const Position& here() {
  return launch().current().position;
}
void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel) {
  launch().run(grid, block, shared_bytes, kernel);
}
void block_barrier() {
  launch().wait(State::at_block);
}
void warp_barrier() {
  launch().wait(State::at_warp);
}
std::uint64_t* warp_words() {
  return launch().words();
}
void* dynamic_shared() {
  return launch().shared();
}

}  // namespace tessera::emulation
