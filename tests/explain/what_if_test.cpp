// Single changes and comparisons: figures are those of the plan that the change makes, differences sum, and
// the margins are where the order turns.
#include "explain/what_if.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "explain/against.h"
#include "search/search.h"
#include "spec/presets.h"

namespace tessera::testing {
namespace {

using cost::Candidate;
using explain::Change;
using explain::Lever;
using ::testing::HasSubstr;

cost::Setup setup_of(const char* model, std::int32_t devices) {
  cost::Setup s;
  s.model = spec::find_model(model);
  s.cluster = spec::with_devices(spec::find_cluster("dgx-h100"), devices);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-bridge-2026");
  s.work = {.global_batch_size = 256, .sequence_length = 4096};
  return s;
}

const Candidate kDense{.tp = 4, .dp = 4, .pp = 4, .vpp = 2, .schedule = schedule::Kind::interleaved};

TEST(WhatIf, EveryFigureIsThatOfTheChangedPlanItself) {
  for (const char* model : {"llama-3-70b", "mixtral-8x7b"}) {
    const cost::Setup setup = setup_of(model, 64);
    const explain::Priced base = explain::price(setup, kDense);
    ASSERT_TRUE(base.valid()) << base.invalid;
    std::set<Lever> seen;
    for (const Change& c : explain::what_if(setup, kDense)) {
      SCOPED_TRACE(c.text);
      seen.insert(c.lever);
      const explain::Priced again = explain::price(c.setup, c.candidate);
      EXPECT_EQ(again.invalid, c.priced.invalid);
      if (!c.priced.valid()) continue;
      EXPECT_EQ(again.seconds(), c.priced.seconds());
      EXPECT_EQ(c.candidate.world_size(), 64);
      const double batch = static_cast<double>(c.setup.work.global_batch_size) / 256.0;
      EXPECT_NEAR(c.gain(setup, base), batch * base.seconds() / c.priced.seconds() - 1.0, 1e-12);
      double sum = 0.0;
      for (const double part : c.priced.cost.parts) sum += part;
      EXPECT_NEAR(sum, c.priced.seconds(), 1e-9 * sum);
    }
    EXPECT_GE(seen.size(), 10U) << model;
  }
}

TEST(WhatIf, NoChangeIsTheBaseItself) {
  const cost::Setup setup = setup_of("llama-3-70b", 64);
  for (const Change& c : explain::what_if(setup, kDense)) {
    EXPECT_TRUE(!(c.candidate == kDense) || !(c.setup.cluster == setup.cluster) ||
                !(c.setup.work == setup.work))
        << c.text;
  }
}

TEST(WhatIf, LinksTwiceAsFastShortenWhatIsExposedAndLeaveTheRest) {
  const cost::Setup setup = setup_of("llama-3-70b", 64);
  const explain::Priced base = explain::price(setup, kDense);
  for (const Change& c : explain::what_if(setup, kDense)) {
    if (c.lever != Lever::links) continue;
    EXPECT_LT(c.priced.cost[cost::Part::tp], base.cost[cost::Part::tp]);
    EXPECT_EQ(c.priced.cost[cost::Part::ideal], base.cost[cost::Part::ideal]);
    EXPECT_GT(c.gain(setup, base), 0.0);
    return;
  }
  FAIL() << "no change of the links";
}

TEST(WhatIf, SaysWhatDoesNotDivide) {
  const cost::Setup setup = setup_of("mixtral-8x7b", 64);
  Candidate c = kDense;
  c.ep = 8;
  bool found = false;
  for (const Change& change : explain::what_if(setup, c)) {
    if (change.text.starts_with("ep 8 -> 16")) {
      found = true;
      EXPECT_THAT(change.priced.invalid, HasSubstr("16"));
    }
  }
  EXPECT_TRUE(found);
}

TEST(WhatIf, MemoryIsShownByWhatWouldFit) {
  const cost::Setup setup = setup_of("llama-3-70b", 64);
  Candidate full = kDense;
  full.recompute = spec::Recompute::full;
  for (const Change& c : explain::what_if(setup, full)) {
    if (c.lever != Lever::memory) continue;
    EXPECT_FALSE(explain::price(setup, c.candidate).fits);
    EXPECT_TRUE(c.priced.fits);
    EXPECT_THAT(c.text, HasSubstr("memory x 1.5: "));
  }
}

TEST(Against, DifferencesSumToTheDifferenceOfTheSteps) {
  const cost::Setup setup = setup_of("llama-3-70b", 64);
  Candidate other = kDense;
  other.tp = 8, other.dp = 2;
  const explain::Priced a = explain::price(setup, kDense), b = explain::price(setup, other);
  double sum = 0.0, last = INFINITY;
  for (const explain::Difference& d : explain::differences(a.cost, b.cost)) {
    sum += d.seconds;
    EXPECT_LE(std::abs(d.seconds), last);
    last = std::abs(d.seconds);
  }
  EXPECT_NEAR(sum, b.seconds() - a.seconds(), 1e-9);
}

TEST(Against, AtTheMarginBothAreEqualAndBeyondItTheOrderHasTurned) {
  const cost::Setup setup = setup_of("llama-3-70b", 64);
  Candidate other = kDense;
  other.pp = 8, other.dp = 2;
  const bool faster = explain::price(setup, kDense).seconds() <= explain::price(setup, other).seconds();
  const Candidate& chosen = faster ? kDense : other;
  const Candidate& loser = faster ? other : kDense;
  std::int32_t turned = 0;
  for (const explain::Margin& m : explain::margins(setup, chosen, loser)) {
    if (m.factor == 0.0) continue;
    ++turned;
    const auto lead = [&](double factor) {
      const cost::Setup s = explain::scaled(setup, m.coefficient, factor);
      return explain::price(s, loser).seconds() - explain::price(s, chosen).seconds();
    };
    const double beyond = m.factor > 1.0 ? 1.001 : 0.999;
    EXPECT_LE(lead(m.factor), 0.0) << explain::name(m.coefficient);
    EXPECT_LT(lead(m.factor * beyond), 1e-9) << explain::name(m.coefficient);
    EXPECT_GE(lead(1.0 + (m.factor - 1.0) * 0.99), 0.0) << explain::name(m.coefficient);
  }
  EXPECT_GE(turned, 1);
}

}  // namespace
}  // namespace tessera::testing
