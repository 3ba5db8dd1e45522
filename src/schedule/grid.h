// Pictures of action lists for error messages: inside of this room.
#pragma once
#include <cstdint>
#include <set>
#include <string>
#include <utility>

#include "schedule/schedule.h"

namespace tessera::schedule {

// One row per rank, columns are positions in the lists; a window around the first marked (rank, position),
// each marked action >like this<.
[[nodiscard]] std::string marked_lists(const Schedule& schedule,
                                       const std::set<std::pair<std::int32_t, std::int32_t>>& marked);

}  // namespace tessera::schedule
