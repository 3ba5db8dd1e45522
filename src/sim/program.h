// A step as lanes of operations (schedule/lanes.h), and what each operation is: inside of this room.
#pragma once
#include <cstdint>
#include <vector>

#include "cost/step.h"
#include "schedule/lanes.h"
#include "schedule/schedule.h"
#include "sim/shape.h"
#include "sim/simulate.h"

namespace tessera::sim {

// Lanes of a rank. Lane of (replica q, rank r, k): (q * pp + r) * kNumLanes + k.
enum class LaneKind : std::uint8_t { compute, send_forward, send_backward, gather, reduce };
inline constexpr std::int32_t kNumLanes = 5;

enum class OpKind : std::uint8_t {
  action,     // [from, to) of F, I, W or B
  contended,  // a segment that shares a link
  message,
  moment,  // no time: a wait or a signal
  gather,  // of weights
  reduce,  // of gradients
  optimizer,
};

struct OpInfo {
  OpKind kind = OpKind::moment;
  std::int32_t action = -1;  // position in the rank's list
  std::int32_t stage = -1;
  std::int32_t microbatch = -1;
  bool forward = false;              // a message's direction
  std::int64_t from = 0, to = 0;     // of an action, on its compute stream
  const Stretch* stretch = nullptr;  // contended
};

enum class EventKind : std::uint8_t {
  local,      // an action of the same rank
  message,    // of a neighbour
  weights,    // gathered
  gradients,  // reduced
  replicas,   // all replicas are here
  ranks,      // all ranks are here
};
struct EventInfo {
  EventKind kind = EventKind::local;
  std::int32_t lane = -1;  // of the operation that signals it, where it is one
  std::int32_t op = -1;
};

struct Program {
  schedule::Lanes lanes;
  std::vector<ActionShape> shapes;  // [(q * stages + s) * 4 + kind]; F, I, W, B
  // With Record::intervals only.
  std::vector<std::vector<OpInfo>> info;  // parallel to lanes.lanes
  std::vector<EventInfo> events;          // parallel to lanes.signals
  std::int32_t pp = 1;
  std::int32_t num_stages = 1;

  [[nodiscard]] const ActionShape& shape(std::int32_t replica, StageId stage,
                                         schedule::ActionKind kind) const;
  [[nodiscard]] std::int32_t lane(std::int32_t replica, std::int32_t rank, LaneKind kind) const {
    return (replica * pp + rank) * kNumLanes + static_cast<std::int32_t>(kind);
  }
};

// REQUIRES: checked options and work (simulate.cpp).
[[nodiscard]] Program make_program(const schedule::Schedule& schedule, const cost::StepWork& work,
                                   const Options& options, schedule::Record record);

// Replica 0 of what ran, with all checks.
// `jitter` comes after all operations.
[[nodiscard]] Result account(const Program& program, const schedule::LaneTimes& times,
                             const schedule::Schedule& schedule, const cost::StepWork& work, SimTime jitter);

// Its trace; world_ranks [pp].
[[nodiscard]] trace::Trace make_trace(const Program& program, const schedule::LaneTimes& times,
                                      const schedule::Schedule& schedule, const cost::StepWork& work,
                                      const std::vector<Rank>& world_ranks, SimTime jitter, Detail detail);

}  // namespace tessera::sim
