// The two clocks of the engine, in integer nanoseconds: wall time since an arbitrary start, and the CPU time
// of the calling thread (which does not run while other ranks have the core).
#pragma once
#include <cstdint>
#include <ctime>

namespace tessera {

[[nodiscard]] inline std::int64_t clock_ns(clockid_t id) {
  timespec t{};
  ::clock_gettime(id, &t);
  return static_cast<std::int64_t>(t.tv_sec) * 1'000'000'000 + t.tv_nsec;
}
[[nodiscard]] inline std::int64_t wall_ns() {
  return clock_ns(CLOCK_MONOTONIC);
}
[[nodiscard]] inline std::int64_t thread_cpu_ns() {
  return clock_ns(CLOCK_THREAD_CPUTIME_ID);
}

}  // namespace tessera
