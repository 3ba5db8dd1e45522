// Even load: the bound holds, small optima are found by trying everything, two replicas never share a GPU.
#include "place/balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "place/published.h"
#include "place/search.h"
#include "place/synthetic.h"

namespace tessera::place {
namespace {

double fullest(const LayerMap& map, const std::vector<double>& load, const Machine& machine) {
  return largest(gpu_loads(map, load, machine));
}

// The lightest fullest device of all placements without two replicas on one, by trying every set of experts
// on every device.
double optimum(const std::vector<double>& load, const Machine& machine) {
  const auto experts = static_cast<std::int32_t>(load.size());
  double best = 1e300;
  LayerMap map(machine.slots, 0);
  const std::function<void(std::int32_t)> fill = [&](std::int32_t slot) {
    if (slot == machine.slots) {
      const auto counts = replica_counts(map, experts);
      if (std::find(counts.begin(), counts.end(), 0) == counts.end()) {
        best = std::min(best, fullest(map, load, machine));
      }
      return;
    }
    const bool first = slot % machine.slots_per_gpu() == 0;
    for (std::int32_t e = first ? 0 : map[slot - 1] + 1; e < experts; ++e) {  // inside a device in order
      map[slot] = e;
      fill(slot + 1);
    }
  };
  fill(0);
  return best;
}

TEST(Balance, FindsTheOptimumOfSmallCasesAndItsBoundHolds) {
  for (std::int32_t l = 0; l < 12; ++l) {
    const std::int32_t experts = 4 + l % 2;
    const Machine machine{.nodes = 1, .gpus = 3, .slots = 6};
    const std::vector<double> load = synthetic_load({.num_experts = experts, .zipf = 0.4, .spread = 0.3}, l);
    const double best = optimum(load, machine);
    const double found = fullest(balance(load, machine, {}), load, machine);
    EXPECT_LE(load_bound(load, machine), best * (1.0 + 1e-12));
    EXPECT_LE(found, best * (1.0 + 1e-9)) << "layer " << l;
  }
}

TEST(Balance, IsNeverBelowThePublishedBalancerAndCloseToItsBound) {
  double published_sum = 0.0, sum = 0.0;
  const Machine machine{.nodes = 4, .gpus = 32, .slots = 288};
  for (std::int32_t l = 0; l < 10; ++l) {
    const std::vector<double> load =
        synthetic_load({.num_groups = 8, .spread = 0.4, .group_spread = 0.65}, l);
    const LayerMap map = balance(load, machine, {});
    const double theirs = fullest(published_map(load, machine, 1), load, machine);
    EXPECT_LE(fullest(map, load, machine), theirs);
    EXPECT_EQ(wasted_slots(map, machine), 0);
    published_sum += balancedness(gpu_loads(published_map(load, machine, 1), load, machine)) / 10;
    sum += balancedness(gpu_loads(map, load, machine)) / 10;
  }
  EXPECT_GE(sum, 0.9995);
  EXPECT_LT(published_sum, 0.995);
}

TEST(Balance, TakesEveryShapeThatTheMachineAllows) {
  for (const Machine machine : {Machine{1, 1, 8}, Machine{1, 8, 8}, Machine{1, 4, 32}, Machine{2, 2, 10},
                                Machine{1, 3, 24}, Machine{1, 6, 48}}) {
    for (const double zipf : {0.0, 3.0}) {
      const std::vector<double> load = synthetic_load({.num_experts = 8, .zipf = zipf}, 1);
      const LayerMap map = balance(load, machine, {});
      Problems problems;
      check_placement({.machine = machine, .num_experts = 8, .layers = {0}, .maps = {map}}, "map", problems);
      EXPECT_TRUE(problems.empty()) << machine.gpus << " " << machine.slots;
      EXPECT_EQ(wasted_slots(map, machine), 0) << machine.gpus << " " << machine.slots;
    }
  }
}

TEST(Balance, OfNoLoadAtAllIsStillAPlacement) {
  const std::vector<double> load(8, 0.0);
  const Machine machine{.nodes = 1, .gpus = 4, .slots = 12};
  const LayerMap map = balance(load, machine, {});
  EXPECT_EQ(map.size(), 12U);
  EXPECT_EQ(balancedness(gpu_loads(map, load, machine)), 1.0);
}

TEST(Balance, DealsSlotsSoThatNoOtherDealHasASmallerLargestShare) {
  const std::vector<double> load = {9, 5, 4, 1};
  EXPECT_THAT(apportion(load, 7, 7), testing::ElementsAre(3, 2, 1, 1));
  EXPECT_THAT(apportion(load, 7, 2), testing::ElementsAre(2, 2, 2, 1));
}

TEST(Anneal, FulfilsItsConditionsAndNeverWorsensTheStart) {
  const Machine machine{.nodes = 4, .gpus = 16, .slots = 80};
  SearchGoal goal;
  for (std::int32_t w = 0; w < 3; ++w) {
    goal.windows.push_back(synthetic_load({.num_experts = 64, .spread = 0.5, .drift = 0.4}, 2, w));
  }
  const LayerMap start = balance(goal.windows[0], machine, {});
  goal.before = start;
  goal.most_moved = 12;
  const LayerMap map = anneal(start, machine, goal, {.steps = 100'000});
  EXPECT_LE(moved_slots(start, map, machine), 12);
  EXPECT_EQ(wasted_slots(map, machine), 0);
  const auto counts = replica_counts(map, 64);
  EXPECT_EQ(std::count(counts.begin(), counts.end(), 0), 0);
  const double was = value_of(terms_of(start, machine, goal), goal),
               is = value_of(terms_of(map, machine, goal), goal);
  EXPECT_LT(is, was);
  EXPECT_EQ(map, anneal(start, machine, goal, {.steps = 100'000}));
}

}  // namespace
}  // namespace tessera::place
