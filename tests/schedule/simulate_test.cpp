// The simulator: hand-computed times, conservation, measured durations, errors; and the pictures, against
// golden files (rewritten when TESSERA_UPDATE_GOLDEN is set in the environment of this program).
#include "schedule/simulate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>

#include "base/error.h"
#include "base/file.h"
#include "schedule/text.h"
#include "support.h"

namespace tessera::schedule {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr std::int64_t kSecond = 1'000'000'000'000;

TEST(Simulate, TimesTwoRanksByHand) {
  const Schedule s = make(Kind::gpipe, 2, 2);
  StageCosts costs{
      {Seconds(1), Seconds(2)}, {Seconds(3), Seconds(1)}, {Seconds(1), Seconds(1)}, Seconds(0.5)};
  const Simulation sim = simulate(s, costs);
  const auto seconds = [](double a, double b) {
    return Interval{to_sim_time(Seconds(a)), to_sim_time(Seconds(b))};
  };
  // rank 0: 0F0 0F1 0B0 0B1; rank 1: 1F0 1F1 1B0 1B1
  EXPECT_EQ(sim.actions[0], (std::vector{seconds(0, 1), seconds(1, 2), seconds(8, 12), seconds(12, 16)}));
  EXPECT_EQ(sim.actions[1],
            (std::vector{seconds(1.5, 3.5), seconds(3.5, 5.5), seconds(5.5, 7.5), seconds(7.5, 9.5)}));
  EXPECT_EQ(sim.makespan.value, 16 * kSecond);
  EXPECT_EQ(sim.busy[0].value, 10 * kSecond);
  EXPECT_EQ(sim.idle[1].value, 8 * kSecond);
  EXPECT_DOUBLE_EQ(sim.bubble_fraction, 1 - 18.0 / 32);
}

TEST(Simulate, ConservesTime) {
  Dice dice(31);
  for (std::int32_t n = 0; n < 100; ++n) {
    Schedule s = make(kAllKinds[dice.below(6)], dice.between(1, 8), dice.between(1, 16));
    if (dice.below(2) == 0) s = lower(s);
    StageCosts costs;
    for (std::int32_t stage = 0; stage < s.num_stages(); ++stage) {
      costs.forward.emplace_back(dice.below(9) * 1e-3);
      costs.backward_input.emplace_back(dice.below(9) * 1e-3);
      costs.backward_weight.emplace_back(dice.below(9) * 1e-3);
    }
    costs.p2p_latency = Seconds(dice.below(3) * 1e-4);
    const Simulation sim = simulate(s, costs);
    std::int64_t busy = 0, want = 0;
    for (std::size_t r = 0; r < s.ranks.size(); ++r) {
      EXPECT_EQ((sim.busy[r] + sim.idle[r]).value, sim.makespan.value);
      busy += sim.busy[r].value;
      SimTime before{};
      for (const Interval& i : sim.actions[r]) {
        EXPECT_GE(i.start, before);
        EXPECT_GE(i.end, i.start);
        EXPECT_LE(i.end, sim.makespan);
        before = i.end;
      }
    }
    for (std::size_t stage = 0; stage < costs.forward.size(); ++stage) {
      want += (to_sim_time(costs.forward[stage]) + to_sim_time(costs.backward_input[stage]) +
               to_sim_time(costs.backward_weight[stage]))
                  .value *
              s.num_microbatches;
    }
    EXPECT_EQ(busy, want);
    EXPECT_NEAR(sim.bubble_fraction * s.pp * static_cast<double>(sim.makespan.value),
                static_cast<double>(s.pp * sim.makespan.value - busy), 1e-3 * kSecond * 1e-6 + 1);
  }
}

TEST(Simulate, ReplaysMeasuredDurations) {
  const Schedule s = lower(make(Kind::one_f_one_b, 2, 1));
  // rank 0: 0F0 0SEND_F0 0RECV_B0 0B0 0REDUCE_GRAD; rank 1: 1RECV_F0 1F0 1B0 1SEND_B0 1REDUCE_GRAD
  const Simulation sim =
      simulate(s, Durations{{Seconds(1), Seconds(0), Seconds(0), Seconds(4), Seconds(0.5)},
                            {Seconds(0), Seconds(2), Seconds(3), Seconds(0.25), Seconds(0)}});
  EXPECT_EQ(sim.actions[0][2],
            (Interval{SimTime(kSecond), to_sim_time(Seconds(6.25))}));  // waits in the receive
  EXPECT_EQ(sim.actions[0][3], (Interval{to_sim_time(Seconds(6.25)), to_sim_time(Seconds(10.25))}));
  EXPECT_EQ(sim.makespan, to_sim_time(Seconds(10.75)));
  EXPECT_EQ(sim.busy[0].value, 5 * kSecond);  // messages and reductions are no compute
  EXPECT_EQ(sim.busy[1].value, 5 * kSecond);
}

TEST(Simulate, SameDurationsAsCostsGiveTheSameTimes) {
  const Schedule s = make(Kind::zb_h1, 3, 5);
  Durations durations;
  for (const ActionList& list : s.ranks) {
    durations.emplace_back();
    for (const Action& a : list) {
      durations.back().emplace_back(a.kind == ActionKind::forward          ? 1.0
                                    : a.kind == ActionKind::backward_input ? 1.5
                                                                           : 0.5);
    }
  }
  EXPECT_EQ(simulate(s, durations).actions, simulate(s, per_rank(s, 1, 1.5, 0.5)).actions);
}

TEST(Simulate, OfNoTimeAtAllHasNoBubble) {
  const Schedule s = make(Kind::gpipe, 2, 2);
  EXPECT_EQ(simulate(s, per_rank(s, 0, 0, 0)).bubble_fraction, 0);
}

std::string error_of(const Schedule& s, const StageCosts& costs) {
  try {
    static_cast<void>(simulate(s, costs));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.what();
  }
  return "no error";
}

TEST(Simulate, RefusesWhatItCannotTime) {
  const Schedule s = make(Kind::gpipe, 2, 2);
  EXPECT_THAT(error_of(s, StageCosts::uniform(3, Seconds(1), Seconds(1), Seconds(1))),
              AllOf(HasSubstr("3, 3 and 3 entries for 2 stages"), HasSubstr("mend: give one")));
  for (const double wrong : {-1.0, std::nan(""), std::numeric_limits<double>::infinity(), 1e9}) {
    EXPECT_THAT(error_of(s, per_rank(s, wrong, 1, 1)), HasSubstr("is not a time"));
  }
  EXPECT_THAT(error_of(make(Kind::gpipe, 2, 1000), per_rank(s, 1e5, 1, 1)), HasSubstr("is not a time"));
  EXPECT_THAT(
      error_of(from_text("tessera-schedule 1: kind=gpipe pp=1 vpp=1 m=1 placement=loop\nrank 0: 0B0 0F0\n"),
               StageCosts::uniform(1, Seconds(1), Seconds(1), Seconds(1))),
      AllOf(HasSubstr("hangs at 0B0"), HasSubstr("where: rank 0, action 0"), HasSubstr("run the checker")));
  Schedule wrong_owner = s;
  std::swap(wrong_owner.ranks[0], wrong_owner.ranks[1]);
  EXPECT_THAT(error_of(wrong_owner, per_rank(s, 1, 1, 1)), HasSubstr("1F0 does not belong to rank 0"));
  EXPECT_THROW(static_cast<void>(simulate(s, Durations{{Seconds(1)}, {Seconds(1)}})), Error);
  EXPECT_THROW(static_cast<void>(simulate(s, Durations{})), Error);
}

TEST(SimTime, ConvertsBothWays) {
  EXPECT_EQ(to_sim_time(Seconds(1.5e-9)).value, 1500);
  EXPECT_EQ(to_seconds(SimTime(kSecond / 4)).value, 0.25);
}

TEST(DrawGrid, ShowsThePictureOfThePaper) {
  const Schedule s = make(Kind::one_f_one_b, 2, 2);
  EXPECT_EQ(draw_grid(s, per_rank(s, 1, 1, 1)),
            "rank 0 | F0 F1 .  .  B0 -  .  B1 -\n"
            "rank 1 | .  F0 B0 -  F1 B1 -  .  .\n");
}

TEST(DrawGrid, SaysWhatItCuts) {
  const Schedule s = make(Kind::gpipe, 2, 4);
  EXPECT_EQ(draw_grid(s, per_rank(s, 1, 1, 1), {.max_columns = 3}),
            "rank 0 | F0 F1 F2\nrank 1 | .  F0 F1\n(3 of 15 columns shown)\n");
  EXPECT_EQ(draw_grid(s, per_rank(s, 0, 0, 0)), "");
}

TEST(DrawGrid, MatchesTheGoldenPicturesOfAllKinds) {
  std::string text;
  for (const Kind kind : kAllKinds) {
    const std::int32_t m = kind == Kind::naive ? 2 : 8;
    const Schedule s = make(kind, 4, m);
    const StageCosts costs = StageCosts::uniform(s.num_stages(), Seconds(1), Seconds(1), Seconds(1));
    text += "== " + std::string(name(kind)) + "\n" + draw_grid(s, costs) + to_text(s);
  }
  const std::string path = std::string(TESSERA_SOURCE_DIR) + "/tests/schedule/golden/grids.txt";
  if (std::getenv("TESSERA_UPDATE_GOLDEN") != nullptr) write_atomically(path, text);
  EXPECT_EQ(text, read_text(path));
}

}  // namespace
}  // namespace tessera::schedule
