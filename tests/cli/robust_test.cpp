// plan --robust as a user calls it.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kPlan = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --seq 8192 --top 3";

TEST_F(Program, PlanRobustTellsWhetherTheChoiceHolds) {
  const Outcome o = run(std::string(kPlan) + " --robust p95 --scenarios 16");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, AllOf(HasSubstr("The robust choice"), HasSubstr("p95"), HasSubstr("The choice "),
                              HasSubstr("16 scenarios, the same for every layout (seed 1)")));
}

TEST_F(Program, PlanRobustAsJsonIsTheSameOnAnyThreadsAndWritesThatPlan) {
  const std::string flags =
      std::string(kPlan) + " --robust --scenarios 16 --json --output plan.json --threads ";
  const Outcome one = run(flags + "1"), three = run(flags + "3");
  ASSERT_EQ(one.code, 0) << one.errors;
  EXPECT_EQ(one.output, three.output);
  const json j = json::parse(one.output);
  EXPECT_EQ(j["best"].size(), 3U);
  const json robust = j["robust"];
  EXPECT_EQ(robust["quantile"], 0.9);
  const json chosen = robust["layouts"][robust["choice"].get<std::size_t>()];
  for (const json& layout : robust["layouts"]) {
    if (layout["quantile_seconds"].is_null()) continue;
    EXPECT_GE(layout["quantile_seconds"], chosen["quantile_seconds"]);
  }
  const Outcome played = run("simulate plan.json --json");
  ASSERT_EQ(played.code, 0) << played.errors;
  const double step = chosen["planned_seconds"];
  EXPECT_NEAR(json::parse(played.output)["step_seconds"].get<double>(), step, 1e-9 * step);
}

TEST_F(Program, PlanRobustRefusesWhatIsNoQuantile) {
  for (const char* quantile : {"0", "p0", "101", "often", "-0.5"}) {
    const Outcome o = run(std::string(kPlan) + " --robust=" + quantile);
    EXPECT_EQ(o.code, 2) << quantile;
    EXPECT_THAT(o.errors, AllOf(HasSubstr(quantile), HasSubstr("  mend: "))) << quantile;
  }
}

}  // namespace
}  // namespace tessera::cli
