// Walks lowered lists without computing: inside of this room.
#pragma once
#include <cstdint>
#include <vector>

#include "schedule/schedule.h"

namespace tessera::schedule {

struct DryRun {
  bool hangs = false;
  std::vector<std::int32_t> reached;  // [pp] how many actions each rank completes
  // [num_stages] most messages of the stage sent and possibly not received, at any timing.
  std::vector<std::int32_t> peak_unreceived_forward, peak_unreceived_backward;
};

// REQUIRES: stages and micro-batches in range, each message at most once, sends and receives only where two
// ranks meet. Sends never block, so where the lists get stuck does not depend on timing.
[[nodiscard]] DryRun dry_run(const Schedule& lowered);

[[nodiscard]] bool is_send(ActionKind kind);
[[nodiscard]] bool is_receive(ActionKind kind);

// What a receive waits for, what a send is received by; the action itself for anything else.
[[nodiscard]] Action partner_of(const Action& action);

}  // namespace tessera::schedule
