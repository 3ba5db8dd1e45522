// Lanes of timed operations: the core under every simulation. A lane runs its operations in order; an
// operation may wait for an event, and its end may be a signal of one. Flows are operations whose pace
// depends on others: those on one link at once share it evenly, and those beside a busy room go slower. Their
// ends are only known as time goes by. Everything else is walked without a queue of events and costs some
// nanoseconds.
//
//   Lanes l;
//   l.signals = {1};                                       // one event, which takes one signal
//   l.lanes = {{{.duration = 5, .signal = 0}}, {{.duration = 2, .wait = 0}}};
//   run(l).makespan                                        // 7 ps
//
// Times are picoseconds. Pure, thread safe, deterministic.
#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base/quantity.h"

namespace tessera::schedule {

using SimTime = Quantity<struct SimTimeTag, std::int64_t>;  // picoseconds: 106 days

struct Interval {
  SimTime start, end;
  friend bool operator==(const Interval&, const Interval&) = default;
};

struct LaneOp {
  std::int64_t duration = 0;   // of a flow: when it has its links to itself and its room is quiet
  std::int64_t delay = 0;      // from the event to the earliest start
  std::int32_t wait = -1;      // event; -1: none
  std::int32_t signal = -1;    // event; -1: none
  std::int32_t out_link = -1;  // a flow names one link or two and is as fast as the fuller one lets it
  std::int32_t in_link = -1;
  std::int32_t noise_in = -1;  // room that is busy while this one runs
  std::int32_t beside = -1;    // room that slows this one down while it is busy
};

struct Lanes {
  std::vector<std::vector<LaneOp>> lanes;
  std::vector<std::int32_t> signals;  // [events] ends that must have been before the event happens
  std::int32_t num_links = 0;
  std::int32_t num_rooms = 0;
  double slowed = 1.0;  // factor on the time of an operation beside a busy room, 1 or more
};

struct LaneTimes {
  SimTime makespan{};
  std::vector<std::vector<Interval>> ops;  // parallel to Lanes::lanes; empty without Record::intervals
  // [lanes] how many operations ended; fewer than the lane has: it hangs, its next one waits for ever.
  std::vector<std::size_t> reached;
  bool hangs = false;
};

enum class Record : std::uint8_t { makespan, intervals };

// REQUIRES: events, links and rooms in range, durations and delays of 0 or more whose sum stays below 2^63.
// Signals beyond those that an event takes change nothing.
[[nodiscard]] LaneTimes run(const Lanes& lanes, Record record = Record::intervals);

}  // namespace tessera::schedule
