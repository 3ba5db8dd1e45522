// Experts that move between ranks in the middle of a run take their weights and optimizer state along: the
// run stays what it was, on every layout and ZeRO stage.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <numeric>

#include "base/random.h"
#include "ckpt/checkpoint.h"
#include "exec/rebalancer.h"
#include "exec/run_state.h"
#include "exec/trainer.h"
#include "run.h"
#include "slots.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;

struct Case {
  std::string name;
  spec::ParallelSpec parallel;
};

const std::vector<Case>& cases() {
  static const std::vector<Case> all = {
      {"ep4", {.dp = 4, .ep = 4}},
      {"ep2_edp2", {.dp = 4, .ep = 2}},
      {"etp2", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}},
      {"pp2_zb", {.tp = 2, .dp = 2, .pp = 2, .ep = 4, .schedule = "zb-h1"}},
      {"pp2_interleaved", {.dp = 4, .pp = 2, .ep = 2, .vpp = 2, .schedule = "interleaved"}},
      {"cp2", {.cp = 2, .dp = 2, .ep = 2}},
      {"nodes", {.dp = 4, .ep = 4, .ranks_per_node = 2}},
  };
  return all;
}

std::int64_t moved_between(const spec::Job& job, std::int32_t ranks, std::uint64_t before,
                           std::uint64_t after) {
  const std::vector<std::int32_t> a = shuffled_slots(job.model, before), b = shuffled_slots(job.model, after);
  const auto experts = static_cast<std::size_t>(job.model.moe->num_experts);
  const std::size_t share = experts / static_cast<std::size_t>(ranks);
  std::int64_t moved = 0;
  for (std::size_t i = 0; i < b.size(); ++i) {
    const auto first = a.begin() + static_cast<std::ptrdiff_t>(i / experts * experts);
    const auto was = static_cast<std::size_t>(
        std::find(first, first + static_cast<std::ptrdiff_t>(experts), b[i]) - first);
    moved += was / share != i % experts / share ? 1 : 0;
  }
  return moved;
}

TEST(Rebalancing, ARunWhoseExpertsMoveAfterEveryStepEqualsOneRank) {
  for (const Case& c : cases()) {
    spec::Job job = small_job({.moe = true});
    const RunResult want = run_job(job, {.steps = 4});
    job.parallel = c.parallel;
    job.parallel.expert_slots = shuffled_slots(job.model, 100);
    for (const std::int32_t zero : {0, 1, 2, 3}) {
      job.train.zero_stage = zero;
      for (const bool worker : {false, true}) {
        const auto move = [&](exec::RankEngine& engine, std::int64_t step) {
          const auto seed = static_cast<std::uint64_t>(100 + step);
          EXPECT_EQ(engine.place_experts(shuffled_slots(job.model, seed + 1)),
                    moved_between(job, c.parallel.ep, seed, seed + 1));
        };
        expect_parity(want, run_job(job, {.steps = 4, .worker = worker, .between = move}),
                      fmt::format("{} zero {} {}", c.name, zero, worker ? "worker" : "in line"));
      }
    }
  }
}

// The norm of all gradients is summed rank by rank, so clipping would see where experts are.
TEST(Rebalancing, WithoutClippingMovesChangeNoBit) {
  spec::Job job = small_job({.moe = true});
  job.train.optimizer.clip_grad = 0.0;
  job.parallel = {.dp = 4, .ep = 4, .expert_slots = shuffled_slots(job.model, 1)};
  const RunResult stay = run_job(job, {.steps = 3});
  const RunResult moved = run_job(
      job, {.steps = 3, .between = [&](exec::RankEngine& engine, std::int64_t step) {
              (void)engine.place_experts(shuffled_slots(job.model, static_cast<std::uint64_t>(step + 2)));
            }});
  EXPECT_EQ(stay.steps[1].ce_loss, moved.steps[1].ce_loss);
  EXPECT_EQ(stay.gradients, moved.gradients);
}

TEST(Rebalancing, TheFullestRankIsThatOfItsSlots) {
  EXPECT_DOUBLE_EQ(exec::fullest_rank({6, 2, 2, 2}, {0, 1, 2, 3}, 2), 8.0 / 6.0);
  EXPECT_DOUBLE_EQ(exec::fullest_rank({6, 2, 2, 2}, {0, 1, 2, 3}, 1), 1.0);
  EXPECT_DOUBLE_EQ(exec::fullest_rank({0, 0}, {1, 0}, 2), 1.0);
}

