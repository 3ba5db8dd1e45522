#include "cost/pipeline_time.h"

#include <algorithm>

namespace tessera::cost {

namespace {

// Of ZB-V, in times of one rank: within 6 % of the schedule where all ranks are equal. In steady state a V of
// unequal F and
// I waits for half of the longer; what I takes beyond W cannot be filled. Fewer than 2 pp micro-batches leave
// too few W for the end, but for the first wave of pp.
double zb_v_idle(const PipelineRank& r, double pp, double m) {
  const double beyond = r.backward_input - r.backward_weight;
  const double steady = std::max({r.forward / 2.0, r.backward_input / 2.0, beyond});
  const double short_end = m > pp && m < 2.0 * pp ? std::max(0.0, std::min(r.backward_weight, beyond)) : 0.0;
  return (pp - 1.0) * steady + 0.9 * short_end * (2.0 * pp - m);
}

}  // namespace

double pipeline_time(const PipelineShape& shape, std::span<const PipelineRank> ranks) {
  const auto pp = static_cast<double>(ranks.size());
  const auto m = static_cast<double>(shape.num_microbatches);
  const auto vpp = static_cast<double>(shape.vpp);
  double slowest = 0.0;
  double sum = 0.0;
  double split = 0.0;  // F + I - W of all
  double split_slowest = 0.0;
  const PipelineRank* slowest_rank = &ranks.front();
  for (const PipelineRank& r : ranks) {
    const double t = r.total();
    sum += t;
    const double hidden = std::max(0.0, r.forward + r.backward_input - r.backward_weight);
    split += hidden;
    if (t > slowest) {
      slowest = t;
      split_slowest = hidden;
      slowest_rank = &r;
    }
  }
  if (ranks.size() == 1) return m * slowest;
  // A message each way for each stage of the slowest rank, and through the empty pipeline at both ends.
  const double steady = shape.message_hidden ? 0.0 : 2.0 * vpp * shape.message * m;
  const double ends = 2.0 * (pp - 1.0) * shape.message;
  switch (shape.kind) {
    case schedule::Kind::naive:
      return m * (sum + ends);
    case schedule::Kind::gpipe:
    case schedule::Kind::one_f_one_b:
    case schedule::Kind::combined:
      return (m - 1.0) * slowest + sum + steady + ends;
    case schedule::Kind::interleaved:
      return m * slowest + (sum - slowest) / vpp + steady + ends;
    case schedule::Kind::zb_h1:
      return m * slowest + (split - split_slowest) + steady + ends;
    case schedule::Kind::zb_v:
      return m * slowest + zb_v_idle(*slowest_rank, pp, m) + steady + ends;
  }
  return m * slowest;
}

}  // namespace tessera::cost
