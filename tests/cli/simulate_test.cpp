// tessera simulate: plan files, jobs and flags; the page, the JSON and the trace; wrong input.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kLlama =
    "simulate --model llama-3-70b --cluster dgx-h100 --devices 64 --tp 4 --pp 4 --vpp 5 --cp 2 --gbs 128 "
    "--seq 8192";

double sum_of(const json& object) {
  double sum = 0.0;
  for (const auto& [key, value] : object.items()) sum += value.get<double>();
  return sum;
}

TEST_F(Program, SimulateTellsSpeedWaterfallRanksMemoryAndBottleneck) {
  const Outcome outcome = run(kLlama);
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_EQ(outcome.errors, "");
  for (const char* text : {"llama-3-70b: one step on 64 devices of dgx-h100", "tokens/s a device", "MFU",
                           "MFU, full square", "HFU", "from peak to MFU", "100.0%", "Pipeline: 4 ranks",
                           "emb+0-3 .. 64-67", "Memory of a device", "Bottleneck: "}) {
    EXPECT_THAT(outcome.output, HasSubstr(text));
  }
  EXPECT_THAT(outcome.output, Not(HasSubstr("\033")));
}

TEST_F(Program, SimulatePartsSumToTheStepOnEveryRank) {
  const Outcome outcome = run(std::string(kLlama) + " --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  const json j = json::parse(outcome.output);
  const double step = j["step_seconds"].get<double>();
  EXPECT_GT(step, 1.0);
  EXPECT_TRUE(std::abs(sum_of(j["seconds"]) - step) <= 1e-9 * step);
  ASSERT_EQ(j["ranks"].size(), 4U);
  for (const json& rank : j["ranks"]) {
    EXPECT_TRUE(std::abs(sum_of(rank["seconds"]) - step) <= 1e-9 * step) << rank;
    const double busy = rank["busy_seconds"].get<double>(), idle = rank["idle_seconds"].get<double>();
    EXPECT_TRUE(std::abs(busy + idle - step) <= 1e-9 * step) << rank;
    const json& m = rank["memory"];
    const double held = m["static_bytes"].get<double>() + m["activation_bytes"].get<double>() +
                        m["transient_bytes"].get<double>();
    EXPECT_TRUE(std::abs(held - m["peak_bytes"].get<double>()) <= 1.0) << m;
  }
  EXPECT_TRUE(j["fits"].get<bool>());
  EXPECT_TRUE(std::abs(j["closed_form_seconds"].get<double>() / step - 1.0) <= 0.02);
}

TEST_F(Program, SimulateWritesTheSameBytesForTheSameInput) {
  const Outcome first = run(std::string(kLlama) + " --trace a.json");
  const Outcome second = run(std::string(kLlama) + " --trace b.json");
  ASSERT_EQ(first.code, 0) << first.errors;
  EXPECT_EQ(first.output.substr(0, first.output.find("trace of")),
            second.output.substr(0, second.output.find("trace of")));
  ASSERT_GT(read("a.json").size(), 100'000U);
  EXPECT_TRUE(read("a.json") == read("b.json"));
  const json trace = json::parse(read("a.json"));
  EXPECT_EQ(trace["otherData"]["model"], "llama-3-70b");
  EXPECT_GT(trace["traceEvents"].size(), 1000U);
}

TEST_F(Program, SimulatePlaysThePlanThatPlanWrote) {
  const Outcome planned =
      run("plan llama-3-8b dgx-h100 --devices 16 --top 3 --pin pp=2,4 --output plan.json --json");
  ASSERT_EQ(planned.code, 0) << planned.errors;
  const Outcome outcome = run("simulate plan.json --json");  // the plan names its cluster
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  const json plan = json::parse(planned.output), step = json::parse(outcome.output);
  EXPECT_EQ(step["model"], "llama-3-8b");
  EXPECT_EQ(step["num_devices"], 16);
  EXPECT_EQ(step["practice"], plan["practice"]);
  const double expected = plan["best"][0]["step_seconds"].get<double>();
  EXPECT_TRUE(std::abs(step["step_seconds"].get<double>() / expected - 1.0) <= 0.01)
      << outcome.output.substr(0, 600) << "\nplan: " << expected;
}

TEST_F(TinyJob, SimulatePlaysAJobOfTheEngineOperationByOperation) {
  const Outcome outcome = run("simulate job.yaml cpu-box --trace t.json --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  const json j = json::parse(outcome.output);
  EXPECT_EQ(j["practice"], "tessera");
  EXPECT_EQ(j["num_devices"], 8);
  EXPECT_TRUE(j["fits"].get<bool>());
  EXPECT_THAT(read("t.json"), HasSubstr("attention"));
  const json other =
      json::parse(run("simulate job.yaml cpu-box --set parallel.schedule=zb-h1 --json").output);
  EXPECT_THAT(other["layout"].get<std::string>(), HasSubstr("zb-h1"));
}

TEST_F(Program, SimulateTellsWhatAStragglerCosts) {
  const json plain = json::parse(run(std::string(kLlama) + " --json").output);
  const json slow = json::parse(run(std::string(kLlama) + " --stragglers 1=1.3 --json").output);
  EXPECT_EQ(slow["seconds_without_stragglers"], plain["step_seconds"]);
  const double more = slow["step_seconds"].get<double>() / plain["step_seconds"].get<double>();
  EXPECT_GT(more, 1.1);
  EXPECT_LT(more, 1.3);
  EXPECT_THAT(run(std::string(kLlama) + " --stragglers 1=1.3").output, HasSubstr("without them"));
}

TEST_F(Program, SimulateSaysWhenThePlanDoesNotFit) {
  const Outcome outcome = run("simulate --model llama-3-70b dgx-h100 --devices 8 --pp 8 --gbs 32 --seq 8192");
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("! does not fit: "));
}

TEST_F(Program, SimulateReportsEveryProblemAtOnce) {
  const Outcome outcome =
      run("simulate --model llama-3-70b dgx-a100 --devices 64 --tp 3 --pp 7 --dp 8 --precision fp8 --gbs 13 "
          "--seq 8192 --stragglers 9=2 --practice megatron-cor");
  EXPECT_EQ(outcome.code, 2);
  for (const char* text : {"a100-sxm-80gb has no fp8", "use one of f32, f64, bf16, fp16",
                           "tp=3 does not divide num_attention_heads=64",
                           "168 ranks on the 64 devices of dgx-a100", "--devices 168", "9=2 is no straggler",
                           "a pipeline rank from 0 to 6", "does not divide global_batch_size=13",
                           "practice megatron-cor is not known", "did you mean megatron-core?"}) {
    EXPECT_THAT(outcome.errors, HasSubstr(text));
  }
}

TEST_F(Program, SimulateRefusesWhatIsNoPlan) {
  write("config.json", R"({"model_type": "llama"})");
  write("text.json", "no plan");
  const std::pair<const char*, std::vector<const char*>> cases[] = {
      {"simulate", {"neither a plan nor a model is given", "no cluster is named", "dgx-h100"}},
      {"simulate config.json dgx-h100", {"this JSON is not a plan", "--model config.json"}},
      {"simulate text.json dgx-h100", {"text.json"}},
      {"simulate none.json nowhere --tp 2",
       {"none.json", "\"nowhere\" is neither a shipped cluster nor a file", "--tp beside none.json"}},
      {"simulate --model lama-3-8b dgx-h100 --seq 4096", {"lama-3-8b", "llama-3-8b", "--gbs is missing"}},
      {"simulate --model llama-3-8b dgx-h100 --devices 12 --tp 8 --gbs 8 --seq 4096",
       {"tp=8 * cp=1 * pp=1 = 8 does not divide 12 devices", "--dp"}},
      {"simulate --model llama-3-8b dgx-h100 --devices 8 --gbs 8 --seq 4096 --recompute some",
       {"recomputation some is not known", "selective:layernorm+moe_act"}},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_EQ(outcome.output, "") << arguments;
    for (const char* text : said) EXPECT_THAT(outcome.errors, HasSubstr(text)) << arguments;
    EXPECT_THAT(outcome.errors, HasSubstr("  mend: ")) << arguments;
  }
}

}  // namespace
}  // namespace tessera::cli
