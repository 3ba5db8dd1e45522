// Figures of merit on made outcomes: their values are known.
#include "validate/stats.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "rows.h"
#include "validate/fit.h"
#include "validate/scatter.h"
#include "validate/summary.h"

namespace tessera::validate {
namespace {

using testing::HasSubstr;

// Predicts what the calibration's `sustained` says: ideal / sustained.
Prediction made(const cost::Setup& setup, const cost::Candidate& c) {
  cost::StepCost cost;
  const double ideal = 10.0 / c.dp;
  cost.parts[0] = ideal;
  cost.parts[1] = ideal / setup.calibration.sustained - ideal;
  cost.model_flops = ideal * 1e15;
  cost.peak = 1e15;
  return {.cost = cost, .reason = ""};
}

// One outcome for each measured time; `source` is the id's prefix.
std::vector<Outcome> outcomes(std::string_view source, const std::vector<double>& measured) {
  static const Library shipped = shipped_library();
  std::vector<Row> rows;
  for (std::size_t i = 0; i < measured.size(); ++i) {
    Row r = good_row();
    r.id = std::string(source) + "-" + std::to_string(i);
    r.mbs = 1 << i;
    r.gbs = 1024;
    r.step_time_s = measured[i];
    rows.push_back(r);
  }
  return run(rows, shipped, made, 1);
}

void append(std::vector<Outcome>& to, std::vector<Outcome> from) {
  for (Outcome& o : from) to.push_back(std::move(o));
}

TEST(Stats, ErrorsAreRelativeAndNaNIsLeftOut) {
  const ErrorStats s = error_stats({0.1, -0.3, std::nan(""), 0.2});
  EXPECT_EQ(s.rows, 3);
  EXPECT_DOUBLE_EQ(s.median, 0.2);
  EXPECT_DOUBLE_EQ(s.mean, 0.2);
  EXPECT_DOUBLE_EQ(s.bias, 0.1);
  EXPECT_DOUBLE_EQ(s.worst, -0.3);
  EXPECT_EQ(error_stats({}).rows, 0);
}

TEST(Stats, KendallTauCountsPairsAndTies) {
  const std::array<double, 4> a = {1, 2, 3, 4}, same = {10, 20, 30, 40}, back = {4, 3, 2, 1},
                              tie = {1, 1, 2, 3};
  EXPECT_DOUBLE_EQ(kendall_tau_b(a, same), 1.0);
  EXPECT_DOUBLE_EQ(kendall_tau_b(a, back), -1.0);
  EXPECT_DOUBLE_EQ(kendall_tau_b(a, tie), 5 / std::sqrt(6.0 * 5.0));
}

TEST(Stats, OnlyCleanRowsCount) {
  std::vector<Outcome> o = outcomes("own", {3.0});
  ASSERT_TRUE(o[0].timed());
  EXPECT_TRUE(counts(o[0]));
  o[0].row.quality = Quality::c;
  EXPECT_FALSE(counts(o[0]));
  o[0].row.quality = Quality::b;
  o[0].question->guessed = true;
  EXPECT_FALSE(counts(o[0]));
}

TEST(Stats, RegretIsWhatTheFirstRankedLayoutCosts) {
  std::vector<Outcome> o = outcomes("own", {5.0, 4.0, 6.0});
  for (std::size_t i = 0; i < o.size(); ++i)
    o[i].cost->parts[0] = 1.0 + static_cast<double>(i);  // ranks the 5.0 first
  const std::vector<Sweep> s = sweeps(o, counts);
  ASSERT_EQ(s.size(), 1U);
  EXPECT_EQ(s[0].layouts, 3);
  EXPECT_DOUBLE_EQ(s[0].regret, 0.25);
  EXPECT_NEAR(s[0].tau, 1.0 / 3, 1e-12);
  o[0].row.id = "own-other-1";  // another table: no three layouts are left
  EXPECT_TRUE(sweeps(o, counts).empty());
}

TEST(Stats, TheBaselineOfASourceComesFromTheOthers) {
  std::vector<Outcome> o = outcomes("one", {5.0, 5.0});  // ideal 2.5 s: MFU 1/2
  append(o, outcomes("two", {10.0}));                    // 1/4
  const auto source = [](const Outcome& x) { return x.question->source; };
  const std::vector<double> e = constant_mfu_errors(o, source);
  EXPECT_NEAR(e[0], 1.0, 1e-9);   // 10 s for 5 s
  EXPECT_NEAR(e[2], -0.5, 1e-9);  // 5 s for 10 s
  const std::vector<double> in_sample = constant_mfu_errors(o, [](const Outcome&) { return std::string(); });
  EXPECT_NEAR(in_sample[0], std::pow(2.0, 1.0 / 3) - 1, 1e-9);
}

TEST(Stats, VerdictsAreRightWhenWhatRanFitsAndWhatDidNotDoesNot) {
  std::vector<Outcome> o = outcomes("own", {5.0, 5.0, 5.0, 5.0});
  o[1].cost->memory.parts[0] = 1e13;  // ran, but is said not to fit
  o[2].row.status = Status::out_of_memory;
  o[2].cost->memory.parts[0] = 1e13;
  o[3].row.status = Status::missing;
  const Verdicts v = verdicts(o).at(0);
  EXPECT_EQ(v.ran, 2);
  EXPECT_EQ(v.ran_right, 1);
  EXPECT_EQ(v.oom, 1);
  EXPECT_EQ(v.oom_right, 1);
  EXPECT_EQ(v.missing, 1);
  EXPECT_EQ(v.missing_right, 0);
}

// Three sources whose steps took ideal / 0.8: the fit finds the clock, whichever source is held out.
TEST(Fit, FindsTheConstantThatMadeTheData) {
  std::vector<Outcome> o;
  for (const char* source : {"one", "two", "three"}) append(o, outcomes(source, {2.5 / 0.8, 2.5 / 0.8}));
  const Library shipped = shipped_library();
  FitOptions options;
  options.names = {"sustained", "straggler"};
  const Fit f = fit(o, shipped.calibrations, made, options);
  const ChipFit& chip = f.chips.at("h100");
  EXPECT_EQ(chip.rows, 6);
  EXPECT_EQ(chip.sources, 3);
  EXPECT_NEAR(chip.values[0], 0.8, 0.01);
  EXPECT_DOUBLE_EQ(chip.values[1], f.constants[1].start);  // shows in nothing: stays
  EXPECT_LT(chip.after, 0.01);
  const Calibrations better = f.applied(shipped.calibrations);
  EXPECT_DOUBLE_EQ(better.at("h200-sxm").sustained, chip.values[0]);
  EXPECT_DOUBLE_EQ(better.at("gb200").sustained, shipped.calibrations.at("gb200").sustained);
  predict_out_of_fold(o, shipped.calibrations, fold_by_source, made, options);
  for (const Outcome& x : o) EXPECT_TRUE(std::abs(x.error()) < 0.015) << x.error();
}

TEST(Fit, AHeldOutSourceDoesNotTeach) {
  std::vector<Outcome> o = outcomes("one", {2.5 / 0.8, 2.5 / 0.8});
  append(o, outcomes("odd", {2.5 / 0.65, 2.5 / 0.65}));
  FitOptions options;
  options.names = {"sustained"};
  predict_out_of_fold(o, shipped_library().calibrations, fold_by_source, made, options);
  EXPECT_NEAR(o[0].predicted(), 2.5 / 0.65, 0.05);  // taught by the odd one only
  EXPECT_NEAR(o[2].predicted(), 2.5 / 0.8, 0.05);
}

TEST(Fit, AnUnknownConstantIsNamedWithTheNearest) {
  FitOptions options;
  options.names = {"sustaned"};
  try {
    (void)fit({}, {}, made, options);
    FAIL() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("did you mean sustained?"));
  }
}

TEST(Summary, TextMarkdownCsvAndJsonHoldTheFigures) {
  std::vector<Outcome> o = outcomes("own", {2.5, 5.0, 6.0});
  Row refused = good_row();
  refused.id = "own-99";
  refused.gpu = "TPU v5e";
  append(o, run(std::vector<Row>{refused}, shipped_library(), made, 1));
  const std::vector<SummaryTable> t = summary(o, Sample::shipped);
  const std::string text = to_text(t);
  EXPECT_THAT(text, HasSubstr("no calibration of this accelerator"));
  EXPECT_THAT(text, HasSubstr("dense, A100 and H100"));
  EXPECT_THAT(to_markdown(t), HasSubstr("| dense, A100 and H100 | 3 |"));
  const CsvTable lines = [&] {
    Problems p;
    CsvTable table = parse_csv(to_csv(o), "out", p);
    p.throw_if_any();
    return table;
  }();
  ASSERT_EQ(lines.records.size(), 4U);
  const auto at = [&](std::size_t row, std::string_view column) {
    return lines.records[row].cells[static_cast<std::size_t>(lines.column(column))];
  };
  EXPECT_EQ(at(0, "measured_s"), "2.5");
  EXPECT_EQ(at(3, "not_predicted"), "no calibration of this accelerator");
  EXPECT_THAT(to_json(o, t), HasSubstr("\"not_predicted\": \"no calibration of this accelerator\""));
}

TEST(Scatter, DrawsOnePointARunAndNamesTheSources) {
  std::vector<Outcome> o = outcomes("one<", {2.5, 5.0});
  append(o, outcomes("two", {6.0}));
  const std::string svg = scatter_svg(o, counts, {});
  EXPECT_THAT(svg, HasSubstr("one&lt; (2)"));
  EXPECT_THAT(svg, HasSubstr("two (1)"));
  std::size_t circles = 0;
  for (std::size_t at = svg.find("<circle"); at != std::string::npos; at = svg.find("<circle", at + 1))
    ++circles;
  EXPECT_EQ(circles, 3U + 2U);  // and one a line of the legend
  EXPECT_EQ(svg, scatter_svg(o, counts, {}));
  EXPECT_THAT(scatter_svg({}, counts, {}), HasSubstr("no row has both"));
}

}  // namespace
}  // namespace tessera::validate
