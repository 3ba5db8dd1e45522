// --what-if and --against of plan and simulate: each figure is what simulate says of the changed plan.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

constexpr const char* kBase =
    "simulate --model llama-3-70b --cluster dgx-h100 --devices 64 --gbs 128 --seq 8192";
constexpr const char* kPractice = " --practice megatron-bridge-2026";

std::string flags_of(const json& layout) {
  std::string flags;
  for (const char* key : {"tp", "cp", "pp", "vpp", "dp", "ep", "etp", "mbs", "zero"})
    flags += " --" + std::string(key) + " " + layout[key].dump();
  for (const char* key : {"recompute", "schedule", "order"})
    flags += " --" + std::string(key) + " " + layout[key].get<std::string>();
  return flags;
}

TEST_F(Program, EveryChangeOfALayoutTakesWhatSimulateSaysOfIt) {
  const Outcome told = run(std::string(kBase) + kPractice + " --tp 4 --pp 4 --vpp 5 --cp 2 --what-if --json");
  ASSERT_EQ(told.code, 0) << told.errors;
  const json all = json::parse(told.output);
  EXPECT_EQ(all["what_if"]["base_step_seconds"], all["step_seconds"]);
  std::int32_t checked = 0;
  for (const json& change : all["what_if"]["changes"]) {
    const std::string lever = change["lever"];
    const bool layout = lever != "capacity" && lever != "batch" && lever != "links" && lever != "network" &&
                        lever != "memory";
    if (!layout || !change.contains("step_seconds")) continue;
    const Outcome played = run(kBase + std::string(kPractice) + flags_of(change["layout"]) + " --json");
    ASSERT_EQ(played.code, 0) << change["change"] << played.errors;
    const double want = json::parse(played.output)["step_seconds"];
    EXPECT_NEAR(change["step_seconds"].get<double>(), want, 1e-9 * want) << change["change"];
    ++checked;
  }
  EXPECT_GE(checked, 12);
}

TEST_F(Program, PlanSaysWhyItIsNotTheRunnerUpAndNotTheUsersLayout) {
  const std::string plan = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --seq 8192 --top 3";
  const Outcome page = run(plan + " --against tp=8,pp=2,recompute=full --what-if");
  ASSERT_EQ(page.code, 0) << page.errors;
  for (const char* text : {"Why not the runner-up, ", "Why not yours, tp 8 pp 2 dp 2", "recomputation",
                           "What one change of the best brings", "as it is", "twice the NICs"}) {
    EXPECT_THAT(page.output, HasSubstr(text));
  }
  const Outcome outcome = run(plan + " --against tp=8,pp=2,recompute=full --json");
  const json j = json::parse(outcome.output);
  double sum = 0.0;
  for (const auto& [part, seconds] : j["against"]["slower_by_seconds"].items()) sum += seconds.get<double>();
  const double chosen = j["against"]["chosen_step_seconds"], other = j["against"]["step_seconds"];
  EXPECT_NEAR(sum, other - chosen, 1e-9 * other);
  EXPECT_EQ(chosen, j["best"][0]["step_seconds"].get<double>());
  EXPECT_GT(other, chosen);
}

TEST_F(Program, AgainstNamesEveryProblemOfALayout) {
  const std::string plan = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --seq 8192 --against ";
  const Outcome word = run(plan + "tpp=8");
  EXPECT_EQ(word.code, 2);
  EXPECT_THAT(word.errors, HasSubstr("tpp"));
  const Outcome devices = run(plan + "tp=3");
  EXPECT_EQ(devices.code, 2);
  EXPECT_THAT(devices.errors, HasSubstr("tp 3 x cp 1 x pp 1 = 3 does not divide 32 devices"));
  const Outcome two = run(plan + "tp=4,pp=3,mbs=1");
  EXPECT_EQ(two.code, 2);
  const Outcome shape = run(plan + "tp=8,pp=4,vpp=40");
  EXPECT_EQ(shape.code, 2);
  EXPECT_THAT(shape.errors, HasSubstr("yours is no valid layout"));
}

}  // namespace
}  // namespace tessera::cli
