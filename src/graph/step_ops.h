// What a rank does once a step: gradient reductions, tied sums, scalars, gathers of ZeRO. Room-internal.
#pragma once
#include "graph/layers.h"

namespace tessera::graph {

[[nodiscard]] OpList step_ops(const spec::Job& job, const layout::Layout& layout, Rank rank,
                              const Sizes& sizes);

}  // namespace tessera::graph
