// The waterfall sums exactly, whatever the parts; plan tables say what a search found.
#include "report/waterfall.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "base/random.h"
#include "base/text.h"
#include "report/plan_table.h"

namespace tessera::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TEST(RoundedShares, SumExactlyAndLieWithinOneOfTheTruth) {
  for (std::uint64_t i = 0; i < 500; ++i) {
    std::vector<double> values;
    for (std::uint64_t k = 0; k < 1 + i % 15; ++k) {
      values.push_back(static_cast<double>(uniform_below(1000, 3, i, k)) + (k == 0 ? 1.0 : 0.0));
    }
    const double sum = std::accumulate(values.begin(), values.end(), 0.0);
    const std::vector<std::int64_t> shares = rounded_shares(values, 1000);
    EXPECT_EQ(std::accumulate(shares.begin(), shares.end(), std::int64_t{0}), 1000);
    for (std::size_t k = 0; k < values.size(); ++k) {
      EXPECT_LT(std::abs(static_cast<double>(shares[k]) - values[k] / sum * 1000.0), 1.0);
    }
  }
}

// The tenths of a percent in a line, signs left out; -1: none.
std::int64_t tenths(const std::string& line) {
  const std::size_t percent = line.find('%');
  if (percent == std::string::npos) return -1;
  const std::size_t begin = line.find_last_of(" -", percent) + 1;
  std::string digits = line.substr(begin, percent - begin);
  std::erase(digits, '.');
  return std::stoll(digits);
}

TEST(Waterfall, PrintsSharesThatSumToAHundredPercent) {
  for (std::uint64_t i = 0; i < 50; ++i) {
    PartSeconds parts{};
    for (std::size_t p = 0; p < parts.size(); ++p) {
      parts[p] = static_cast<double>(uniform_below(10'000, 5, i, p)) * 1e-4 *
                 (uniform_below(3, 6, i, p) > 0 ? 1 : 0);
    }
    parts[0] += 0.5;
    std::int64_t sum = 0;
    bool first = true;
    for (const std::string& line : split(waterfall(parts, {.width = 100}), '\n')) {
      const std::int64_t t = tenths(line);
      if (t < 0) continue;
      if (first) {
        EXPECT_EQ(t, 1000);
      } else {
        sum += t;
      }
      first = false;
    }
    EXPECT_EQ(sum, 1000);
  }
}

TEST(Waterfall, LeavesOutPartsWithoutTimeAndIsEmptyForNone) {
  PartSeconds parts{};
  EXPECT_EQ(waterfall(parts, {}), "");
  parts[0] = 0.6;
  parts[static_cast<std::size_t>(cost::Part::bubble)] = 0.4;
  const std::string text = waterfall(parts, {.width = 80});
  EXPECT_THAT(text, HasSubstr("pipeline bubble"));
  EXPECT_THAT(text, HasSubstr("-40.0%"));
  EXPECT_THAT(text, HasSubstr("60.0%"));
  EXPECT_THAT(text, Not(HasSubstr("recomputation")));
}

struct PlanText : ::testing::Test {
  PlanText() {
    setup.model.num_hidden_layers = 4;
    setup.cluster.num_devices = 16;
    setup.cluster.price_per_device_hour = 2.0;
    setup.cluster.tiers = {{.name = "nvlink", .size = 8}};
    setup.calibration.memory = setup.calibration.usable_memory = Bytes(80'000'000'000);
    setup.work = {.global_batch_size = 32, .sequence_length = 1000};
    search::Ranked r{.candidate = {.tp = 4, .pp = 4, .zero_stage = 1}};
    r.cost.parts[0] = 0.5;
    r.cost.parts[static_cast<std::size_t>(cost::Part::bubble)] = 0.375;
    r.cost.parts[static_cast<std::size_t>(cost::Part::tp)] = 0.125;
    r.cost.model_flops = 5e14;
    r.cost.peak = 1e15;
    r.cost.num_microbatches = 8;
    r.cost.memory.parts = {10e9, 20e9, 5e9, 8e9, 1e9, 2e9};
    result.best = {r};
  }
  cost::Setup setup;
  search::Result result;
};

TEST_F(PlanText, NamesTheBottleneckWithItsNumbersAndItsAxis) {
  const std::string text = bottleneck(setup, result.best[0]);
  EXPECT_THAT(text,
              HasSubstr("pipeline bubble: 375.0 ms of 1.0 s (37.5%); 8 micro-batches fill 4 stages of 4"));
  EXPECT_THAT(text, HasSubstr("The axis that costs most is pp: 375.0 ms of 1.0 s (37.5%)"));
}

TEST_F(PlanText, PricesTokens) {
  EXPECT_DOUBLE_EQ(tokens_per_device_second(setup, result.best[0].cost), 2000.0);
  EXPECT_NEAR(price_of_billion_tokens(setup, result.best[0].cost), 1e9 / 2000.0 / 3600.0 * 2.0, 1e-9);
}

TEST_F(PlanText, TellsTheNearestMissInNumbers) {
  search::Rejection r{.reason = search::Reason::does_not_fit, .count = 1234, .nearest = {.tp = 2, .dp = 8}};
  r.needs = 84.1e9;
  r.limit = 79.6e9;
  EXPECT_THAT(describe(r), HasSubstr("tp 2"));
  EXPECT_THAT(describe(r), HasSubstr("needs 84.1 GB of 79.6, 5.7% over"));
  result.rejections = {r};
  const PlanView view{.setup = &setup, .result = &result, .model = "m"};
  EXPECT_THAT(rejection_table(view, {.width = 100}), HasSubstr("1,234  do not fit in memory"));
  for (const std::int32_t width : {20, 40, 60, 80, 120, 200}) {
    for (const std::string& line : split(plan_page(view, {.width = width}), '\n')) {
      EXPECT_LE(display_width(line), width);
    }
  }
}

}  // namespace
}  // namespace tessera::report
