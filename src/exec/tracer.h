// Writes what one rank does into trace recorders: actions and phases of its own thread, collectives of both
// of its threads. Off outside of the traced steps.
#pragma once
#include <cstdint>
#include <mutex>
#include <vector>

#include "comm/communicator.h"
#include "comm/worker.h"
#include "exec/rank_engine.h"
#include "trace/trace.h"

namespace tessera::exec {

class Tracer : public Observer, public comm::CallListener, public comm::WaitListener {
 public:
  // One tracer for the rank's own thread, one for its helper: `runner` says which. capacity: spans kept. Rows
  // that travel beside compute are counted on the helper's, by whichever thread calls.
  Tracer(Rank rank, trace::Runner runner, std::int64_t capacity);
  void start(std::int64_t step);
  void stop() { on_ = false; }
  [[nodiscard]] const trace::Recorder& recorder() const { return recorder_; }

  void action(const schedule::Action& action, const ActionTime& time) override;
  void phase(const char* name, const ActionTime& time) override;
  void on_call(const comm::Communicator& comm, comm::Call call, Bytes sent, std::int64_t start_ns,
               std::int64_t end_ns) override;
  void on_wait(std::int64_t start_ns, std::int64_t end_ns) override;

 private:
  std::mutex mutex_;  // of recorder_, while calls are told
  trace::Recorder recorder_;
  trace::StreamId compute_;
  std::vector<trace::StreamId> streams_;     // by trace axis
  std::vector<trace::NameId> action_names_;  // by schedule::ActionKind
  std::vector<trace::NameId> call_names_;    // by comm::Call
  trace::NameId wait_name_{};
  bool on_ = false;
};

}  // namespace tessera::exec
