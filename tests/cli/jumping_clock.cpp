// Loaded before the C library (LD_PRELOAD): the time of day jumps by hours, back and forth, at every look.
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>

namespace {

long jump() {
  static std::atomic<long> looks{0};
  const long n = looks.fetch_add(1);
  return (n % 2 == 0 ? 1 : -1) * (3600 + 977 * (n % 50));
}

int look(clockid_t id, timespec* t) {
  return static_cast<int>(::syscall(SYS_clock_gettime, id, t));
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t id, timespec* t) noexcept {
  const int result = look(id, t);
  if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) t->tv_sec += jump();
  return result;
}

int gettimeofday(timeval* t, void* /*zone*/) noexcept {
  timespec now{};
  const int result = look(CLOCK_REALTIME, &now);
  t->tv_sec = now.tv_sec + jump();
  t->tv_usec = now.tv_nsec / 1000;
  return result;
}

time_t time(time_t* to) noexcept {
  timespec now{};
  (void)look(CLOCK_REALTIME, &now);
  const time_t seconds = now.tv_sec + jump();
  if (to != nullptr) *to = seconds;
  return seconds;
}
}
