// The order of ZB-V: inside of generate(), not for other rooms.
#pragma once
#include <vector>

#include "schedule/schedule.h"

namespace tessera::schedule::detail {

// `shape` gives pp and num_microbatches (vpp 2, vee); `costs` may be empty (F = I = W = 1). Costs must be
// valid. Only their ratios matter. Deterministic.
[[nodiscard]] std::vector<ActionList> zb_v_lists(const Schedule& shape, const StageCosts& costs);

}  // namespace tessera::schedule::detail
