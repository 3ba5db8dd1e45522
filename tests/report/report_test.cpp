// The whole page and the progress line against golden files (rewritten when TESSERA_UPDATE_GOLDEN is set,
// never when CI=true), and the promises of every text of this room: no line wider than asked, no escape
// without colour, nothing breaks on odd numbers.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <limits>

#include "base/file.h"
#include "base/text.h"
#include "report/chart.h"
#include "report/progress.h"
#include "report/strip.h"
#include "report/support.h"

namespace tessera::report {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kInf = std::numeric_limits<double>::infinity();

void expect_golden(const std::string& name, const std::string& text) {
  const std::string path = fmt::format("{}/tests/report/golden/{}", TESSERA_SOURCE_DIR, name);
  if (std::getenv("TESSERA_UPDATE_GOLDEN") != nullptr) {
    const char* ci = std::getenv("CI");
    ASSERT_FALSE(ci != nullptr && std::string_view(ci) == "true")
        << "golden files are not rewritten when CI=true";
    write_atomically(path, text);
  }
  EXPECT_EQ(text, read_text(path)) << "if the new text is right: ./dev golden";
}

void expect_fits(const std::string& text, const Style& style) {
  for (const std::string& line : split(text, '\n')) {
    ASSERT_LE(display_width(line), style.width) << line;
    if (!style.color) {
      ASSERT_EQ(line.find('\x1b'), std::string::npos) << line;
    }
    ASSERT_FALSE(line.ends_with(' ')) << "'" << line << "'";
  }
}

RunView odd_view() {
  RunView v = demo_view();
  v.title = fmt::format("{:t>300}\x1b[2J", "");
  v.losses[3] = kNan;
  v.losses[5] = kInf;
  v.losses[7] = -std::numeric_limits<double>::max();
  v.losses[8] = std::numeric_limits<double>::max();
  v.unigram_entropy = kNan;
  v.validation_loss = kInf;
  v.seconds = Seconds(kInf);
  v.speed = {.tokens_per_s = kInf, .step = Seconds(kNan), .mfu = kNan, .mfu_full = kInf, .hfu = 1e300};
  v.axes = {{"a very long axis name for a table of this width", Bytes(-1), Seconds(kNan), Seconds(kInf)}};
  v.bubble = BubbleView{.fraction = kNan, .ideal = kInf};
  v.routing = {{.layer = 1 << 30, .load = std::vector<double>(200, kNan), .max_over_mean = kInf, .cv = kNan},
               {.layer = 0, .load = {}, .dead = -1, .drop_rate = kNan, .entropy = kNan}};
  v.memory = {{.rank = 1 << 30}};
  v.prompt = "\xff\xfe\x1b]0;x\x07";
  v.sample = fmt::format("\xe4\xb8\xad\xe6\x96\x87 {:x>500}\r\t\n\n\xf0\x9f\x98\x80", "");
  v.files = {{"checkpoint", std::string(300, '/')}};
  return v;
}

TEST(Page, DemoAt80Columns) {
  expect_golden("page_80.txt", render(demo_view(), {.width = 80}));
}

TEST(Page, DemoAt120ColumnsInColour) {
  expect_golden("page_120_color.txt", render(demo_view(), {.color = true, .width = 120}));
}

TEST(Page, DemoAt44ColumnsPutsMeaningsBelow) {
  expect_golden("page_44.txt", render(demo_view(), {.width = 44}));
}

TEST(Page, NoLineIsWiderThanAsked) {
  for (std::int32_t width = 40; width <= 200; ++width) {
    for (const bool color : {false, true}) {
      const Style style{.color = color, .width = width};
      ASSERT_NO_FATAL_FAILURE(expect_fits(render(demo_view(), style), style)) << width;
    }
  }
}

TEST(Page, OddNumbersAndForeignTextStayInsideAndWithoutEscapes) {
  for (std::int32_t width = 40; width <= 200; width += 7) {
    const Style style{.width = width};
    const std::string text = render(odd_view(), style);
    ASSERT_NO_FATAL_FAILURE(expect_fits(text, style)) << width;
    for (const char* number : {" nan ", " nan\n", "nan%", " inf ", " inf\n", "inf%", "-inf"}) {
      EXPECT_EQ(text.find(number), std::string::npos) << number << text;
    }
  }
}

TEST(Page, TinyWidthsDoNotBreak) {
  for (const std::int32_t width : {-5, 0, 1, 19, 20, 25, 30}) {
    const std::string text = render(demo_view(), {.width = width});
    ASSERT_NO_FATAL_FAILURE(expect_fits(text, {.width = std::max(width, kMinWidth)})) << width;
  }
}

TEST(Page, EmptyRunHasNoSections) {
  EXPECT_EQ(render({}, {}), "");
  RunView view;
  view.title = "x";
  EXPECT_EQ(render(view, {}), "x\n");
}

TEST(Page, SaysWhetherTheLossIsBelowTheUnigramEntropy) {
  RunView view;
  view.unigram_entropy = 6.0;
  view.losses = {5.0};
  EXPECT_NE(render(view, {}).find("1.00 nats below"), std::string::npos);
  view.losses = {6.5};
  EXPECT_NE(render(view, {}).find("0.50 nats above"), std::string::npos);
}

TEST(Page, FinalLossIsTheMeanOfTheLastTenth) {
  RunView view;
  EXPECT_FALSE(final_loss(view));
  view.losses.assign(20, 9.0);
  view.losses[18] = 1.0;
  view.losses[19] = 2.0;
  EXPECT_DOUBLE_EQ(*final_loss(view), 1.5);
  view.losses[19] = kNan;
  EXPECT_DOUBLE_EQ(*final_loss(view), 1.0);
  view.losses = {kNan};
  EXPECT_FALSE(final_loss(view));
}

TEST(Page, ExposedShareIsOfAllRanksTime) {
  RunView view;
  view.ranks = view.cores = 4;
  view.speed.step = Seconds(2.0);
  view.axes = {{"dp", Bytes(1024), Seconds(3.0), Seconds(2.0)}};  // 2 of 4 x 2 rank-seconds
  const std::string text = render(view, {.width = 100});
  EXPECT_NE(text.find("25.0%"), std::string::npos) << text;
  EXPECT_EQ(text.find("share 4 cores"), std::string::npos) << text;
}

ProgressState demo_progress() {
  return {.step = 123,
          .steps = 600,
          .loss = 3.2142,
          .tokens_per_s = 18432,
          .seconds_left = Seconds(65),
          .strip = heat_strip(std::vector<double>{1, 2, 3, 0}),
          .mfu = 0.412,
          .grad_norm = 0.82,
          .lr = 3e-4};
}

TEST(Progress, FieldsGoFromTheRight) {
  std::string text;
  for (const std::int32_t width : {20, 30, 42, 56, 64, 76, 88, 100, 112, 140}) {
    text += progress_line(demo_progress(), {.width = width}) + "\n";
  }
  expect_golden("progress.txt", text);
}

TEST(Progress, IsOneLineThatFits) {
  ProgressState odd = demo_progress();
  odd.step = std::numeric_limits<std::int64_t>::max();
  odd.loss = kNan;
  odd.tokens_per_s = kInf;
  odd.seconds_left = Seconds(kNan);
  odd.lr = kInf;
  for (std::int32_t width = 20; width <= 200; ++width) {
    for (const ProgressState& state : {demo_progress(), odd, ProgressState{}}) {
      const std::string line = progress_line(state, {.color = width % 2 == 0, .width = width});
      ASSERT_LE(display_width(line), width) << line;
      ASSERT_EQ(line.find('\n'), std::string::npos);
    }
  }
}

TEST(Progress, LaterStepsKeepTheirColumns) {
  ProgressState late = demo_progress();
  late.step = 9;
  late.loss = 2.1;
  late.tokens_per_s = 987;
  late.seconds_left = Seconds(3.25);
  const Style style{.width = 110};
  EXPECT_EQ(display_width(progress_line(late, style)), display_width(progress_line(demo_progress(), style)));
}

}  // namespace
}  // namespace tessera::report
