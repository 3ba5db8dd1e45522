// Logs of four frameworks, their warm-up, and what is no log.
#include "validate/training_log.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/random.h"

namespace tessera::validate {
namespace {

using ::testing::HasSubstr;

constexpr LogWork kWork{.global_batch_size = 128, .sequence_length = 8192, .devices = 64};

std::string megatron(std::int32_t iteration, double ms) {
  return fmt::format(
      " [2024-03-30 20:02:40.123456] iteration {:8}/  500000 | consumed samples:  1280 | elapsed time per "
      "iteration (ms): {:.1f} | throughput per GPU (TFLOP/s/GPU): 137.5 | learning rate: 2.000000E-06 | "
      "global "
      "batch size:   128 | lm loss: 2.092005E-01 |\n",
      iteration, ms);
}

TrainingLog read(std::string_view text) {
  Problems problems;
  TrainingLog log = parse_training_log(text, "train.log", problems);
  problems.throw_if_any();
  return log;
}

std::string trouble(std::string_view text) {
  try {
    (void)read(text);
  } catch (const Error& e) {
    std::string all;
    for (const Problem& p : e.problems()) all += p.what + " | " + p.where + " | " + p.mend + "\n";
    return all;
  }
  return "";
}

TEST(TrainingLog, MegatronLinesAreIterationsMemoryAndBatch) {
  const TrainingLog log =
      read("using world size: 16\n" + megatron(10, 9496.4) +
           "[Rank 16] (after 1 iterations) memory (MB) | allocated: 6510.74 | max allocated: "
           "7000.5 | reserved: 7246.00 | max reserved: 7246.00\n"
           "[Rank 0] (after 1 iterations) memory (MB) | allocated: 1.0 | max allocated: 6000\n" +
           megatron(11, 9400.0));
  EXPECT_EQ(log.kind, LogKind::megatron);
  ASSERT_EQ(log.steps.size(), 2U);
  EXPECT_EQ(log.steps[0].iteration, 10);
  EXPECT_EQ(log.steps[0].line, 2);
  EXPECT_DOUBLE_EQ(seconds_of(log.steps[0], kWork), 9.4964);
  EXPECT_EQ(log.global_batch_size, 128);
  EXPECT_DOUBLE_EQ(*log.memory_bytes, 7000.5 * 1024 * 1024);
}

TEST(TrainingLog, MemUsagesIsAShare) {
  EXPECT_DOUBLE_EQ(*read(megatron(1, 10) + "mem usages: 0.6125 |\n").memory_share, 0.6125);
}

TEST(TrainingLog, TorchtitanSaysTokensADeviceAndSecondInColours) {
  const TrainingLog log = read(
      "[rank0]:[titan] 2025-03-06 15:42:40,808 - root - INFO - \x1b[31mstep: 10  \x1b[32mloss:  9.8934  "
      "\x1b[33mmemory: 47.61GiB(60.15%)  \x1b[34mtps: 2,793  \x1b[36mtflops: 161.76  \x1b[35mmfu: "
      "51.85%\x1b[0m\n");
  EXPECT_EQ(log.kind, LogKind::torchtitan);
  ASSERT_EQ(log.steps.size(), 1U);
  EXPECT_EQ(log.steps[0].iteration, 10);
  EXPECT_DOUBLE_EQ(seconds_of(log.steps[0], kWork), 128.0 * 8192 / (64 * 2793.0));
  EXPECT_DOUBLE_EQ(*log.memory_bytes, 47.61 * 1024 * 1024 * 1024);
}

TEST(TrainingLog, DeepSpeedSaysSamplesOrSeconds) {
  const TrainingLog rate = read(
      "[2022-12-23 03:31:43,827] [INFO] [timer.py:197:stop] epoch=0/micro_step=200/global_step=200, "
      "RunningAvgSamplesPerSec=50.04, CurrSamplesPerSec=53.01, MemAllocated=18.13GB, "
      "MaxMemAllocated=27.96GB\n");
  EXPECT_EQ(rate.kind, LogKind::deepspeed);
  EXPECT_EQ(rate.steps.at(0).iteration, 200);
  EXPECT_DOUBLE_EQ(seconds_of(rate.steps.at(0), kWork), 128.0 / 53.01);
  EXPECT_DOUBLE_EQ(*rate.memory_bytes, 27.96 * 1024 * 1024 * 1024);
  const TrainingLog pipe = read("steps: 10 loss: 2.1234 iter time (s): 1.234 samples/sec: 103.7\n");
  EXPECT_DOUBLE_EQ(seconds_of(pipe.steps.at(0), kWork), 1.234);
}

TEST(TrainingLog, NemoAndBridgeSaySeconds) {
  const TrainingLog nemo = read(
      "Training epoch 0, iteration 9/99 | lr: 1.499e-07 | global_batch_size: 512 | global_step: 9 | "
      "reduced_train_loss: 11.03 | train_step_timing in s: 13.36 | consumed_samples: 5120\n");
  EXPECT_EQ(nemo.kind, LogKind::nemo);
  EXPECT_EQ(nemo.steps.at(0).iteration, 9);
  EXPECT_DOUBLE_EQ(nemo.steps.at(0).value, 13.36);
  EXPECT_EQ(nemo.global_batch_size, 512);
  EXPECT_DOUBLE_EQ(read("Step Time : 20.15s GPU utilization: 299.4MODEL_TFLOP/s/GPU\n").steps.at(0).value,
                   20.15);
  const TrainingLog both = read("Step Time : 20.15s GPU utilization: 299.4\n" + megatron(1, 20150.0));
  EXPECT_EQ(both.kind, LogKind::megatron);
  EXPECT_EQ(both.steps.size(), 1U) << "one line of an iteration counts";
}

TEST(TrainingLog, RanksThatLogTheSameIterationCountOnceByTheSlowest) {
  const TrainingLog log = read(megatron(1, 100) + megatron(1, 120) + megatron(2, 90) + megatron(1, 110));
  ASSERT_EQ(log.steps.size(), 2U);
  EXPECT_DOUBLE_EQ(log.steps[0].value, 0.12);
}

TEST(TrainingLog, WarmUpIsDroppedAndNamed) {
  std::string text = megatron(1, 30000) + megatron(2, 12000);
  for (std::int32_t i = 3; i <= 12; ++i) text += megatron(i, 9400 + i);
  const Steady s = steady(read(text), kWork);
  EXPECT_EQ(s.dropped, 2);
  EXPECT_EQ(s.used, 10);
  EXPECT_NEAR(s.median, 9.4075, 1e-9);
  EXPECT_EQ(s.dropped_text, "iterations 1 to 2 (lines 1 to 2)");
  EXPECT_LT(s.spread, 0.001);
}

TEST(TrainingLog, FirstIterationIsNeverCountedAndOneAloneIs) {
  EXPECT_EQ(steady(read(megatron(1, 9) + megatron(2, 9) + megatron(3, 9)), kWork).dropped, 1);
  const Steady one = steady(read(megatron(1, 9400)), kWork);
  EXPECT_EQ(one.dropped, 0);
  EXPECT_EQ(one.dropped_text, "");
  EXPECT_DOUBLE_EQ(one.median, 9.4);
}

TEST(TrainingLog, OneSlowIterationInTheMiddleDoesNotMoveTheMedian) {
  std::string text;
  for (std::int32_t i = 1; i <= 20; ++i) text += megatron(i, i == 11 ? 60000 : 9400);
  EXPECT_DOUBLE_EQ(steady(read(text), kWork).median, 9.4);
}

TEST(TrainingLog, NoLogSaysWhatIsLookedFor) {
  for (const char* text : {"", "\n\n", "loss 3.2 at step 10, 9.4 s\n", "{\"iteration\": 10}"}) {
    EXPECT_THAT(trouble(text), HasSubstr("no line says what an iteration took")) << text;
    EXPECT_THAT(trouble(text), HasSubstr("train_step_timing in s:"));
  }
}

TEST(TrainingLog, LogsOfTwoFrameworksAreTwoLogs) {
  const std::string all = trouble(megatron(1, 9400) + "step: 1  loss: 2.0  tps: 2,793  mfu: 51%\n");
  EXPECT_THAT(all, HasSubstr("Megatron-LM (line 1), torchtitan (line 2)"));
  EXPECT_THAT(all, HasSubstr("one run's log a file"));
}

TEST(TrainingLog, TimesThatAreNoneAreCountedAndAlonePutRight) {
  const std::string bad =
      "iteration 1/ 5 | elapsed time per iteration (ms): nan |\n"
      "iteration 2/ 5 | elapsed time per iteration (ms): -3 |\n"
      "iteration 3/ 5 | elapsed time per iteration (ms): 1e300 |\n";
  EXPECT_EQ(read(bad + megatron(4, 10)).unreadable, 3);
  EXPECT_THAT(trouble(bad),
              HasSubstr("3 lines of Megatron-LM name an iteration and none a time | train.log:1"));
}

TEST(TrainingLog, AnyBytesAreReadOrRefused) {
  const std::string seed = megatron(10, 9496.4) + "step: 10 memory: 47.61GiB tps: 2,793\n" +
                           "global_step=200, CurrSamplesPerSec=53.01, MaxMemAllocated=27.96GB\n";
  std::uint64_t counter = 0;
  const auto below = [&](std::size_t n) {
    return static_cast<std::size_t>(uniform_below(n, 7, stream_of("log"), counter++));
  };
  for (std::int32_t i = 0; i < 3000; ++i) {
    std::string text = seed.substr(0, below(seed.size()));
    for (std::int32_t k = 0; k < 8 && !text.empty(); ++k)
      text[below(text.size())] = static_cast<char>(below(256));
    Problems problems;
    const TrainingLog log = parse_training_log(text, "x", problems);
    if (!problems.empty()) continue;
    const Steady s = steady(log, kWork);
    EXPECT_TRUE(s.median > 0.0 && s.used > 0) << text;
  }
}

}  // namespace
}  // namespace tessera::validate
