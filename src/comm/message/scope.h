// The frame around a call of MessageCommunicator, and its waiting loop.
#pragma once
#include <sched.h>

#include <chrono>
#include <thread>

#include "base/clock.h"
#include "comm/message/message_communicator.h"

namespace tessera::comm::message {

// Looks before a wait sleeps. Between looks the core is given away, so that with more ranks than cores the
// rank that is waited for runs; a helper thread that waits beside a computing rank must not share its core
// for long, hence the sleep.
inline constexpr std::int32_t kLooks = 200;
inline constexpr std::int64_t kLookNs = 100'000;
inline constexpr std::chrono::microseconds kSleep{20};
inline constexpr std::int64_t kCheckNs = 1'000'000;  // between looks at what could end a wait

// One call: a line in the flight recorder, a look at the stop flag, and on the way out after a stop the
// return of this rank's memory.
class MessageCommunicator::Scope {
 public:
  enum class Lane : std::uint8_t { collective, direct };
  Scope(MessageCommunicator& comm, Lane lane, const CallInfo& info, Rows rows = {},
        std::int64_t row_bytes = 0);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  MessageCommunicator& comm_;
  Record* record_;
};

template <class Done>
void MessageCommunicator::wait(std::int32_t peer, const Done& done) {
  if (done()) return;
  post_.poll();
  if (done()) return;
  seat_.log.wait_for(peer);
  const std::int64_t started = tessera::wall_ns();
  std::int64_t checked = started;
  for (std::int32_t look = 0;; ++look) {
    post_.poll();
    if (done()) break;
    const std::int64_t now = tessera::wall_ns();
    if (now - checked > kCheckNs) {
      check_wait(peer, started, now);
      checked = now;
    }
    if (look < kLooks || now - started < kLookNs)
      ::sched_yield();
    else
      std::this_thread::sleep_for(kSleep);
  }
  seat_.log.wait_for(kNobody);
}

}  // namespace tessera::comm::message
