// The robust choice: a scenario played again gives the figure, threads do not matter, quantiles are what they
// say, and a layout that wins as planned loses where its experts wait for each other.
#include "explain/robust.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/error.h"
#include "explain/pricing.h"
#include "spec/presets.h"

namespace tessera::testing {
namespace {

using cost::Candidate;
using explain::Robust;
using explain::RobustOptions;

cost::Setup setup_of(const char* model) {
  cost::Setup s;
  s.model = spec::find_model(model);
  s.cluster = spec::with_devices(spec::find_cluster("dgx-h100"), 64);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-bridge-2026");
  s.work = {.global_batch_size = 256, .sequence_length = 4096};
  return s;
}

const Candidate kWide{.dp = 16, .pp = 4, .ep = 8, .vpp = 8, .schedule = schedule::Kind::interleaved};
const Candidate kAlone{.tp = 2, .dp = 4, .pp = 8, .vpp = 4, .schedule = schedule::Kind::interleaved};
// Time alone, whatever it takes of memory.
const RobustOptions kTime{.scenarios = 24, .memory_fraction = 100.0};

TEST(Robust, TheScenarioAtTheQuantilePlayedAgainGivesTheFigure) {
  const cost::Setup setup = setup_of("mixtral-8x7b");
  const std::vector<Candidate> all = {kWide, kAlone};
  const std::vector<Robust> times = explain::robust_times(setup, all, kTime);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const explain::Scenario s = explain::scenario(setup, kTime, times[i].at);
    EXPECT_EQ(explain::scenario_seconds(setup, all[i], s, kTime), times[i].quantile_seconds);
    EXPECT_NEAR(times[i].nominal_seconds, explain::price(setup, all[i]).seconds(), 1e-9);
    EXPECT_LE(times[i].quantile_seconds, times[i].worst_seconds);
    EXPECT_EQ(times[i].overflows, 0);
  }
}

TEST(Robust, ABusyNetworkIsThePriceOnTheSlowerLinks) {
  const cost::Setup setup = setup_of("llama-3-8b");
  RobustOptions network = kTime;
  network.on = {false, true, false};
  const Candidate c{.tp = 2, .dp = 32};
  const Robust r = explain::robust_times(setup, std::vector{c}, network).front();
  cost::Setup slower = setup;
  const double factor = explain::scenario(setup, network, r.at).network;
  EXPECT_GT(factor, 1.0);
  for (std::size_t t = 1; t < slower.cluster.tiers.size(); ++t) {
    BytesPerSecond& bandwidth = slower.cluster.tiers[t].bandwidth;
    bandwidth = BytesPerSecond(bandwidth.value / factor);
  }
  EXPECT_NEAR(r.quantile_seconds, explain::price(slower, c).seconds(), 1e-9 * r.quantile_seconds);
}

TEST(Robust, TheQuantileIsTheOrderStatisticOfItsScenarios) {
  const cost::Setup setup = setup_of("mixtral-8x7b");
  std::vector<double> seconds;
  for (std::int32_t i = 0; i < kTime.scenarios; ++i)
    seconds.push_back(explain::scenario_seconds(setup, kWide, explain::scenario(setup, kTime, i), kTime));
  std::ranges::sort(seconds);
  for (const auto& [quantile, position] : {std::pair{0.5, 11}, {0.9, 21}, {1.0, 23}}) {
    RobustOptions o = kTime;
    o.quantile = quantile;
    const Robust r = explain::robust_times(setup, std::vector{kWide}, o).front();
    EXPECT_EQ(r.quantile_seconds, seconds[static_cast<std::size_t>(position)]) << quantile;
  }
}

TEST(Robust, FiguresAreTheSameOnAnyNumberOfThreadsAndChangeWithTheSeed) {
  const cost::Setup setup = setup_of("mixtral-8x7b");
  const std::vector<Candidate> all = {kWide, kAlone};
  RobustOptions one = kTime, three = kTime, other = kTime;
  one.threads = 1, three.threads = 3, other.seed = 2;
  const auto a = explain::robust_times(setup, all, one), b = explain::robust_times(setup, all, three),
             c = explain::robust_times(setup, all, other);
  for (std::size_t i = 0; i < all.size(); ++i) {
    EXPECT_EQ(a[i].quantile_seconds, b[i].quantile_seconds);
    EXPECT_EQ(a[i].mean_seconds, b[i].mean_seconds);
    EXPECT_EQ(a[i].at, b[i].at);
  }
  EXPECT_NE(a[0].mean_seconds, c[0].mean_seconds);
}

// Experts spread over eight ranks win while routing is even; under uneven routing they wait for the fullest,
// and the layout that keeps them together is faster at the quantile.
TEST(Robust, TheWinnerAsPlannedLosesWhereRoutingIsUneven) {
  const cost::Setup setup = setup_of("mixtral-8x7b");
  const std::vector<Candidate> all = {kWide, kAlone};
  const std::vector<Robust> times = explain::robust_times(setup, all, kTime);
  ASSERT_LT(times[0].nominal_seconds, times[1].nominal_seconds);
  EXPECT_GT(times[0].quantile_seconds, times[1].quantile_seconds);
  EXPECT_EQ(explain::robust_choice(times), 1);
  const auto wide = explain::price_of_each(setup, kWide, kTime);
  const auto routing = static_cast<std::size_t>(explain::Disturbance::routing);
  EXPECT_EQ(std::ranges::max_element(wide) - wide.begin(), static_cast<std::ptrdiff_t>(routing));
  EXPECT_NEAR(explain::price_of_each(setup, kAlone, kTime)[routing], 0.0, 1e-6);
}

TEST(Robust, ScenariosThatOverflowTakeForEver) {
  const cost::Setup setup = setup_of("mixtral-8x7b");
  RobustOptions o = kTime;
  o.memory_fraction = 0.01;
  const Robust r = explain::robust_times(setup, std::vector{kWide}, o).front();
  EXPECT_EQ(r.overflows, o.scenarios);
  EXPECT_TRUE(std::isinf(r.quantile_seconds));
  EXPECT_TRUE(std::isfinite(r.nominal_seconds));
}

TEST(Robust, TheSlowestNodeIsInTheMeanWhatTheCalibrationSays) {
  const cost::Setup setup = setup_of("llama-3-8b");
  const RobustOptions o{.scenarios = 64};
  double sum = 0.0;
  for (std::int32_t i = 0; i < o.scenarios; ++i) {
    const explain::Scenario s = explain::scenario(setup, o, i);
    ASSERT_EQ(s.node_slowdown.size(), 8U);
    sum += *std::ranges::max_element(s.node_slowdown);
  }
  EXPECT_NEAR(sum / o.scenarios, 1.0 + setup.calibration.straggler * 3.0, 1e-9);  // log2 of 8 nodes
}

TEST(Robust, RefusesQuantilesThatAreNone) {
  for (const double quantile : {0.0, 1.5, std::nan("")}) {
    EXPECT_THROW((void)explain::robust_times(setup_of("llama-3-8b"), std::vector{Candidate{.dp = 64}},
                                             {.quantile = quantile}),
                 Error)
        << quantile;
  }
}

}  // namespace
}  // namespace tessera::testing
