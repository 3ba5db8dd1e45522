// The closed forms of a pipeline's time against the simulator: exact for equal stages, close for uneven ones.
#include "cost/pipeline_time.h"

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <utility>
#include <vector>

#include "base/random.h"
#include "schedule/simulate.h"

namespace tessera::cost {
namespace {

double simulated(schedule::Kind kind, std::int32_t pp, std::int32_t vpp, std::int32_t m,
                 const schedule::StageCosts& costs) {
  const schedule::Schedule s =
      schedule::generate({.kind = kind, .pp = pp, .vpp = vpp, .num_microbatches = m, .costs = costs});
  return schedule::to_seconds(schedule::simulate(s, costs).makespan).value;
}

std::vector<PipelineRank> ranks_of(const schedule::StageCosts& costs, schedule::Kind kind, std::int32_t pp,
                                   std::int32_t vpp) {
  std::vector<PipelineRank> ranks(static_cast<std::size_t>(pp));
  for (std::int32_t s = 0; s < pp * vpp; ++s) {
    const std::int32_t r = kind == schedule::Kind::zb_v && s >= pp ? 2 * pp - 1 - s : s % pp;
    PipelineRank& rank = ranks[static_cast<std::size_t>(r)];
    const auto i = static_cast<std::size_t>(s);
    rank.forward += costs.forward[i].value;
    rank.backward_input += costs.backward_input[i].value;
    rank.backward_weight += costs.backward_weight[i].value;
  }
  return ranks;
}

struct Shape {
  schedule::Kind kind;
  std::int32_t pp, vpp, m;
};
const Shape kShapes[] = {
    {schedule::Kind::naive, 4, 1, 3},        {schedule::Kind::gpipe, 4, 1, 8},
    {schedule::Kind::one_f_one_b, 4, 1, 8},  {schedule::Kind::one_f_one_b, 16, 1, 64},
    {schedule::Kind::interleaved, 4, 2, 16}, {schedule::Kind::interleaved, 8, 4, 64},
    {schedule::Kind::zb_h1, 4, 1, 8},        {schedule::Kind::zb_h1, 8, 1, 32},
    {schedule::Kind::zb_v, 4, 2, 16},        {schedule::Kind::zb_v, 8, 2, 24},
};

// Unequal F, I and W (recomputation makes I long, attention W short), and too few micro-batches to fill the
// end.
TEST(PipelineTime, OfZbVIsNearTheSimulatorForAllPassTimes) {
  for (const auto& [f, i, w] : std::vector<std::array<double, 3>>{{1, 1, 1},
                                                                  {1, 1.2, 0.8},
                                                                  {1, 2, 1},
                                                                  {1, 3, 1},
                                                                  {1, 1, 0.5},
                                                                  {1, 1.5, 0.5},
                                                                  {1, 0.8, 1.2},
                                                                  {2, 1.5, 1}}) {
    for (const auto& [pp, m] : {std::pair{8, 8}, {8, 10}, {8, 32}, {16, 16}, {16, 20}, {16, 24}, {16, 128}}) {
      const auto costs = schedule::StageCosts::uniform(2 * pp, Seconds(f), Seconds(i), Seconds(w));
      const double exact = simulated(schedule::Kind::zb_v, pp, 2, m, costs);
      const double closed = pipeline_time({.kind = schedule::Kind::zb_v, .vpp = 2, .num_microbatches = m},
                                          ranks_of(costs, schedule::Kind::zb_v, pp, 2));
      EXPECT_NEAR(closed / exact, 1.0, 0.06) << f << ' ' << i << ' ' << w << " pp " << pp << " m " << m;
    }
  }
}

TEST(PipelineTime, EqualsTheSimulatorForEqualStages) {
  for (const Shape& s : kShapes) {
    const auto costs = schedule::StageCosts::uniform(s.pp * s.vpp, Seconds(1.0), Seconds(1.0), Seconds(1.0));
    const double exact = simulated(s.kind, s.pp, s.vpp, s.m, costs);
    const double closed = pipeline_time({.kind = s.kind, .vpp = s.vpp, .num_microbatches = s.m},
                                        ranks_of(costs, s.kind, s.pp, s.vpp));
    EXPECT_NEAR(closed, exact, 1e-9 * exact) << schedule::name(s.kind) << " pp " << s.pp << " m " << s.m;
  }
}

// The first and the last stage differ, as embedding and head make them, and all others a little.
TEST(PipelineTime, IsCloseToTheSimulatorForUnevenStages) {
  double worst = 0.0;
  for (const Shape& s : kShapes) {
    for (std::uint64_t seed = 0; seed < 20; ++seed) {
      auto costs = schedule::StageCosts::uniform(s.pp * s.vpp, Seconds(1.0), Seconds(1.0), Seconds(1.0));
      for (std::size_t i = 0; i < costs.forward.size(); ++i) {
        const double f = 1.0 + 0.2 * uniform(seed, 1, 3 * i);
        costs.forward[i] = Seconds(f);
        costs.backward_input[i] = Seconds(f * (1.0 + 0.2 * uniform(seed, 1, 3 * i + 1)));
        costs.backward_weight[i] = Seconds(f * (0.8 + 0.2 * uniform(seed, 1, 3 * i + 2)));
      }
      const double exact = simulated(s.kind, s.pp, s.vpp, s.m, costs);
      const double closed = pipeline_time({.kind = s.kind, .vpp = s.vpp, .num_microbatches = s.m},
                                          ranks_of(costs, s.kind, s.pp, s.vpp));
      const double error = std::abs(closed - exact) / exact;
      EXPECT_TRUE(error <= 0.07) << schedule::name(s.kind) << " pp " << s.pp << " m " << s.m << " seed "
                                 << seed << ": " << closed << " against " << exact;
      worst = std::max(worst, error);
    }
  }
  RecordProperty("worst_relative_error", std::to_string(worst));
}

TEST(PipelineTime, GrowsWithMessagesThatNothingHides) {
  const std::vector<PipelineRank> ranks(4, PipelineRank{1.0, 1.0, 1.0});
  const auto time = [&](double message, bool hidden) {
    return pipeline_time({.kind = schedule::Kind::one_f_one_b,
                          .vpp = 1,
                          .num_microbatches = 8,
                          .message = message,
                          .message_hidden = hidden},
                         ranks);
  };
  EXPECT_DOUBLE_EQ(time(0.0, true), 33.0);
  EXPECT_DOUBLE_EQ(time(0.01, true), 33.0 + 2 * 3 * 0.01);
  EXPECT_DOUBLE_EQ(time(0.01, false), 33.0 + 2 * 3 * 0.01 + 2 * 8 * 0.01);
}

}  // namespace
}  // namespace tessera::cost
