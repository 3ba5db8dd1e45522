// What must not change a single bit: the schedule, a second run, the worker that reduces beside compute,
// ZeRO-1, recomputation; and parity (1e-10) of the options that the matrix of parity_test.cpp leaves out.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "run.h"

namespace tessera::testing {
namespace {

spec::Job pipeline_job(const std::string& schedule, std::int32_t vpp, bool tied) {
  spec::Job job = small_job({.moe = !tied, .tied = tied, .layers = 8});
  job.train.precision = spec::Precision::f32;
  job.parallel = {.tp = 2, .dp = 1, .pp = 2, .vpp = vpp, .schedule = schedule};
  if (!tied) job.parallel.ep = 2;
  return job;
}

spec::Job cut_job(const std::string& schedule, std::int32_t vpp) {
  spec::Job job = pipeline_job(schedule, vpp, false);
  job.train.sequence_length = 16;
  job.parallel.tp = 1;
  job.parallel.cp = 2;
  job.train.moe.capacity_factor = 1.0;
  return job;
}

void expect_same_bits(const RunResult& a, const RunResult& b, const std::string& what) {
  EXPECT_EQ(a.gradients, b.gradients) << what;
  EXPECT_EQ(a.weights, b.weights) << what;
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (std::size_t s = 0; s < a.steps.size(); ++s) {
    EXPECT_EQ(a.steps[s].ce_loss, b.steps[s].ce_loss) << what << " step " << s;
  }
}

TEST(Bits, GradientsOfOneStepAreTheSameInEverySchedule) {
  for (const bool tied : {false, true}) {
    const RunResult want = run_job(pipeline_job("1f1b", 1, tied), {.steps = 1, .cpu_kernels = true});
    for (const auto& [schedule, vpp] : std::vector<std::pair<std::string, std::int32_t>>{
             {"naive", 1}, {"gpipe", 1}, {"zb-h1", 1}, {"interleaved", 2}, {"interleaved", 4}, {"zb-v", 2}}) {
      const RunResult got = run_job(pipeline_job(schedule, vpp, tied), {.steps = 1, .cpu_kernels = true});
      EXPECT_EQ(want.gradients, got.gradients) << schedule << " vpp " << vpp << (tied ? " tied" : "");
    }
  }
}

TEST(Bits, GradientsOfOneStepWithCutSequencesAreTheSameInEverySchedule) {
  const RunResult want = run_job(cut_job("1f1b", 1), {.steps = 1, .cpu_kernels = true});
  for (const auto& [schedule, vpp] : std::vector<std::pair<std::string, std::int32_t>>{
           {"naive", 1}, {"gpipe", 1}, {"zb-h1", 1}, {"interleaved", 2}, {"zb-v", 2}}) {
    const RunResult got = run_job(cut_job(schedule, vpp), {.steps = 1, .cpu_kernels = true});
    EXPECT_EQ(want.gradients, got.gradients) << schedule << " vpp " << vpp;
  }
}

TEST(Bits, RecomputationWithCutSequencesChangesNothing) {
  for (const std::string schedule : {"1f1b", "zb-h1"}) {
    spec::Job job = cut_job(schedule, 1);
    const RunResult want = run_job(job, {.cpu_kernels = true});
    for (const spec::Recompute r : {spec::Recompute::selective, spec::Recompute::full}) {
      job.train.recompute = r;
      expect_same_bits(want, run_job(job, {.worker = true, .cpu_kernels = true}), schedule);
    }
  }
}

spec::Job wide_job() {
  spec::Job job = small_job({.moe = true});
  job.train.precision = spec::Precision::f32;
  job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .schedule = "1f1b"};
  return job;
}

TEST(Bits, RepeatedRunsAreTheSame) {
  const RunResult want = run_job(wide_job(), {.worker = true, .cpu_kernels = true});
  for (int i = 0; i < 5; ++i) {
    expect_same_bits(want, run_job(wide_job(), {.worker = true, .cpu_kernels = true}), "repeated run");
  }
}

TEST(Bits, ReducingBesideComputeChangesNothing) {
  expect_same_bits(run_job(wide_job(), {.worker = false, .cpu_kernels = true}),
                   run_job(wide_job(), {.worker = true, .cpu_kernels = true}), "worker");
}

TEST(Bits, RecomputationChangesNothing) {
  for (const std::string schedule : {"1f1b", "zb-h1"}) {
    spec::Job job = wide_job();
    job.parallel.schedule = schedule;
    const RunResult want = run_job(job, {.cpu_kernels = true});
    for (const spec::Recompute r : {spec::Recompute::selective, spec::Recompute::full}) {
      job.train.recompute = r;
      expect_same_bits(want, run_job(job, {.cpu_kernels = true}),
                       fmt::format("{} recompute {}", schedule, static_cast<int>(r)));
    }
  }
}

// Gradients before clipping are the same bits under ZeRO-1; the norm sums in another order, so weights agree
// to rounding.
TEST(Bits, ZeroOneSumsTheSameGradients) {
  spec::Job job = wide_job();
  job.train.optimizer.clip_grad = 0.0;
  const RunResult want = run_job(job, {.cpu_kernels = true});
  job.train.zero_stage = 1;
  expect_same_bits(want, run_job(job, {.cpu_kernels = true}), "zero 1");
}

// With a bucket a unit, as ZeRO-3 has it, both add in the same order.
TEST(Bits, ZeroThreeIsZeroTwoOnEverySchedule) {
  spec::Job job = wide_job();
  job.train.bucket_bytes = 1;
  job.train.zero_stage = 2;
  const RunResult want = run_job(job);
  for (const char* schedule : {"1f1b", "gpipe", "zb-h1"}) {
    job.parallel.schedule = schedule;
    for (const std::int32_t zero : {2, 3}) {
      job.train.zero_stage = zero;
      for (const bool worker : {false, true})
        expect_same_bits(want, run_job(job, {.worker = worker}), fmt::format("zero {} {}", zero, schedule));
    }
  }
}

// Part by part beside the GEMM: the same products, added in the ring's order.
TEST(Bits, TensorParallelOverlapChangesNothing) {
  for (const std::int32_t tp : {2, 4, 8}) {
    spec::Job job = small_job({});
    job.train.precision = spec::Precision::f32;
    job.parallel = {.tp = tp};
    for (const bool cpu_kernels : {false, true}) {
      job.parallel.tp_comm_overlap = false;
      const RunResult want = run_job(job, {.cpu_kernels = cpu_kernels});
      job.parallel.tp_comm_overlap = true;
      expect_same_bits(want, run_job(job, {.cpu_kernels = cpu_kernels}), fmt::format("tp {}", tp));
    }
  }
}

struct Option {
  std::string name;
  std::function<void(spec::Job&)> set;
  std::int64_t ignore_every = 0;
};

// Options beside the matrix, each on a few layouts that stress it.
TEST(Parity, EveryOptionEqualsOneRank) {
  using spec::BalanceUnit;
  const std::vector<Option> options = {
      {"ignored targets", [](spec::Job&) {}, 3},
      {"uneven stage cuts",
       [](spec::Job& j) {
         if (j.parallel.pp == 2) j.parallel.stage_layers = {3, 1};
       }},
      {"drops by position", [](spec::Job& j) { j.train.moe.capacity_factor = 0.75; }},
      {"drops by probs",
       [](spec::Job& j) {
         j.train.moe.capacity_factor = 1.25;
         j.train.moe.drop_policy = spec::DropPolicy::probs;
       }},
      {"sequence balance", [](spec::Job& j) { j.train.moe.aux_loss_unit = BalanceUnit::sequence; }},
      {"global balance", [](spec::Job& j) { j.train.moe.aux_loss_unit = BalanceUnit::global_batch; }},
      {"softmax of the chosen", [](spec::Job& j) { j.model.moe->softmax_before_topk = false; }},
      {"not renormalised", [](spec::Job& j) { j.model.moe->norm_topk_prob = false; }},
      {"selective recompute", [](spec::Job& j) { j.train.recompute = spec::Recompute::selective; }},
      {"full recompute", [](spec::Job& j) { j.train.recompute = spec::Recompute::full; }},
      {"tied", [](spec::Job& j) { j.model.tie_word_embeddings = true; }},
      {"one big bucket", [](spec::Job& j) { j.train.bucket_bytes = std::int64_t{1} << 30; }},
      {"sums in line", [](spec::Job& j) { j.train.overlap_grad_reduce = false; }},
      {"wsd",
       [](spec::Job& j) {
         j.train.optimizer.lr_decay = spec::LrDecay::wsd;
         j.train.optimizer.lr_warmup_steps = 1;
         j.train.optimizer.lr_wsd_decay_steps = 8;
       }},
  };
  const std::vector<spec::ParallelSpec> layouts = {
      {.tp = 2, .dp = 2, .ep = 4},
      {.tp = 2, .dp = 1, .pp = 2, .etp = 2, .schedule = "zb-h1"},
      {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2, .schedule = "1f1b"},
  };
  for (const Option& o : options) {
    spec::Job job = small_job({.moe = true});
    o.set(job);
    const RunResult want = run_job(job, {.ignore_every = o.ignore_every});
    for (const spec::ParallelSpec& p : layouts) {
      spec::Job cut = small_job({.moe = true});
      cut.parallel = p;
      o.set(cut);
      const RunResult got = run_job(cut, {.worker = true, .ignore_every = o.ignore_every});
      std::string where;
      const double error = std::max(worst_difference(want.gradients, got.gradients, &where),
                                    worst_difference(want.weights, got.weights, &where));
      EXPECT_TRUE(error <= 1e-10) << o.name << " on tp" << p.tp << " dp" << p.dp << " pp" << p.pp << ": "
                                  << where << " off by " << error;
      for (std::size_t s = 0; s < want.steps.size(); ++s) {
        EXPECT_NEAR(want.steps[s].loss(), got.steps[s].loss(), 1e-10) << o.name;
        for (std::size_t l = 0; l < want.steps[s].routing.size(); ++l) {
          EXPECT_EQ(want.steps[s].routing[l].dropped, got.steps[s].routing[l].dropped) << o.name;
        }
      }
    }
  }
}

}  // namespace
}  // namespace tessera::testing
