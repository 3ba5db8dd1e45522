// A plan written for a framework and read back is the plan, whatever the framework has no place for.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "frameworks/plans.h"

namespace tessera::frameworks {
namespace {

constexpr Framework kRead[] = {Framework::megatron, Framework::torchtitan, Framework::deepspeed};

std::string text_of(const std::vector<Carried>& keys) {
  std::string out;
  for (const Carried& c : keys) out += c.key + " = " + c.value + "\n";
  return out;
}

Reading written_and_read(Framework f, const Launch& plan, std::string& text) {
  text = write(f, plan, {.about = {"a plan"}}).text;
  return read(text, file_of(f), {.model = &plan.job.model});
}

TEST(RoundTrip, EveryPlanComesBackFromEveryFrameworkThatIsRead) {
  const std::vector<Launch> plans = drawn_plans(300);
  ASSERT_EQ(plans.size(), 300u);
  for (const Framework f : kRead) {
    std::int32_t failed = 0;
    for (const Launch& plan : plans) {
      std::string text;
      try {
        const Reading r = written_and_read(f, plan, text);
        const std::vector<Carried> lost = differences(plan, r.launch), added = differences(r.launch, plan);
        EXPECT_TRUE(lost.empty() && added.empty())
            << name(f) << "\nlost: " << text_of(lost) << "added: " << text_of(added) << text;
        EXPECT_EQ(r.launch.practice.name, plan.practice.name);
        EXPECT_EQ(r.launch.practice, plan.practice) << name(f) << text;
        EXPECT_EQ(r.launch.job.model, plan.job.model);
        EXPECT_TRUE(r.unknown.empty()) << name(f) << " " << r.unknown.front().name;
        EXPECT_EQ(r.devices, plan.job.parallel.world_size());
      } catch (const Error& e) {
        ADD_FAILURE() << name(f) << ": " << e.what() << "\n" << text;
      }
      if (HasFailure() && ++failed > 2) return;
    }
  }
}

TEST(RoundTrip, AWholeJobOfTheFileComesBackEqual) {
  for (const Launch& plan : drawn_plans(50)) {
    std::string text;
    const Reading r = written_and_read(Framework::megatron, plan, text);
    EXPECT_EQ(r.launch.job, plan.job) << text;
  }
}

TEST(RoundTrip, MegatronHasAPlaceForEveryChoiceOfWhatItRuns) {
  std::int32_t seen = 0;
  for (const Launch& plan : drawn_plans(600)) {
    const spec::ParallelSpec& p = plan.job.parallel;
    const bool runs = (p.schedule == "1f1b" || p.schedule == "interleaved") &&
                      plan.job.train.zero_stage <= 1 && plan.practice.name.starts_with("megatron-core") &&
                      plan.job.train.precision == spec::Precision::bf16;
    if (!runs) continue;
    std::string text;
    for (const Carried& c : written_and_read(Framework::megatron, plan, text).carried)
      EXPECT_TRUE(c.key == "practice") << c.key << " = " << c.value << "\n" << text;
    ++seen;
  }
  EXPECT_GE(seen, 10);
}

TEST(RoundTrip, WhatAFrameworkCannotBeToldIsCarriedAndSaid) {
  Launch plan = drawn_plans(1).front();
  plan.job.model = model_of("llama-3-8b");
  spec::ParallelSpec& p = plan.job.parallel;
  p = {};
  p.pp = 4;
  p.schedule = "zb-h1";
  plan.job.train.micro_batch_size = 1;
  plan.job.train.global_batch_size = 16;
  plan.job.train.moe = {};
  plan = launch_of(plan.job, graph::practice("megatron-core"), {});
  const Written megatron = write(Framework::megatron, plan, {});
  EXPECT_THAT(megatron.text, ::testing::HasSubstr("# tessera: parallel.schedule = \"zb-h1\""));
  EXPECT_THAT(megatron.notes, ::testing::Contains(::testing::HasSubstr("not zb-h1")));
  EXPECT_THAT(megatron.notes, ::testing::Contains(::testing::HasSubstr("--pin schedule=1f1b,interleaved")));
  const Written titan = write(Framework::torchtitan, plan, {});
  EXPECT_THAT(titan.notes, ::testing::Contains(::testing::HasSubstr("no schedule zb-h1")));
  const Written deep = write(Framework::deepspeed, plan, {});
  EXPECT_THAT(deep.notes, ::testing::Contains(::testing::HasSubstr("PipelineModule")));
  EXPECT_THAT(deep.text, ::testing::HasSubstr("\"parallel.pp\": 4"));
}

TEST(RoundTrip, ExpertTensorParallelismOfTwoIsSaidToBeNoneOfTorchtitans) {
  Launch plan;
  plan.job.model = model_of("mixtral-8x7b");
  plan.job.train.sequence_length = 4096;
  plan.job.train.micro_batch_size = 1;
  plan.job.train.global_batch_size = 16;
  plan.job.train.steps = 1;
  plan.job.parallel.tp = 4;
  plan.job.parallel.dp = 2;
  plan.job.parallel.ep = 2;
  plan.job.parallel.etp = 2;
  plan = launch_of(plan.job, graph::practice("fsdp2-compile"), {});
  const Written w = write(Framework::torchtitan, plan, {});
  EXPECT_THAT(w.notes, ::testing::Contains(::testing::HasSubstr("torchtitan has etp of 1 or of tp only")));
  EXPECT_EQ(read(w.text, "run.toml", {.model = &plan.job.model}).launch.job.parallel.etp, 2);
}

}  // namespace
}  // namespace tessera::frameworks
