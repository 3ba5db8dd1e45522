// Pictures of schedules fit the terminal.
#include "report/schedule_view.h"

#include <gtest/gtest.h>

#include "base/text.h"

namespace tessera::report {
namespace {

using schedule::Kind;
using schedule::StageCosts;

schedule::Schedule one_f_one_b(std::int32_t pp, std::int32_t m) {
  return schedule::generate({.kind = Kind::one_f_one_b, .pp = pp, .vpp = 1, .num_microbatches = m});
}
const Seconds kUnit(1.0);

TEST(ScheduleView, IsTheGridWhereThereIsRoom) {
  const schedule::Schedule s = one_f_one_b(2, 2);
  const StageCosts costs = StageCosts::uniform(2, kUnit, kUnit, kUnit);
  EXPECT_EQ(schedule_view(s, costs, {.width = 100}), schedule::draw_grid(s, costs));
}

TEST(ScheduleView, ShowsAsManyCellsAsFit) {
  const schedule::Schedule s = one_f_one_b(4, 32);
  const StageCosts costs = StageCosts::uniform(4, kUnit, kUnit, kUnit);
  for (std::int32_t width = 20; width <= 200; width += 9) {
    std::int32_t widest = 0;
    const std::string text = schedule_view(s, costs, {.width = width});
    for (const std::string& line : split(text, '\n')) {
      ASSERT_LE(display_width(line), width) << line;
      if (line.starts_with("rank")) widest = std::max(widest, display_width(line));
    }
    EXPECT_GE(widest, width - 5) << text;
    EXPECT_NE(text.find(" of 105 columns"), std::string::npos) << text;
  }
}

TEST(ScheduleView, ColourChangesNoColumn) {
  const schedule::Schedule s = one_f_one_b(2, 4);
  const StageCosts costs = StageCosts::uniform(2, kUnit, kUnit, kUnit);
  const std::vector<std::string> plain = split(schedule_view(s, costs, {.width = 80}), '\n');
  const std::vector<std::string> painted = split(schedule_view(s, costs, {.color = true, .width = 80}), '\n');
  ASSERT_EQ(plain.size(), painted.size());
  for (std::size_t i = 0; i < plain.size(); ++i)
    EXPECT_EQ(display_width(plain[i]), display_width(painted[i]));
  EXPECT_NE(painted[0].find("\x1b[36mF0\x1b[0m"), std::string::npos) << painted[0];
}

}  // namespace
}  // namespace tessera::report
