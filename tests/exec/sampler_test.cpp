// The choice of the next token: shares of many draws against the probabilities of the formulas, borders,
// ties.
#include "exec/sampler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "base/error.h"
#include "base/random.h"

namespace tessera::exec {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::map<std::int32_t, double> shares(const std::vector<double>& logits, const SampleOptions& o) {
  constexpr int kDraws = 20'000;
  Sampler sampler;
  std::map<std::int32_t, double> out;
  for (int i = 0; i < kDraws; ++i) out[sampler.sample(logits, o, (i + 0.5) / kDraws)] += 1.0 / kDraws;
  return out;
}
std::vector<std::int32_t> keys(const std::map<std::int32_t, double>& m) {
  std::vector<std::int32_t> out;
  for (const auto& [k, v] : m) out.push_back(k);
  return out;
}
// ln of 0.5, 0.1, 0.25, 0.15
const std::vector<double> kLogits = {std::log(0.5), std::log(0.1), std::log(0.25), std::log(0.15)};

TEST(Sampler, DrawsEachTokenAsOftenAsItsProbability) {
  const auto s = shares(kLogits, {.temperature = 1.0, .top_k = 0});
  EXPECT_NEAR(s.at(0), 0.5, 1e-4);
  EXPECT_NEAR(s.at(1), 0.1, 1e-4);
  EXPECT_NEAR(s.at(2), 0.25, 1e-4);
  EXPECT_NEAR(s.at(3), 0.15, 1e-4);
}

TEST(Sampler, TemperatureRaisesProbabilitiesToAPower) {
  const auto s = shares(kLogits, {.temperature = 0.5, .top_k = 0});
  const double sum = 0.25 + 0.01 + 0.0625 + 0.0225;
  EXPECT_NEAR(s.at(0), 0.25 / sum, 1e-4);
  EXPECT_NEAR(s.at(3), 0.0225 / sum, 1e-4);
}

TEST(Sampler, TemperatureZeroTakesTheLargestAndTheLowerIdOfEqualOnes) {
  Sampler sampler;
  EXPECT_EQ(sampler.sample(std::vector<double>{1, 3, 3, 2}, {.temperature = 0.0}, 0.99), 1);
}

TEST(Sampler, TopKKeepsTheLargestAndTheLowerIdOfEqualOnes) {
  const auto s = shares(kLogits, {.temperature = 1.0, .top_k = 2});
  EXPECT_THAT(keys(s), ElementsAre(0, 2));
  EXPECT_NEAR(s.at(0), 2.0 / 3.0, 1e-4);
  EXPECT_THAT(keys(shares({0, 1, 1, 1}, {.temperature = 1.0, .top_k = 2})), ElementsAre(1, 2));
}

TEST(Sampler, TopPKeepsTheFewestThatReachIt) {
  EXPECT_THAT(keys(shares(kLogits, {.temperature = 1.0, .top_k = 0, .top_p = 0.49})), ElementsAre(0));
  EXPECT_THAT(keys(shares(kLogits, {.temperature = 1.0, .top_k = 0, .top_p = 0.51})), ElementsAre(0, 2));
  const auto s = shares(kLogits, {.temperature = 1.0, .top_k = 0, .top_p = 0.8});
  EXPECT_THAT(keys(s), ElementsAre(0, 2, 3));
  EXPECT_NEAR(s.at(3), 0.15 / 0.9, 1e-4);
  // Of what top-k left: 0.5 / 0.75 reaches 0.6.
  EXPECT_THAT(keys(shares(kLogits, {.temperature = 1.0, .top_k = 2, .top_p = 0.6})), ElementsAre(0));
}

// More candidates than are put in order at once.
TEST(Sampler, LargeVocabulariesFollowTheSameRule) {
  std::vector<double> logits;
  double total = 0.0;
  for (int i = 0; i < 1000; ++i) {
    logits.push_back(std::sin(i * 12.9898) * 3.0);
    total += std::exp(logits.back());
  }
  std::vector<double> sorted;
  for (const double z : logits) sorted.push_back(std::exp(z) / total);
  std::ranges::sort(sorted, std::greater<>());
  std::size_t kept = 0;
  for (double sum = 0.0; sum < 0.9; ++kept) sum += sorted[kept];
  EXPECT_GT(kept, 64U);
  EXPECT_EQ(shares(logits, {.temperature = 1.0, .top_k = 0, .top_p = 0.9}).size(), kept);
}

TEST(Sampler, RefusesLogitsThatAreNoNumbers) {
  Sampler sampler;
  for (const double bad : {std::nan(""), HUGE_VAL}) {
    try {
      (void)sampler.sample(std::vector<double>{1.0, bad}, {}, 0.5);
      ADD_FAILURE() << "accepted";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr("the logit of token 1"));
      EXPECT_THAT(e.what(), HasSubstr("earlier checkpoint"));
    }
  }
}

TEST(Sampler, EqualPromptsGetStreamsOfTheirOwn) {
  const std::vector<std::int32_t> a = {1, 2, 3}, b = {1, 2, 4};
  EXPECT_EQ(sample_stream(a, 0), sample_stream(a, 0));
  EXPECT_NE(sample_stream(a, 0), sample_stream(a, 1));
  EXPECT_NE(sample_stream(a, 0), sample_stream(b, 0));
  EXPECT_NE(draw_of(1, 2, 3), draw_of(1, 2, 4));
}

}  // namespace
}  // namespace tessera::exec
