// Sizing: goodput follows Young and Daly, days and price are of the steps, and the answers are what they say.
#include "explain/sizing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "explain/pricing.h"
#include "search/search.h"
#include "spec/presets.h"

namespace tessera::testing {
namespace {

using explain::Goodput;
using explain::Reliability;
using explain::Size;
using ::testing::HasSubstr;

TEST(Goodput, TheBestIntervalIsDalysAndNoOtherIsBetter) {
  const Reliability r{.device_mtbf_hours = 50'000, .checkpoint_seconds = 30, .restart_seconds = 300};
  const Goodput best = explain::goodput(r, 16'384);
  const double between = 50'000 * 3600.0 / 16'384;
  EXPECT_NEAR(best.interval_seconds, std::sqrt(2 * 30 * between), 1e-9 * between);
  EXPECT_NEAR(best.failures_per_day, 86'400 / between, 1e-9);
  EXPECT_TRUE(best.share > 0.8 && best.share < 1.0) << best.share;
  for (const double factor : {0.25, 0.5, 2.0, 4.0}) {
    Reliability other = r;
    other.interval_seconds = best.interval_seconds * factor;
    EXPECT_LT(explain::goodput(other, 16'384).share, best.share + 1e-3) << factor;
  }
  EXPECT_LT(explain::goodput(r, 32'768).share, best.share);
}

TEST(Goodput, WithoutFailuresOnlyCheckpointsCost) {
  EXPECT_EQ(explain::goodput({}, 1024).share, 1.0);
  EXPECT_NEAR(explain::goodput({.checkpoint_seconds = 10, .interval_seconds = 990}, 8).share, 0.99, 1e-12);
}

cost::Setup setup_of(const char* model, std::int64_t batch) {
  cost::Setup s;
  s.model = spec::find_model(model);
  s.cluster = spec::find_cluster("dgx-h100");
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-bridge-2026");
  s.work = {.global_batch_size = batch, .sequence_length = 8192};
  return s;
}

TEST(Sizing, DaysAndPriceAreOfTheStepsOfTheirLayout) {
  const cost::Setup setup = setup_of("llama-3-8b", 512);
  const explain::Sizing sizing = explain::size_training(
      setup, {},
      {.tokens = 1e12, .deadline_days = 60, .price_per_device_hour = 2.0, .devices = {8, 64, 256}});
  ASSERT_EQ(sizing.sizes.size(), 3U);
  for (const Size& s : sizing.sizes) {
    cost::Setup sized = setup;
    sized.cluster = spec::with_devices(setup.cluster, s.devices);
    EXPECT_EQ(explain::price(sized, s.candidate).seconds(), s.cost.seconds());
    const double days = std::ceil(1e12 / (512 * 8192.0)) * s.cost.seconds() / 86'400;
    EXPECT_NEAR(s.days, days, 1e-9 * days);
    EXPECT_NEAR(s.price, days * 24 * s.devices * 2.0, 1e-6 * s.price);
    EXPECT_EQ(s.meets_deadline, days <= 60);
  }
  ASSERT_GE(sizing.fewest, 0);
  for (std::int32_t i = 0; i < sizing.fewest; ++i) EXPECT_FALSE(sizing.sizes[i].meets_deadline);
  EXPECT_TRUE(sizing.sizes[sizing.fewest].meets_deadline);
  for (const Size& s : sizing.sizes) {
    EXPECT_GE(s.days, sizing.sizes[sizing.fastest].days);
    EXPECT_TRUE(!s.meets_deadline || s.price >= sizing.sizes[sizing.cheapest].price);
  }
}

TEST(Sizing, SmallClustersThatHoldNothingAreNamed) {
  const explain::Sizing sizing =
      explain::size_training(setup_of("llama-3-70b", 512), {}, {.tokens = 1e12, .devices = {1, 4, 256}});
  EXPECT_THAT(sizing.too_small, ::testing::ElementsAre(1, 4));
  EXPECT_EQ(sizing.sizes.size(), 1U);
}

TEST(Sizing, ADeadlineThatNobodyMeetsLeavesNoAnswer) {
  const explain::Sizing sizing = explain::size_training(
      setup_of("llama-3-8b", 512), {}, {.tokens = 1e15, .deadline_days = 1, .devices = {8, 64}});
  EXPECT_EQ(sizing.fewest, -1);
  EXPECT_EQ(sizing.cheapest, -1);
  EXPECT_EQ(sizing.fastest, -1);
}

TEST(Sizing, NumbersThatAreNoneAreAllNamed) {
  try {
    (void)explain::size_training(setup_of("llama-3-8b", 512), {},
                                 {.tokens = 0, .deadline_days = -1, .price_per_device_hour = NAN});
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.problems().size(), 3U);
    EXPECT_THAT(e.what(), HasSubstr("tokens is 0"));
  }
}

TEST(Sizing, FewestIsBracketedByEighthsBelowIt) {
  const explain::Sizing sizing = explain::size_training(
      setup_of("llama-3-8b", 512), {}, {.tokens = 2e12, .deadline_days = 60, .most_devices = 1024});
  ASSERT_GE(sizing.fewest, 1);
  const Size& fewest = sizing.sizes[sizing.fewest];
  const Size& before = sizing.sizes[sizing.fewest - 1];
  EXPECT_LE(fewest.days, 60);
  EXPECT_GT(before.days, 60);
  EXPECT_LE(fewest.devices, before.devices * 2);
  // What is between them was tried, or would need an MFU that no size reaches.
  for (const std::int32_t n : sizing.hopeless) EXPECT_LT(n, fewest.devices);
}

TEST(Sizing, ADeadlineThatNobodyMeetsNamesTheNearest) {
  const explain::Sizing sizing = explain::size_training(
      setup_of("llama-3-8b", 512), {}, {.tokens = 1e14, .deadline_days = 1, .devices = {8, 64}});
  ASSERT_GE(sizing.nearest, 0);
  EXPECT_EQ(sizing.sizes[sizing.nearest].devices, 64);
}

TEST(Sizing, ABatchThatDividesOverNoLayoutIsNotCalledAWantOfMemory) {
  const explain::Sizing sizing =
      explain::size_training(setup_of("llama-3-8b", 512), {}, {.tokens = 1e12, .devices = {64, 100'000}});
  EXPECT_THAT(sizing.undivided, ::testing::ElementsAre(100'000));
  EXPECT_TRUE(sizing.too_small.empty());
}

// A hundred thousand devices in seconds; the bound is generous for slow machines and sanitizers.
TEST(Sizing, AHundredThousandDevicesAreAnsweredInSeconds) {
  cost::Setup setup = setup_of("llama-3.1-405b", 8192);
  const explain::Sizing sizing =
      explain::size_training(setup, {}, {.tokens = 40e12, .deadline_days = 60, .most_devices = 100'000});
  ASSERT_GE(sizing.fewest, 0);
  EXPECT_EQ(sizing.sizes.back().devices, 98'304);
  EXPECT_LT(sizing.seconds, 120.0);
}

TEST(Marginal, EachIsThePriceOfThePlanOnTheBetterMachine) {
  const cost::Setup setup = setup_of("mixtral-8x7b", 512);
  const explain::SizingOptions options{.tokens = 1e12,
                                       .price_per_device_hour = 2.0,
                                       .reliability = {.device_mtbf_hours = 5e4, .checkpoint_seconds = 30},
                                       .devices = {64}};
  const explain::Sizing sizing = explain::size_training(setup, {}, options);
  ASSERT_EQ(sizing.sizes.size(), 1U);
  const Size& base = sizing.sizes.front();
  cost::Setup sized = setup;
  sized.cluster = spec::with_devices(setup.cluster, 64);
  const std::vector<explain::Marginal> all = explain::marginal_values(sized, {}, options, base);
  EXPECT_GE(all.size(), 9U);
  for (const explain::Marginal& m : all) {
    SCOPED_TRACE(explain::name(m.upgrade));
    EXPECT_LE(m.size.days, base.days);
    EXPECT_GE(m.worth(base), 0.0);
    const cost::Setup better = explain::upgraded(sized, m.upgrade, m.factor);
    EXPECT_EQ(explain::price(better, m.size.candidate).seconds(), m.size.cost.seconds());
    // At the price that a device hour may have, both cost the same.
    EXPECT_NEAR(m.size.price * (1.0 + m.worth(base)), base.price, 1e-9 * base.price);
  }
}

TEST(Upgrade, ChangesWhatItSaysAndKeepsAClusterThatIsValid) {
  using explain::Upgrade;
  const cost::Setup setup = setup_of("llama-3-8b", 512);
  const double usable = search::usable_memory(setup);
  EXPECT_NEAR(search::usable_memory(explain::upgraded(setup, Upgrade::memory, 1.5)), 1.5 * usable, 1.0);
  const cost::Setup domain = explain::upgraded(setup, Upgrade::domain, 4);
  EXPECT_EQ(domain.cluster.tiers.front().size, 32);
  Problems problems;
  spec::validate(domain.cluster, "cluster", problems);
  EXPECT_TRUE(problems.empty());
  const cost::Setup network = explain::upgraded(setup, Upgrade::network, 2);
  EXPECT_EQ(network.cluster.tiers[0], setup.cluster.tiers[0]);
  EXPECT_EQ(network.cluster.tiers[1].bandwidth.value, 2 * setup.cluster.tiers[1].bandwidth.value);
}

}  // namespace
}  // namespace tessera::testing
