// Generators: the closed forms of idle time over many sizes and unequal costs, peak activations, the order of
// weight gradients, and the errors of wrong options.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "schedule/check.h"
#include "schedule/simulate.h"
#include "support.h"

namespace tessera::schedule {
namespace {

using testing::HasSubstr;

struct Costs {
  double f, i, w;
};
constexpr Costs kCosts[] = {{1, 1, 1}, {1, 1.2, 0.8}, {2, 3, 1.5}, {1, 2, 1}, {3, 1, 2}};
constexpr double kExact = 1e-9;  // costs are whole picoseconds, so only the sum of doubles rounds

TEST(Naive, IdlesFractionOfStagesMinusOneOverStages) {
  for (std::int32_t p = 1; p <= 16; ++p) {
    for (const std::int32_t m : {1, 2, 5}) {
      for (const auto& [f, i, w] : kCosts) {
        EXPECT_NEAR(idle(make(Kind::naive, p, m), f, i, w), m * (p - 1) * (f + i + w), kExact)
            << p << " " << m;
      }
      const Schedule s = make(Kind::naive, p, m);
      EXPECT_NEAR(simulate(s, per_rank(s, 1, 1, 1)).bubble_fraction, (p - 1.0) / p, 1e-12);
    }
  }
}

TEST(GPipeAndOneFOneB, IdleStagesMinusOneTimesForwardAndBackward) {
  for (const Kind kind : {Kind::gpipe, Kind::one_f_one_b, Kind::combined}) {
    for (std::int32_t p = 1; p <= 16; ++p) {
      for (const std::int32_t m : {1, 2, 3, 7, 16, 64}) {
        const Schedule s = make(kind, p, m);
        for (const auto& [f, i, w] : kCosts) EXPECT_NEAR(idle(s, f, i, w), (p - 1) * (f + i + w), kExact);
        EXPECT_NEAR(simulate(s, per_rank(s, 1, 2, 3)).bubble_fraction, (p - 1.0) / (m + p - 1), 1e-12);
      }
    }
  }
}

TEST(Interleaved, DividesTheIdleTimeByTheChunks) {
  for (const std::int32_t p : {1, 2, 3, 4, 8, 16}) {
    for (const std::int32_t v : {2, 3, 4}) {
      for (const std::int32_t groups : {1, 2, 4}) {
        const Schedule s = make(Kind::interleaved, p, groups * p, v);
        for (const auto& [f, i, w] : kCosts) {
          EXPECT_NEAR(idle(s, f, i, w), (p - 1) * (f + i + w) / v, kExact) << p << " " << v << " " << groups;
        }
      }
    }
  }
}

TEST(Interleaved, TakesMicrobatchesThatDoNotFillTheLastGroup) {
  for (std::int32_t p = 1; p <= 8; ++p) {
    for (const std::int32_t v : {2, 3, 4}) {
      for (std::int32_t m = 1; m <= 3 * p; ++m) {
        const Schedule s = make(Kind::interleaved, p, m, v);
        const CheckReport report = check(s);
        ASSERT_TRUE(report.ok()) << report.problems.list()[0].what;
        EXPECT_GE(idle(s, 1, 1, 1), (p - 1) * 3.0 / v - kExact);
      }
    }
  }
}

TEST(ZbH1, IdlesStagesMinusOneTimesForwardPlusInputMinusWeightGradient) {
  for (std::int32_t p = 1; p <= 16; ++p) {
    for (const std::int32_t m : {p, p + 1, 2 * p, 3 * p + 1, 64}) {
      const Schedule s = make(Kind::zb_h1, p, m);
      for (const auto& [f, i, w] : {Costs{1, 1, 1}, {1, 1.2, 0.8}, {2, 3, 1.5}, {1, 2, 1}, {1, 1, 0}}) {
        EXPECT_NEAR(idle(s, f, i, w), (p - 1) * (f + i - w), kExact) << p << " " << m << " " << w;
      }
    }
  }
}

TEST(ZbH1, NeverTakesLongerThanOneFOneB) {
  Dice dice(7);
  for (std::int32_t n = 0; n < 300; ++n) {
    const std::int32_t p = dice.between(1, 9), m = dice.between(1, 20);
    const double f = dice.between(1, 10), i = dice.between(1, 10), w = dice.between(0, 10);
    EXPECT_LE(idle(make(Kind::zb_h1, p, m), f, i, w), idle(make(Kind::one_f_one_b, p, m), f, i, w) + kExact);
  }
}

TEST(ZbV, ReachesHalfTheForwardTimeOfTheOtherStages) {
  for (const std::int32_t p : {1, 2, 3, 4, 6, 8, 12, 16}) {
    for (const std::int32_t m : {2 * p, 3 * p, 64}) {
      EXPECT_NEAR(idle(make(Kind::zb_v, p, m), 1, 1, 1), (p - 1) / 2.0, kExact) << p << " " << m;
    }
  }
  EXPECT_NEAR(idle(make(Kind::zb_v, 8, 24), 1, 1, 1), 3.5, kExact);
}

TEST(ZbV, StaysNearHalfOfZbH1WhenTheCostsDifferAndAreKnown) {
  for (const auto& [f, i, w] : {Costs{1, 1.2, 0.8}, {1, 0.9, 0.9}, {1, 2, 1}, {1, 1.5, 0.5}}) {
    const Schedule shape = make(Kind::zb_v, 8, 24);
    const Schedule s = generate(
        {.kind = Kind::zb_v, .pp = 8, .vpp = 2, .num_microbatches = 24, .costs = per_rank(shape, f, i, w)});
    EXPECT_LE(idle(s, f, i, w), idle(make(Kind::zb_h1, 8, 24), f, i, w) * 0.55) << i;
    EXPECT_GE(idle(s, f, i, w), 7 * f / 2 - kExact);
  }
}

TEST(ZbV, KeepsAtMostTwiceTheStagesChunkActivationsAtAnyCosts) {
  Dice dice(11);
  for (std::int32_t n = 0; n < 150; ++n) {
    const std::int32_t p = dice.between(1, 8), m = dice.between(1, 24);
    StageCosts costs;
    for (std::int32_t s = 0; s < 2 * p; ++s) {
      costs.forward.emplace_back(dice.below(10));
      costs.backward_input.emplace_back(dice.below(10));
      costs.backward_weight.emplace_back(dice.below(10));
    }
    costs.p2p_latency = Seconds(dice.below(3));
    const Schedule s =
        generate({.kind = Kind::zb_v, .pp = p, .vpp = 2, .num_microbatches = m, .costs = costs});
    const CheckReport report = check(s);
    ASSERT_TRUE(report.ok()) << report.problems.list()[0].what;
    EXPECT_LE(*std::max_element(report.peak_live_rank.begin(), report.peak_live_rank.end()), 2 * p);
  }
}

TEST(ZbV, DependsOnTheRatiosOfTheCostsOnly) {
  const StageCosts seconds = StageCosts::uniform(8, Seconds(1), Seconds(1.25), Seconds(0.75));
  const StageCosts micros = StageCosts::uniform(8, Seconds(1e-6), Seconds(1.25e-6), Seconds(0.75e-6));
  EXPECT_EQ(generate({.kind = Kind::zb_v, .pp = 4, .vpp = 2, .num_microbatches = 9, .costs = seconds}),
            generate({.kind = Kind::zb_v, .pp = 4, .vpp = 2, .num_microbatches = 9, .costs = micros}));
}

std::vector<std::int32_t> peaks(const Schedule& s) {
  return checked(s).peak_live_rank;
}

TEST(GPipe, KeepsEveryMicrobatch) {
  EXPECT_EQ(peaks(make(Kind::gpipe, 4, 24)), std::vector<std::int32_t>(4, 24));
}

TEST(Naive, KeepsOneMicrobatch) {
  EXPECT_EQ(peaks(make(Kind::naive, 4, 24)), std::vector<std::int32_t>(4, 1));
}

TEST(OneFOneB, RankKeepsAtMostStagesMinusRankActivations) {
  EXPECT_EQ(peaks(make(Kind::one_f_one_b, 8, 24)), (std::vector<std::int32_t>{8, 7, 6, 5, 4, 3, 2, 1}));
  EXPECT_EQ(peaks(make(Kind::one_f_one_b, 4, 2)), (std::vector<std::int32_t>{2, 2, 2, 1}));
}

TEST(Combined, KeepsTwiceTheStagesFromTheRankOn) {
  EXPECT_EQ(peaks(make(Kind::combined, 4, 24)), (std::vector<std::int32_t>{8, 6, 4, 2}));
  EXPECT_EQ(peaks(make(Kind::combined, 4, 3)), (std::vector<std::int32_t>{3, 3, 3, 2}));
}

// Every steady F stands before a B of another micro-batch, with nothing but its send between.
TEST(Combined, PairsForwardAndBackwardOfDifferentMicrobatchesOnEveryRank) {
  for (const std::int32_t pp : {1, 2, 4, 7}) {
    for (const std::int32_t m : {1, 2, 5, 16, 40}) {
      const Schedule s = lower(make(Kind::combined, pp, m));
      for (std::int32_t r = 0; r < pp; ++r) {
        const ActionList& list = s.ranks[static_cast<std::size_t>(r)];
        std::int32_t pairs = 0;
        for (std::size_t i = 0; i + 1 < list.size(); ++i) {
          const std::size_t next = list[i + 1].kind == ActionKind::send_forward ? i + 2 : i + 1;
          if (next >= list.size()) continue;
          const std::int32_t ahead = list[i].microbatch.value - list[next].microbatch.value;
          pairs += may_run_beside(list[i], list[next]) && ahead == combined_warm_up(pp, r) ? 1 : 0;
        }
        EXPECT_EQ(pairs, std::max(0, m - (2 * (pp - 1 - r) + 1))) << pp << " " << m << " rank " << r;
      }
    }
  }
}

TEST(ZbH1, KeepsAsManyActivationsAsStagesOnEveryRank) {
  EXPECT_EQ(peaks(make(Kind::zb_h1, 8, 24)), std::vector<std::int32_t>(8, 8));
  const CheckReport report = checked(make(Kind::zb_h1, 8, 24));
  for (std::int32_t r = 0; r < 8; ++r) {
    const StageSlots& slots = report.stages[static_cast<std::size_t>(r)];
    EXPECT_EQ(slots.peak_deferred, r + 1);   // r postponed, and the one between its I and W
    EXPECT_EQ(slots.peak_in_flight, 8 - r);  // as 1F1B
  }
}

TEST(Interleaved, KeepsTheChunkActivationsOfThePaper) {
  // In stage units 11.5 ... 4.5 and 9.75 ... 6.25.
  EXPECT_EQ(peaks(make(Kind::interleaved, 8, 24, 2)),
            (std::vector<std::int32_t>{23, 21, 19, 17, 15, 13, 11, 9}));
  EXPECT_EQ(peaks(make(Kind::interleaved, 8, 24, 4)),
            (std::vector<std::int32_t>{39, 37, 35, 33, 31, 29, 27, 25}));
}

TEST(ZbV, FillsTwiceTheStagesChunkActivationsOnEveryRank) {
  EXPECT_EQ(peaks(make(Kind::zb_v, 8, 24)), std::vector<std::int32_t>(8, 16));
}

TEST(Generate, EverySmallScheduleOfEveryKindIsProven) {
  for (const Kind kind : kAllKinds) {
    for (std::int32_t p = 1; p <= 6; ++p) {
      for (std::int32_t m = 1; m <= 14; ++m) {
        const Schedule s = make(kind, p, m, 2 + m % 3);
        const CheckReport report = check(s);
        ASSERT_TRUE(report.ok()) << name(kind) << " " << p << " " << m << ": "
                                 << report.problems.list()[0].what;
        ASSERT_TRUE(check(lower(s)).ok()) << check(lower(s)).problems.list()[0].what;
      }
    }
  }
}

TEST(Generate, SixteenStagesAndSixtyFourMicrobatchesAreProven) {
  for (const Kind kind : kAllKinds) EXPECT_TRUE(check(make(kind, 16, 64, 4)).ok()) << name(kind);
}

// Weight gradients accumulate in the order of W; the same order everywhere makes them bit-identical.
TEST(Generate, AllKindsRunForwardInputAndWeightGradientsOfAStageInAscendingOrder) {
  for (const Kind kind : kAllKinds) {
    const Schedule s = make(kind, 4, 11, 3);
    for (std::int32_t stage = 0; stage < s.num_stages(); ++stage) {
      std::vector<std::int32_t> f, i, w;
      for (const Action& a : s.ranks[static_cast<std::size_t>(s.rank_of(StageId(stage)))]) {
        if (a.stage != StageId(stage)) continue;
        const bool both = a.kind == ActionKind::backward;
        if (a.kind == ActionKind::forward) f.push_back(a.microbatch.value);
        if (a.kind == ActionKind::backward_input || both) i.push_back(a.microbatch.value);
        if (a.kind == ActionKind::backward_weight || both) w.push_back(a.microbatch.value);
      }
      const std::vector<std::int32_t> want = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
      EXPECT_EQ(f, want) << name(kind);
      EXPECT_EQ(i, want) << name(kind);
      EXPECT_EQ(w, want) << name(kind);
    }
  }
}

TEST(Placement, LoopWrapsAroundAndVeeTurnsBack) {
  const Schedule loop = make(Kind::interleaved, 3, 3, 2), vee = make(Kind::zb_v, 3, 3);
  const std::int32_t loop_ranks[] = {0, 1, 2, 0, 1, 2}, vee_ranks[] = {0, 1, 2, 2, 1, 0};
  for (std::int32_t s = 0; s < 6; ++s) {
    EXPECT_EQ(loop.rank_of(StageId(s)), loop_ranks[s]);
    EXPECT_EQ(vee.rank_of(StageId(s)), vee_ranks[s]);
  }
  EXPECT_EQ(vee.stages_of(1), (std::vector<StageId>{StageId(1), StageId(4)}));
  EXPECT_THROW(static_cast<void>(vee.rank_of(StageId(6))), Error);
}

std::string generate_error(const GenerateOptions& options) {
  try {
    static_cast<void>(generate(options));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.what();
  }
  return "no error";
}

TEST(Generate, NamesEveryWrongOptionAtOnce) {
  const std::string text =
      generate_error({.kind = Kind::one_f_one_b, .pp = 0, .vpp = 3, .num_microbatches = -2});
  EXPECT_THAT(text, HasSubstr("pp=0 is below 1"));
  EXPECT_THAT(text, HasSubstr("num_microbatches=-2 is below 1"));
  EXPECT_THAT(text, HasSubstr("1f1b has 1 stage per rank, got vpp=3"));
  EXPECT_THAT(text, HasSubstr("mend: use vpp=1, or the schedule interleaved"));
}

TEST(Generate, NamesTheChunksAKindNeeds) {
  EXPECT_THAT(generate_error({.kind = Kind::interleaved, .pp = 2, .vpp = 1, .num_microbatches = 2}),
              AllOf(HasSubstr("vpp=1"), HasSubstr("mend: use vpp of 2 or more, or the schedule 1f1b")));
  EXPECT_THAT(generate_error({.kind = Kind::zb_v, .pp = 2, .vpp = 4, .num_microbatches = 2}),
              AllOf(HasSubstr("zb-v has 2 stages per rank, got vpp=4"), HasSubstr("mend: use vpp=2")));
}

TEST(Generate, RejectsCostsThatAreNoTimes) {
  GenerateOptions options{.kind = Kind::zb_v, .pp = 2, .vpp = 2, .num_microbatches = 2};
  options.costs = StageCosts::uniform(4, Seconds(1), Seconds(1), Seconds(1));
  options.costs.backward_input[2] = Seconds(std::nan(""));
  options.costs.forward.pop_back();
  options.costs.p2p_latency = Seconds(-1);
  EXPECT_THAT(generate_error(options),
              AllOf(HasSubstr("where: schedule: costs.backward_input[2]"),
                    HasSubstr("costs.forward has 3 entries for 4 stages"), HasSubstr("latency -1 s"),
                    HasSubstr("mend: give one cost per stage")));
}

TEST(Generate, RefusesSizesThatNoMachineHolds) {
  EXPECT_THAT(generate_error({.kind = Kind::gpipe, .pp = 1 << 20, .vpp = 1, .num_microbatches = 1 << 20}),
              AllOf(HasSubstr("more than 16777216 cells"), HasSubstr("mend: use fewer")));
}

TEST(ParseKind, KnowsEveryNameAndSuggestsTheNearest) {
  for (const Kind kind : kAllKinds) EXPECT_EQ(parse_kind(name(kind)), kind);
  try {
    static_cast<void>(parse_kind("interleavd", "job.yaml: parallel.schedule"));
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(),
                AllOf(HasSubstr("unknown schedule 'interleavd'"), HasSubstr("job.yaml: parallel.schedule"),
                      HasSubstr("did you mean 'interleaved'?")));
  }
  EXPECT_THROW(static_cast<void>(parse_kind("")), Error);
}

TEST(Lower, PutsReceivesBeforeConsumersAndSendsBehindProducers) {
  const Schedule s = lower(make(Kind::one_f_one_b, 3, 2));
  std::string middle;
  for (const Action& a : s.ranks[1]) middle += to_text(a) + " ";
  EXPECT_EQ(middle,
            "1RECV_F0 1F0 1SEND_F0 1RECV_F1 1F1 1SEND_F1 1RECV_B0 1B0 1SEND_B0 1RECV_B1 1B1 1SEND_B1 "
            "1REDUCE_GRAD ");
}

TEST(Lower, SendsNothingBetweenStagesOfOneRank) {
  const Schedule s = lower(make(Kind::zb_v, 2, 1));
  std::string turn;  // rank 1 holds stages 1 and 2
  for (const Action& a : s.ranks[1]) turn += to_text(a) + " ";
  EXPECT_THAT(turn, HasSubstr("1F0 2F0 2SEND_F0"));
  EXPECT_THAT(turn, testing::Not(HasSubstr("1SEND_F")));
  const Schedule alone = lower(make(Kind::zb_v, 1, 5));
  for (const Action& a : alone.ranks[0]) {
    EXPECT_TRUE(is_compute(a.kind) || a.kind == ActionKind::reduce_grad) << to_text(a);
  }
}

TEST(Lower, IsIdempotentAndUndoneByComputeOnly) {
  for (const Kind kind : kAllKinds) {
    const Schedule s = make(kind, 3, 5);
    EXPECT_EQ(lower(lower(s)), lower(s));
    EXPECT_EQ(compute_only(lower(s)), s);
    EXPECT_FALSE(s.is_lowered());
    EXPECT_TRUE(lower(s).is_lowered());
  }
}

TEST(Lower, TakesNoTimeOfItsOwn) {
  for (const Kind kind : kAllKinds) {
    const Schedule s = make(kind, 4, 6);
    StageCosts costs = per_rank(s, 1, 1.3, 0.7);
    costs.p2p_latency = Seconds(0.1);
    if (kind == Kind::combined) {  // a pair's F waits for the gradient of its B
      EXPECT_LE(simulate(s, costs).makespan, simulate(lower(s), costs).makespan);
      continue;
    }
    EXPECT_EQ(simulate(s, costs).makespan, simulate(lower(s), costs).makespan) << name(kind);
  }
}

}  // namespace
}  // namespace tessera::schedule
