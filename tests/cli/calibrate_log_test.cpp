// tessera calibrate --from-log and --from-csv: from a plan and the log of its run to a calibration that plan
// takes. And tessera model.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

std::string megatron_log(double seconds) {
  std::string text;
  for (std::int32_t i = 1; i <= 12; ++i) {
    text += fmt::format(
        " iteration {:8}/ 100 | elapsed time per iteration (ms): {:.2f} | global batch size:   128 |\n", i,
        1e3 * seconds * (i == 1 ? 4.0 : 1.0));
  }
  return text;
}

class FromLog : public Program {
 protected:
  // A plan, and the step that the fit's own model gives it with the shipped constants.
  void SetUp() override {
    Program::SetUp();
    ASSERT_EQ(
        run("plan llama-3-8b dgx-h100 --devices 16 --gbs 128 --seq 4096 --top 1 --output plan.json").code, 0);
  }
  json fitted(const std::string& arguments) {
    const Outcome o = run("calibrate " + arguments + " --json");
    EXPECT_EQ(o.code, 0) << o.errors;
    return o.code == 0 ? json::parse(o.output) : json();
  }
};

TEST_F(FromLog, ALogThatIsSlowerLowersTheRateOfProductsAndPlanTakesTheFile) {
  write("first.log", megatron_log(1.0));
  const double shipped = fitted("--from-log first.log --plan plan.json")["runs"][0]["shipped_seconds"];
  write("train.log", megatron_log(1.1 * shipped));
  const json j = fitted("--from-log train.log --plan plan.json --output cal --name ours");
  EXPECT_NEAR(j["runs"][0]["fitted_seconds"].get<double>(), 1.1 * shipped, 0.002 * shipped);
  EXPECT_EQ(j["coefficients"][0]["name"], "sustained");
  EXPECT_TRUE(j["coefficients"][0]["fitted"]);
  EXPECT_LT(j["coefficients"][0]["value"], j["coefficients"][0]["shipped"]);
  EXPECT_THAT(j["notes"][0].get<std::string>(), HasSubstr("dropped as warm-up: iteration 1 (line 1)"));
  const std::string plan = "plan llama-3-8b dgx-h100 --devices 16 --gbs 128 --seq 4096 --top 1 --json";
  const Outcome before = run(plan), after = run(plan + " --calibration cal/ours.yaml");
  ASSERT_EQ(after.code, 0) << after.errors;
  EXPECT_GT(json::parse(after.output)["best"][0]["step_seconds"],
            json::parse(before.output)["best"][0]["step_seconds"]);
}

TEST_F(FromLog, ThePageWarnsOfEveryCoefficientThatTheRunsDoNotTell) {
  write("train.log", megatron_log(1.0));
  const Outcome o = run("calibrate --from-log train.log --plan plan.json --output cal");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, HasSubstr("WARNING sustained_low: no run depends on it"));
  EXPECT_THAT(o.output, HasSubstr("WARNING sustained_memory: the runs cannot tell it from sustained"));
  EXPECT_THAT(o.output, HasSubstr("One run shows no error of the fit"));
  EXPECT_THAT(o.output, HasSubstr("wrote cal/this-machine.yaml"));
}

