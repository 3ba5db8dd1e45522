// What happens once a step: gradients summed, weights gathered, the optimizer. Inside of this room.
#pragma once
#include <cstdint>

#include "cost/memory.h"
#include "cost/network.h"
#include "cost/step.h"

namespace tessera::cost {

// Compute of one micro-batch on the rank that ends last, under which reductions may hide.
struct ReductionWindow {
  double forward = 0, backward = 0;
};

struct Reduction {
  double exposed = 0;                               // seconds that the step is longer for
  double gradient_seconds = 0, weight_seconds = 0;  // whole
  double gradient_bytes = 0, weight_bytes = 0;      // sent by a rank
  double dense_seconds = 0, expert_seconds = 0;     // the same by axis: dp, edp
  double dense_bytes = 0, expert_bytes = 0;         // sent by a rank
  double optimizer = 0;
};

// Groups that sum dense gradients (dp x cp) and expert gradients (edp).
struct ReductionGroups {
  GroupShape dense, expert;
};
[[nodiscard]] ReductionGroups reduction_groups(const Setup& setup, const Candidate& c);

[[nodiscard]] Reduction reduction_cost(const Setup& setup, const Candidate& c, const RankHolding& holding,
                                       const ReductionWindow& window, std::int64_t num_microbatches);

}  // namespace tessera::cost
