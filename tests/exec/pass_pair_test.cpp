// Two passes in turns: alone, then as forward and backward of different micro-batches in the engine.
#include "exec/pass_pair.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "run.h"

namespace tessera::testing {
namespace {

using exec::PassPair;

TEST(PassPair, HandsOverAtEveryPassAndRunsTheRestThrough) {
  PassPair pair;
  for (std::int32_t again = 0; again < 3; ++again) {
    std::string order;
    pair.run(
        [&] {
          order += "a";
          pair.pass();
          order += "b";
          pair.pass();
          order += "c";
        },
        [&] {
          order += "1";
          pair.pass();
          order += "2";
          pair.pass();
          order += "3";
          pair.pass();
          order += "4";
          pair.pass();  // nobody is left
          order += "5";
        });
    EXPECT_EQ(order, "a1b2c345");
  }
}

TEST(PassPair, AnErrorEndsTheOtherPassAtItsNextTurnAndComesOut) {
  PassPair pair;
  std::string order;
  const auto fails = [&] {
    order += "f";
    pair.pass();
    throw Error(ErrorKind::internal, "broken", "here", "none");
  };
  const auto goes_on = [&] {
    order += "g";
    pair.pass();
    order += "h";
    pair.pass();
    order += "never";
  };
  for (const bool first_fails : {true, false}) {
    order.clear();
    try {
      if (first_fails) pair.run(fails, goes_on);
      if (!first_fails) pair.run(goes_on, fails);
      FAIL() << "the error was lost";
    } catch (const Error& e) {
      EXPECT_EQ(e.problems().front().what, "broken");
    }
    EXPECT_EQ(order, first_fails ? "fg" : "gfh");
  }
  pair.run([&] { order = "x"; }, [&] { order += "y"; });  // still good
  EXPECT_EQ(order, "xy");
}

TEST(PassPair, ASecondPassDoesNotStartAfterTheFirstHasFailed) {
  PassPair pair;
  bool ran = false;
  EXPECT_THROW(
      pair.run([] { throw Error(ErrorKind::internal, "broken", "here", "none"); }, [&] { ran = true; }),
      Error);
  EXPECT_FALSE(ran);
}

// --- in the engine

struct PairCase {
  std::string name;
  spec::ParallelSpec parallel;
  spec::DispatchForm form = spec::DispatchForm::all_to_all;
  bool shared = false;
  spec::Recompute recompute = spec::Recompute::none;
};

std::vector<PairCase> pair_cases() {
  using spec::DispatchForm;
  return {{"dp", {.dp = 2, .ep = 2}},
          {"tp", {.tp = 2, .ep = 2}, DispatchForm::all_to_all, true},
          {"pp", {.dp = 2, .pp = 2, .ep = 2}, DispatchForm::all_gather, true},
          {"etp", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, DispatchForm::all_gather},
          {"etp_alone",
           {.tp = 2, .pp = 2, .etp = 2},
           DispatchForm::all_to_all,
           false,
           spec::Recompute::selective},
          {"nodes", {.dp = 4, .ep = 4, .ranks_per_node = 2}, DispatchForm::hierarchical, true},
          {"full", {.dp = 2, .ep = 2}, DispatchForm::all_to_all, false, spec::Recompute::full}};
}

spec::Job job_of(const PairCase& c) {
  spec::Job job = small_job({.moe = true});
  if (c.shared) job.model.moe->shared_intermediate_size = 16;
  job.train.global_batch_size = 16;
  job.train.recompute = c.recompute;
  job.train.moe.dispatch = c.form;
  job.parallel = c.parallel;
  job.parallel.schedule = "combined-1f1b";
  return job;
}

TEST(CombinedSchedule, GivesTheSameBitsBesideEachOtherAndOneAfterTheOther) {
  for (const PairCase& c : pair_cases()) {
    SCOPED_TRACE(c.name);
    spec::Job job = job_of(c);
    std::atomic<std::int64_t> hidden{0};
    const auto sum_hidden = [&](exec::RankEngine& e) { hidden += e.hidden_dispatch_ns(); };
    const RunResult beside = run_job(job, {.worker = true, .cpu_kernels = true, .inspect = sum_hidden});
    if (c.recompute == spec::Recompute::full) {
      EXPECT_EQ(hidden, 0) << "one slot for both: they run one after the other";
    } else {
      EXPECT_GT(hidden, 0);
    }
    job.train.moe.overlap_dispatch = false;
    const RunResult after = run_job(job, {.worker = true, .cpu_kernels = true});
    for (std::size_t s = 0; s < after.steps.size(); ++s) {
      EXPECT_EQ(beside.steps[s].ce_loss, after.steps[s].ce_loss);
      EXPECT_EQ(beside.steps[s].aux_loss, after.steps[s].aux_loss);
      EXPECT_EQ(beside.steps[s].grad_norm, after.steps[s].grad_norm);
    }
    EXPECT_EQ(beside.gradients, after.gradients);
    EXPECT_EQ(beside.weights, after.weights);
  }
}

TEST(CombinedSchedule, TakesTheMemoryThatWasPlannedAndScratchForBothPasses) {
  const spec::Job job = job_of(pair_cases()[1]);
  spec::Job alone = job;
  alone.train.moe.overlap_dispatch = false;
  Bytes scratch_beside, scratch_alone;
  using plan::MemoryKind;
  (void)run_job(job, {.worker = true, .inspect = [&](exec::RankEngine& e) {
                        EXPECT_EQ(e.measured_memory(), e.planned_memory());
                        scratch_beside = e.planned_memory()[MemoryKind::scratch];
                      }});
  (void)run_job(alone, {.worker = true, .inspect = [&](exec::RankEngine& e) {
                          scratch_alone = e.planned_memory()[MemoryKind::scratch];
                        }});
  EXPECT_GT(scratch_beside, scratch_alone);
  EXPECT_LE(scratch_beside, scratch_alone * 2);
}

}  // namespace
}  // namespace tessera::testing
