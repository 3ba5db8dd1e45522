// The checker: every generated schedule passes; every mutated one is rejected, with the place and the mend,
// and with the bad cell marked in the grid; hangs are found; slots are counted.
#include "schedule/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "base/error.h"
#include "schedule/text.h"
#include "support.h"

namespace tessera::schedule {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Schedule random_schedule(Dice& dice) {
  const Kind kind = kAllKinds[dice.below(6)];
  return make(kind, dice.between(1, 9), dice.between(1, 20), dice.between(2, 4));
}

std::string error_of(const Schedule& s) {
  try {
    static_cast<void>(checked(s));
  } catch (const Error& e) {
    return e.what();
  }
  return "accepted";
}

TEST(Check, AcceptsRandomSchedulesPlainAndLowered) {
  Dice dice(1);
  for (std::int32_t n = 0; n < 200; ++n) {
    const Schedule s = random_schedule(dice);
    const CheckReport plain = check(s), lowered = check(lower(s));
    ASSERT_TRUE(plain.ok()) << plain.problems.list()[0].what << to_text(s);
    ASSERT_TRUE(lowered.ok()) << lowered.problems.list()[0].what;
    EXPECT_EQ(plain.stages, lowered.stages);
    EXPECT_EQ(plain.peak_live_rank, lowered.peak_live_rank);
    EXPECT_TRUE(plain.grid.empty());
  }
}

ActionList& some_list(Schedule& s, Dice& dice) {
  return s.ranks[static_cast<std::size_t>(dice.below(s.pp))];
}
std::size_t some_index(const ActionList& list, Dice& dice) {
  return static_cast<std::size_t>(dice.below(static_cast<std::int32_t>(list.size())));
}

TEST(Check, RejectsADroppedAction) {
  Dice dice(2);
  for (std::int32_t n = 0; n < 200; ++n) {
    Schedule s = random_schedule(dice);
    if (dice.below(2) == 0) s = lower(s);
    ActionList& list = some_list(s, dice);
    const std::size_t i = some_index(list, dice);
    const Action dropped = list[i];
    list.erase(list.begin() + static_cast<std::ptrdiff_t>(i));
    if (s.is_lowered() || is_compute(dropped.kind)) {
      EXPECT_THAT(error_of(s), HasSubstr("is missing")) << to_text(dropped);
    }
  }
}

TEST(Check, RejectsADuplicatedAction) {
  Dice dice(3);
  for (std::int32_t n = 0; n < 200; ++n) {
    Schedule s = random_schedule(dice);
    if (dice.below(2) == 0) s = lower(s);
    ActionList& list = some_list(s, dice);
    const Action copy = list[some_index(list, dice)];
    list.insert(list.begin() + static_cast<std::ptrdiff_t>(some_index(list, dice)), copy);
    EXPECT_THAT(error_of(s),
                AllOf(HasSubstr(to_text(copy) + " is there twice"), HasSubstr("mend: remove one")));
  }
}

TEST(Check, RejectsAnActionOnAnotherRank) {
  Dice dice(4);
  for (std::int32_t n = 0; n < 200; ++n) {
    Schedule s = random_schedule(dice);
    if (s.pp == 1) continue;
    const auto from = static_cast<std::size_t>(dice.below(s.pp));
    const std::size_t to = (from + 1) % s.ranks.size();
    const std::size_t i = some_index(s.ranks[from], dice);
    const Action moved = s.ranks[from][i];
    s.ranks[from].erase(s.ranks[from].begin() + static_cast<std::ptrdiff_t>(i));
    s.ranks[to].push_back(moved);
    EXPECT_THAT(error_of(s), AllOf(HasSubstr(to_text(moved) + " runs on rank " + std::to_string(to)),
                                   HasSubstr("mend: move it to rank " + std::to_string(from)),
                                   HasSubstr(">" + to_text(moved) + "<")));
  }
}

// Swapping two actions of one stage and micro-batch breaks F before I before W; swapping W's breaks their
// order.
TEST(Check, RejectsSwapsThatBreakAnOrder) {
  Dice dice(5);
  std::int32_t tried = 0;
  for (std::int32_t n = 0; n < 3000 && tried < 300; ++n) {
    Schedule s = random_schedule(dice);
    ActionList& list = some_list(s, dice);
    Action& a = list[some_index(list, dice)];
    Action& b = list[some_index(list, dice)];
    const auto weight = [](const Action& x) {
      return x.kind == ActionKind::backward_weight || x.kind == ActionKind::backward;
    };
    const bool one_cell = a.stage == b.stage && a.microbatch == b.microbatch && a != b;
    const bool weights = a.stage == b.stage && a != b && weight(a) && weight(b);
    if (!one_cell && !weights) continue;
    ++tried;
    std::swap(a, b);
    EXPECT_THAT(error_of(s), AllOf(HasSubstr("runs before"), HasSubstr("where: rank"),
                                   HasSubstr("mend: move"), HasSubstr(">")));
  }
  EXPECT_EQ(tried, 300);
}

// Any swap either keeps a schedule that runs to its end or is rejected: the simulator is the independent
// judge.
TEST(Check, AgreesWithTheSimulatorAboutHangsAfterAnySwap) {
  Dice dice(6);
  std::int32_t rejected = 0, accepted = 0;
  for (std::int32_t n = 0; n < 600; ++n) {
    Schedule s = make(kAllKinds[dice.below(6)], dice.between(2, 4), dice.between(2, 6));
    ActionList& list = some_list(s, dice);
    std::swap(list[some_index(list, dice)], list[some_index(list, dice)]);
    const CheckReport report = check(s);
    bool runs = true;
    try {
      static_cast<void>(simulate(s, per_rank(s, 1, 1, 1)));
    } catch (const Error&) {
      runs = false;
    }
    const bool hang = !report.ok() && report.problems.list()[0].what.find("hangs") != std::string::npos;
    if (report.ok()) {
      EXPECT_TRUE(runs) << to_text(s);
    }
    if (hang) {
      EXPECT_FALSE(runs) << to_text(s);
    }
    ++(report.ok() ? accepted : rejected);
  }
  EXPECT_GT(rejected, 200);
  EXPECT_GT(accepted, 20);
}

TEST(Check, FindsADeadlockAndSaysWhoWaitsForWhom) {
  // Rank 0 wants the gradient of micro-batch 0 before it makes the activation of 1; rank 1 wants it the other
  // way.
  const Schedule s = from_text(
      "tessera-schedule 1: kind=1f1b pp=2 vpp=1 m=2 placement=loop\n"
      "rank 0: 0F0 0B0 0F1 0B1\n"
      "rank 1: 1F0 1F1 1B0 1B1\n");
  const std::string text = error_of(s);
  EXPECT_THAT(
      text, HasSubstr("rank 0 waits at 0RECV_B0 for 1SEND_B0 of rank 1, which waits at 1RECV_F1 before it"));
  EXPECT_THAT(
      text, HasSubstr("rank 1 waits at 1RECV_F1 for 0SEND_F1 of rank 0, which waits at 0RECV_B0 before it"));
  EXPECT_THAT(text, HasSubstr("where: rank 0, action 1"));
  EXPECT_THAT(text, HasSubstr("mend: move 1SEND_B0 before the action that rank 1 is stuck at"));
  EXPECT_THAT(text, HasSubstr("  rank 0 | 0F0  >0B0<  0F1   0B1\n  rank 1 | 1F0  >1F1<  1B0   1B1"));
}

TEST(Check, FindsADeadlockOfALoweredSchedule) {
  Schedule s = lower(make(Kind::one_f_one_b, 2, 2));
  // Rank 1 asks for the second activation before the first; harmless, because messages match by tag.
  ActionList& list = s.ranks[1];
  const auto second =
      std::find(list.begin(), list.end(), Action{ActionKind::recv_forward, StageId(1), MicrobatchId(1)});
  const Action receive = *second;
  list.erase(second);
  list.insert(list.begin(), receive);
  EXPECT_TRUE(check(s).ok());
  // Rank 0 sends it only when the gradient of the first is back: now nobody can move.
  ActionList& first = s.ranks[0];
  const auto send =
      std::find(first.begin(), first.end(), Action{ActionKind::send_forward, StageId(0), MicrobatchId(1)});
  const Action sent = *send;
  first.erase(send);
  first.push_back(sent);
  EXPECT_THAT(error_of(s),
              AllOf(HasSubstr("the schedule hangs"), HasSubstr("1RECV_F1"), HasSubstr("0RECV_B0")));
}

TEST(Check, RejectsMisplacedMessages) {
  const Action receive{ActionKind::recv_forward, StageId(1), MicrobatchId(0)};
  const Action send{ActionKind::send_forward, StageId(0), MicrobatchId(0)};
  Schedule s = lower(make(Kind::gpipe, 2, 2));
  std::swap(s.ranks[1][0], s.ranks[1][1]);
  EXPECT_THAT(error_of(s), HasSubstr("1F0 runs before 1RECV_F0"));
  s = lower(make(Kind::gpipe, 2, 2));
  std::swap(s.ranks[0][0], s.ranks[0][1]);
  EXPECT_THAT(error_of(s), HasSubstr("0SEND_F0 runs before 0F0"));
  s = lower(make(Kind::zb_v, 1, 1));
  s.ranks[0].insert(s.ranks[0].begin() + 1, send);
  EXPECT_THAT(error_of(s),
              AllOf(HasSubstr("0SEND_F0 has no partner on another rank"), HasSubstr("mend: remove it")));
  s = lower(make(Kind::gpipe, 2, 1));
  std::erase(s.ranks[1], receive);
  EXPECT_THAT(error_of(s),
              AllOf(HasSubstr("1RECV_F0 is missing"), HasSubstr("directly before its consumer")));
  s = lower(make(Kind::gpipe, 2, 1));
  ActionList& list = s.ranks[0];
  std::swap(list[list.size() - 1], list[list.size() - 2]);
  EXPECT_THAT(error_of(s), HasSubstr("0REDUCE_GRAD runs before 0B0"));
}

TEST(Check, RejectsStagesAndMicrobatchesOutsideTheSchedule) {
  Schedule s = make(Kind::gpipe, 2, 2);
  s.ranks[0][1] = {ActionKind::forward, StageId(7), MicrobatchId(0)};
  s.ranks[1][2] = {ActionKind::backward, StageId(1), MicrobatchId(-1)};
  EXPECT_THAT(error_of(s), AllOf(HasSubstr("0F0"), HasSubstr("7F0 names stage 7 of 2"),
                                 HasSubstr("use stages 0 to 1"), HasSubstr("names micro-batch -1 of 2")));
  s.ranks.pop_back();
  EXPECT_THAT(error_of(s), HasSubstr("1 action lists for pp=2"));
  s.pp = 0;
  EXPECT_THAT(error_of(s), HasSubstr("pp=0 is below 1"));
}

TEST(Check, RejectsBothTheWholeAndTheSplitBackward) {
  Schedule s = make(Kind::zb_h1, 1, 1);
  s.ranks[0].push_back({ActionKind::backward, StageId(0), MicrobatchId(0)});
  EXPECT_THAT(error_of(s),
              AllOf(HasSubstr("0B0 is there beside 0I0"), HasSubstr("mend: use either B, or I and W")));
}

TEST(Check, StopsListingAfterTwentyProblems) {
  Schedule s = make(Kind::gpipe, 2, 30);
  for (ActionList& list : s.ranks) list.clear();
  const CheckReport report = check(s);
  ASSERT_EQ(report.problems.list().size(), 21U);
  EXPECT_EQ(report.problems.list().back().what, "and 100 more problems");
}

// Walks a rank's list and asks that no two live micro-batches of a stage share a slot.
TEST(Check, GivesLiveMicrobatchesDifferentSlots) {
  Dice dice(8);
  for (std::int32_t n = 0; n < 60; ++n) {
    const Schedule s = random_schedule(dice);
    const CheckReport report = checked(s);
    for (const ActionList& list : s.ranks) {
      std::set<std::pair<std::int32_t, std::int32_t>> used;
      for (const Action& a : list) {
        const std::int32_t slot = report.slot_of(a.stage, a.microbatch);
        ASSERT_GE(slot, 0);
        ASSERT_LT(slot, report.stages[static_cast<std::size_t>(a.stage.value)].peak_live);
        if (a.kind == ActionKind::forward) {
          EXPECT_TRUE(used.emplace(a.stage.value, slot).second);
        }
        if (a.kind == ActionKind::backward_weight || a.kind == ActionKind::backward) {
          used.erase({a.stage.value, slot});
        }
      }
      EXPECT_TRUE(used.empty());
    }
  }
}

// Against a plain replay at random speeds: never more messages under way than the bound, and the bound is
// reached by a receiver that is as slow as it can be.
TEST(Check, BoundsTheMessagesUnderWayAtAnyTiming) {
  Dice dice(9);
  for (std::int32_t n = 0; n < 40; ++n) {
    const Schedule s = lower(make(kAllKinds[dice.below(6)], dice.between(2, 5), dice.between(1, 9)));
    const CheckReport report = checked(s);
    std::vector<std::int32_t> worst(static_cast<std::size_t>(s.num_stages()), 0);
    for (std::int32_t slow = -1; slow < s.pp; ++slow) {  // rank `slow` moves only when nobody else can
      std::vector<std::size_t> next(s.ranks.size(), 0);
      std::set<Action> sent;
      std::vector<std::int32_t> under_way(worst.size(), 0);
      const auto step = [&](std::size_t r) {
        if (next[r] == s.ranks[r].size()) return false;
        const Action a = s.ranks[r][next[r]];
        const auto stage = static_cast<std::size_t>(a.stage.value);
        if (a.kind == ActionKind::recv_forward) {
          if (sent.erase({ActionKind::send_forward, StageId(a.stage.value - 1), a.microbatch}) == 0)
            return false;
          --under_way[stage - 1];
        }
        if (a.kind == ActionKind::recv_backward &&
            sent.erase({ActionKind::send_backward, StageId(a.stage.value + 1), a.microbatch}) == 0) {
          return false;
        }
        if (a.kind == ActionKind::send_backward) sent.insert(a);
        if (a.kind == ActionKind::send_forward) {
          sent.insert(a);
          worst[stage] = std::max(worst[stage], ++under_way[stage]);
        }
        ++next[r];
        return true;
      };
      while (true) {
        bool moved = false;
        for (std::size_t r = 0; r < next.size(); ++r) {
          if (static_cast<std::int32_t>(r) == slow) continue;
          const std::int32_t burst = slow < 0 ? dice.between(0, 4) : 1'000'000;
          for (std::int32_t k = 0; k < burst && step(r); ++k) moved = true;
        }
        if (!moved && slow >= 0) moved = step(static_cast<std::size_t>(slow));
        bool done = true;
        for (std::size_t r = 0; r < next.size(); ++r) done = done && next[r] == s.ranks[r].size();
        if (done) break;
        ASSERT_TRUE(moved || slow < 0);
      }
    }
    for (std::size_t stage = 0; stage < worst.size(); ++stage) {
      EXPECT_EQ(worst[stage], report.stages[stage].peak_unreceived_forward) << to_text(s) << stage;
    }
  }
}

TEST(Check, SlotsOfARejectedScheduleAreRefused) {
  Schedule s = make(Kind::gpipe, 2, 2);
  s.ranks[0].clear();
  EXPECT_THROW(static_cast<void>(check(s).slot_of(StageId(0), MicrobatchId(0))), Error);
  EXPECT_THROW(static_cast<void>(checked(make(Kind::gpipe, 2, 2)).slot_of(StageId(2), MicrobatchId(0))),
               Error);
}

}  // namespace
}  // namespace tessera::schedule
