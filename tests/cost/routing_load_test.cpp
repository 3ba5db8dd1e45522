// Uneven routing: the reader with its faults, the power law against hand-computed quantiles, and what follows
// for a layout (slowest rank, drops) against small cases worked out by hand.
#include "cost/routing_load.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <numeric>

#include "base/file.h"

namespace tessera::cost {
namespace {

RoutingLoad histogram(std::vector<double> shares) {
  return {.kind = LoadKind::histogram, .histogram = std::move(shares)};
}
RoutingLoad power(double alpha) {
  return {.kind = LoadKind::power_law, .alpha = alpha, .histogram = {}};
}

std::string file_of(std::string_view text) {
  const std::filesystem::path path = std::filesystem::path(TESSERA_BINARY_DIR) / "routing_counts.txt";
  write_atomically(path, text);
  return path.string();
}

Problem problem_of(const std::string& text) {
  try {
    (void)parse_routing_load(text);
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.problems().front();
  }
  ADD_FAILURE() << text << " was read";
  return {};
}

TEST(RoutingLoad, ReadsWordsAndFiles) {
  EXPECT_EQ(parse_routing_load("balanced"), RoutingLoad{});
  EXPECT_EQ(parse_routing_load("power:1.01"), power(1.01));
  EXPECT_EQ(to_text(parse_routing_load("power:1.01")), "power:1.01");
  const RoutingLoad load = parse_routing_load(file_of("10, 30\n20 0;\t40\n"));
  EXPECT_EQ(load.kind, LoadKind::histogram);
  EXPECT_EQ(load.histogram, (std::vector<double>{0.1, 0.3, 0.2, 0.0, 0.4}));
  EXPECT_EQ(to_text(load), "histogram of 5 experts");
}

TEST(RoutingLoad, SaysWhatIsWrong) {
  EXPECT_EQ(problem_of("even").what, "\"even\" is neither balanced, power:ALPHA nor a file of counts");
  EXPECT_NE(problem_of("even").mend.find("power:1.2"), std::string::npos);
  EXPECT_NE(problem_of("power:").what.find("\"power:\" has no exponent between 0 and 10"), std::string::npos);
  EXPECT_NE(problem_of("power:-1").what.find("between 0 and 10"), std::string::npos);
  EXPECT_NE(problem_of("power:nan").what.find("between 0 and 10"), std::string::npos);
  const Problem word = problem_of(file_of("1 2\n3 four 5\n"));
  EXPECT_EQ(word.what, "\"four\" is not a count of 0 or more");
  EXPECT_TRUE(word.where.ends_with("routing_counts.txt:2")) << word.where;
  EXPECT_NE(word.mend.find("one number an expert"), std::string::npos);
  EXPECT_NE(problem_of(file_of("1 -2")).what.find("\"-2\""), std::string::npos);
  EXPECT_NE(problem_of(file_of("0 0 0")).what.find("3 counts with the sum 0"), std::string::npos);
  EXPECT_NE(problem_of(file_of("")).what.find("0 counts"), std::string::npos);
}

TEST(RoutingLoad, BalancedChangesNothing) {
  EXPECT_EQ(load_figures({}, 64, 6, 8, 0.0), LoadFigures{});
  EXPECT_EQ(load_figures({}, 64, 6, 8, 1.25), LoadFigures{});
  const LoadFigures f = load_figures({}, 64, 6, 8, 0.75);
  EXPECT_EQ(f.dropped, 0.25);
  EXPECT_EQ(f.slowest_rank, 0.75);
}

// 8 experts on 4 ranks; rows relative to the mean: 2.4 0.8 | 0.4 0.4 | 1.6 0.8 | 0.8 0.8.
TEST(RoutingLoad, FindsTheSlowestRankOfAHistogram) {
  const RoutingLoad load = histogram({0.3, 0.1, 0.05, 0.05, 0.2, 0.1, 0.1, 0.1});
  const LoadFigures f = load_figures(load, 8, 2, 4, 0.0);
  EXPECT_NEAR(f.slowest_rank, 1.6, 1e-12);  // (2.4 + 0.8) / 2
  EXPECT_NEAR(f.busiest_expert, 2.4, 1e-12);
  EXPECT_EQ(f.dropped, 0.0);
  EXPECT_NEAR(load_figures(load, 8, 2, 8, 0.0).slowest_rank, 2.4, 1e-12);
  EXPECT_NEAR(load_figures(load, 8, 2, 1, 0.0).slowest_rank, 1.0, 1e-12);
  EXPECT_NEAR(load_figures(load, 8, 2, 2, 0.0).slowest_rank, 1.0, 1e-12);  // 4 and 4
}

// Capacity 1 x mean: 1.4 of the first and 0.6 of the fifth expert are dropped, of 8 in all.
TEST(RoutingLoad, DropsWhatIsAboveTheCapacity) {
  const RoutingLoad load = histogram({0.3, 0.1, 0.05, 0.05, 0.2, 0.1, 0.1, 0.1});
  const LoadFigures f = load_figures(load, 8, 2, 4, 1.0);
  EXPECT_NEAR(f.dropped, 2.0 / 8.0, 1e-12);
  EXPECT_NEAR(f.slowest_rank, 0.9, 1e-12);  // (1 + 0.8) / 2
  EXPECT_NEAR(f.busiest_expert, 1.0, 1e-12);
  EXPECT_NEAR(load_figures(load, 8, 2, 4, 2.0).dropped, 0.4 / 8.0, 1e-12);
  EXPECT_EQ(load_figures(load, 8, 2, 4, 2.5).dropped, 0.0);
}

TEST(RoutingLoad, RefusesAHistogramOfAnotherModel) {
  try {
    (void)load_figures(histogram({0.5, 0.5}), 8, 2, 2, 0.0);
    FAIL() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_EQ(e.problems().front().what, "the histogram has 2 experts, the model 8");
    EXPECT_NE(e.problems().front().mend.find("8 counts"), std::string::npos);
  }
}

// R = 3276.8. alpha 1: R^u at u = 1/4, 3/4: R^(1/4) = 7.5660, R^(3/4) = 433.10. alpha 0.5:
// (1 + (sqrt(R) - 1) u)^2 at the same: 15.0610^2 = 226.83 and 43.1825^2 = 1864.73.
TEST(RoutingLoad, FollowsTheQuantilesOfThePowerLaw) {
  const std::vector<double> one = expert_loads(power(1.0), 2, 1);
  EXPECT_NEAR(one[1] / one[0], std::sqrt(3276.8), 1e-6);
  EXPECT_NEAR(one[0] + one[1], 2.0, 1e-12);
  const std::vector<double> half = expert_loads(power(0.5), 2, 1);
  EXPECT_NEAR(half[1] / half[0], 1864.73 / 226.83, 1e-3);
  // The limit of alpha to 1 is smooth.
  EXPECT_NEAR(expert_loads(power(1.000001), 64, 1)[63], expert_loads(power(1.0), 64, 1)[63], 1e-3);
}

TEST(RoutingLoad, GivesNoExpertMoreThanOneChoiceOfEachToken) {
  for (const double alpha : {0.5, 1.01, 1.2, 2.0, 10.0}) {
    for (const std::int32_t top_k : {1, 2, 4, 8}) {
      const std::vector<double> loads = expert_loads(power(alpha), 8, top_k);
      EXPECT_NEAR(std::accumulate(loads.begin(), loads.end(), 0.0), 8.0, 1e-9);
      for (const double v : loads) EXPECT_TRUE(v > 0.0 && v <= 8.0 / top_k * (1 + 1e-9)) << v;
      EXPECT_TRUE(std::is_sorted(loads.begin(), loads.end()));
    }
  }
}

// With one expert a rank, and with all experts on one, chance has no part.
TEST(RoutingLoad, AgreesWithTheExtremesOfExpertParallelism) {
  const LoadFigures each = load_figures(power(1.2), 64, 6, 64, 0.0);
  EXPECT_EQ(each.slowest_rank, each.busiest_expert);
  EXPECT_NEAR(load_figures(power(1.2), 64, 6, 1, 0.0).slowest_rank, 1.0, 1e-12);
  double last = 1.0;
  for (const std::int32_t ep : {2, 4, 8, 16, 32, 64}) {
    const double now = load_figures(power(1.2), 64, 6, ep, 0.0).slowest_rank;
    EXPECT_GT(now, last) << ep;
    last = now;
  }
}

// 4 experts on 2 ranks: the busiest shares its rank with each of the others with probability 1/3.
TEST(RoutingLoad, ExpectsTheMeanOverAssignments) {
  const std::vector<double> x = expert_loads(power(1.0), 4, 1);
  const auto pair = [&](std::size_t i) {
    const double mine = x[3] + x[i];
    return std::max(mine, 4.0 - mine) / 2.0;
  };
  const double exact = (pair(0) + pair(1) + pair(2)) / 3.0;
  EXPECT_NEAR(load_figures(power(1.0), 4, 1, 2, 0.0).slowest_rank, exact, 0.03 * exact);
}

TEST(RoutingLoad, IsMoreEvenForALargerExponent) {
  const double uneven = load_figures(power(1.01), 128, 8, 16, 0.0).slowest_rank;
  const double even = load_figures(power(10.0), 128, 8, 16, 0.0).slowest_rank;
  EXPECT_GT(uneven, 1.5);
  EXPECT_LT(even, uneven);
  EXPECT_TRUE(even >= 1.0);
}

TEST(RoutingLoad, IsTheSameEveryTime) {
  EXPECT_EQ(load_figures(power(1.2), 256, 8, 32, 1.5), load_figures(power(1.2), 256, 8, 32, 1.5));
}

// Two layers, the one even, the other with all choices on one of four experts.
constexpr const char* kTwoLayers = R"({"logical_count": [[5, 5, 5, 5], [0, 20, 0, 0]]})";

TEST(RoutingLoad, OfARoutingFileIsTheMeanOverItsLayers) {
  const RoutingLoad load = parse_routing_load(file_of(kTwoLayers));
  EXPECT_EQ(load.num_layers, 2);
  EXPECT_EQ(to_text(load), "histogram of 4 experts in 2 layers");
  const LoadFigures two = load_figures(load, 4, 1, 2, 0.0);
  EXPECT_DOUBLE_EQ(two.slowest_rank, (1.0 + 2.0) / 2);
  EXPECT_DOUBLE_EQ(two.busiest_expert, (1.0 + 4.0) / 2);
  EXPECT_DOUBLE_EQ(two.dropped, 0.0);
  EXPECT_DOUBLE_EQ(load_figures(load, 4, 1, 2, 2.0).dropped, (0.0 + 0.5) / 2);
}

TEST(RoutingLoad, OfADamagedRoutingFileSaysSo) {
  EXPECT_NE(problem_of(file_of("layer,expert\n1,2\n")).what.find("the columns are"), std::string::npos);
  try {
    (void)parse_routing_load(file_of("{\"logical_count\": [[1, 2]"));
    ADD_FAILURE() << "half a file is refused";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_NE(std::string(e.what()).find("not JSON"), std::string::npos);
  }
}

TEST(RoutingLoad, OfPlacedExpertsMeetsTheirSlots) {
  const RoutingLoad load = histogram({0.4, 0.1, 0.3, 0.2});
  EXPECT_NEAR(load_figures(load, 4, 1, 2, 0.0).slowest_rank, 1.0, 1e-12) << "0.5 and 0.5";
  const RoutingLoad worse = placed(load, 4, {{3, {0, 2, 1, 3}}});
  EXPECT_NEAR(load_figures(worse, 4, 1, 2, 0.0).slowest_rank, 1.4, 1e-12) << "0.7 and 0.3";
  EXPECT_EQ(to_text(worse), "histogram of 4 experts, placed");
  // Two replicas of expert 0: 0.2 + 0.3 + 0.1 and 0.2 + 0.2 + 0 on ranks of three slots.
  const RoutingLoad replicas = placed(load, 4, {{0, {0, 2, 1, 0, 3, 3}}});
  EXPECT_NEAR(load_figures(replicas, 4, 1, 2, 0.0).slowest_rank, 1.2, 1e-12);
  // Six slots do not go on four ranks: experts in order.
  EXPECT_NEAR(load_figures(replicas, 4, 1, 4, 0.0).slowest_rank, 1.6, 1e-12);
  // Without a load all experts are alike; each of two layers has its own map.
  const RoutingLoad even = placed({}, 4, {{1, {0, 1, 2, 3}}, {2, {0, 1, 2, 3, 0, 1}}});
  EXPECT_EQ(even.num_layers, 2);
  EXPECT_NEAR(load_figures(even, 4, 1, 2, 0.0).slowest_rank, (1.0 + 1.0) / 2.0, 1e-12);
}

TEST(RoutingLoad, MeasuresThePartsThatATokenReachesWhereItsChoicesAreKnown) {
  RoutingLoad load = histogram({0.25, 0.25, 0.25, 0.25});
  load.layers = {1};
  load.top_k = 2;
  load.tokens = {{0, 1, 2, 3, 0, 1, 1, 2}};
  const LoadFigures in_order = load_figures(load, 4, 2, 4, 0.0);
  EXPECT_EQ(in_order.parts.size(), 3U) << "1, 2 and 4";
  EXPECT_NEAR(in_order.parts.at(2), (1 + 1 + 1 + 2) / 4.0, 1e-12);
  EXPECT_NEAR(in_order.parts.at(4), 2.0, 1e-12);
  const LoadFigures across = load_figures(placed(load, 4, {{1, {0, 2, 1, 3}}}), 4, 2, 4, 0.0);
  EXPECT_NEAR(across.parts.at(2), 2.0, 1e-12) << "0 and 2 lie on one half, 1 and 3 on the other";
}

TEST(RoutingLoad, RefusesPlacementsThatDoNotFit) {
  const auto what = [](const RoutingLoad& load) {
    try {
      (void)placed(load, 4, {{1, {0, 1, 2, 3}}});
    } catch (const Error& e) {
      return e.problems().front().what;
    }
    return std::string("taken");
  };
  EXPECT_EQ(what(power(1.2)), "a power law does not say which experts are hot: it has no placement");
  RoutingLoad other = histogram({0.25, 0.25, 0.25, 0.25});
  other.layers = {7};
  EXPECT_EQ(what(other), "the routing has layer 7, the placement has not");
}

// Shares that sum to a little less than 1 make no rank faster than the mean.
TEST(RoutingLoad, WithoutDropsTheFullestRankHasTheMeanAtLeast) {
  std::vector<double> shares(7, 1.0 / 7.0);
  shares[0] -= 1e-16;
  EXPECT_EQ(load_figures(histogram(shares), 7, 2, 1, 0.0).slowest_rank, 1.0);
}

}  // namespace
}  // namespace tessera::cost
