// The generator against the published known answers of Random123 (philox4x32, 10 rounds) and the shapes of
// what is drawn from it. Our arguments are (seed, stream, counter): key = seed, words 0-1 = counter, words
// 2-3 = stream.
#include "base/random.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "base/error.h"

namespace tessera {
namespace {

using Words = std::array<std::uint32_t, 4>;

TEST(Philox, GivesTheKnownAnswerForZeroes) {
  EXPECT_EQ(philox(0, 0, 0), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(Philox, GivesTheKnownAnswerForOnes) {
  const std::uint64_t ones = ~std::uint64_t{0};
  EXPECT_EQ(philox(ones, ones, ones), (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Philox, GivesTheKnownAnswerForTheDigitsOfPi) {
  // Counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: tells the words of each argument
  // apart.
  EXPECT_EQ(philox(0x299f31d0a4093822, 0x0370734413198a2e, 0x85a308d3243f6a88),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, ChangesHalfOfTheBitsWhenOneInputBitChanges) {
  const Words base = philox(7, 11, 13);
  for (int bit = 0; bit < 64; ++bit) {
    const std::uint64_t flip = std::uint64_t{1} << bit;
    for (const Words& other :
         {philox(7 ^ flip, 11, 13), philox(7, 11 ^ flip, 13), philox(7, 11, 13 ^ flip)}) {
      int changed = 0;
      for (int w = 0; w < 4; ++w) changed += __builtin_popcount(base[w] ^ other[w]);
      EXPECT_GT(changed, 32) << "bit " << bit;
      EXPECT_LT(changed, 96) << "bit " << bit;
    }
  }
}

TEST(StreamOf, IsTheFnv1aHashOfTheName) {
  EXPECT_EQ(stream_of(""), 0xcbf29ce484222325ULL);
  EXPECT_EQ(stream_of("a"), 0xaf63dc4c8601ec8cULL);
  EXPECT_EQ(stream_of("foobar"), 0x85944171f73967e8ULL);
}

TEST(Uniform, LiesInTheHalfOpenUnitIntervalWithTheRightMoments) {
  constexpr int n = 100'000;
  double sum = 0;
  double squares = 0;
  for (int i = 0; i < n; ++i) {
    const double u = uniform(1, stream_of("test"), i);
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  // Four standard errors: sqrt(1/12/n) and sqrt(4/45/n).
  EXPECT_NEAR(sum / n, 0.5, 4 * std::sqrt(1.0 / 12 / n));
  EXPECT_NEAR(squares / n, 1.0 / 3, 4 * std::sqrt(4.0 / 45 / n));
}

TEST(Normal, HasTheMomentsOfTheStandardNormal) {
  constexpr int n = 100'000;
  double sum = 0;
  double squares = 0;
  double fourth = 0;
  for (int i = 0; i < n; ++i) {
    const double x = normal(1, stream_of("test"), i);
    ASSERT_TRUE(std::isfinite(x));
    sum += x;
    squares += x * x;
    fourth += x * x * x * x;
  }
  // Four standard errors: the variances of x, x^2 and x^4 are 1, 2 and 96.
  EXPECT_NEAR(sum / n, 0.0, 4 * std::sqrt(1.0 / n));
  EXPECT_NEAR(squares / n, 1.0, 4 * std::sqrt(2.0 / n));
  EXPECT_NEAR(fourth / n, 3.0, 4 * std::sqrt(96.0 / n));
}

TEST(Normal, DoesNotDependOnTheOrderOfTheCalls) {
  const double first = normal(3, 5, 41);
  (void)normal(3, 5, 42);
  EXPECT_EQ(normal(3, 5, 41), first);
  EXPECT_NE(normal(3, 5, 42), first);
  EXPECT_NE(normal(3, 6, 41), first);
  EXPECT_NE(normal(4, 5, 41), first);
}

TEST(UniformBelow, TakesEveryValueBelowNAndNoOther) {
  std::map<std::uint64_t, int> seen;
  for (int i = 0; i < 6000; ++i) ++seen[uniform_below(6, 1, 2, i)];
  ASSERT_EQ(seen.size(), 6U);
  EXPECT_EQ(seen.rbegin()->first, 5U);
  for (const auto& [value, times] : seen) EXPECT_NEAR(times, 1000, 4 * std::sqrt(1000.0)) << value;
}

TEST(UniformBelow, OneLeavesNoChoiceAndTheLargestRangeWorks) {
  EXPECT_EQ(uniform_below(1, 1, 2, 3), 0U);
  EXPECT_NE(uniform_below(~std::uint64_t{0}, 1, 2, 3), uniform_below(~std::uint64_t{0}, 1, 2, 4));
}

TEST(UniformBelow, RefusesAnEmptyRange) {
  EXPECT_THROW((void)uniform_below(0, 1, 2, 3), Error);
}

}  // namespace
}  // namespace tessera
