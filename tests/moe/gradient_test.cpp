// Backward passes of the mixture of experts against central differences in f64, with random upstream
// gradients and every term of its loss: through the combine, through the router's weights, balancing,
// z-loss. Points with a small margin between chosen and refused experts would sit on a kink, so margins are
// checked first.
#include <gtest/gtest.h>

#include "moe/problems.h"
#include "support/layer_gradients.h"

namespace tessera::test {
namespace {

using kernels::RouterScore;
using moe::BalanceUnit;
using moe::DropPolicy;
using nn::Recompute;

// The smallest distance between the logits of a chosen and of a refused expert, over all tokens.
double routing_margin(const LayerProblem& p, const MoeCase& c) {
  const auto k = kernels::make_reference();
  double margin = 1e300;
  for (const Owned& x : p.x) {
    const std::int64_t tokens = x.tensor().rows();
    const Owned n(DType::f64, x.tensor().shape());
    const Owned rstd(DType::f64, {tokens});
    const Owned logits(DType::f64, {tokens, kExperts});
    k->rms_norm(n, rstd, x, p.params[0].value, kNormEps);
    k->linear(logits, n, {.value_NK = p.params[1].value});
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<double> z = values(logits.tensor().narrow_rows(t, 1));
      std::ranges::sort(z, std::greater<>());
      if (c.top_k < kExperts) margin = std::min(margin, z[c.top_k - 1] - z[c.top_k]);
    }
  }
  return margin;
}

void expect_moe_gradients(const MoeCase& c) {
  const LayerProblem p = counting_each_run(moe_problem(c));
  ASSERT_GT(routing_margin(p, c), 1e-3) << "choose another seed: this point is too near to a kink";
  expect_gradients(p, CheckInput::yes, {.max_coordinates = 100});
}

struct Form {
  const char* name;
  RouterScore score;
  bool renormalise;
};
class RouterForms : public ::testing::TestWithParam<std::tuple<Form, Recompute>> {};
INSTANTIATE_TEST_SUITE_P(
    All, RouterForms,
    ::testing::Combine(::testing::Values(Form{"softmax", RouterScore::softmax_then_topk, false},
                                         Form{"renormalised", RouterScore::softmax_then_topk, true},
                                         Form{"over_chosen", RouterScore::topk_then_softmax, false}),
                       ::testing::Values(Recompute::none, Recompute::selective)),
    [](const auto& info) {
      return std::string(std::get<0>(info.param).name) +
             (std::get<1>(info.param) == Recompute::none ? "" : "_selective");
    });

TEST_P(RouterForms, GradientsMatchCentralDifferences) {
  const auto& [form, recompute] = GetParam();
  expect_moe_gradients({.score = form.score,
                        .renormalise = form.renormalise,
                        .recompute = recompute,
                        .aux = 0.7,
                        .z = 0.3,
                        .microbatches = 2});
}

TEST(MoeGradient, OfTheBalancingLossAloneMatchesInEveryUnit) {
  for (const BalanceUnit unit :
       {BalanceUnit::sequence, BalanceUnit::micro_batch, BalanceUnit::global_batch}) {
    SCOPED_TRACE(static_cast<int>(unit));
    const MoeCase c{.unit = unit, .aux = 1.5, .microbatches = 2, .upstream = 0};
    expect_moe_gradients(c);
    const LayerResult r = run_layer(moe_problem(c), {});
    double largest = 0;
    for (const double g : r.gradients[1]) largest = std::max(largest, std::abs(g));
    EXPECT_GT(largest, 1e-3) << "the balancing loss must reach the router";
  }
}

TEST(MoeGradient, OfTheZLossAloneMatches) {
  expect_moe_gradients({.z = 2.0, .microbatches = 2, .upstream = 0});
}

TEST(MoeGradient, MatchesWithDroppedChoices) {
  for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
    for (const bool renormalise : {false, true}) {
      const MoeCase c{.renormalise = renormalise,
                      .aux = 0.5,
                      .z = 0.1,
                      .capacity = 0.7,
                      .drops = policy,
                      .microbatches = 2};
      expect_moe_gradients(c);
      WorldStats stats;
      (void)run_moe(moe_problem(c), {}, stats);
      EXPECT_GT(stats.total(stats.sum.dropped), 0);
    }
  }
}

