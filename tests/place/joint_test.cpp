// The one objective in seconds: it is what evaluate says, the search finds its optimum where all placements
// can be tried, and keeps its limits.
#include "place/joint.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "place/candidates.h"
#include "place/evaluate.h"
#include "place/synthetic.h"

namespace tessera::place {
namespace {

struct Small {
  Machine machine{.nodes = 2, .gpus = 4, .slots = 8};
  LayerInput layer;
  JointGoal goal;
  CostOptions cost;
};

Small small_case(std::int32_t number) {
  Small s;
  s.layer.tokens = synthetic_tokens(
      {.num_experts = 8, .top_k = 2, .num_clusters = 4, .num_tokens = 300, .cluster_share = 0.8}, number);
  s.layer.load.assign(8, 0.0);
  for (const std::int16_t e : s.layer.tokens) s.layer.load[e] += 1.0;
  for (std::int32_t w = 0; w < 2; ++w) {
    s.layer.windows.push_back(synthetic_load({.num_experts = 8, .spread = 0.5, .drift = 0.3}, number, w));
  }
  s.cost.rates = {.seconds_per_choice = 1e-6, .bytes_per_copy = 1.0, .node_bandwidth = 2e6, .tokens = 1000.0};
  s.goal = {.windows = s.layer.windows,
            .tokens = s.layer.tokens,
            .top_k = 2,
            .before = {},
            .compute = 1000.0 * 2 / 4 * 1e-6,
            .network = 1000.0 / 2e6};
  return s;
}

TEST(Joint, ObjectiveIsThePredictedSeconds) {
  const Small s = small_case(1);
  for (std::uint64_t seed = 1; seed < 6; ++seed) {
    const LayerMap map = shuffled(s.machine, 8, seed, 0);
    EXPECT_NEAR(joint_seconds(map, s.machine, s.goal, {}),
                cost_of(map, s.machine, s.layer, 2, s.cost).seconds.total(), 1e-12);
  }
}

TEST(Joint, FindsTheOptimumOfAllPlacementsOfEightExperts) {
  for (const std::int32_t number : {1, 2, 3}) {
    const Small s = small_case(number);
    double best = 1e9;
    LayerMap map = contiguous(s.machine, 8);
    do {
      bool ordered = true;  // slots of a device are alike
      for (std::size_t g = 0; g < 8; g += 2) ordered = ordered && map[g] < map[g + 1];
      if (ordered) best = std::min(best, joint_seconds(map, s.machine, s.goal, {}));
    } while (std::next_permutation(map.begin(), map.end()));
    const LayerMap found =
        anneal_seconds(contiguous(s.machine, 8), s.machine, s.goal, {.visits = 1'000'000, .hot = 0.05});
    EXPECT_NEAR(joint_seconds(found, s.machine, s.goal, {}), best, 1e-12) << number;
  }
}

TEST(Joint, IsNeverWorseThanTheStartAndKeepsTheLimitOnMoves) {
  Small s = small_case(4);
  s.machine.slots = 12;
  const LayerMap start = contiguous(s.machine, 8);
  s.goal.before = start;
  s.goal.migration = 1e-6;
  for (const std::int32_t most : {0, 1, 3}) {
    s.goal.most_moved = most;
    const LayerMap found = anneal_seconds(start, s.machine, s.goal, {.visits = 200'000});
    EXPECT_LE(moved_slots(start, found, s.machine), most);
    EXPECT_LE(joint_seconds(found, s.machine, s.goal, {}), joint_seconds(start, s.machine, s.goal, {}));
    EXPECT_EQ(wasted_slots(found, s.machine), 0);
    for (const std::int32_t c : replica_counts(found, 8)) EXPECT_GE(c, 1);
    if (most == 0) {
      EXPECT_EQ(found, start);
    }
  }
}

TEST(Joint, IsAmongTheCandidatesAndNoWorseThanTheMethods) {
  Wish wish{.machine = {.nodes = 4, .gpus = 8, .slots = 32}};
  wish.rates = {.seconds_per_choice = 1e-6, .bytes_per_copy = 1.0, .node_bandwidth = 1e6, .tokens = 1000.0};
  LayerInput layer;
  layer.tokens = synthetic_tokens(
      {.num_experts = 32, .top_k = 4, .num_clusters = 8, .num_tokens = 2000, .cluster_share = 0.6}, 1);
  layer.load.assign(32, 0.0);
  for (const std::int16_t e : layer.tokens) layer.load[e] += 1.0;
  wish.effort = 0.1;
  const std::vector<Candidate> all = candidates(layer, 4, wish, nullptr);
  const auto joint = std::ranges::find(all, "annealed on seconds", &Candidate::name);
  ASSERT_NE(joint, all.end());
  for (auto c = all.begin(); c != joint; ++c)
    EXPECT_LE(joint->cost.seconds.total(), c->cost.seconds.total() * (1.0 + 1e-9)) << c->name;
}

}  // namespace
}  // namespace tessera::place
