// tessera plan as a user calls it: the page, the JSON, the plan file, and what it says when nothing fits.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kSmall = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --seq 8192";

TEST_F(Program, PlanPrintsLayoutsBottleneckWaterfallAndReasons) {
  const Outcome o = run(kSmall);
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_EQ(o.errors, "");
  for (const char* part : {"llama-3-8b on 32 x h100-sxm", "Best layouts", "zero", "recompute", "schedule",
                           "MFU", "Where the time goes", "Memory of the fullest device",
                           "Most time is lost to", "The axis that costs most is", "from peak to MFU",
                           "100.0%", "Why not another one", "do not fit in memory", "nearest: "}) {
    EXPECT_THAT(o.output, HasSubstr(part));
  }
}

TEST_F(Program, PlanPrintsTheSameOnAnyNumberOfThreads) {
  const std::string json_flags = std::string(kSmall) + " --json --top 20 --threads ";
  const Outcome one = run(json_flags + "1"), three = run(json_flags + "3");
  ASSERT_EQ(one.code, 0) << one.errors;
  EXPECT_EQ(one.output, three.output);
}

TEST_F(Program, PlanAsJsonHoldsPartsThatSumToTheStepAndStaysInsideOfPins) {
  const Outcome o =
      run(std::string(kSmall) + " --json --top 4 --pin tp=2,4 --pin schedule=1f1b --pin zero=1");
  ASSERT_EQ(o.code, 0) << o.errors;
  const json j = json::parse(o.output);
  EXPECT_EQ(j["num_devices"], 32);
  ASSERT_GE(j["best"].size(), 1U);
  double before = 0.0;
  for (const json& b : j["best"]) {
    double sum = 0.0;
    for (const auto& [name, seconds] : b["seconds"].items()) sum += seconds.get<double>();
    EXPECT_NEAR(sum, b["step_seconds"].get<double>(), 1e-9 * sum);
    EXPECT_GE(b["step_seconds"].get<double>(), before);
    before = b["step_seconds"];
    EXPECT_TRUE(b["tp"] == 2 || b["tp"] == 4);
    EXPECT_EQ(b["schedule"], "1f1b");
    EXPECT_EQ(b["zero_stage"], 1);
    EXPECT_EQ(b["tp"].get<int>() * b["cp"].get<int>() * b["pp"].get<int>() * b["dp"].get<int>(), 32);
    const double mfu = b["mfu"];
    EXPECT_TRUE(mfu > 0.1 && mfu < 0.9) << mfu;
    EXPECT_NEAR(b["tokens_per_s_per_device"].get<double>() * 32 * b["step_seconds"].get<double>(), 64 * 8192,
                1);
  }
}

TEST_F(Program, PlanWritesAPlanThatSimulateReads) {
  const Outcome o = run(std::string(kSmall) + " --output plan.json");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, HasSubstr("wrote plan.json"));
  const json j = json::parse(read("plan.json"));
  EXPECT_EQ(j["format"], "tessera-plan");
  const Outcome simulated = run("simulate plan.json dgx-h100 --devices 32 --json");
  EXPECT_EQ(simulated.code, 0) << simulated.errors;
}

// One plan: what the planner says of it is what the simulator says of it.
TEST_F(Program, PlanAndSimulateShowTheSameWaterfallOfTheSamePlan) {
  const std::string flags =
      std::string(kSmall) + " --pin pp=4 --pin vpp=2 --pin tp=2 --json --output plan.json";
  const Outcome planned = run(flags);
  ASSERT_EQ(planned.code, 0) << planned.errors;
  const Outcome simulated = run("simulate plan.json --json");
  ASSERT_EQ(simulated.code, 0) << simulated.errors;
  const json best = json::parse(planned.output)["best"][0], played = json::parse(simulated.output);
  const double step = best["step_seconds"];
  EXPECT_NEAR(played["step_seconds"].get<double>(), step, 1e-9 * step);
  EXPECT_GT(best["seconds"].value("bubble", 0.0), 0.0);
  ASSERT_FALSE(best["seconds"].empty());
  for (const auto& [name, seconds] : best["seconds"].items()) {
    EXPECT_NEAR(played["seconds"].value(name, 0.0), seconds.get<double>(), 1e-9 * step) << name;
  }
}

TEST_F(Program, PlanThatFitsNowhereNamesTheNearestMissAndEnoughDevices) {
  const Outcome o = run("plan llama-3-70b dgx-h100 --devices 8 --gbs 64");
  EXPECT_EQ(o.code, 2);
  EXPECT_EQ(o.output, "");
  EXPECT_THAT(o.errors,
              AllOf(HasSubstr("no layout of llama-3-70b on 8 x h100-sxm fits"), HasSubstr("nearest: tp"),
                    HasSubstr("% over"), HasSubstr("memory of the nearest, GB: weights"),
                    HasSubstr("it fits on 16 devices (--devices 16)")));
}

TEST_F(Program, PlanReportsEveryWrongFlagAtOnce) {
  const Outcome o =
      run("plan llama-3-7b dgx-h10 --precision fp7 --pin zer=1 --pin tp=two --routing power:x --practice "
          "megatro");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.errors, AllOf(HasSubstr("(7 problems)"), HasSubstr("did you mean llama-2-7b?"),
                              HasSubstr("did you mean dgx-h100?"), HasSubstr("did you mean fp8?"),
                              HasSubstr("did you mean zero?"), HasSubstr("\"two\" is not a value of tp")));
}

TEST_F(Program, PlanRefusesPinsAndPrecisionsThatCannotBe) {
  const Outcome o =
      run("plan llama-3-8b dgx-a100 --devices 16 --pin tp=3 --pin ep=4 --precision fp8 --seq 9000");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.errors,
              AllOf(HasSubstr("tp=3 does not divide devices=16"), HasSubstr("use tp in {1, 2, 4, 8, 16}"),
                    HasSubstr("ep=4 needs a model with experts"), HasSubstr("has no fp8"),
                    HasSubstr("9000 tokens are more than the model's 8192 positions")));
  const Outcome none = run("plan llama-3-8b dgx-a100 --devices 16 --gbs 7 --pin dp=2");
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.errors,
              AllOf(HasSubstr("no layout of llama-3-8b on 16 x a100-sxm-80gb is valid"),
                    HasSubstr("dp=2 does not divide global_batch_size=7"), HasSubstr("lift a pin")));
}

}  // namespace
}  // namespace tessera::cli