TEST(MoeGradient, MatchesWhenOneExpertGetsEveryTokenAndOthersNone) {
  const MoeCase c{.top_k = 1, .renormalise = false, .aux = 0.5, .microbatches = 2, .one_expert = true};
  expect_moe_gradients(c);
  WorldStats stats;
  const LayerResult r = run_moe(moe_problem(c), {}, stats);
  EXPECT_EQ(stats.sum.chosen, (std::vector<std::int64_t>{0, 24, 0, 0}));
  for (const double g : r.gradients[2]) EXPECT_EQ(g, 0.0) << "an expert without tokens has no gradient";
}

TEST(MoeGradient, MatchesWhenNearlyEverythingIsDropped) {
  const MoeCase c{.top_k = 1,
                  .renormalise = false,
                  .capacity = 0.05,
                  .drops = DropPolicy::probs,
                  .microbatches = 2,
                  .one_expert = true};
  expect_moe_gradients(c);
  WorldStats stats;
  (void)run_moe(moe_problem(c), {}, stats);
  EXPECT_EQ(stats.total(stats.sum.dropped), 22);  // C = 1 row an expert, all 12 tokens of a unit ask for one
}

TEST(MoeGradient, MatchesWhenEveryExpertIsChosen) {
  expect_moe_gradients({.top_k = kExperts, .renormalise = false, .aux = 0.2, .microbatches = 1});
}

TEST(MoeLayer, WithAllChoicesOfATokenDroppedPassesTheResidualAlone) {
  const MoeCase c{.top_k = 1, .renormalise = false, .capacity = 0.05, .microbatches = 1, .one_expert = true};
  const LayerProblem p = moe_problem(c);
  const LayerResult r = run_layer(p, {});
  const std::int64_t h = p.dims.hidden;
  for (std::int64_t i = h; i < p.dims.tokens() * h; ++i) {  // `position` keeps token 0
    EXPECT_EQ(r.y[i], get(p.x[0], i));
  }
  EXPECT_NE(r.y[1], get(p.x[0], 1));
}

TEST(MoeLayer, WithCapacityForAllChoicesEqualsDropless) {
  MoeCase c{.top_k = 1, .renormalise = false, .aux = 0.3, .microbatches = 2, .one_expert = true};
  const LayerResult dropless = run_layer(moe_problem(c), {});
  for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
    c.drops = policy;
    c.capacity = kExperts;  // C = T: expert 1 is exactly full
    WorldStats stats;
    expect_same_bits(run_moe(moe_problem(c), {}, stats), dropless);
    EXPECT_EQ(stats.total(stats.sum.dropped), 0);
    c.capacity = kExperts * 11.0 / 12.0;  // one row less
    WorldStats less;
    (void)run_moe(moe_problem(c), {}, less);
    EXPECT_EQ(less.total(less.sum.dropped), 2);
  }
}

TEST(MoeLayer, SelectiveRecomputeChangesNoBitsAndKeepsLess) {
  MoeCase c{.aux = 0.3, .z = 0.1, .capacity = 1.0};
  const LayerResult keep = run_layer(moe_problem(c), {});
  c.recompute = Recompute::selective;
  const LayerResult drop = run_layer(moe_problem(c), {});
  expect_same_bits(drop, keep);
  EXPECT_LT(drop.slot_bytes[0], keep.slot_bytes[0]);
}

TEST(MoeLayer, RecomputationDoesNotCountStatisticsTwice) {
  const LayerProblem p = moe_problem({.aux = 0.3, .z = 0.1});
  WorldStats once, again;
  const LayerResult a = run_moe(p, {}, once, PassOrder::split);
  const LayerResult b = run_moe(p, {}, again, PassOrder::split_with_recompute);
  expect_same_bits(b, a);
  EXPECT_EQ(again.sum.tokens, 48);
  EXPECT_EQ(again.sum.chosen, once.sum.chosen);
  EXPECT_EQ(again.sum.received_rows, once.sum.received_rows);
}

}  // namespace
}  // namespace tessera::test
