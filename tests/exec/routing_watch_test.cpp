// Figures of expert load by hand, and warnings that come when routing stays broken, once, and not before.
#include "exec/routing_watch.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace tessera::exec {
namespace {

using ::testing::HasSubstr;

RoutingFigures load(std::vector<std::int64_t> chosen) {
  return routing_figures(
      {.layer = 3, .chosen = chosen, .dropped = std::vector<std::int64_t>(chosen.size(), 0)});
}

TEST(RoutingFigures, AreThoseOfTheLoad) {
  const RoutingFigures f = routing_figures(
      {.layer = 1, .chosen = {30, 10, 0, 40}, .dropped = {0, 0, 0, 8}, .tokens = 40, .entropy = 0.5});
  EXPECT_DOUBLE_EQ(f.max_over_mean, 2.0);
  EXPECT_DOUBLE_EQ(f.cv, std::sqrt((100.0 + 100.0 + 400.0 + 400.0) / 4.0) / 20.0);
  EXPECT_DOUBLE_EQ(f.drop_rate, 0.1);
  EXPECT_EQ(f.dead, 1);
  EXPECT_DOUBLE_EQ(f.entropy, 0.5);
}

TEST(RoutingFigures, OfALayerWithoutTokensAreZero) {
  const RoutingFigures f = load({0, 0});
  EXPECT_EQ(f.max_over_mean, 0.0);
  EXPECT_EQ(f.cv, 0.0);
  EXPECT_EQ(f.dead, 2);
}

TEST(RoutingWatch, NamesALayerWhoseRoutingStaysCollapsedOnce) {
  RoutingWatch watch(2);
  const std::vector<RoutingFigures> bad{load({900, 800, 30, 30, 30, 30, 30, 30})};
  for (std::int32_t step = 1; step < RoutingWatch::kStepsToWarn; ++step) EXPECT_TRUE(watch.look(bad).empty());
  const auto news = watch.look(bad);
  ASSERT_EQ(news.size(), 1U);
  EXPECT_THAT(news[0], HasSubstr("collapsed in layer 3"));
  EXPECT_THAT(news[0], HasSubstr("2 of 8 experts"));
  EXPECT_THAT(news[0], HasSubstr("moe.aux_loss_coef"));
  for (int step = 0; step < 50; ++step) EXPECT_TRUE(watch.look(bad).empty());
}

TEST(RoutingWatch, ForgetsACollapseThatPasses) {
  RoutingWatch watch(1);
  const std::vector<RoutingFigures> bad{load({900, 10, 10, 10})};
  const std::vector<RoutingFigures> good{load({200, 210, 190, 205})};
  for (int round = 0; round < 5; ++round) {
    for (std::int32_t step = 1; step < RoutingWatch::kStepsToWarn; ++step)
      EXPECT_TRUE(watch.look(bad).empty());
    EXPECT_TRUE(watch.look(good).empty());
  }
}

TEST(RoutingWatch, NamesADeadExpertButNotAmongAHandfulOfTokens) {
  RoutingWatch many(1);
  RoutingWatch few(1);
  std::vector<std::string> news;
  for (std::int32_t step = 0; step < RoutingWatch::kStepsToWarn; ++step) {
    news = many.look({load({100, 100, 0, 100})});
    EXPECT_TRUE(few.look({load({1, 1, 0, 1})}).empty());
  }
  ASSERT_EQ(news.size(), 1U);
  EXPECT_THAT(news[0], HasSubstr("dead expert"));
  EXPECT_THAT(news[0], HasSubstr("expert 2 first"));
}

TEST(RoutingWatch, TwoExpertsThatTopTwoUsesAlwaysAreNoCollapse) {
  RoutingWatch watch(2);
  for (int step = 0; step < 30; ++step) EXPECT_TRUE(watch.look({load({500, 500})}).empty());
}

}  // namespace
}  // namespace tessera::exec