class RebalancedTrainer : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("tessera-rebalance-{}", ::getpid());
    fs::remove_all(root_);
  }
  void TearDown() override { fs::remove_all(root_); }

  [[nodiscard]] spec::Job job(const std::string& name, std::int64_t steps) const {
    spec::Job job = small_job({.moe = true});
    job.train.steps = steps;
    job.train.optimizer.lr_decay = spec::LrDecay::constant;
    job.parallel = {.dp = 4, .ep = 4, .expert_slots = shuffled_slots(job.model, 1)};
    job.checkpoint = {.folder = (root_ / name).string(), .every = 4};
    return job;
  }
  // Moves every `every` steps: from seed to seed.
  exec::RunSummary run(const spec::Job& job, std::int64_t every) {
    std::vector<std::int32_t> ids;
    for (std::uint64_t i = 0; i < 2000; ++i)
      ids.push_back(static_cast<std::int32_t>(uniform_below(40, 3, 5, i)));
    const auto place = [&](const exec::RoutedLoad& load) {
      loads_.push_back(load);
      const std::vector<std::int32_t> flat = shuffled_slots(job.model, 50 + loads_.size());
      std::vector<std::vector<std::int32_t>> maps;
      const auto experts = static_cast<std::size_t>(job.model.moe->num_experts);
      for (std::size_t l = 0; l < load.layers.size(); ++l) {
        const auto first = flat.begin() + static_cast<std::ptrdiff_t>(l * experts);
        maps.emplace_back(first, first + static_cast<std::ptrdiff_t>(experts));
      }
      return maps;
    };
    return exec::train(plan::make_plan(job),
                       {.train = std::make_shared<data::MemoryTokens>(ids),
                        .cores = 2,
                        .peak_per_core = FlopsPerSecond(1e11),
                        .rebalancing = {.every = every, .place = place}},
                       {});
  }
  fs::path root_;
  std::vector<exec::RoutedLoad> loads_;
};

TEST_F(RebalancedTrainer, MovesAtEveryIntervalAndGoesOnWhereExpertsWere) {
  const exec::RunSummary stay = run(job("stay", 10), 0);
  EXPECT_TRUE(stay.moves.empty());
  const exec::RunSummary whole = run(job("whole", 10), 3);
  ASSERT_EQ(loads_.size(), 3U);  // after steps 3, 6 and 9
  ASSERT_EQ(whole.moves.size(), 3U);
  for (std::size_t i = 0; i < stay.losses.size(); ++i)
    EXPECT_NEAR(whole.losses[i], stay.losses[i], 1e-10 * stay.losses[i]) << "step " << i;
  // Every choice of three steps is counted once, and the slots follow the moves.
  const spec::Job asked = job("whole", 10);
  const std::int64_t choices =
      3 * asked.train.global_batch_size * asked.train.sequence_length * asked.model.moe->num_experts_per_tok;
  for (const exec::RoutedLoad& load : loads_) {
    for (const auto& chosen : load.chosen)
      EXPECT_EQ(std::accumulate(chosen.begin(), chosen.end(), std::int64_t{0}), choices);
  }
  EXPECT_NE(loads_[0].slots, loads_[1].slots);
  EXPECT_GT(whole.moves[0].slots, 0);
  EXPECT_GE(whole.moves[0].fullest_before, 1.0);

  // Stopped after 8 steps, two moves, and gone on with: the slots of the second move are back at once.
  const std::vector<std::int32_t> at_eight = shuffled_slots(asked.model, 52);
  loads_.clear();
  ASSERT_EQ(run(job("parts", 8), 3).moves.size(), 2U);
  const ckpt::CheckpointReader reader(*ckpt::latest_checkpoint(root_ / "parts"));
  const std::vector<double> kept = exec::load_numbers(reader, exec::kExpertSlots);
  EXPECT_EQ(std::vector<std::int32_t>(kept.begin(), kept.end()), at_eight);
  loads_.clear();
  const exec::RunSummary rest = run(job("parts", 10), 3);
  EXPECT_EQ(rest.first_step, 8);
  ASSERT_EQ(loads_.size(), 1U);
  std::vector<std::int32_t> flat;
  for (const auto& map : loads_[0].slots) flat.insert(flat.end(), map.begin(), map.end());
  EXPECT_EQ(flat, at_eight);
  for (std::size_t i = 0; i < rest.losses.size(); ++i)
    EXPECT_NEAR(rest.losses[i], stay.losses[8 + i], 1e-10 * stay.losses[8 + i]) << "step " << 8 + i;
}

}  // namespace
}  // namespace tessera::testing
