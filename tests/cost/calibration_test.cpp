// Calibrations: the shipped files, `like`, the reader's errors (what, where, mend; all of them at once), the
// writer, and the page of the format.
#include "cost/calibration.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <limits>

#include "base/file.h"
#include "base/text.h"

namespace tessera::cost {
namespace {

using testing::AllOf;
using testing::Contains;
using testing::HasSubstr;

std::string all_text(const Problems& problems) {
  std::string text;
  for (const Problem& p : problems.list()) text += p.what + " | " + p.where + " | " + p.mend + "\n";
  return text;
}

// A shipped file as text, one line replaced.
std::string edited(std::string_view name, std::string_view from, std::string_view to) {
  std::string text = to_yaml(calibration(name));
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(Calibration, ShipsTheAcceleratorsThatTheClustersName) {
  const std::vector<std::string> names = calibration_names();
  for (const char* name :
       {"a100-sxm-80gb", "a100-sxm-40gb", "a100-pcie-80gb", "a800-sxm", "h100-sxm", "h100-sxm-hbm2e-500w",
        "h800-sxm", "h200-sxm", "b200-sxm", "b300-sxm", "gb200", "gb300", "mi300x", "l40s", "cpu-generic"}) {
    EXPECT_THAT(names, Contains(name));
  }
}

TEST(Calibration, EveryShippedFileIsNamedAsItsFileAndReadsBackEqual) {
  for (const std::string& name : calibration_names()) {
    SCOPED_TRACE(name);
    const Calibration c = calibration(name);
    EXPECT_EQ(c.name, name);
    EXPECT_FALSE(c.description.empty());
    Problems problems;
    EXPECT_EQ(parse_calibration(to_yaml(c), name, problems), c);
    EXPECT_TRUE(problems.empty()) << all_text(problems);
  }
}

// Keys of the written form, with their sections: "gemm.bf16.peak".
std::vector<std::string> keys_of(const Calibration& c) {
  std::vector<std::string> keys, path;
  for (const std::string& line : split(to_yaml(c), '\n')) {
    const std::size_t indent = line.find_first_not_of(' ');
    if (indent == std::string::npos || line.find(':') == std::string::npos) continue;
    path.resize(indent / 2);
    path.push_back(line.substr(indent, line.find(':') - indent));
    keys.push_back(join(path, "."));
  }
  return keys;
}

TEST(Calibration, ThePageOfTheFormatNamesEveryKey) {
  const std::string page =
      read_text(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs/formats/calibration.md");
  std::size_t leaves = 0;
  for (const std::string& key : keys_of(calibration("b200-sxm"))) {
    const std::vector<std::string> parts = split(key, '.');
    const std::string shown = parts.size() == 3 ? parts[2] : key;  // of each gemm section: its own table
    if (key == "memory" || key == "gemm" || key == "attention" || key == "links" || key == "step") continue;
    EXPECT_NE(page.find("`" + shown + "`"), std::string::npos) << key;
    ++leaves;
  }
  EXPECT_GT(leaves, 50U);
}

TEST(Calibration, TheExampleOfThePageIsAGoodFile) {
  const std::string page =
      read_text(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs/formats/calibration.md");
  const std::size_t begin = page.find("```yaml\n") + 8;
  Problems problems;
  const Calibration c =
      parse_calibration(page.substr(begin, page.find("```", begin) - begin), "page", problems);
  EXPECT_TRUE(problems.empty()) << all_text(problems);
  EXPECT_EQ(c.name, "my-h100");
  EXPECT_EQ(c.bf16.efficiency, 0.71);
}

TEST(Calibration, HoldsTheDataSheet) {
  const Calibration a100 = calibration("a100-sxm-80gb");
  EXPECT_EQ(a100.processors, 108);
  EXPECT_EQ(a100.memory, Bytes(80'000'000'000));
  EXPECT_EQ(a100.memory_bandwidth, 2039e9);
  EXPECT_EQ(a100.bf16.peak, 312e12);
  EXPECT_EQ(a100.fp8.peak, 0.0);
  const Calibration h100 = calibration("h100-sxm");
  EXPECT_EQ(h100.bf16.peak, 989e12);
  EXPECT_EQ(h100.fp8.peak, 1979e12);
  EXPECT_EQ(h100.kernel_latency, Seconds(2e-6));
  EXPECT_EQ(calibration("gb200").bf16.peak, 2500e12);
}

TEST(Calibration, LikeTakesWhatTheFileDoesNotSay) {
  const Calibration h100 = calibration("h100-sxm");
  const Calibration h200 = calibration("h200-sxm");
  EXPECT_EQ(h200.fp8, h100.fp8);
  EXPECT_EQ(h200.attention_forward, h100.attention_forward);
  EXPECT_EQ(h200.bf16.peak, h100.bf16.peak);
  EXPECT_NE(h200.bf16.efficiency, h100.bf16.efficiency);
  EXPECT_EQ(h200.memory, Bytes(141'000'000'000));
}

TEST(Calibration, NullTakesAPrecisionAway) {
  Problems problems;
  const Calibration c =
      parse_calibration("like: h100-sxm\nname: mine\ngemm: {fp8: null}\n", "mine.yaml", problems);
  EXPECT_TRUE(problems.empty()) << all_text(problems);
  EXPECT_EQ(c.fp8.peak, 0.0);
  EXPECT_EQ(&gemm_model(c, spec::Precision::fp8), &c.bf16);
  EXPECT_EQ(&gemm_model(c, spec::Precision::fp8_block), &c.fp8_block);
}

TEST(Calibration, PicksTheProductsOfAPrecision) {
  const Calibration c = calibration("b200-sxm");
  EXPECT_EQ(&gemm_model(c, spec::Precision::f32), &c.f32);
  EXPECT_EQ(&gemm_model(c, spec::Precision::f64), &c.f32);
  EXPECT_EQ(&gemm_model(c, spec::Precision::bf16), &c.bf16);
  EXPECT_EQ(&gemm_model(c, spec::Precision::fp16), &c.bf16);
  EXPECT_EQ(&gemm_model(c, spec::Precision::fp8), &c.fp8);
  EXPECT_EQ(&gemm_model(c, spec::Precision::mxfp8), &c.mxfp8);
  EXPECT_EQ(&gemm_model(c, spec::Precision::nvfp4), &c.nvfp4);
  const Calibration a100 = calibration("a100-sxm-80gb");
  EXPECT_EQ(&gemm_model(a100, spec::Precision::fp8), &a100.bf16);
}

TEST(Calibration, UnknownNameSaysTheNearest) {
  try {
    (void)calibration("h100-smx");
    FAIL();
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), AllOf(HasSubstr("\"h100-smx\""), HasSubstr("did you mean h100-sxm?")));
  }
}

TEST(Calibration, ReportsEveryProblemAtOnce) {
  std::string yaml = edited("h100-sxm", "bandwidth: \"3352 GB/s\"", "bandwidth: 3352");
  const auto change = [&](std::string_view from, std::string_view to) {
    const std::size_t at = yaml.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    yaml.replace(at, from.size(), to);
  };
  change("peak: \"989 TFLOP/s\"", "peak: 989 TB");
  change("grouped_efficiency", "groupd_efficiency");
  change("[128, 256]", "[128]");
  change("processors: 132", "processors: many");
  Problems problems;
  (void)parse_calibration(yaml, "mine.yaml", problems);
  const std::string text = all_text(problems);
  EXPECT_EQ(problems.list().size(), 6) << text;
  EXPECT_THAT(text, HasSubstr("bandwidth=3352 has no unit"));
  EXPECT_THAT(text, HasSubstr("write the unit, for example bandwidth: 3352 GB/s"));
  EXPECT_THAT(text, HasSubstr("\"989 TB\" is not a rate; write for example 989 TFLOP/s"));
  EXPECT_THAT(text, HasSubstr("unknown key \"groupd_efficiency\""));
  EXPECT_THAT(text, HasSubstr("did you mean gemm.grouped_efficiency?"));
  EXPECT_THAT(text, HasSubstr("gemm.grouped_efficiency is missing"));
  EXPECT_THAT(text, HasSubstr("tile has 1 numbers, not rows and columns"));
  EXPECT_THAT(text, HasSubstr("processors="));
  EXPECT_THAT(text, HasSubstr("mine.yaml:"));
}

TEST(Calibration, RefusesValuesThatNoMachineHas) {
  Problems problems;
  (void)parse_calibration(
      "like: h100-sxm\nname: mine\nmemory: {usable: 90 GB, efficiency: 1.5}\n"
      "gemm: {bf16: {efficiency: 0, tail: 2}}\nstep: {sustained: 0}\n",
      "mine.yaml", problems);
  const std::string text = all_text(problems);
  EXPECT_EQ(problems.list().size(), 5) << text;
  EXPECT_THAT(text, HasSubstr("memory.efficiency=1.5 is not from 0.01 to 1"));
  EXPECT_THAT(text, HasSubstr("mine.yaml: gemm.bf16.efficiency"));
  EXPECT_THAT(text, HasSubstr("use a value from 0.01 to 1"));
}

TEST(Calibration, NotANumberFailsValidation) {
  Calibration c = calibration("h100-sxm");
  c.bf16.efficiency = std::numeric_limits<double>::quiet_NaN();
  Problems problems;
  validate(c, "mine.yaml", problems);
  EXPECT_EQ(problems.list().size(), 1) << all_text(problems);
}

TEST(Calibration, LikeOfAnUnknownAcceleratorIsRefused) {
  Problems problems;
  (void)parse_calibration("like: h200\nname: mine\n", "mine.yaml", problems);
  ASSERT_EQ(problems.list().size(), 1) << all_text(problems);
  EXPECT_THAT(problems.list()[0].what, HasSubstr("like: h200 is not an accelerator"));
  EXPECT_EQ(problems.list()[0].where, "mine.yaml:1: like");
}

TEST(Calibration, AFileThatStandsAloneNeedsEveryKey) {
  Problems problems;
  (void)parse_calibration("name: mine\n", "mine.yaml", problems);
  const std::string text = all_text(problems);
  for (const char* key : {"processors", "memory.bandwidth", "gemm.bf16", "attention.forward",
                          "links.intra_latency", "step.sustained"}) {
    EXPECT_THAT(text, HasSubstr(std::string(key) + " is missing"));
  }
  EXPECT_THAT(text, testing::Not(HasSubstr("gemm.fp8 is missing")));
}

TEST(Calibration, ReadsAFileAndThrowsItsProblems) {
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "calibration_test.yaml";
  std::ofstream(path) << "like: b200-sxm\nname: mine\nkernel_latency: 2.5 us\nlaunch: 3 ms\n";
  const Calibration c = read_calibration(path);
  EXPECT_EQ(c.name, "mine");
  EXPECT_EQ(c.kernel_latency, Seconds(2.5e-6));
  EXPECT_EQ(c.launch, Seconds(3e-3));
  std::ofstream(path) << "like: b200-sxm\nname: mine\nprocessors: 0\n";
  EXPECT_THROW((void)read_calibration(path), Error);
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace tessera::cost
