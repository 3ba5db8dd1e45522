// The methods together: what each keeps, the same on any number of threads, wishes that cannot be fulfilled.
#include "place/methods.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "place/balance.h"
#include "place/candidates.h"
#include "place/published.h"
#include "place/relaxed.h"
#include "place/synthetic.h"

namespace tessera::place {
namespace {

using testing::AllOf;
using testing::HasSubstr;

// Three layers of 32 experts in 4 groups, tokens that stay in clusters, and three drifting windows.
PlaceInput small_input() {
  PlaceInput input{.num_experts = 32, .top_k = 4, .layers = {1, 2, 5}, .window_names = {"a", "b", "c"}};
  for (std::int32_t l = 0; l < 3; ++l) {
    LayerInput layer;
    layer.tokens = synthetic_tokens(
        {.num_experts = 32, .top_k = 4, .num_clusters = 8, .num_tokens = 1500, .cluster_share = 0.7}, l);
    layer.load.assign(32, 0.0);
    for (const std::int16_t e : layer.tokens) layer.load[e] += 1.0;
    for (std::int32_t w = 0; w < 3; ++w) {
      layer.windows.push_back(synthetic_load({.num_experts = 32, .spread = 0.4, .drift = 0.4}, l, w));
    }
    input.data.push_back(layer);
  }
  return input;
}

Wish small_wish(Method method) {
  Wish wish{.machine = {.nodes = 4, .gpus = 8, .slots = 40}, .method = method, .effort = 0.05};
  wish.rates = {.seconds_per_choice = 1e-7,
                .bytes_per_copy = 2e4,
                .node_bandwidth = 1e11,
                .expert_bytes = 4e7,
                .gpu_bandwidth = 1e10};
  return wish;
}

TEST(Methods, AllGiveWholePlacementsThatDoNotDependOnThreads) {
  const PlaceInput input = small_input();
  for (const std::string& word : method_names()) {
    Wish wish = small_wish(method_of(word));
    const PlaceResult one = place_experts(input, wish);
    Problems problems;
    check_wish(input, wish, problems);
    check_placement(one.placement, word, problems);
    EXPECT_TRUE(problems.empty()) << word;
    wish.threads = 3;
    EXPECT_EQ(place_experts(input, wish).placement, one.placement) << word;
    for (std::size_t l = 0; l < 3; ++l) {
      const LayerMap& map = one.placement.maps[l];
      EXPECT_LE(balancedness(gpu_loads(map, input.data[l].load, wish.machine)), one.bounds[l].balance + 1e-9)
          << word;
      const bool ours = wish.method >= Method::balance;
      if (ours) {
        EXPECT_EQ(wasted_slots(map, wish.machine), 0) << word;
      }
    }
  }
}

TEST(Methods, ByLeastSecondsIsNoSlowerThanAnyOther) {
  const PlaceInput input = small_input();
  const auto seconds = [&](Method method) {
    Wish wish = small_wish(method);
    const PlaceResult r = place_experts(input, wish);
    double sum = 0.0;
    for (std::size_t l = 0; l < 3; ++l) {
      sum +=
          cost_of(r.placement.maps[l], wish.machine, input.data[l], 4, {.rates = wish.rates}).seconds.total();
    }
    return sum;
  };
  const double best = seconds(Method::seconds);
  for (const Method method :
       {Method::contiguous, Method::published, Method::balance, Method::relaxed, Method::traffic}) {
    EXPECT_LE(best, seconds(method) * (1.0 + 1e-9)) << name(method);
  }
}

TEST(Methods, RelaxedKeepsAReplicaAtHomeAndBeatsIntactGroups) {
  const Machine machine{.nodes = 4, .gpus = 32, .slots = 288};
  const std::vector<double> load = synthetic_load({.num_groups = 8, .spread = 0.4, .group_spread = 0.65}, 3);
  const RelaxedMap r = relaxed({load}, machine, 8, {.search = {.steps = 200'000}});
  const double mean = 1.0 / intact_groups_bound(load, machine, 8);
  const double b = balancedness(gpu_loads(r.map, load, machine));
  EXPECT_GT(b, mean);
  EXPECT_LE(b, 1.0 / relaxed_bound(load, machine, r.home) + 1e-9);
  EXPECT_LE(balancedness(gpu_loads(published_map(load, machine, 8), load, machine)), mean + 1e-9);
  EXPECT_GT(r.off_home, 0.0);
  EXPECT_LT(r.off_home, 0.2);
  std::vector<bool> home(256, false);
  for (std::int32_t s = 0; s < machine.slots; ++s) {
    if (r.home[r.map[s]] == machine.node_of(s)) home[r.map[s]] = true;
  }
  EXPECT_EQ(std::count(home.begin(), home.end(), false), 0);
  for (std::int32_t e = 1; e < 256; ++e) {
    const bool same_group = e % 32 != 0;
    EXPECT_TRUE(!same_group || r.home[e] == r.home[e - 1]) << e;
  }
}

TEST(Methods, FromACurrentPlacementMoveNoMoreThanAllowedAndGetBetter) {
  const PlaceInput input = small_input();
  Wish wish = small_wish(Method::balance);
  wish.effort = 0.2;
  const Placement start = place_experts(input, wish).placement;
  PlaceInput later = input;
  for (std::int32_t l = 0; l < 3; ++l) later.data[l].load = later.data[l].windows[2];
  wish.current = &start;
  wish.most_moved = 0.1;
  const PlaceResult few = place_experts(later, wish);
  for (std::int32_t l = 0; l < 3; ++l) {
    EXPECT_LE(moved_slots(start.maps[l], few.placement.maps[l], wish.machine), 4);
    const double was = balancedness(gpu_loads(start.maps[l], later.data[l].load, wish.machine));
    EXPECT_GT(balancedness(gpu_loads(few.placement.maps[l], later.data[l].load, wish.machine)), was);
  }
  wish.most_moved = 0.0;
  EXPECT_EQ(place_experts(later, wish).placement.maps, start.maps);
}

TEST(Methods, OneMapIsTheSameInAllLayers) {
  Wish wish = small_wish(Method::traffic);
  wish.one_map = true;
  const Placement p = place_experts(small_input(), wish).placement;
  EXPECT_EQ(p.maps[0], p.maps[1]);
  EXPECT_EQ(p.maps[0], p.maps[2]);
  EXPECT_EQ(p.layers, (std::vector<std::int32_t>{1, 2, 5}));
}

TEST(Methods, FrontHoldsNoPointThatAnotherBeats) {
  const PlaceInput input = small_input();
  Wish wish = small_wish(Method::seconds);
  const Placement start = place_experts(input, small_wish(Method::contiguous)).placement;
  wish.current = &start;
  const std::vector<FrontPoint> front = pareto_front(input, wish);
  ASSERT_GT(front.size(), 1U);
  for (const FrontPoint& p : front) {
    for (const FrontPoint& q : front) {
      EXPECT_FALSE(q.seconds.compute < p.seconds.compute && q.seconds.network < p.seconds.network &&
                   q.moved < p.moved)
          << q.name << " beats " << p.name;
    }
  }
}

TEST(Wish, SaysEveryFaultAtOnce) {
  PlaceInput input = small_input();
  for (LayerInput& layer : input.data) layer.tokens.clear();
  Wish wish = small_wish(Method::traffic);
  wish.num_groups = 5;
  wish.cap = -0.5;
  wish.most_moved = 2.0;
  Problems problems;
  check_wish(input, wish, problems);
  std::string all;
  for (const Problem& p : problems.list()) all += p.what + "; " + p.mend + "\n";
  EXPECT_THAT(all, AllOf(HasSubstr("5 groups do not divide 32 experts; use a number in {1, 2, 4, 8, 16, 32}"),
                         HasSubstr("the cap -0.5 on a node's load is below 0"),
                         HasSubstr("moved slots 2 is not within"), HasSubstr("counts alone do not say")));
  try {
    (void)method_of("balanse");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("did you mean balance?"));
  }
}

TEST(Input, HoldsOutWindowsAndTokens) {
  PlaceInput input = small_input();
  PlaceInput train = input;
  const PlaceInput test = hold_out_window(train, "b");
  EXPECT_EQ(test.data[1].load, input.data[1].windows[1]);
  EXPECT_EQ(train.window_names, (std::vector<std::string>{"a", "c"}));
  EXPECT_EQ(train.data[0].load[3], input.data[0].windows[0][3] + input.data[0].windows[2][3]);
  try {
    (void)hold_out_window(train, "b");
    ADD_FAILURE() << "taken";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("no load window \"b\""), HasSubstr("the windows are a, c")));
  }
  PlaceInput half = input;
  const PlaceInput rest = hold_out_tokens(half, 0.25);
  EXPECT_EQ(half.data[0].tokens.size(), 4U * 1125);
  EXPECT_EQ(rest.data[0].tokens.size(), 4U * 375);
  EXPECT_THROW((void)hold_out_tokens(half, 1.0), Error);
  half.window_names.clear();
  cut_windows(half, 3);
  EXPECT_EQ(half.data[2].windows.size(), 3U);
}

}  // namespace
}  // namespace tessera::place
