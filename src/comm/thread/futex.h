// Sleeping on a 32-bit word with a deadline and a choice of whom to wake, which std::atomic::wait lacks.
// Futex words are unsigned because the system call compares 32 raw bits; they wrap, and are compared by
// signed difference.
#pragma once
#include <atomic>
#include <cstdint>

namespace tessera::comm::thread {

using Word = std::atomic<std::uint32_t>;
static_assert(sizeof(Word) == 4 && Word::is_always_lock_free);

inline constexpr std::uint32_t kEveryone = ~std::uint32_t{0};

// Sleeps while word == seen, at most until deadline_ns of the monotonic clock. Wakes are matched by `bits`.
// May return early; the caller looks again.
void futex_wait(Word& word, std::uint32_t seen, std::int64_t deadline_ns, std::uint32_t bits);
void futex_wake(Word& word, std::uint32_t bits);

// word has come to target or beyond.
[[nodiscard]] inline bool reached(std::uint32_t word, std::uint32_t target) {
  return static_cast<std::int32_t>(word - target) >= 0;
}

// Tells the core that this is a spin loop.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#else
  std::atomic_signal_fence(std::memory_order_seq_cst);
#endif
}

}  // namespace tessera::comm::thread
