// Distinct nodes per token: optima of small cases by trying every partition, bounds, what cannot be saved.
#include "place/traffic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "place/evaluate.h"
#include "place/synthetic.h"

namespace tessera::place {
namespace {

struct SmallCase {
  std::vector<std::int16_t> tokens;
  CutProblem problem;
};

SmallCase small_case(std::int32_t experts, std::int32_t nodes, std::int32_t layer, double cap) {
  SmallCase c;
  c.tokens =
      synthetic_tokens({.num_experts = experts, .top_k = 3, .num_clusters = 4, .num_tokens = 500}, layer);
  std::vector<double> load(experts, 0.0);
  for (const std::int16_t e : c.tokens) load[e] += 1.0;
  c.problem = {.num_experts = experts, .top_k = 3, .num_nodes = nodes, .windows = {load}, .cap = cap};
  return c;
}

double fullest_node(const std::vector<std::int32_t>& node_of, const CutProblem& p) {
  std::vector<double> node(p.num_nodes, 0.0);
  double sum = 0.0;
  for (std::size_t e = 0; e < node_of.size(); ++e) {
    node[node_of[e]] += p.windows[0][e];
    sum += p.windows[0][e];
  }
  return largest(node) / sum * p.num_nodes;
}

// Over all partitions into equal parts under the cap; 1e300 where there is none.
double optimum(const CutProblem& p) {
  double best = 1e300;
  std::vector<std::int32_t> node(p.num_experts, 0), room(p.num_nodes, p.num_experts / p.num_nodes);
  const std::function<void(std::int32_t, std::int32_t)> place = [&](std::int32_t e, std::int32_t used) {
    if (e == p.num_experts) {
      if (p.cap >= 0.0 && fullest_node(node, p) > 1.0 + p.cap + 1e-9) return;
      best = std::min(best, mean_nodes(node, p));
      return;
    }
    for (std::int32_t n = 0; n < std::min(used + 1, p.num_nodes); ++n) {
      if (room[n] == 0) continue;
      --room[n];
      node[e] = n;
      place(e + 1, std::max(used, n + 1));
      ++room[n];
    }
  };
  place(0, 0);
  return best;
}

TEST(FewestNodes, BothSearchesFindTheOptimumOfSmallCases) {
  for (std::int32_t layer = 0; layer < 6; ++layer) {
    for (const std::int32_t nodes : {2, 3, 4}) {
      for (const double cap : {-1.0, 0.08}) {
        SmallCase c = small_case(12, nodes, layer, cap);
        c.problem.tokens = c.tokens;
        const double best = optimum(c.problem);
        if (best > 1e299) continue;
        EXPECT_NEAR(mean_nodes(fewest_nodes_exact(c.problem), c.problem), best, 1e-12);
        const auto found = fewest_nodes(c.problem, {.visits = 400'000});
        EXPECT_NEAR(mean_nodes(found, c.problem), best, 1e-12) << layer << " " << nodes << " " << cap;
        EXPECT_LE(nodes_bound(c.problem, 12 / nodes), best + 1e-9);
        if (cap >= 0.0) {
          EXPECT_LE(fullest_node(found, c.problem), 1.0 + cap + 1e-9);
        }
      }
    }
  }
}

TEST(FewestNodes, FindsPlantedClustersAndHoldsTheCap) {
  SmallCase c;
  c.tokens = synthetic_tokens({.num_experts = 64, .top_k = 6, .num_clusters = 8, .cluster_share = 0.9}, 0);
  std::vector<double> load(64, 0.0);
  for (const std::int16_t e : c.tokens) load[e] += 1.0;
  c.problem = {
      .num_experts = 64, .top_k = 6, .num_nodes = 4, .tokens = c.tokens, .windows = {load}, .cap = 0.03};
  std::vector<std::int32_t> contiguous(64);
  for (std::int32_t e = 0; e < 64; ++e) contiguous[e] = e / 16;
  const auto found = fewest_nodes(c.problem, {.visits = 4'000'000});
  EXPECT_LT(mean_nodes(found, c.problem), 0.65 * mean_nodes(contiguous, c.problem));
  EXPECT_LE(fullest_node(found, c.problem), 1.03 + 1e-9);
  EXPECT_GE(mean_nodes(found, c.problem), nodes_bound(c.problem, 16));
  EXPECT_EQ(found, fewest_nodes(c.problem, {.visits = 4'000'000}));
}

TEST(Traffic, CountsCopiesOfAHandMadeCase) {
  // 2 nodes of 2 GPUs, one slot each: experts 0 1 | 2 3.
  const Machine machine{.nodes = 2, .gpus = 4, .slots = 4};
  const LayerMap map = {0, 1, 2, 3};
  const std::vector<std::int16_t> tokens = {0, 1, 0, 2, 2, 3, 3, -1};
  const std::vector<std::int32_t> sources = {0, 0, 0, 1};
  const Traffic t = traffic_of(map, machine, tokens, 4, 2, {.sources = sources});
  EXPECT_DOUBLE_EQ(t.nodes, 5.0 / 4);
  EXPECT_DOUBLE_EQ(t.gpus, 7.0 / 4);
  EXPECT_DOUBLE_EQ(t.across, 2.0 / 4);      // of tokens 1 and 2, to node 1
  EXPECT_DOUBLE_EQ(t.across_all, 3.0 / 4);  // token 2 goes twice
  EXPECT_THAT(t.ingress, testing::ElementsAre(0.0, 2.0 / 4));
  EXPECT_THAT(t.egress, testing::ElementsAre(2.0 / 4, 0.0));
  EXPECT_DOUBLE_EQ(t.bottleneck(), 2.0 / 4);
}

TEST(Traffic, OfEvenSourcesIsAFixedShareOfTheNodesAndOfTheChoices) {
  const Machine machine{.nodes = 4, .gpus = 8, .slots = 64};
  const auto tokens = synthetic_tokens({.num_tokens = 2000}, 3);
  for (const LayerMap& map :
       {contiguous(machine, 64), shuffled(machine, 64, 1, 0), shuffled(machine, 64, 2, 0)}) {
    const Traffic t = traffic_of(map, machine, tokens, 64, 6, {});
    EXPECT_NEAR(t.across, t.nodes * 0.75, 1e-12);
    EXPECT_NEAR(t.across_all, 6 * 0.75, 1e-9);  // no placement without replicas changes it
  }
}

TEST(Traffic, CoveringReachesNoMoreNodesThanTakingTurns) {
  const Machine machine{.nodes = 4, .gpus = 8, .slots = 96};
  const auto tokens = synthetic_tokens({.num_tokens = 2000}, 4);
  const LayerMap map = shuffled(machine, 64, 5, 0);
  const Traffic even = traffic_of(map, machine, tokens, 64, 6, {});
  const Traffic cover = traffic_of(map, machine, tokens, 64, 6, {.choice = ReplicaChoice::cover});
  EXPECT_LT(cover.nodes, even.nodes);
  EXPECT_NEAR(cover.across_all, even.across_all, 1e-9);
}

TEST(Traffic, OfLoadsAloneIsThatOfTheChoices) {
  const Machine machine{.nodes = 4, .gpus = 8, .slots = 64};
  const auto tokens = synthetic_tokens({.num_tokens = 3000}, 5);
  std::vector<double> load(64, 0.0);
  for (const std::int16_t e : tokens) load[e] += 1.0;
  const LayerMap map = shuffled(machine, 64, 7, 0);
  const Traffic all = traffic_of(map, machine, tokens, 64, 6, {});
  const Traffic loads = traffic_of_loads(map, machine, load, 6);
  EXPECT_NEAR(loads.across_all, all.across_all, 1e-9);
  double in = 0.0, out = 0.0;
  for (const double x : loads.ingress) in += x;
  for (const double x : loads.egress) out += x;
  EXPECT_NEAR(in, loads.across, 1e-9);
  EXPECT_NEAR(out, loads.across, 1e-9);
}

}  // namespace
}  // namespace tessera::place
