// Charts, strips, tables and text, each by itself.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>

#include "base/error.h"
#include "base/text.h"
#include "report/chart.h"
#include "report/strip.h"
#include "report/table.h"
#include "report/terminal.h"

namespace tessera::report {
namespace {

using ::testing::ElementsAre;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

std::string strip(std::vector<double> load, std::int32_t max_width = 32) {
  return heat_strip(load, {}, max_width);
}

TEST(Text, DisplayWidthCountsColumns) {
  EXPECT_EQ(display_width("abc"), 3);
  EXPECT_EQ(display_width("\u2581\u00d7"), 2);
  EXPECT_EQ(display_width("\u4e2d\u6587"), 4);
  EXPECT_EQ(display_width("\x1b[31mred\x1b[0m"), 3);
  EXPECT_EQ(display_width("\xff\xc0"), 2);
  EXPECT_EQ(display_width("e\u0301"), 1);
}

TEST(Text, ClipMarksTheCutAndClosesColour) {
  EXPECT_EQ(clip("abcdef", 6), "abcdef");
  EXPECT_EQ(clip("abcdef", 4), "abc\u2026");
  EXPECT_EQ(clip("\u4e2d\u6587\u5b57", 4), "\u4e2d\u2026");
  EXPECT_EQ(clip("\x1b[31mabcdef\x1b[0m", 3), "\x1b[31mab\u2026\x1b[0m");
  EXPECT_EQ(clip("abc", 0), "");
}

TEST(Text, WrapBreaksAtBlanksAndLongWords) {
  EXPECT_THAT(wrap("one two three", 7), ElementsAre("one two", "three"));
  EXPECT_THAT(wrap("a\n\nb", 7), ElementsAre("a", "", "b"));
  EXPECT_THAT(wrap("abcdefgh", 3), ElementsAre("abc", "def", "gh"));
  EXPECT_THAT(wrap("", 3), ElementsAre(""));
}

TEST(Text, CleanLeavesNoControlCharacters) {
  EXPECT_EQ(clean("a\x1b[31mb"), "a\ufffd[31mb");
  EXPECT_EQ(clean("a\tb\nc\x7f\xff"), "a  b\nc\ufffd\ufffd");
  EXPECT_EQ(clean("\u00e9\u202e\u009b"), "\u00e9\ufffd\ufffd");
}

TEST(Text, PaintWritesEscapesOnlyInColour) {
  EXPECT_EQ(paint("x", Tone::bad, {}), "x");
  EXPECT_EQ(paint("x", Tone::bad, {.color = true}), "\x1b[31mx\x1b[0m");
  EXPECT_EQ(paint("", Tone::bad, {.color = true}), "");
}

TEST(Strip, MeanIsHalfACellAndTwiceAFullOne) {
  EXPECT_EQ(strip({1, 1, 1, 1}), "\u2584\u2584\u2584\u2584");
  EXPECT_EQ(strip({2, 0.5, 0.5, 1}), "\u2588\u2582\u2582\u2584");
  EXPECT_EQ(strip({0, 1, 2}), "\u00d7\u2584\u2588");
  EXPECT_EQ(strip({1e-9, 1, 1.5}), "\u2581\u2585\u2587");  // a load, though small, is not dead
}

TEST(Strip, ScaleDoesNotMatter) {
  EXPECT_EQ(strip({1, 2, 3, 4}), strip({1e300, 2e300, 3e300, 4e300}));
  EXPECT_EQ(strip({1, 2, 3, 4}), strip({1e-300, 2e-300, 3e-300, 4e-300}));
}

TEST(Strip, OddLoads) {
  EXPECT_EQ(strip({}), "");
  EXPECT_EQ(strip({0, 0}), "\u00d7\u00d7");
  EXPECT_EQ(strip({kNan, 1, kInf, -1}), "?\u2588\u2588\u00d7");
}

TEST(Strip, ManyExpertsShareGlyphsAndShowTheMostTelling) {
  std::vector<double> load(64, 1.0);
  EXPECT_EQ(display_width(strip(load, 32)), 32);
  EXPECT_EQ(experts_per_glyph(64, 32), 2);
  EXPECT_EQ(experts_per_glyph(65, 32), 3);
  EXPECT_EQ(experts_per_glyph(32, 32), 1);
  load.assign({1, 1, 1, 0, 0, 3, 1, 1});
  EXPECT_EQ(strip(load, 4), "\u2584\u00d7\u2588\u2584");
}

TEST(Strip, ColourMarksOverloadAndDeath) {
  const std::string text = heat_strip(std::vector<double>{0, 1, 2}, {.color = true});
  EXPECT_EQ(text, "\x1b[31m\u00d7\x1b[0m\x1b[32m\u2584\x1b[0m\x1b[31m\u2588\x1b[0m");
}

TEST(Table, AlignsUnderRules) {
  Table t({{.header = "axis", .align = Align::left}, {.header = "bytes"}});
  t.add_row({"tp", "12"});
  t.add_row({"\u4e2d", "3456"});
  t.add_footer({"all", "3468"});
  EXPECT_EQ(t.render({}),
            "axis  bytes\n"
            "\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\n"
            "tp       12\n"
            "\u4e2d     3456\n"
            "\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\u2500\n"
            "all    3468\n");
}

TEST(Table, DropsColumnsBeforeClippingAndSaysSo) {
  Table t({{.header = "name", .align = Align::left},
           {.header = "first", .drop = 1},
           {.header = "second", .drop = 2},
           {.header = "third", .drop = 2},
           {.header = "last"}});
  t.add_row({"a name that is long", "1", "2", "3", "4"});
  const std::string text = t.render({.width = 34});
  EXPECT_NE(text.find("first  last"), std::string::npos) << text;
  EXPECT_NE(text.find("(too narrow for: second, third)"), std::string::npos) << text;
  EXPECT_NE(t.render({.width = 20}).find("a name that i\u2026     4"), std::string::npos)
      << t.render({.width = 20});
}

TEST(Table, RefusesRowsOfAnotherLength) {
  Table t({{.header = "a"}});
  EXPECT_THROW(t.add_row({"1", "2"}), Error);
  EXPECT_THROW(Table({}), Error);
}

TEST(Ticks, AreNice) {
  EXPECT_THAT(nice_ticks(0, 10, 6).at, ElementsAre(0, 2, 4, 6, 8, 10));
  EXPECT_THAT(nice_ticks(1, 600, 7, true).at, ElementsAre(100, 200, 300, 400, 500, 600));
  EXPECT_THAT(nice_ticks(1, 3, 9, true).at, ElementsAre(1, 2, 3));
  EXPECT_THAT(nice_ticks(-1, 1, 4).at, ElementsAre(-1, 0, 1));
  EXPECT_EQ(nice_ticks(3.10, 3.19, 5).decimals, 2);
  EXPECT_THAT(nice_ticks(5, 5, 4).at, ElementsAre(5));
}

std::vector<std::string> chart_lines(const std::vector<double>& values, std::int32_t width = 40,
                                     std::int32_t height = 4) {
  return split(line_chart({{.values = values}}, {}, {.style = {.width = width}, .height = height}), '\n');
}

TEST(Chart, RisingLineGoesFromTheLowerLeftToTheUpperRight) {
  const std::vector<std::string> lines = chart_lines({0, 1, 2, 3}, 20, 2);
  EXPECT_EQ(lines[0], "2 \u2524        \u2880\u28c0\u2860\u2824\u2814\u2812\u2812\u280a\u2809");
  EXPECT_EQ(lines[1], "0 \u2524\u28c0\u2860\u2824\u2824\u2814\u2812\u280a\u2809\u2801");
}

TEST(Chart, NothingFiniteIsNoChart) {
  EXPECT_EQ(line_chart({}, {}, {}), "");
  EXPECT_EQ(line_chart({{.values = {}}}, {{"x", 1.0}}, {}), "");
  EXPECT_EQ(line_chart({{.values = {kNan, kInf}}}, {}, {}), "");
}

TEST(Chart, OnePointAndConstantsLieInTheMiddle) {
  for (const std::vector<double>& values : {std::vector<double>{5}, std::vector<double>(100, 5.0)}) {
    const std::vector<std::string> lines = chart_lines(values, 40, 5);
    const auto dotted = [](const std::string& line) {
      return line.find("\xe2\xa0") != std::string::npos || line.find("\xe2\xa1") != std::string::npos ||
             line.find("\xe2\xa2") != std::string::npos || line.find("\xe2\xa3") != std::string::npos;
    };
    for (std::size_t row = 0; row < 5; ++row) EXPECT_EQ(dotted(lines[row]), row == 2) << lines[row];
  }
}

TEST(Chart, GapsStayBlank) {
  const std::string whole = chart_lines({1, 1, 1, 1, 1, 1, 1, 1, 1})[2];
  const std::string gap = chart_lines({1, 1, 1, kNan, kNan, kNan, 1, 1, 1})[2];
  // 35 cells, points at every eighth of them: blank from the third point to the seventh.
  const std::string blank(17, ' ');
  EXPECT_EQ(whole.find(' ', 6), std::string::npos) << whole;
  EXPECT_NE(gap.find(blank), std::string::npos) << gap;
  EXPECT_EQ(display_width(gap), display_width(whole));
}

TEST(Chart, SpikesAmongThousandsOfPointsStaySeen) {
  std::vector<double> values(10000, 0.0);
  const std::vector<std::string> flat = chart_lines(values);
  values[5000] = 1.0;
  const std::vector<std::string> spike = chart_lines(values);
  for (std::size_t row = 0; row < 4; ++row) {
    EXPECT_GT(display_width(spike[row]), 20) << spike[row];  // a column in the middle, from bottom to top
  }
}

TEST(Chart, ReferenceLineCarriesItsLabel) {
  const std::string text = line_chart({{.label = "loss", .values = {9, 5, 3, 2, 2, 2}}},
                                      {{"unigram entropy", 6.12}, {"none", kNan}},
                                      {.style = {.width = 60}, .x_label = "step", .y_label = "nats"});
  EXPECT_NE(text.find(" unigram entropy 6.12 "), std::string::npos) << text;
  EXPECT_EQ(text.find("none"), std::string::npos) << text;
  EXPECT_NE(text.find("loss, nats"), std::string::npos) << text;
  EXPECT_NE(text.find("step"), std::string::npos) << text;
}

TEST(Chart, LabelWithoutPlaceGoesToTheLegend) {
  const std::string text =
      line_chart({{.values = std::vector<double>(50, 2.0)}}, {{"entropy", 2.0}}, {.style = {.width = 40}});
  EXPECT_TRUE(text.starts_with("\u2812\u2812 entropy 2.00\n")) << text;
}

TEST(Chart, EveryLineFitsEveryWidth) {
  std::vector<double> noisy;
  for (int i = 0; i < 3000; ++i) noisy.push_back(i % 7 == 0 ? kNan : std::sin(i) * std::pow(10.0, i % 300));
  for (std::int32_t width = 20; width <= 200; ++width) {
    for (const std::vector<double>& values :
         {noisy, {1e300, -1e300}, {1e15, 1e15 + 0.125}, {-0.0, 0.0}, {1e-310, 3e-310}}) {
      const std::string text = line_chart(
          {{.label = "first", .values = values}, {.label = "second", .values = {1, 2}, .x_step = 100}},
          {{"reference", 0.5}}, {.style = {.width = width}, .x_label = "step", .y_label = "unit"});
      for (const std::string& line : split(text, '\n')) ASSERT_LE(display_width(line), width) << line;
    }
  }
}

TEST(Chart, RefusesStepsThatDoNotGoForward) {
  EXPECT_THROW((void)line_chart({{.values = {1, 2}, .x_step = 0}}, {}, {}), Error);
}

}  // namespace
}  // namespace tessera::report
