// Routing statistics as a value: what is counted from choices against a count by hand, spread by closed
// forms, pairs, and what the checker refuses.
#include "trace/routing.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "routing_support.h"

namespace tessera::trace {
namespace {

using testing::HasSubstr;

TEST(LoadSpread, OfEqualLoadsHasAllExpertsEffective) {
  const std::vector<std::int64_t> chosen(16, 25);
  const LoadSpread s = spread_of(chosen);
  EXPECT_EQ(s.total, 400);
  EXPECT_DOUBLE_EQ(s.max_over_mean, 1.0);
  EXPECT_DOUBLE_EQ(s.cv, 0.0);
  EXPECT_NEAR(s.entropy, std::log(16.0), 1e-14);
  EXPECT_NEAR(s.effective_experts, 16.0, 1e-12);
  EXPECT_EQ(s.dead, 0);
}

TEST(LoadSpread, OfOneBusyExpertHasOneEffective) {
  const LoadSpread s = spread_of(std::vector<std::int64_t>{0, 0, 9, 0});
  EXPECT_DOUBLE_EQ(s.max_over_mean, 4.0);
  EXPECT_DOUBLE_EQ(s.cv, std::sqrt(3.0));
  EXPECT_DOUBLE_EQ(s.entropy, 0.0);
  EXPECT_DOUBLE_EQ(s.effective_experts, 1.0);
  EXPECT_EQ(s.dead, 3);
}

TEST(LoadSpread, CountsHalfOfTheExpertsUsedAlikeAsHalfEffective) {
  const LoadSpread s = spread_of(std::vector<std::int64_t>{7, 0, 7, 0, 7, 0, 7, 0});
  EXPECT_NEAR(s.effective_experts, 4.0, 1e-13);
  EXPECT_DOUBLE_EQ(s.max_over_mean, 2.0);
}

TEST(LoadSpread, OfNoChoicesIsZero) {
  EXPECT_EQ(spread_of(std::vector<std::int64_t>{0, 0}), (LoadSpread{.dead = 2}));
}

TEST(CountChoices, AreThoseOfACountByHand) {
  const Shape shape{.layers = 4, .experts = 11, .top_k = 3, .tokens = 200};
  const RoutingStats s = random_routing(5, shape);
  EXPECT_EQ(s.num_tokens, 200);
  const auto chose = [&](std::int32_t l, std::int64_t t, std::int32_t e) {
    const auto row = s.choices_of(l).subspan(t * 3, 3);
    return std::ranges::find(row, e) != row.end();
  };
  for (std::int32_t l = 0; l < 4; ++l) {
    for (std::int32_t a = 0; a < 11; ++a) {
      for (std::int32_t b = 0; b < 11; ++b) {
        std::int64_t both = 0, next = 0;
        for (std::int64_t t = 0; t < 200; ++t) {
          both += chose(l, t, a) && chose(l, t, b) ? 1 : 0;
          if (l < 3) next += chose(l, t, a) && chose(l + 1, t, b) ? 1 : 0;
        }
        EXPECT_EQ(s.within_of(l)[a * 11 + b], both);
        if (l < 3) {
          EXPECT_EQ(s.across_of(l)[a * 11 + b], next);
        }
        if (a == b) {
          EXPECT_EQ(s.chosen_of(l)[a], both);
        }
      }
    }
  }
}

TEST(CountChoices, LeavesOutChoicesThatAreNone) {
  RoutingStats s{.num_experts = 3, .top_k = 2, .layers = {0, 1}, .choices = {0, 2, -1, 1, 1, -1, -1, -1}};
  count_choices(s);
  EXPECT_EQ(s.chosen, (std::vector<std::int64_t>{1, 1, 1, 0, 1, 0}));
  EXPECT_EQ(s.within, (std::vector<std::int64_t>{1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0}));
  EXPECT_EQ(s.across, (std::vector<std::int64_t>{0, 1, 0, 0, 0, 0, 0, 1, 0}));
}

TEST(TopPairs, ComeByCountWithTheirLift) {
  RoutingStats s{.num_experts = 4, .top_k = 2, .layers = {0, 1}};
  s.choices = {0, 1, 1, 0, 2, 3, 0, 2,   // layer 0
               3, 2, 3, 1, 0, 1, 3, 0};  // layer 1
  count_choices(s);
  const std::vector<ExpertPair> pairs = top_pairs(s, 0, 2);
  ASSERT_EQ(pairs.size(), 2U);
  EXPECT_EQ(pairs[0], (ExpertPair{.a = 0, .b = 1, .count = 2, .lift = 2.0 * 4 / (3 * 2)}));
  EXPECT_EQ(pairs[1], (ExpertPair{.a = 0, .b = 2, .count = 1, .lift = 1.0 * 4 / (3 * 2)}));
  const std::vector<ExpertPair> next = top_followers(s, 0, 1);
  ASSERT_EQ(next.size(), 1U);
  EXPECT_EQ(next[0], (ExpertPair{.a = 0, .b = 3, .count = 3, .lift = 3.0 * 4 / (3 * 3)}));
}

std::string faults(const RoutingStats& s) {
  Problems problems;
  check_routing(s, "here", problems);
  std::string text;
  for (const Problem& p : problems.list()) {
    EXPECT_EQ(p.where, "here");
    EXPECT_FALSE(p.mend.empty());
    text += p.what + "\n";
  }
  return text;
}

TEST(CheckRouting, AcceptsWhatWasCounted) {
  EXPECT_EQ(faults(random_routing(1)), "");
  EXPECT_EQ(faults(random_routing(2, {.layers = 1, .experts = 300, .top_k = 1})), "");
}

TEST(CheckRouting, NamesEachFaultWithItsNumbers) {
  const RoutingStats good = random_routing(3);
  const auto broken = [&](auto change) {
    RoutingStats s = good;
    change(s);
    return faults(s);
  };
  EXPECT_THAT(broken([](auto& s) { s.num_experts = 0; }), HasSubstr("num_experts is 0"));
  EXPECT_THAT(broken([](auto& s) { s.top_k = 9; }), HasSubstr("top_k is 9, which is not between 0 and 8"));
  EXPECT_THAT(broken([](auto& s) { s.layers[1] = 1; }), HasSubstr("layer 1 follows layer 1"));
  EXPECT_THAT(broken([](auto& s) { s.chosen.pop_back(); }), HasSubstr("chosen has 23 numbers instead of 24"));
  EXPECT_THAT(broken([](auto& s) { s.across[3] = -4; }), HasSubstr("across: number 3 is -4"));
  EXPECT_THAT(broken([](auto& s) { s.dropped[1] = s.chosen[1] + 1; }),
              HasSubstr("expert 1 of layer 1 dropped"));
  EXPECT_THAT(broken([](auto& s) { s.within[9] += 1; }), HasSubstr("the diagonal of expert 1"));
  EXPECT_THAT(broken([](auto& s) { s.within[8] += 1; }), HasSubstr("the pair 1 0"));
  EXPECT_THAT(broken([](auto& s) { s.windows[1].chosen[0] += 1; }),
              HasSubstr("the windows up to 1 hold more"));
  EXPECT_THAT(broken([](auto& s) { s.choices[4] = 8; }),
              HasSubstr("token 2 of layer 1 chooses expert 8 of 8"));
  EXPECT_THAT(broken([](auto& s) { s.choices[5] = s.choices[4]; }), HasSubstr("twice"));
  EXPECT_THAT(broken([](auto& s) { s.choices.pop_back(); }), HasSubstr("239 choices do not fit"));
  EXPECT_THAT(broken([](auto& s) { s.sequence_lengths[0] = 5; }), HasSubstr("sum to 12"));
}

}  // namespace
}  // namespace tessera::trace
