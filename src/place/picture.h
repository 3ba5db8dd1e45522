// The load of every device before and after as an SVG: one band a layer, a bar a device, the mean as a line.
// Self-contained, no scripts. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "place/placement.h"

namespace tessera::place {

struct LoadPicture {
  std::string before_name, after_name;             // "contiguous", "balance"
  std::int32_t gpus_per_node = 0;                  // marks nodes; 0: none
  std::vector<std::int32_t> layers;                // [L]
  std::vector<std::vector<double>> before, after;  // [L] of [gpus], relative to the mean device
};
// All layers up to 16, else 16 of them, evenly picked, with a note.
[[nodiscard]] std::string to_svg(const LoadPicture& picture);

}  // namespace tessera::place
