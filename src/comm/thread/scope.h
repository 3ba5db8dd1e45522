// The frames around a call of ThreadCommunicator and around its reads of foreign memory.
#pragma once
#include "comm/thread/thread_communicator.h"
#include "comm/thread/world.h"

namespace tessera::comm::thread {

// One call: a line in the flight recorder, a look at the stop flag, and on the way out after a stop the wait
// until no peer reads this rank's buffers.
class ThreadCommunicator::Scope {
 public:
  enum class Kind : std::uint8_t { collective, message };
  Scope(ThreadCommunicator& comm, Kind kind, const CallInfo& info);
  ~Scope();
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

  // Collectives: shows the call and this rank's buffer to the peers. The first step of the call.
  void publish(void* data, std::span<const std::int64_t> rows = {});
  // The progress word before the call; the same on every rank.
  [[nodiscard]] std::uint32_t base() const { return base_; }
  // publish, wait for everyone, and check that everyone makes this call.
  void meet(void* data, std::span<const std::int64_t> rows = {});

 private:
  ThreadCommunicator& comm_;
  CallInfo info_;
  std::int64_t number_;
  std::uint32_t base_;
  Record* record_;
};

class ThreadCommunicator::Read {
 public:
  explicit Read(ThreadCommunicator& comm) : comm_(comm) { comm_.group_.begin_read(comm_.me_); }
  ~Read() { comm_.group_.end_read(comm_.me_); }
  Read(const Read&) = delete;
  Read& operator=(const Read&) = delete;

 private:
  ThreadCommunicator& comm_;
};

}  // namespace tessera::comm::thread
