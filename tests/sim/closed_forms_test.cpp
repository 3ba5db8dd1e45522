// The closed forms of pipeline schedules, exactly; and the simulator of schedules, to the picosecond.
#include <gtest/gtest.h>

#include "sim/support.h"

namespace tessera::sim {
namespace {

using cost::Part;

// Seconds beyond the m (F + I + W) of every rank, in microseconds to compare exactly.
double idle_us(const Schedule& s, double f, double i, double w) {
  const Result r = simulate(s, uniform_work(s, f, i, w));
  return std::round((r.seconds() - s.num_microbatches * (f + i + w)) * 1e9) / 1e3;
}

TEST(ClosedForms, OfEveryScheduleHoldExactly) {
  const double f = 3e-6, i = 4e-6, w = 2e-6, b = i + w;
  for (const std::int32_t p : {1, 2, 4, 8, 16}) {
    for (const std::int32_t m : {p, 2 * p, 5 * p}) {
      const auto both = [&](const Schedule& s) {
        return std::pair{idle_us(s, f, i, w), idle_us(lower(s), f, i, w)};
      };
      const auto want = [](double seconds) {
        const double us = std::round(seconds * 1e9) / 1e3;
        return std::pair{us, us};
      };
      EXPECT_EQ(both(make(Kind::gpipe, p, m)), want((p - 1) * (f + b)));
      EXPECT_EQ(both(make(Kind::one_f_one_b, p, m)), want((p - 1) * (f + b)));
      EXPECT_EQ(both(make(Kind::zb_h1, p, m)), want((p - 1) * (f + i - w)));
      for (const std::int32_t v : {2, 4}) {
        EXPECT_EQ(both(make(Kind::interleaved, p, m, v)), want((p - 1) * (f + b) / v))
            << p << ' ' << m << ' ' << v;
      }
    }
    EXPECT_EQ(idle_us(make(Kind::naive, p, 1), f, i, w), std::round((p - 1) * (f + b) * 1e9) / 1e3);
    const Schedule v = make(Kind::zb_v, p, 2 * p);
    EXPECT_EQ(idle_us(v, 2e-6, 2e-6, 2e-6), p - 1);  // (p - 1) F / 2
  }
}

TEST(ClosedForms, EqualTheSimulatorOfSchedulesToThePicosecond) {
  Dice dice(11);
  for (std::int32_t n = 0; n < 200; ++n) {
    const Schedule s = random_schedule(dice);
    cost::StepWork work = uniform_work(s, 0, 0, 0);
    schedule::StageCosts costs =
        schedule::StageCosts::uniform(s.num_stages(), Seconds(0), Seconds(0), Seconds(0));
    for (std::int32_t i = 0; i < s.num_stages(); ++i) {
      costs.forward[i] = Seconds(work.stages[i].forward_seconds = dice.below(1000) * 1e-6);
      costs.backward_input[i] = Seconds(work.stages[i].backward_input_seconds = dice.below(1000) * 1e-6);
      costs.backward_weight[i] = Seconds(work.stages[i].backward_weight_seconds = dice.below(1000) * 1e-6);
    }
    const schedule::Simulation want = schedule::simulate(s, costs);
    const Result have = simulate(s, work);
    EXPECT_EQ(have.makespan, want.makespan);
    EXPECT_NEAR(have.bubble_fraction, want.bubble_fraction, 1e-12);
    for (std::int32_t r = 0; r < s.pp; ++r) EXPECT_EQ(have.ranks[r].busy, want.busy[r]);
  }
}

TEST(ClosedForms, AnIdleRankIsBubbleAndAWorkingOneIsNot) {
  const Schedule s = make(Kind::one_f_one_b, 4, 8);
  const Result r = simulate(s, uniform_work(s, 1, 1, 1));
  EXPECT_DOUBLE_EQ(r.bubble_fraction, 3.0 / 11);
  for (const RankResult& rank : r.ranks) {
    EXPECT_EQ(schedule::to_seconds(rank[Part::bubble]).value, 9);
    EXPECT_EQ(schedule::to_seconds(rank[Part::ideal]).value, 24);
  }
}

}  // namespace
}  // namespace tessera::sim
