// Training with tensors in a GPU's memory, on the kernels of the CUDA backend compiled for the host
// (docs/gpu.md): the same bits in every run and after a resume; losses in bf16 near those in f32; memory as
// planned.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cmath>
#include <filesystem>

#include "base/random.h"
#include "ckpt/checkpoint.h"
#include "exec/trainer.h"
#include "in_folder.h"
#include "run.h"
#include "support/emulated_place.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;

class DeviceTraining : public InFolder {};

// A noisy count to 40: something to learn.
std::shared_ptr<const data::TokenSource> counting_tokens(std::int64_t count) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto noise = uniform_below(8, 3, 5, static_cast<std::uint64_t>(i));
    ids.push_back(static_cast<std::int32_t>(noise == 0
                                                ? uniform_below(40, 4, 6, static_cast<std::uint64_t>(i))
                                                : static_cast<std::uint64_t>(i) % 40));
  }
  return std::make_shared<data::MemoryTokens>(ids);
}

exec::RunSummary run(const spec::Job& job, const exec::Compute& compute) {
  return exec::train(plan::make_plan(job),
                     {.compute = compute,
                      .train = counting_tokens(4000),
                      .validation = counting_tokens(200),
                      .cores = 2,
                      .peak_per_core = FlopsPerSecond(1e11),
                      .output = job.output.folder},
                     {});
}
exec::Compute emulated_gpu() {
  return {.kernels = [](Rank) { return kernels::emulated::make_device(); }, .on = spec::EngineOn::gpu};
}

spec::Job job_of(bool moe, spec::Precision precision, std::int64_t steps) {
  spec::Job job = small_job({.moe = moe, .layers = 2});
  job.train.precision = precision;
  job.train.steps = steps;
  job.train.global_batch_size = 8;
  job.train.sequence_length = 8;
  job.train.optimizer.lr = 4e-3;
  job.train.optimizer.lr_decay = spec::LrDecay::constant;
  job.model.initializer_range = 0.1;
  return job;
}

TEST_F(DeviceTraining, LossesInBf16StayNearThoseOfF32OnTheCpu) {
  for (const bool moe : {false, true}) {
    const std::int64_t steps = 40;
    const exec::RunSummary f32 = run(job_of(moe, spec::Precision::f32, steps), {});
    const exec::RunSummary bf16 = run(job_of(moe, spec::Precision::bf16, steps), emulated_gpu());
    ASSERT_EQ(bf16.losses.size(), f32.losses.size());
    double worst = 0.0;
    for (std::size_t s = 0; s < f32.losses.size(); ++s) {
      const double error = std::abs(bf16.losses[s] - f32.losses[s]) / f32.losses[s];
      if (!(error <= worst)) worst = error;
    }
    EXPECT_TRUE(worst < 0.02) << (moe ? "moe" : "dense") << ": " << worst;
    EXPECT_LT(f32.losses.back(), 0.8 * f32.losses.front()) << "there is something to learn";
    EXPECT_TRUE(std::abs(bf16.validation_loss - f32.validation_loss) < 0.02 * f32.validation_loss);
    for (const exec::RankUse& r : bf16.ranks) EXPECT_EQ(r.planned, r.measured);
  }
}

TEST_F(DeviceTraining, ARunAndAResumedOneGiveTheSameBits) {
  spec::Job job = job_of(true, spec::Precision::bf16, 8);
  job.parallel = {.dp = 2, .ep = 2};
  job.train.zero_stage = 1;
  const exec::RunSummary once = run(job, emulated_gpu());
  EXPECT_EQ(run(job, emulated_gpu()).losses, once.losses);
  job.checkpoint = {.folder = (root_ / "checkpoints").string(), .every = 4, .keep = 3};
  job.train.steps = 4;
  (void)run(job, emulated_gpu());
  job.train.steps = 8;
  const exec::RunSummary resumed = run(job, emulated_gpu());
  EXPECT_EQ(resumed.first_step, 4);
  EXPECT_EQ(resumed.losses, std::vector<double>(once.losses.begin() + 4, once.losses.end()));
}

// The calls of one more step that wait until the GPU is done.
std::int64_t waits_of_a_step(spec::Job job) {
  std::array<std::int64_t, 2> all{};
  for (std::size_t more : {0, 1}) {
    std::atomic<std::int64_t> waits = 0;
    job.train.steps = static_cast<std::int64_t>(2 + more);
    (void)run(job, {.kernels = [&](Rank) { return kernels::emulated::make_counting_device(waits); },
                    .on = spec::EngineOn::gpu});
    all[more] = waits;
  }
  return all[1] - all[0];
}

TEST_F(DeviceTraining, AStepWaitsAFixedNumberOfTimes) {
  const auto waits = [](bool moe, std::int32_t layers, std::int64_t microbatches) {
    spec::Job job = small_job({.moe = moe, .layers = layers});
    job.train.precision = spec::Precision::bf16;
    job.train.sequence_length = 4;
    job.train.global_batch_size = microbatches * job.parallel.dp * job.train.micro_batch_size;
    return waits_of_a_step(job);
  };
  // A mixture's experts all here and nothing dropped: no layer and no micro-batch adds a wait.
  for (const bool moe : {false, true}) {
    const std::int64_t least = waits(moe, 1, 1);
    EXPECT_LE(least, 8);
    EXPECT_EQ(waits(moe, 4, 1), least) << (moe ? "moe" : "dense");
    EXPECT_EQ(waits(moe, 2, 4), least) << (moe ? "moe" : "dense");
  }
}

TEST_F(DeviceTraining, Bf16IsRefusedOnTheCpu) {
  try {
    (void)run(job_of(false, spec::Precision::bf16, 1), {});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), ::testing::HasSubstr("precision=bf16: the engine computes in f32 and f64 on CPUs"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr("--device cuda"));
  }
}

}  // namespace
}  // namespace tessera::testing
