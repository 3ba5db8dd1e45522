// The port of DeepSeek's balancer against the example of its README, against its own rules, and its time.
#include "place/published.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "place/balance.h"
#include "place/synthetic.h"

namespace tessera::place {
namespace {

using testing::ElementsAre;

const std::vector<double> kLayer0 = {90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86};
const std::vector<double> kLayer1 = {20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27};
constexpr Machine kExample{.nodes = 2, .gpus = 8, .slots = 16};

TEST(PublishedBalancer, GivesTheMapsOfItsReadme) {
  EXPECT_THAT(published_map(kLayer0, kExample, 4),
              ElementsAre(5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1));
  EXPECT_THAT(published_map(kLayer1, kExample, 4),
              ElementsAre(7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1));
}

TEST(PublishedBalancer, HasTheBalanceThatWasMeasuredOnItsExample) {
  const auto balance = [&](const std::vector<double>& load, std::int32_t groups) {
    return balancedness(gpu_loads(published_map(load, kExample, groups), load, kExample));
  };
  EXPECT_NEAR(balance(kLayer0, 4), 0.828, 5e-4);
  EXPECT_NEAR(balance(kLayer1, 4), 0.805, 5e-4);
  EXPECT_NEAR(balance(kLayer0, 1), 0.932, 5e-4);  // the nodes do not divide 1 group: the global policy
  EXPECT_NEAR(balance(kLayer1, 1), 0.840, 5e-4);
}

TEST(PublishedBalancer, ReplicaNumbersAndCountsBelongToTheMap) {
  const PublishedMap p = published(kLayer0, kExample, 4);
  EXPECT_EQ(p.counts, replica_counts(p.expert_of_slot, 12));
  std::vector<std::vector<bool>> seen(12, std::vector<bool>(8, false));
  for (std::size_t s = 0; s < p.expert_of_slot.size(); ++s) {
    const auto e = static_cast<std::size_t>(p.expert_of_slot[s]), r = static_cast<std::size_t>(p.replica[s]);
    ASSERT_LT(p.replica[s], p.counts[e]);
    EXPECT_FALSE(seen[e][r]);
    seen[e][r] = true;
  }
}

TEST(PublishedBalancer, EqualLoadsKeepTheirOrder) {
  const std::vector<double> even(8, 3.0);
  EXPECT_THAT(published_map(even, {.nodes = 1, .gpus = 4, .slots = 8}, 1),
              ElementsAre(0, 4, 1, 5, 2, 6, 3, 7));
  // One group a node needs no packing: groups stay where they are.
  EXPECT_THAT(published_map(even, {.nodes = 2, .gpus = 2, .slots = 8}, 2),
              ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

// Slow and plain: the same three steps with lists, as they are described.
LayerMap plain_global(const std::vector<double>& load, const Machine& machine) {
  std::vector<float> weight(load.begin(), load.end());
  std::vector<std::int32_t> item(load.size()), counts(load.size(), 1);
  for (std::size_t e = 0; e < load.size(); ++e) item[e] = static_cast<std::int32_t>(e);
  while (std::ssize(item) < machine.slots) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < load.size(); ++e) {
      if (weight[e] / static_cast<float>(counts[e]) > weight[best] / static_cast<float>(counts[best]))
        best = e;
    }
    ++counts[best];
    item.push_back(static_cast<std::int32_t>(best));
  }
  std::vector<std::size_t> order(item.size());
  for (std::size_t s = 0; s < order.size(); ++s) order[s] = s;
  const auto share = [&](std::size_t s) { return weight[item[s]] / static_cast<float>(counts[item[s]]); };
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return share(a) > share(b); });
  std::vector<float> full(machine.gpus, 0.0F);
  std::vector<std::vector<std::int32_t>> held(machine.gpus);
  for (const std::size_t s : order) {
    std::int32_t to = -1;
    for (std::int32_t g = 0; g < machine.gpus; ++g) {
      if (std::ssize(held[g]) == machine.slots_per_gpu()) continue;
      if (to < 0 || full[g] < full[to]) to = g;
    }
    full[to] += share(s);
    held[to].push_back(item[s]);
  }
  LayerMap map;
  for (const auto& gpu : held) map.insert(map.end(), gpu.begin(), gpu.end());
  return map;
}

TEST(PublishedBalancer, EqualsAPlainRenderingOfItsSteps) {
  for (std::int32_t l = 0; l < 20; ++l) {
    const std::vector<double> load = synthetic_load({.num_experts = 64, .zipf = 0.1 * (l % 10)}, l);
    for (const std::int32_t gpus : {4, 8, 16, 32}) {
      const Machine machine{.nodes = 1, .gpus = gpus, .slots = 96};
      ASSERT_EQ(published_map(load, machine, 1), plain_global(load, machine)) << l << " on " << gpus;
    }
  }
}

TEST(PublishedBalancer, PutsTwoReplicasOnOneGpuAndOursNever) {
  const Machine machine{.nodes = 1, .gpus = 32, .slots = 288};
  std::int32_t theirs = 0, ours = 0;
  for (std::int32_t l = 0; l < 20; ++l) {
    const std::vector<double> load = synthetic_load({.spread = 0.5, .group_spread = 0.3}, l);
    theirs += wasted_slots(published_map(load, machine, 1), machine) > 0 ? 1 : 0;
    ours += wasted_slots(balance(load, machine, {}), machine);
  }
  EXPECT_GT(theirs, 0);
  EXPECT_EQ(ours, 0);
}

}  // namespace
}  // namespace tessera::place
