// Experts in any order over the ranks: the same model, and the rows that a placement sends are those that the
// graph counts (graph_agreement_test.cpp has such cases).
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "run.h"
#include "slots.h"

namespace tessera::testing {
namespace {

struct Case {
  std::string name;
  spec::ParallelSpec parallel;
  void (*change)(spec::Job&) = [](spec::Job&) {};
};

std::vector<Case> cases() {
  using spec::DispatchForm;
  return {{"one_rank", {}},
          {"dp_ep", {.dp = 4, .ep = 4}},
          {"tp_pp", {.tp = 2, .dp = 2, .pp = 2, .ep = 4, .schedule = "zb-h1"}},
          {"etp_drops",
           {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
           [](spec::Job& j) {
             j.train.moe.capacity_factor = 1.0;
             j.train.moe.drop_policy = spec::DropPolicy::probs;
           }},
          {"all_gather",
           {.dp = 2, .ep = 2},
           [](spec::Job& j) { j.train.moe.dispatch = DispatchForm::all_gather; }},
          {"nodes", {.dp = 4, .ep = 4, .ranks_per_node = 2, .schedule = "combined-1f1b"}},
          {"padded", {.dp = 2, .ep = 2}, [](spec::Job& j) {
             j.train.moe.capacity_factor = 1.25;
             j.train.moe.pad_to_capacity = true;
             j.train.recompute = spec::Recompute::selective;
           }}};
}

TEST(ExpertSlots, AnyPlacementEqualsOneRankInOrder) {
  for (const Case& c : cases()) {
    spec::Job job = small_job({.moe = true});
    c.change(job);
    const RunResult want = run_job(job);
    job.parallel = c.parallel;
    job.parallel.expert_slots = shuffled_slots(job.model, 7);
    expect_parity(want, run_job(job, {.worker = true}), c.name);
  }
}

// Rows of an expert keep their order and a token's results are added choice by choice.
TEST(ExpertSlots, AllToAllGivesTheBitsOfExpertsInOrder) {
  spec::Job job = small_job({.moe = true});
  job.parallel = {.dp = 4, .ep = 4};
  const RunResult in_order = run_job(job, {.steps = 1});
  job.parallel.expert_slots = shuffled_slots(job.model, 3);
  const RunResult placed = run_job(job, {.steps = 1});
  EXPECT_EQ(placed.steps.front().ce_loss, in_order.steps.front().ce_loss);
  EXPECT_EQ(placed.gradients, in_order.gradients);
}

}  // namespace
}  // namespace tessera::testing
