// How one action of a stage fills the compute stream: inside of this room.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "cost/step.h"
#include "schedule/schedule.h"
#include "trace/trace.h"

namespace tessera::sim {

// One segment's place in its action, picoseconds from the action's start.
struct Stretch {
  const cost::Segment* segment = nullptr;  // null: the action is not split into segments
  trace::Category category{};
  std::int64_t begin = 0, end = 0;  // on the compute stream; equal for what is hidden
  std::int64_t communication = 0;   // whole time of a communication segment; it ends at `end`
};

struct ActionShape {
  std::vector<Stretch> stretches;
  std::int64_t total = 0;
  std::int64_t busy = 0;                              // of compute segments
  std::array<std::int64_t, cost::kNumParts> parts{};  // sum to total; what a slow device adds is jitter
  double flops = 0;
};

// F, I, W or B (I, then W) of a stage on a device whose compute takes `slowdown` times as long.
[[nodiscard]] ActionShape action_shape(const cost::StageWork& work, schedule::ActionKind kind,
                                       double slowdown);

}  // namespace tessera::sim
