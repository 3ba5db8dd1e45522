// Writes what one rank does into trace recorders: actions and phases of its own thread, collectives of both
// of its threads. Off outside of the traced steps.
#pragma once
#include <cstdint>
#include <vector>

#include "comm/communicator.h"
#include "exec/rank_engine.h"
#include "trace/trace.h"

namespace tessera::exec {

class Tracer : public Observer, public comm::CallListener {
 public:
  // One tracer per thread: `runner` says which. capacity: spans kept.
  Tracer(Rank rank, trace::Runner runner, std::int64_t capacity);
  void start(std::int64_t step);
  void stop() { on_ = false; }
  [[nodiscard]] const trace::Recorder& recorder() const { return recorder_; }

  void action(const schedule::Action& action, const ActionTime& time) override;
  void phase(const char* name, const ActionTime& time) override;
  void on_call(const comm::Communicator& comm, comm::Call call, Bytes sent, std::int64_t start_ns,
               std::int64_t end_ns) override;

 private:
  trace::Recorder recorder_;
  trace::StreamId compute_;
  std::vector<trace::StreamId> streams_;     // by trace axis
  std::vector<trace::NameId> action_names_;  // by schedule::ActionKind
  std::vector<trace::NameId> call_names_;    // by comm::Call
  bool on_ = false;
};

}  // namespace tessera::exec
