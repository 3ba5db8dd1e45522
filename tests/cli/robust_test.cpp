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

TEST_F(Program, PlanRobustEmitsTheRobustChoiceAndNotTheFastest) {
  // Much uneven routing, so that the choice changes.
  const std::string plan =
      "plan mixtral-8x7b dgx-h100 --devices 64 --gbs 512 --top 1 --scenarios 16 --robust --uneven 3 "
      "--emit megatron";
  const Outcome told = run(plan + " --json --output plan.json");
  ASSERT_EQ(told.code, 0) << told.errors;
  const json j = json::parse(told.output);
  ASSERT_EQ(j["robust"]["changes"], true) << "the test needs a case where it does";
  const Outcome alone = run(plan), saved = run("emit plan.json megatron");
  ASSERT_EQ(alone.code, 0) << alone.errors;
  ASSERT_EQ(saved.code, 0) << saved.errors;
  EXPECT_EQ(j["emitted"]["text"], alone.output);
  write("run.sh", alone.output);
  write("saved.sh", saved.output);
  const std::string judge = "plan mixtral-8x7b dgx-h100 --top 1 --json --from ";
  const Outcome own = run(judge + "run.sh"), other = run(judge + "saved.sh");
  ASSERT_EQ(own.code, 0) << own.errors;
  ASSERT_EQ(other.code, 0) << other.errors;
  EXPECT_EQ(json::parse(own.output)["from"]["layout"], json::parse(other.output)["from"]["layout"]);
  const json chosen = j["robust"]["layouts"][j["robust"]["choice"].get<std::size_t>()];
  const double step = chosen["planned_seconds"];
  EXPECT_NEAR(json::parse(own.output)["from"]["step_seconds"].get<double>(), step, 1e-9 * step);
  const Outcome page = run(plan + " --emit-to file.sh");
  ASSERT_EQ(page.code, 0) << page.errors;
  EXPECT_THAT(page.output, HasSubstr("wrote file.sh: the robust choice for Megatron-LM"));
  EXPECT_EQ(read("file.sh"), alone.output);
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
