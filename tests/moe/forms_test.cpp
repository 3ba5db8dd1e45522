// Forms of routing by what they promise: who is chosen, how much each expert computes, what noise touches.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "moe/problems.h"
#include "moe/random_routing.h"

namespace tessera::test {
namespace {

using moe::Choice;
using moe::DropPolicy;
using moe::Padding;

TEST(HashRouting, GivesEveryTokenIdItsOwnDifferentExperts) {
  constexpr std::int64_t kIds = 4000;
  const Owned ids(DType::i32, {kIds});
  for (std::int64_t i = 0; i < kIds; ++i) set(ids, i, static_cast<double>(i % 2000));
  const Owned index(DType::i32, {kIds, 3});
  moe::hash_choices(index, ids, 8, {.seed = 5, .layer = 1});
  std::vector<std::int64_t> load(8);
  for (std::int64_t t = 0; t < kIds; ++t) {
    std::set<std::int32_t> chosen;
    for (std::int64_t k = 0; k < 3; ++k) {
      const auto e = static_cast<std::int32_t>(get(index, 3 * t + k));
      chosen.insert(e);
      ++load[static_cast<std::size_t>(e)];
      EXPECT_EQ(e, get(index, 3 * (t % 2000) + k)) << "the same id has the same experts";
    }
    EXPECT_EQ(chosen.size(), 3u);
  }
  for (const std::int64_t n : load) EXPECT_NEAR(n, 1500, 150) << "ids spread evenly";
  const Owned other(DType::i32, {kIds, 3});
  moe::hash_choices(other, ids, 8, {.seed = 5, .layer = 2});
  EXPECT_NE(values(other), values(index)) << "another layer draws anew";
}

TEST(HashRouting, WithOneExpertATokenAndRenormalisedWeightsIsTheUnweightedExpert) {
  WorldStats stats;
  const MoeCase c{.top_k = 1, .choice = Choice::hash};
  const LayerProblem p = moe_problem(c);
  const LayerResult r = run_layer(p, {}, {.inspect = [](const Place&, LayerRig& rig) {
                                    const auto& layer = dynamic_cast<const moe::MoeLayer&>(rig.layer());
                                    for (const double w : values(layer.weights_tK(0))) EXPECT_EQ(w, 1.0);
                                  }});
  for (const double g : r.gradients[1]) EXPECT_EQ(g, 0.0) << "the router has no part in it";
}

TEST(ExpertChoice, FillsEveryExpertExactlyAndTakesItsBestTokens) {
  for (const double factor : {0.0, 0.5, 2.0}) {
    const std::int64_t rows = factor == 0.0 ? 6 : static_cast<std::int64_t>(6 * factor);
    const LayerProblem p =
        moe_problem({.capacity = factor, .microbatches = 1, .choice = Choice::expert_choice});
    WorldStats stats;
    (void)run_layer(p, {}, {.inspect = [&](const Place&, LayerRig& rig) {
                      const auto& layer = dynamic_cast<const moe::MoeLayer&>(rig.layer());
                      stats.add(layer.stats());
                      const std::vector<double> score = values(layer.probs_tE(0));
                      for (std::int64_t e = 0; e < kExperts; ++e) {
                        double worst_kept = 1e300, best_left = -1e300;
                        for (std::int64_t t = 0; t < 12; ++t) {
                          const auto at = static_cast<std::size_t>(t * kExperts + e);
                          const bool kept = get(layer.kept_tK(0), t * kExperts + e) >= 0;
                          if (kept) worst_kept = std::min(worst_kept, score[at]);
                          if (!kept) best_left = std::max(best_left, score[at]);
                        }
                        EXPECT_GT(worst_kept, best_left);
                      }
                    }});
    EXPECT_EQ(stats.sum.chosen, (std::vector<std::int64_t>(kExperts, rows)));
    EXPECT_EQ(stats.total(stats.sum.dropped), 0);
    EXPECT_EQ(stats.sum.received_rows, kExperts * rows);
  }
}

TEST(ExpertChoice, CountsTheTokensThatNoExpertTook) {
  WorldStats stats;
  const LayerProblem p = moe_problem(
      {.capacity = 0.1, .microbatches = 1, .choice = Choice::expert_choice});  // one row an expert
  const LayerResult r = run_moe(p, {}, stats);
  EXPECT_GE(stats.sum.unserved, 12 - kExperts);
  std::int64_t unchanged = 0;
  for (std::int64_t t = 0; t < 12; ++t) {
    bool same = true;
    for (std::int64_t i = 8 * t; i < 8 * t + 8; ++i)
      same = same && r.y[static_cast<std::size_t>(i)] == get(p.x[0], i);
    unchanged += same ? 1 : 0;
  }
  EXPECT_EQ(unchanged, stats.sum.unserved) << "only the residual passes";
}

TEST(Jitter, IsWithinItsBoundsAndBelongsToTheTokenOfTheRun) {
  const Owned ones(DType::f64, {50, 7});
  set_all(ones, 1.0);
  const Owned whole(DType::f64, {50, 7});
  moe::multiply_jitter(whole, ones, 0.1, 1000, {.seed = 3, .layer = 2});
  double least = 2, most = 0, sum = 0;
  for (const double u : values(whole)) {
    least = std::min(least, u);
    most = std::max(most, u);
    sum += u;
  }
  EXPECT_GE(least, 0.9);
  EXPECT_LT(most, 1.1);
  EXPECT_LT(least, 0.91);
  EXPECT_GT(most, 1.09);
  EXPECT_NEAR(sum / 350, 1.0, 0.01);
  const Owned part(DType::f64, {20, 7});
  moe::multiply_jitter(part, ones.tensor().narrow_rows(0, 20), 0.1, 1030, {.seed = 3, .layer = 2});
  EXPECT_EQ(values(part), values(whole.tensor().narrow_rows(30, 20)));
}

// The result of a layer in f64 by hand of the same seeds, in training or not.
Values output(const LayerProblem& p, bool training) {
  RankGroups groups({}, 0, nullptr);
  const auto kernels = kernels::make_reference();
  RankParams params(p.params);
  nn::Dims dims = p.dims;
  const auto layer = p.make(groups.place, dims, params);
  tensor::Arena slots(Bytes(1 << 20)), scratch(Bytes(1 << 20));
  layer->reserve_saved(slots);
  nn::Context ctx{.kernels = *kernels,
                  .tp = *groups.place.tp,
                  .scratch = scratch,
                  .weights = p.weights,
                  .training = training};
  const Owned y(DType::f64, {dims.local_tokens(), dims.hidden});
  layer->forward(ctx, {0, 0}, {.ids_T = p.ids[0]}, p.x[0], y, nn::Pass::forward);
  return values(y);
}

TEST(Jitter, IsAbsentFromEvaluation) {
  const LayerProblem still = moe_problem({.renormalise = false, .microbatches = 1});
  const LayerProblem noisy = moe_problem({.renormalise = false, .microbatches = 1, .jitter = 0.2});
  EXPECT_EQ(output(noisy, false), output(still, false));
  EXPECT_NE(output(noisy, true), output(still, true));
}

TEST(Padding, ChangesNothingButTheRowsThatAreComputed) {
  for (const RankLayout& layout : {RankLayout{}, RankLayout{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
      MoeCase c{.aux = 0.2, .capacity = 0.8, .drops = policy, .expert_bias = true};
      const LayerResult plain = run_layer(moe_problem(c), layout);
      c.padding = Padding::to_capacity;
      const LayerProblem p = moe_problem(c);
      expect_near(p, run_layer(p, layout), plain, 1e-14);
    }
  }
}

TEST(Padding, LetsEveryExpertComputeItsCapacity) {
  const auto flops = [](Padding padding) {
    const LayerProblem p =
        moe_problem({.capacity = 2.0, .microbatches = 1, .one_expert = true, .padding = padding});
    RankGroups groups({}, 0, nullptr);
    const auto kernels = kernels::make_reference();
    RankParams params(p.params);
    const auto layer = p.make(groups.place, p.dims, params);
    tensor::Arena slots(Bytes(1 << 20)), scratch(Bytes(1 << 20));
    layer->reserve_saved(slots);
    nn::Context ctx{.kernels = *kernels, .tp = *groups.place.tp, .scratch = scratch, .weights = p.weights};
    const Owned y(DType::f64, {p.dims.local_tokens(), p.dims.hidden});
    layer->forward(ctx, {0, 0}, {.ids_T = p.ids[0]}, p.x[0], y, nn::Pass::forward);
    return kernels->flops().value;
  };
  const std::int64_t router = 2 * 12 * kExperts * 8;
  const std::int64_t row = 2 * 3 * kExpertWidth * 8;
  EXPECT_EQ(flops(Padding::none), router + 24 * row);  // C = 12: nothing is dropped
  EXPECT_EQ(flops(Padding::to_capacity), router + kExperts * 12 * row);
}

}  // namespace
}  // namespace tessera::test
