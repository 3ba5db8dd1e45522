// The event simulator as the finer model of a search: unequal stages, messages and reductions in their order.
#pragma once
#include "search/search.h"

namespace tessera::search {

// Longer steps (pipeline ranks x stages x micro-batches) keep their closed form.
inline constexpr std::int64_t kMaxRefinedCells = 65'536;

// The simulator's seconds, to rank again. The difference to the closed form is put on the bubble, and where
// that is used up on exposed communication, so that the parts go on to sum to the step. REQUIRES that `setup`
// outlives it. Thread safe.
[[nodiscard]] Refine simulated(const cost::Setup& setup);

// The simulator's parts too, mean over the pipeline ranks: those that tessera simulate shows of the same
// plan.
// The same seconds, slower. REQUIRES that `setup` outlives it. Thread safe.
[[nodiscard]] Refine simulated_parts(const cost::Setup& setup);

}  // namespace tessera::search
