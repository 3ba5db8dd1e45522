// Seconds of a pipeline of uneven stages in closed form. Inside of this room. The simulator is the truth;
// a test holds these to it.
#pragma once
#include <cstdint>
#include <span>

#include "schedule/schedule.h"

namespace tessera::cost {

struct PipelineRank {
  double forward = 0, backward_input = 0, backward_weight = 0;  // of one micro-batch, all its stages
  [[nodiscard]] double total() const { return forward + backward_input + backward_weight; }
};

struct PipelineShape {
  schedule::Kind kind = schedule::Kind::one_f_one_b;
  std::int32_t vpp = 1;
  std::int64_t num_microbatches = 1;
  double message = 0;          // seconds of one message to a neighbour
  bool message_hidden = true;  // in the steady state
};

// With t_r the time of one micro-batch on rank r:
//   naive: m sum t. GPipe, 1F1B: (m - 1) max t + sum t. Interleaved: m max t + (sum t - max t) / vpp.
//   ZB-H1: m max t + sum over the others of (F + I - W), not below 0. ZB-V: m max t + (pp - 1) max(F / 2,
//   I / 2, I - W), of both stages of the slowest rank; for pp < m < 2 pp also 0.9 (2 pp - m) min(W, I - W),
//   not below 0. With F = I = W that is the paper's (pp - 1) F / 2; else it was read off schedules of 8 and
//   16 ranks, which it meets within 6 %.
[[nodiscard]] double pipeline_time(const PipelineShape& shape, std::span<const PipelineRank> ranks);

}  // namespace tessera::cost
