// The learning rate of every step against closed forms written out by hand.
#include "optim/lr_schedule.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace tessera::optim {
namespace {

constexpr double kExact = 1e-15;

TEST(WarmUp, RisesInEqualStepsAndReachesTheRateWithItsLastStep) {
  for (const LrDecay decay : {LrDecay::constant, LrDecay::cosine, LrDecay::wsd}) {
    const LrSchedule s{.lr = 0.8, .decay = decay, .warmup_steps = 4, .decay_steps = 2, .total_steps = 20};
    for (int step = 0; step < 4; ++step) EXPECT_NEAR(s.at(step), 0.2 * (step + 1), kExact) << step;
    EXPECT_NEAR(s.at(4), 0.8, kExact);
  }
}

TEST(Constant, StaysToTheEndAndBeyond) {
  const LrSchedule s{.lr = 0.5, .min_lr = 0.1, .decay = LrDecay::constant, .total_steps = 10};
  for (const int step : {0, 5, 9, 10, 1000}) EXPECT_EQ(s.at(step), 0.5);
}

TEST(Cosine, GoesFromTheRateToTheLeastRateOverHalfAPeriod) {
  const LrSchedule s{
      .lr = 1.0, .min_lr = 0.2, .decay = LrDecay::cosine, .warmup_steps = 3, .total_steps = 12};
  EXPECT_NEAR(s.at(3), 1.0, kExact);
  EXPECT_NEAR(s.at(7), 0.6, kExact);  // halfway between steps 3 and 11
  EXPECT_NEAR(s.at(11), 0.2, kExact);
  for (int step = 3; step < 12; ++step) {
    EXPECT_NEAR(s.at(step), 0.2 + 0.4 * (1 + std::cos(std::numbers::pi * (step - 3) / 8.0)), kExact) << step;
  }
}

TEST(Wsd, StaysThenFallsInEqualStepsToTheLeastRate) {
  const LrSchedule s{.lr = 1.0, .min_lr = 0.2, .decay = LrDecay::wsd, .decay_steps = 4, .total_steps = 10};
  for (int step = 0; step <= 5; ++step) EXPECT_EQ(s.at(step), 1.0) << step;
  EXPECT_NEAR(s.at(6), 0.8, kExact);
  EXPECT_NEAR(s.at(7), 0.6, kExact);
  EXPECT_NEAR(s.at(8), 0.4, kExact);
  EXPECT_NEAR(s.at(9), 0.2, kExact);
}

TEST(Wsd, WithoutDecayStepsIsConstant) {
  const LrSchedule s{.lr = 1.0, .decay = LrDecay::wsd, .total_steps = 10};
  EXPECT_EQ(s.at(9), 1.0);
}

TEST(LrSchedule, KeepsTheLastValuePastTheEnd) {
  for (const LrDecay decay : {LrDecay::cosine, LrDecay::wsd}) {
    const LrSchedule s{.lr = 1.0, .min_lr = 0.2, .decay = decay, .decay_steps = 4, .total_steps = 10};
    EXPECT_EQ(s.at(50), s.at(9));
  }
}

TEST(LrSchedule, ARunOfOneStepUsesTheFullRate) {
  for (const LrDecay decay : {LrDecay::constant, LrDecay::cosine, LrDecay::wsd}) {
    EXPECT_EQ((LrSchedule{.lr = 1.0, .decay = decay, .total_steps = 1}).at(0), 1.0);
  }
}

}  // namespace
}  // namespace tessera::optim
