// Lanes by hand: order, events, links that are shared, rooms that are busy, what hangs.
#include "schedule/lanes.h"

#include <gtest/gtest.h>

#include "schedule/support.h"

namespace tessera::schedule {
namespace {

std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> times(const Lanes& lanes) {
  std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>> out;
  for (const std::vector<Interval>& lane : run(lanes).ops) {
    out.emplace_back();
    for (const Interval& op : lane) out.back().emplace_back(op.start.value, op.end.value);
  }
  return out;
}
using Times = std::vector<std::vector<std::pair<std::int64_t, std::int64_t>>>;

TEST(Lanes, WaitForEventsAndTheirDelay) {
  Lanes l;
  l.signals = {1, 2};
  l.lanes = {{{.duration = 5, .signal = 0}, {.duration = 1, .signal = 1}},
             {{.duration = 2, .delay = 3, .wait = 0, .signal = 1}},
             {{.duration = 4, .wait = 1}}};
  EXPECT_EQ(times(l), (Times{{{0, 5}, {5, 6}}, {{8, 10}}, {{10, 14}}}));
  EXPECT_EQ(run(l, Record::makespan).makespan.value, 14);
  EXPECT_TRUE(run(l, Record::makespan).ops.empty());
}

TEST(Lanes, SayWhereTheyHang) {
  Lanes l;
  l.signals = {1, 1};
  l.lanes = {{{.duration = 5}, {.wait = 0, .signal = 1}}, {{.wait = 1, .signal = 0}}};
  const LaneTimes t = run(l);
  EXPECT_TRUE(t.hangs);
  EXPECT_EQ(t.reached, (std::vector<std::size_t>{1, 0}));
}

TEST(Lanes, FlowsOnOneLinkShareItEvenly) {
  // Alone for 4, two share for 8 (4 each), then the second has the link again.
  Lanes l{.lanes = {{{.duration = 8, .out_link = 0}}, {{.duration = 4}, {.duration = 10, .out_link = 0}}},
          .num_links = 1};
  EXPECT_EQ(times(l), (Times{{{0, 12}}, {{0, 4}, {4, 18}}}));
}

TEST(Lanes, AFlowIsAsFastAsItsFullerLink) {
  // Three into one link; the fourth shares only the first one's way out.
  Lanes l{.lanes = {{{.duration = 6, .out_link = 0, .in_link = 3}},
                    {{.duration = 6, .out_link = 1, .in_link = 3}},
                    {{.duration = 6, .out_link = 2, .in_link = 3}},
                    {{.duration = 6, .out_link = 0, .in_link = 4}}},
          .num_links = 5};
  EXPECT_EQ(times(l), (Times{{{0, 18}}, {{0, 18}}, {{0, 18}}, {{0, 12}}}));
}

TEST(Lanes, WhatRunsBesideABusyRoomIsSlower) {
  // 10 of work, of which 4 run twice as slow between 3 and 11.
  Lanes l{.lanes = {{{.duration = 10, .beside = 0}}, {{.duration = 3}, {.duration = 8, .noise_in = 0}}},
          .num_rooms = 1,
          .slowed = 2.0};
  EXPECT_EQ(times(l), (Times{{{0, 14}}, {{0, 3}, {3, 11}}}));
}

TEST(Lanes, ALaneWaitsForTheFlowOfAnother) {
  Lanes l{.lanes = {{{.duration = 8, .signal = 0, .out_link = 0}},
                    {{.duration = 8, .out_link = 0}},
                    {{.duration = 1, .wait = 0}, {.duration = 4, .out_link = 0}}},
          .signals = {1},
          .num_links = 1};
  EXPECT_EQ(times(l), (Times{{{0, 16}}, {{0, 16}}, {{16, 17}, {17, 21}}}));
}

// A link is never idle while a flow wants it, and never does more than one second of work a second.
TEST(Lanes, OneLinkDoesAllItsWorkWithoutAPause) {
  Dice dice(3);
  for (std::int32_t n = 0; n < 100; ++n) {
    Lanes l{.num_links = 1};
    std::int64_t work = 0;
    for (std::int32_t lane = dice.between(1, 6); lane > 0; --lane) {
      l.lanes.emplace_back();
      for (std::int32_t i = dice.between(1, 5); i > 0; --i) {
        l.lanes.back().push_back({.duration = dice.below(1000) * 1000, .out_link = 0});
        work += l.lanes.back().back().duration;
      }
    }
    EXPECT_NEAR(static_cast<double>(run(l).makespan.value), static_cast<double>(work), 30);
  }
}

TEST(Lanes, FlowsThatMeetNobodyTakeTheTimeOfPlainOperations) {
  Dice dice(4);
  for (std::int32_t n = 0; n < 50; ++n) {
    Lanes plain;
    plain.signals.assign(20, 1);
    for (std::int32_t lane = 0; lane < 4; ++lane) {
      plain.lanes.emplace_back();
      for (std::int32_t i = 0; i < 5; ++i) {
        const std::int32_t before = dice.below(lane * 5 + 1) - 1;  // an event of a lane above
        plain.lanes.back().push_back(
            {.duration = dice.below(100), .wait = before >= lane * 5 ? -1 : before, .signal = lane * 5 + i});
      }
    }
    Lanes flows = plain;
    flows.num_links = 4;
    for (std::int32_t lane = 0; lane < 4; ++lane) {
      for (LaneOp& op : flows.lanes[lane]) op.out_link = lane;
    }
    EXPECT_EQ(times(flows), times(plain));
  }
}

}  // namespace
}  // namespace tessera::schedule