TEST_F(FromLog, WrongUseIsToldWithItsMend) {
  write("train.log", megatron_log(1.0));
  write("nothing.log", "hello\n");
  struct Case {
    const char *arguments, *what, *mend;
  };
  for (const Case& c : {
           Case{"--from-log train.log", "1 logs and 0 plans", "tessera plan --output writes one"},
           Case{"--plan plan.json", "a plan and no log", "--from-log"},
           Case{"--from-log nothing.log --plan plan.json", "no line says what an iteration took",
                "torchtitan"},
           Case{"--from-log train.log --plan plan.json --check", "nothing is measured on this machine",
                "leave"},
           Case{"--from-log train.log --plan plan.json --constants sustaind", "sustaind",
                "did you mean sustained?"},
           Case{"--from-log none.log --plan plan.json", "none.log", ""},
           Case{"--from-csv train.log", "no column", ""},
       }) {
    const Outcome o = run(std::string("calibrate --output cal ") + c.arguments);
    EXPECT_NE(o.code, 0) << c.arguments;
    EXPECT_THAT(o.errors, HasSubstr(c.what)) << c.arguments;
    EXPECT_THAT(o.errors, HasSubstr(c.mend)) << c.arguments;
  }
  std::string other = megatron_log(1.0);
  other.replace(other.find("128"), 3, "256");
  for (std::size_t at = other.find("128"); at != std::string::npos; at = other.find("128"))
    other.replace(at, 3, "256");
  write("other.log", other);
  const Outcome batch = run("calibrate --from-log other.log --plan plan.json --output cal");
  EXPECT_EQ(batch.code, 2);
  EXPECT_THAT(batch.errors, HasSubstr("a global batch of 256 sequences, the plan 128"));
}

TEST_F(Program, MeasuredRowsAreReadAsValidateReadsThem) {
  write("rows.csv",
        "id,model,layers,hidden,ffn_hidden,heads,kv_heads,vocab,seq_len,gbs,mbs,gpu,gpus,gpus_per_node,"
        "precision,tp,"
        "pp,zero,recompute,framework,step_time_s\n"
        "own-1,llama-3-8b,32,4096,14336,32,8,128256,8192,128,1,H100-SXM-80GB,64,8,bf16,2,1,optimizer-sharded,"
        "none,"
        "Megatron-Core,4.0\n"
        "own-2,llama-3-8b,32,4096,14336,32,8,128256,8192,256,1,H100-SXM-80GB,64,8,bf16,4,1,optimizer-sharded,"
        "none,"
        "Megatron-Core,8.0\n"
        "own-3,llama-3-8b,32,4096,14336,32,8,128256,8192,256,1,H100-SXM-80GB,64,8,bf16,4,1,optimizer-sharded,"
        "none,"
        "Megatron-Core,\n");
  const Outcome o = run("calibrate --from-csv rows.csv --output cal");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, HasSubstr("2 measured runs"));
  EXPECT_THAT(o.output, HasSubstr("own-3 is left out"));
  EXPECT_THAT(o.output, HasSubstr("mean error"));
}

TEST_F(Program, ModelSaysParametersMemoryAndWhatBoundsItsOperators) {
  const Outcome page = run("model mixtral-8x7b --operators --tokens 1,4096");
  ASSERT_EQ(page.code, 0) << page.errors;
  for (const char* text : {"46,702,792,704", "12,879,925,248", "experts: 2 of 8 a token", "18.0", "840.7",
                           "1.0 memory", "compute", "below 295 FLOPs a byte"})
    EXPECT_THAT(page.output, HasSubstr(text));
  const json j = json::parse(run("model llama-3-70b --json").output);
  EXPECT_EQ(j["parameters"], 70553706496);
  EXPECT_EQ(j["weights_bytes"].get<double>(), 2.0 * 70553706496);
  EXPECT_EQ(j["optimizer_bytes"].get<double>(), 12.0 * 70553706496);
  EXPECT_EQ(run("model llama-13b").code, 0) << "2048 positions";
  const Outcome seq = run("model llama-13b --seq 4096");
  EXPECT_EQ(seq.code, 2);
  EXPECT_THAT(seq.errors, HasSubstr("use --seq from 1 to 2048"));
  const Outcome precision = run("model llama-13b --device a100-sxm-80gb --precision fp8");
  EXPECT_EQ(precision.code, 2);
  EXPECT_THAT(precision.errors, HasSubstr("a100-sxm-80gb has no precision \"fp8\""));
  EXPECT_EQ(run("model no-such-model").code, 2);
  EXPECT_EQ(run("model llama-13b --device h100").code, 2);
}

}  // namespace
}  // namespace tessera::cli
