// The load of a layer's experts as one line of bars: the mean load is half a cell high, twice the mean and
// more a full one.
//
//   heat_strip(load, {.color = true})   // "<bars>" as seen
//
// Expert without a token: a multiplication sign (dead). At least kOverload times the mean: a full cell, red
// in colour. Not a number: a question mark. More experts than `max_width`: neighbours share a glyph, which
// shows the most telling of them: an overloaded one, else a dead one, else the one farthest from the mean.
// Pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "report/terminal.h"

namespace tessera::report {

inline constexpr double kOverload = 1.875;  // times the mean: from here the bar is full

// load: tokens (or shares of them) per expert, any scale. "" for no experts.
[[nodiscard]] std::string heat_strip(std::span<const double> load, const Style& style = Style(),
                                     std::int32_t max_width = 32);

// Experts that share a glyph: 1 up to max_width experts.
[[nodiscard]] std::int32_t experts_per_glyph(std::int32_t num_experts, std::int32_t max_width = 32);

}  // namespace tessera::report
