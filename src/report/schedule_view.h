// The picture of a pipeline schedule (schedule/simulate.h, draw_grid), cut to the width of the style and
// coloured: forward, backward-input or whole backward, and backward-weight have a colour each, idle time is
// faint. Pure, thread safe.
#pragma once
#include <string>

#include "report/terminal.h"
#include "schedule/simulate.h"

namespace tessera::report {

// One line a rank, each ends with a line feed; a last line says what was cut off. "" when all costs are 0.
// Throws as schedule::simulate does.
[[nodiscard]] std::string schedule_view(const schedule::Schedule& schedule, const schedule::StageCosts& costs,
                                        const Style& style);

}  // namespace tessera::report
