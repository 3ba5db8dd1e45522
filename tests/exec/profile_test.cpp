// Profiled kernels compute what the others do, and what they count adds up.
#include "exec/profile.h"

#include <gtest/gtest.h>

#include "run.h"
#include "support/emulated_place.h"

namespace tessera::testing {
namespace {

spec::Job job_with(bool moe) {
  spec::Job job = small_job({.moe = moe, .layers = 2});
  job.train.sequence_length = 8;
  return job;
}

TEST(Profile, KernelsThatAreTimedGiveTheSameBitsAndCountAllFlops) {
  spec::Job latent = job_with(false);
  latent.model = mtp_model(0);
  for (const spec::Job& job : {job_with(false), job_with(true), latent}) {
    kernels::Profile profile;
    Flops counted;
    const RunResult want = run_job(job, {.steps = 1, .cpu_kernels = true});
    const RunResult got =
        run_job(job, {.steps = 1,
                      .make_kernels = [&] { return kernels::make_profiled(kernels::make_cpu(), profile); },
                      .inspect = [&](exec::RankEngine& engine) { counted = engine.step_flops(); }});
    EXPECT_EQ(got.weights, want.weights);
    EXPECT_EQ(got.gradients, want.gradients);
    Flops sum;
    for (const kernels::OperatorUse& use : profile.uses()) {
      sum += use.flops;
      EXPECT_GT(use.calls, 0) << use.name;
      EXPECT_GT(use.bytes.value, 0) << use.name << " " << use.width;
      EXPECT_GE(use.time.value, 0.0) << use.name;
    }
    EXPECT_EQ(sum.value, counted.value);
    EXPECT_GT(sum.value, 0);
  }
}

// A clock that waited would hide what a step queues ahead.
TEST(Profile, ReadingTheClockDoesNotWaitForTheDevice) {
  std::atomic<std::int64_t> waits = 0;
  kernels::Profile profile;
  const std::unique_ptr<kernels::Kernels> kernels =
      kernels::make_profiled(kernels::emulated::make_counting_device(waits), profile);
  const tensor::Buffer buffer(kernels->memory(), Bytes(256), tensor::Reach::own);
  const tensor::Tensor t(buffer.data(), tensor::DType::f32, {64}, tensor::Device::cuda);
  waits = 0;
  for (int i = 0; i < 100; ++i) kernels->fill(t, 1.0);
  EXPECT_EQ(waits, 0);
  const std::vector<kernels::OperatorUse> uses = profile.uses();
  ASSERT_EQ(uses.size(), 1U);
  EXPECT_EQ(uses[0].calls, 100);
  EXPECT_EQ(uses[0].bytes.value, 100 * 256);
  EXPECT_GT(uses[0].time.value, 0.0);
  kernels->fill(t, 2.0);
  profile.clear();
  EXPECT_TRUE(profile.uses().empty()) << "what was queued before it is forgotten too";
}

TEST(Profile, CountsCallsAndBytesOfADevicesStepsButTheFirst) {
  spec::Job job = job_with(true);
  job.train.precision = spec::Precision::bf16;
  const plan::Plan plan = plan::make_plan(job);
  const exec::StepProfile p =
      exec::profile_steps(plan, 2,
                          {.kernels = [](Rank) { return kernels::emulated::make_device(); },
                           .network = nullptr,
                           .on = spec::EngineOn::gpu});
  EXPECT_GT(p.step.value, 0.0);
  EXPECT_GE(p.step.value, p.fastest.value);
  EXPECT_GT(p.limits.copy.value, 0.0);
  EXPECT_GT(p.limits.product.value, 0.0);
  EXPECT_GE(p.limits.side, 64);
  EXPECT_GT(p.limits.launch.value, 0.0);
  const auto use_of = [&](std::string_view name) {
    for (const kernels::OperatorUse& use : p.uses) {
      if (use.name == name) return use;
    }
    ADD_FAILURE() << "no " << name;
    return kernels::OperatorUse{};
  };
  const std::int64_t calls = 2 * plan.num_microbatches() * 2;  // steps, micro-batches, layers
  EXPECT_EQ(use_of("attention").calls, calls);
  EXPECT_EQ(use_of("router").calls, calls);
  const std::int64_t tokens = job.train.micro_batch_size * job.train.sequence_length;
  EXPECT_EQ(use_of("combine").bytes.value, calls * tokens * (4 * 2 * job.model.hidden_size + 2 * 4 + 2 * 4))
      << "x, y and two rows of each token in bf16, two places and two weights";
  for (const kernels::OperatorUse& use : p.uses) EXPECT_GT(use.time.value, 0.0) << use.name;
}

}  // namespace
}  // namespace tessera::testing
