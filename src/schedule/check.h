// Proves a schedule before anything runs: shape, owners, completeness, order, ascending W, matched messages,
// and by a dry run that it cannot hang. Counts the slots that the executor needs. Works on compute-only
// schedules (the dry run then uses their lowered form) and on lowered ones.
//
//   const CheckReport report = checked(schedule);   // throws, with the grid and the bad cell marked
//   report.stages[3].peak_live                      // activation slots of stage 3
//
// Sends never block and messages match by (kind, stage, micro-batch), so whether a schedule hangs does not
// depend on timing: the dry run is a proof. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/error.h"
#include "schedule/schedule.h"

namespace tessera::schedule {

// Peaks over one step, in micro-batches. They hold for any timing.
struct StageSlots {
  std::int32_t peak_live = 0;       // from the start of F to the end of W or B: slots for saved values
  std::int32_t peak_in_flight = 0;  // F begun, I or B not ended: slots that hold all saved values
  std::int32_t peak_deferred = 0;   // I ended, W not ended (0 where only B runs): slots for what W needs
  // Most messages sent and possibly not yet received when the receiver is as late as the schedule allows:
  // buffers for outgoing activations and gradients. 0 where the neighbour is on the same rank.
  std::int32_t peak_unreceived_forward = 0;
  std::int32_t peak_unreceived_backward = 0;
  friend bool operator==(const StageSlots&, const StageSlots&) = default;
};

struct CheckReport {
  Problems problems;               // empty: the schedule is proven. The rest is filled only then
  std::string grid;                // with problems: the lists around the first bad action, it marked >like<
  std::vector<StageSlots> stages;  // [num_stages]
  std::vector<std::int32_t> peak_live_rank;  // [pp] live (stage, micro-batch) pairs, all chunks together
  // [num_stages * num_microbatches]: which of the stage's peak_live slots holds the micro-batch, lowest free
  // first.
  std::vector<std::int32_t> live_slot;
  std::int32_t num_microbatches = 0;

  [[nodiscard]] bool ok() const { return problems.empty(); }
  [[nodiscard]] std::int32_t slot_of(StageId stage, MicrobatchId microbatch) const;
};

// Never throws for a bad schedule: the report says what is wrong (at most 20 problems, then a count).
[[nodiscard]] CheckReport check(const Schedule& schedule);

// Throws Error{config} with the problems and the grid.
CheckReport checked(const Schedule& schedule);

}  // namespace tessera::schedule
