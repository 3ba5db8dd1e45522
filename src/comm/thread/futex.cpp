#include "comm/thread/futex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <climits>
#include <ctime>

namespace tessera::comm::thread {

void futex_wait(Word& word, std::uint32_t seen, std::int64_t deadline_ns, std::uint32_t bits) {
  timespec until{};
  until.tv_sec = deadline_ns / 1'000'000'000;
  until.tv_nsec = deadline_ns % 1'000'000'000;
  // Every outcome (woken, changed, timed out, interrupted) means the same: look again.
  (void)::syscall(SYS_futex, &word, FUTEX_WAIT_BITSET_PRIVATE, seen, &until, nullptr, bits);
}

void futex_wake(Word& word, std::uint32_t bits) {
  (void)::syscall(SYS_futex, &word, FUTEX_WAKE_BITSET_PRIVATE, INT_MAX, nullptr, nullptr, bits);
}

}  // namespace tessera::comm::thread
