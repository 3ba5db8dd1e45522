// plan --from, plan --emit and emit: launch files judged, written and read back by the program.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kPlan = "plan llama-3-8b dgx-h100 --devices 32 --gbs 64 --seq 8192 --top 3";
constexpr const char* kScript = R"(#!/bin/bash
NODES=4
torchrun --nproc-per-node 8 --nnodes $NODES pretrain_gpt.py \
  --num-layers 32 --hidden-size 4096 --num-attention-heads 32 \
  --tensor-model-parallel-size 8 --pipeline-model-parallel-size 2 --sequence-parallel \
  --micro-batch-size 1 --global-batch-size 64 --seq-length 8192 --bf16 --use-distributed-optimizer \
  --hidden-dropout 0 --attention-dropout 0 --log-intervall 5
)";

TEST_F(Program, EmitPrintsTheLaunchFileAloneAndFromReadsItAsTheBest) {
  const json best = json::parse(
      run(std::string(kPlan) + " --pin schedule=1f1b,interleaved --pin zero=0,1 --json").output)["best"][0];
  const Outcome made = run(std::string(kPlan) + " --emit megatron");
  ASSERT_EQ(made.code, 0) << made.errors;
  EXPECT_THAT(made.output, ::testing::StartsWith("#!/usr/bin/env bash\n"));
  EXPECT_THAT(made.output, HasSubstr("--tensor-model-parallel-size " + best["tp"].dump() + "\n"));
  write("run.sh", made.output);
  const Outcome read = run("plan llama-3-8b dgx-h100 --from run.sh --top 3 --json");
  ASSERT_EQ(read.code, 0) << read.errors;
  const json j = json::parse(read.output);
  EXPECT_EQ(j["against"]["step_seconds"], best["step_seconds"]);
  EXPECT_EQ(j["from"]["step_seconds"], best["step_seconds"]);
  EXPECT_EQ(j["from"]["unknown"].size(), 0u);
  EXPECT_EQ(j["from"]["set_otherwise"].size(), 0u) << j["from"];
}

TEST_F(Program, EveryFrameworkIsWrittenIntoAFileAndToldOf) {
  for (const char* f : {"megatron", "megatron-bridge", "torchtitan", "deepspeed", "nemo"}) {
    const Outcome o = run(std::string(kPlan) + " --emit " + f + " --emit-to out." + f);
    ASSERT_EQ(o.code, 0) << f << o.errors;
    EXPECT_THAT(o.output, HasSubstr(std::string("wrote out.") + f)) << f;
    EXPECT_THAT(o.output, HasSubstr("runs was searched: schedule=")) << f;
    EXPECT_GT(read(std::string("out.") + f).size(), 500u) << f;
  }
}

TEST_F(Program, FromJudgesTheUsersScript) {
  write("mine.sh", kScript);
  const Outcome page = run("plan llama-3-8b dgx-h100 --from mine.sh --top 3");
  ASSERT_EQ(page.code, 0) << page.errors;
  for (const char* text :
       {"Why not yours, tp 8 pp 2 dp 2 mbs 1 zero 1 1f1b", "Your file, mine.sh (Megatron-LM)",
        "As the file stands", "it fits", "off: gradients are reduced under the backward pass",
        "--overlap-grad-reduce", "--log-intervall (line 7), did you mean --log-interval?"})
    EXPECT_THAT(page.output, HasSubstr(text));
  const json j = json::parse(run("plan llama-3-8b dgx-h100 --from mine.sh --top 3 --json").output);
  EXPECT_EQ(j["num_devices"], 32);
  EXPECT_EQ(j["global_batch_size"], 64);
  EXPECT_GT(j["from"]["step_seconds"].get<double>(), j["against"]["step_seconds"].get<double>())
      << "what the file leaves out costs time";
}

TEST_F(Program, FromSaysWhichStagesItDoesNotPriceAsTheyAre) {
  const std::string script = std::string(kScript).substr(0, std::string(kScript).rfind(" --log-intervall"));
  write("mine.sh", script + " --decoder-last-pipeline-num-layers 14\n");
  const Outcome page = run("plan llama-3-8b dgx-h100 --from mine.sh --top 1");
  ASSERT_EQ(page.code, 0) << page.errors;
  EXPECT_THAT(page.output, HasSubstr("the layers of its stages (18 14) are priced as they go most evenly"));
  const json j = json::parse(run("plan llama-3-8b dgx-h100 --from mine.sh --top 1 --json").output);
  EXPECT_THAT(j["from"]["notes"].dump(), HasSubstr("the layers of its stages (18 14)"));
}

TEST_F(Program, FromSaysWhenALayoutDoesNotFit) {
  std::string script = kScript;
  const auto swap = [&](const std::string& from, const std::string& to) {
    script.replace(script.find(from), from.size(), to);
  };
  swap("--tensor-model-parallel-size 8", "--tensor-model-parallel-size 1");
  swap("--pipeline-model-parallel-size 2", "--pipeline-model-parallel-size 1");
  swap("--micro-batch-size 1", "--micro-batch-size 2");
  write("big.sh", script);
  const Outcome page = run("plan llama-3-8b dgx-h100 --from big.sh --top 3");
  ASSERT_EQ(page.code, 0) << page.errors;
  EXPECT_THAT(page.output, HasSubstr("it does not fit"));
}

TEST_F(Program, FromAndEmitNameWrongUse) {
  write("mine.sh", kScript);
  const auto error = [&](const std::string& arguments) {
    const Outcome o = run(arguments);
    EXPECT_EQ(o.code, 2) << arguments << o.output;
    return o.errors;
  };
  EXPECT_THAT(error("plan llama-3-70b dgx-h100 --from mine.sh"),
              HasSubstr("--num-layers is 32, the model has 80"));
  EXPECT_THAT(error("plan llama-3-8b dgx-h100 --from mine.sh --devices 64"), HasSubstr("starts 32 ranks"));
  EXPECT_THAT(error("plan llama-3-8b dgx-h100 --from mine.sh --gbs 128"),
              HasSubstr("--gbs is 128, the file says 64"));
  EXPECT_THAT(error("plan llama-3-8b dgx-h100 --from mine.sh --against tp=8"), HasSubstr("keep one of them"));
  EXPECT_THAT(error("plan llama-3-8b dgx-h100 --emit megatrom"), HasSubstr("did you mean megatron?"));
  EXPECT_THAT(error("plan llama-3-8b dgx-h100 --emit-to x.sh"), HasSubstr("--emit-to without --emit"));
  EXPECT_EQ(run("plan llama-3-8b dgx-h100 --from none.sh").code, 1);
}

TEST_F(Program, ASavedPlanIsWrittenForAFramework) {
  ASSERT_EQ(run(std::string(kPlan) + " --pin schedule=zb-h1 --pin pp=4 --output plan.json").code, 0);
  const Outcome o = run("emit plan.json megatron --output launch.sh");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, HasSubstr("wrote launch.sh: the plan for Megatron-LM"));
  EXPECT_THAT(o.output, HasSubstr("not zb-h1"));
  const Outcome back = run("plan llama-3-8b dgx-h100 --from launch.sh --json");
  ASSERT_EQ(back.code, 0) << back.errors;
  EXPECT_THAT(json::parse(back.output)["from"]["layout"].get<std::string>(), HasSubstr("zb-h1"));
  EXPECT_EQ(run("emit plan.json nothing").code, 2);
  EXPECT_THAT(run("plan llama-3-8b dgx-h100 --from plan.json").errors, HasSubstr("plan of Tessera's own"));
}

}  // namespace
}  // namespace tessera::cli
