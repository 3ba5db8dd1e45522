// Times of a schedule: when each action starts and ends, how long ranks idle. Takes stage costs, or one
// measured duration per action (the engine replays the CPU times of a step when there are more ranks than
// cores, where wall-clock bubbles mean nothing). Inside, time is an integer count of picoseconds. Pure,
// thread safe.
//
//   const Simulation sim = simulate(schedule, StageCosts::uniform(4, Seconds(1), Seconds(1), Seconds(1)));
//   sim.bubble_fraction
//
// Rules: a rank runs its list in order; an action starts when the rank is free and its inputs are there;
// sends take no time of the sender unless a duration is given. busy is the time of F, I, W, B; the rest up to
// the makespan is idle.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "base/quantity.h"
#include "schedule/lanes.h"
#include "schedule/schedule.h"

namespace tessera::schedule {

// Nearest; throws Error{config} on NaN, below 0, over 100 days.
[[nodiscard]] SimTime to_sim_time(Seconds seconds);
[[nodiscard]] Seconds to_seconds(SimTime time);

// One duration per action, parallel to Schedule::ranks. Messages and reductions are usually 0.
using Durations = std::vector<std::vector<Seconds>>;

struct Simulation {
  // Parallel to Schedule::ranks; a receive lasts as long as it waits.
  std::vector<std::vector<Interval>> actions;
  std::vector<SimTime> busy, idle;  // [pp]; busy + idle = makespan on each rank
  SimTime makespan{};               // end of the last action
  double bubble_fraction = 0;       // 1 - sum(busy) / (pp * makespan); 0 for an empty makespan
};

// Both take compute-only and lowered schedules. Throw Error{config} on costs or durations of the wrong shape
// and on a schedule that hangs. With a compute-only schedule dependencies between stages act directly.
[[nodiscard]] Simulation simulate(const Schedule& schedule, const StageCosts& costs);

[[nodiscard]] Simulation simulate(const Schedule& schedule, const Durations& durations,
                                  Seconds p2p_latency = Seconds(0));

// Error{config} when an action stands on another rank than its stage's, or outside of stages or
// micro-batches.
void require_owned(const Schedule& schedule);
// Error{config} with the first action that was not reached: reached[r] of rank r ended.
void throw_if_hanging(const Schedule& schedule, const std::vector<std::size_t>& reached);

// The picture of pipeline papers: one row per rank, one cell per time unit (the shortest compute action),
// each action with its kind, micro-batch and (with several chunks) the chunk as a letter, a dash while it
// goes on; dots are idle time.
//
//   rank 0 | F0 F1 .  .  B0 -  .  B1 -
//   rank 1 | .  F0 B0 -  F1 B1 -  .  .
//
// Long pictures are cut at max_columns cells, which is then said in a last line.
struct DrawOptions {
  std::int32_t max_columns = 120;
};
[[nodiscard]] std::string draw_grid(const Schedule& schedule, const StageCosts& costs,
                                    const DrawOptions& options = {});

}  // namespace tessera::schedule
