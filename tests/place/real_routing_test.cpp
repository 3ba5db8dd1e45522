// Routing of real models, where it is at hand beside the checkout (../shared/routing; not ours to ship): the
// figures that docs/placement.md shows hold. Without it these tests are skipped and say so.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "place/balance.h"
#include "place/evaluate.h"
#include "place/input.h"
#include "place/methods.h"
#include "place/published.h"
#include "place/traffic.h"
#include "trace/routing_file.h"

namespace tessera::place {
namespace {

namespace fs = std::filesystem;

fs::path folder() {
  return fs::path(TESSERA_SOURCE_DIR) / ".." / "shared" / "routing";
}

// Two domains of DeepSeek-V2-Lite without their template; the first half of the sequences of each, or the
// second.
PlaceInput halves_of_deepseek(bool first_half) {
  PlaceInput all{.num_experts = 64, .top_k = 6};
  for (const std::string domain : {"intent", "summary"}) {
    const fs::path base = folder() / "deepseek_v2_lite_esft";
    auto stats = trace::read_routing(base / (domain + "_topk.npy"), {.num_experts = 64, .first_layer = 1});
    nlohmann::json meta;
    std::ifstream(base / (domain + "_meta.json")) >> meta;
    const std::vector<std::int64_t> lengths = meta["sequence_lengths"];
    const std::int64_t skip = domain == "intent" ? 15 : 16;
    all.layers = stats.layers;
    all.data.resize(stats.layers.size());
    for (std::int32_t l = 0; l < stats.num_layers(); ++l) {
      const auto choices = stats.choices_of(l);
      std::int64_t at = 0;
      for (std::size_t s = 0; s < lengths.size(); at += lengths[s++]) {
        if ((s < lengths.size() / 2) != first_half) continue;
        all.data[l].tokens.insert(all.data[l].tokens.end(), choices.begin() + (at + skip) * 6,
                                  choices.begin() + (at + lengths[s]) * 6);
      }
    }
  }
  for (LayerInput& layer : all.data) {
    layer.load.assign(64, 0.0);
    for (const std::int16_t e : layer.tokens) layer.load[e] += 1.0;
  }
  return all;
}

class RealRouting : public testing::Test {
 protected:
  void SetUp() override {
    if (!fs::exists(folder())) GTEST_SKIP() << "no routing data in " << folder() << ": nothing is checked";
  }
};

TEST_F(RealRouting, TokensOfDeepSeekV2LiteReachFewerNodesOnSequencesThatWereHeldOut) {
  const PlaceInput train = halves_of_deepseek(true), test = halves_of_deepseek(false);
  struct Expectation {
    std::int32_t nodes;
    double most, contiguous;
  };
  for (const Expectation want : {Expectation{4, 2.58, 3.25}, Expectation{8, 3.51, 4.45}}) {
    double held_out = 0.0, plain = 0.0;
    std::int32_t layers = 0;
    for (std::int32_t l = 0; l < train.num_layers(); l += 8, ++layers) {
      CutProblem problem{.num_experts = 64,
                         .top_k = 6,
                         .num_nodes = want.nodes,
                         .tokens = train.data[l].tokens,
                         .windows = {train.data[l].load},
                         .cap = 0.03};
      const auto node_of = fewest_nodes(problem, {});
      std::vector<double> nodes(want.nodes, 0.0);
      std::vector<std::int32_t> contiguous(64);
      for (std::int32_t e = 0; e < 64; ++e) {
        nodes[node_of[e]] += train.data[l].load[e];
        contiguous[e] = e / (64 / want.nodes);
      }
      EXPECT_GE(balancedness(nodes), 1.0 / 1.03 - 1e-9) << "layer " << l;
      problem.tokens = test.data[l].tokens;
      held_out += mean_nodes(node_of, problem);
      plain += mean_nodes(contiguous, problem);
      EXPECT_GE(mean_nodes(node_of, problem), nodes_bound(problem, 64 / want.nodes));
    }
    EXPECT_LE(held_out / layers, want.most) << want.nodes << " nodes";
    EXPECT_GE(plain / layers, want.contiguous) << want.nodes << " nodes";
  }
}

// The 16 hottest experts of a layer: what the search finds is the optimum over all partitions.
TEST_F(RealRouting, TheSearchFindsTheOptimumOfSixteenExperts) {
  const PlaceInput all = halves_of_deepseek(true);
  for (const std::int32_t l : {0, 12, 24}) {
    const std::vector<double>& load = all.data[l].load;
    std::vector<std::int32_t> order(64), small(64, -1);
    for (std::int32_t e = 0; e < 64; ++e) order[e] = e;
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return load[a] > load[b]; });
    for (std::int32_t i = 0; i < 16; ++i) small[order[i]] = i;
    std::vector<std::int16_t> tokens;
    std::vector<double> loads(16, 0.0);
    for (const std::int16_t e : all.data[l].tokens) {
      tokens.push_back(static_cast<std::int16_t>(small[e]));
      if (small[e] >= 0) loads[small[e]] += 1.0;
    }
    for (const std::int32_t nodes : {2, 4}) {
      const CutProblem problem{.num_experts = 16,
                               .top_k = 6,
                               .num_nodes = nodes,
                               .tokens = tokens,
                               .windows = {loads},
                               .cap = -1.0};
      const double best = mean_nodes(fewest_nodes_exact(problem), problem);
      EXPECT_NEAR(mean_nodes(fewest_nodes(problem, {.visits = 2'000'000}), problem), best, 1e-12)
          << l << " " << nodes;
    }
  }
}

// OLMoE, counts of several domains: a map for all of them is better on a domain that it has not seen.
TEST_F(RealRouting, PlacingForSeveralDomainsIsBetterOnADomainThatWasLeftOut) {
  const auto stats = trace::read_routing(folder() / "olmoe" / "olmoe_expert_counts.json");
  double once = 0.0, robust = 0.0;
  for (const trace::RoutingWindow& window : stats.windows) {
    PlaceInput train = input_of(stats);
    const PlaceInput test = hold_out_window(train, window.name);
    Wish wish{.machine = {.nodes = 1, .gpus = 16, .slots = 80}, .method = Method::balance, .effort = 0.1};
    for (const bool all : {false, true}) {
      wish.robust = all;
      const PlaceResult result = place_experts(train, wish);
      for (std::int32_t l = 0; l < train.num_layers(); ++l) {
        const double b = balancedness(gpu_loads(result.placement.maps[l], test.data[l].load, wish.machine));
        (all ? robust : once) += b / (train.num_layers() * std::ssize(stats.windows));
      }
    }
  }
  EXPECT_GT(robust, once);
}

}  // namespace
}  // namespace tessera::place
