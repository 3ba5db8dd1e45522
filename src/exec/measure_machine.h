// What this machine takes for the operators that training is made of: products of all three directions on
// packed weights, single and one an expert, attention, memory-bound kernels, the optimizer, and collectives
// between thread ranks. All cores run the same kernel at once, as ranks do; each figure is the mean over
// cores of a core's best, on the thread's CPU clock, so that other work on the machine counts little.
// Collectives wait for each other and are timed by the wall clock: the best of many.
#pragma once
#include <cstdint>
#include <functional>
#include <string_view>

#include "graph/measured.h"

namespace tessera::exec {

struct MeasureOptions {
  std::int32_t cores = 1;                                  // that may be used
  Seconds budget = Seconds(25.0);                          // about, of all measurements
  std::function<void(std::string_view what)> on_progress;  // on the calling thread; may be empty
};
// REQUIRES: cores >= 1. Takes about 200 MiB a core.
[[nodiscard]] graph::MeasuredMachine measure_machine(const MeasureOptions& options);

}  // namespace tessera::exec
