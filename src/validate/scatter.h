// Predicted against measured step time as one SVG file: both axes logarithmic, one colour a source, a band of
// +-10 %. Self-contained, the same bytes for the same outcomes. Pure.
#pragma once
#include <functional>
#include <span>
#include <string>

#include "validate/run.h"

namespace tessera::validate {

struct ScatterOptions {
  std::string title = "Step time: predicted against measured";
  std::string subtitle;  // empty: number of runs and the median error
};

// Of the timed outcomes that `which` takes; a picture that says so when there is none.
[[nodiscard]] std::string scatter_svg(std::span<const Outcome> outcomes,
                                      const std::function<bool(const Outcome&)>& which,
                                      const ScatterOptions& options);

}  // namespace tessera::validate
