// tessera compare as a user calls it: its four forms, the verdict, wrong input.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

TEST_F(Program, CompareSetsAMixtureAgainstItsDensePartner) {
  const Outcome o = run("compare mixtral-8x7b dgx-h100 --equal active-compute --devices 64 --gbs 256");
  ASSERT_EQ(o.code, 0) << o.errors;
  for (const char* part :
       {"mixtral-8x7b against a dense model of equal active compute", "B is made from A", "Verdict",
        "Training: mixtral-8x7b pays.", "assumed are 3 (OLMoE, arXiv 2409.02060", "At small scale",
        "Bound by latency: a batch of 64 touches", "active for a token", "expert-parallel communication",
        "ep, tokens to experts and back", "reserved", "cache of 64 x 8192 tokens, GB", "experts touched"}) {
    EXPECT_THAT(o.output, HasSubstr(part));
  }
  const Outcome poor =
      run("compare mixtral-8x7b dgx-h100 --equal active-compute --devices 64 --gbs 256 --gain 1 --json");
  ASSERT_EQ(poor.code, 0) << poor.errors;
  const json j = json::parse(poor.output);
  EXPECT_EQ(j["mixture_against_dense"]["pays"], false);
  EXPECT_THAT(j["verdict"][0].get<std::string>(), HasSubstr("mixtral-8x7b does not pay"));
}

TEST_F(Program, CompareOfTwoClustersNamesTheFasterAndWhere) {
  const Outcome o = run("compare llama-3-8b dgx-h100 dgx-a100 --devices 64 --gbs 256 --tokens 2T");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, AllOf(HasSubstr("dgx-h100 trains 2.00 T tokens in"), HasSubstr("times as fast"),
                              HasSubstr("less device time a token"), HasSubstr("the other loses")));
}

TEST_F(Program, CompareOfTwoModelsIsWhatPlanSaysOfEach) {
  const Outcome o = run("compare llama-3-8b qwen2-7b dgx-h100 --devices 32 --gbs 64 --json");
  ASSERT_EQ(o.code, 0) << o.errors;
  const json j = json::parse(o.output);
  for (const auto& [side, model] : {std::pair{"a", "llama-3-8b"}, {"b", "qwen2-7b"}}) {
    const Outcome planned =
        run(std::string("plan ") + model + " dgx-h100 --devices 32 --gbs 64 --json --top 1");
    ASSERT_EQ(planned.code, 0) << planned.errors;
    EXPECT_EQ(j[side]["step_seconds"], json::parse(planned.output)["best"][0]["step_seconds"]) << model;
  }
}

TEST_F(Program, CompareOfTwoPlansIsWhatSimulateSaysOfEach) {
  const std::string plan = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --output ";
  ASSERT_EQ(run(plan + "a.json").code, 0);
  ASSERT_EQ(run(plan + "b.json --pin tp=8").code, 0);
  const Outcome o = run("compare a.json b.json --json");
  ASSERT_EQ(o.code, 0) << o.errors;
  const json j = json::parse(o.output);
  for (const char* side : {"a", "b"}) {
    const Outcome played = run("simulate " + std::string(side) + ".json --json");
    ASSERT_EQ(played.code, 0) << played.errors;
    const double step = json::parse(played.output)["step_seconds"];
    EXPECT_NEAR(j[side]["step_seconds"].get<double>(), step, 1e-9 * step);
  }
  EXPECT_GT(j["b"]["step_seconds"], j["a"]["step_seconds"]);
}

TEST_F(Program, CompareRefusesWrongInputWithWhatWhereAndMend) {
  const std::pair<const char*, const char*> cases[] = {
      {"compare", "things is required"},
      {"compare mixtral-8x7c dgx-h100 --equal active-compute", "did you mean mixtral-8x7b?"},
      {"compare mixtral-8x7b dgx-h100", "1 models, 1 clusters and 0 plans"},
      {"compare mixtral-8x7b llama-3-8b dgx-h100 --equal total-memory", "with --equal"},
      {"compare llama-3-8b dgx-h100 --equal active-compute", "a dense partner is made for a mixture"},
      {"compare mixtral-8x7b dgx-h100 --equal size", "--equal"},
      {"compare llama-3-8b qwen2-7b dgx-h100 --tokens none", "\"none\" is no number of tokens"},
      {"compare llama-3-8b qwen2-7b dgx-h100 --seq 100000", "more than the model's"},
      {"compare llama-3-8b qwen2-7b dgx-h100 --serve-batch 0", "--serve-batch"},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome o = run(arguments);
    EXPECT_EQ(o.code, 2) << arguments << o.output;
    EXPECT_THAT(o.errors, AllOf(HasSubstr(said), HasSubstr("  where: "), HasSubstr("  mend: "))) << arguments;
  }
}

}  // namespace
}  // namespace tessera::cli
