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

// How far `wanted` of the scores stand above the best of the others; far when all are wanted.
double margin_of(std::vector<double> scores, std::int32_t wanted) {
  if (wanted >= std::ssize(scores)) return 1e300;
  std::ranges::sort(scores, std::greater<>());
  const auto k = static_cast<std::size_t>(wanted);
  return scores[k - 1] - scores[k];
}

// Of one token, on the scores that choose: groups first, then experts inside of them.
double token_margin(const std::vector<double>& logits, const MoeCase& c) {
  std::vector<double> score = logits;
  if (c.score == kernels::RouterScore::sigmoid) {
    for (double& s : score) s = 1 / (1 + std::exp(-s));
  } else if (c.correction || c.n_group > 1) {
    double sum = 0;
    for (double& s : score) sum += s = std::exp(s);
    for (double& s : score) s /= sum;
  }
  for (std::size_t e = 0; e < score.size() && c.correction; ++e) score[e] += kCorrection[e];
  const std::size_t group = score.size() / static_cast<std::size_t>(c.n_group);
  std::vector<double> of_group;
  for (std::size_t g = 0; g < score.size(); g += group) {
    std::vector<double> part(score.begin() + g, score.begin() + g + group);
    std::ranges::sort(part, std::greater<>());
    of_group.push_back(c.group_score == kernels::GroupScore::max ? part[0] : part[0] + part[1]);
  }
  double margin = margin_of(of_group, c.topk_group);
  std::vector<double> best = of_group;
  std::ranges::sort(best, std::greater<>());
  std::vector<double> allowed;
  for (std::size_t e = 0; e < score.size(); ++e) {
    if (of_group[e / group] >= best[static_cast<std::size_t>(c.topk_group) - 1]) allowed.push_back(score[e]);
  }
  return std::min(margin, margin_of(allowed, c.top_k));
}

// The smallest distance between a chosen and a refused expert, over all tokens; where experts choose, between
// a chosen and a refused token.
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
    if (c.router_bias) k->add_bias(logits, p.params[positions_of(c).router_bias].value);
    if (c.choice == moe::Choice::hash) return margin;
    std::vector<std::vector<double>> of_expert(kExperts);
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::vector<double> z = values(logits.tensor().narrow_rows(t, 1));
      double sum = 0;
      for (const double v : z) sum += std::exp(v);
      for (std::size_t e = 0; e < z.size(); ++e) of_expert[e].push_back(std::exp(z[e]) / sum);
      if (c.choice == moe::Choice::scores) margin = std::min(margin, token_margin(z, c));
    }
    if (c.choice != moe::Choice::expert_choice) continue;
    for (const std::vector<double>& scores : of_expert) margin = std::min(margin, margin_of(scores, 6));
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

TEST(MoeGradient, OfSigmoidScoresWithGroupsScaleAndCorrectionMatches) {
  for (const bool renormalise : {false, true}) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective}) {
      expect_moe_gradients({.score = RouterScore::sigmoid,
                            .renormalise = renormalise,
                            .recompute = recompute,
                            .aux = 0.7,
                            .z = 0.3,
                            .microbatches = 1,
                            .scale = 2.5,
                            .n_group = 2,
                            .topk_group = 1,
                            .group_score = kernels::GroupScore::top2_sum,
                            .correction = true,
                            .shared = MoeCase::Shared::plain});
    }
  }
}

TEST(MoeGradient, OfSoftmaxLimitedToGroupsByTheirLargestScoreMatches) {
  expect_moe_gradients({.renormalise = false,
                        .aux = 0.2,
                        .microbatches = 2,
                        .scale = 4,
                        .n_group = 2,
                        .topk_group = 1,
                        .shared = MoeCase::Shared::plain});
}

TEST(MoeGradient, OfASharedExpertMatchesWithAndWithoutItsGate) {
  for (const auto shared : {MoeCase::Shared::plain, MoeCase::Shared::gated}) {
    for (const Recompute recompute : {Recompute::none, Recompute::selective}) {
      expect_moe_gradients(
          {.renormalise = false, .recompute = recompute, .microbatches = 2, .shared = shared});
    }
  }
}

TEST(MoeGradient, OfBiasesOfRouterAndExpertsMatches) {
  for (const kernels::ActivationOptions activation :
       {kernels::ActivationOptions{.kind = kernels::Activation::swiglu},
        kernels::ActivationOptions{.kind = kernels::Activation::clamped_swiglu, .limit = 0.9},
        kernels::ActivationOptions{.kind = kernels::Activation::gelu},
        kernels::ActivationOptions{.kind = kernels::Activation::gelu_tanh}}) {
    SCOPED_TRACE(static_cast<int>(activation.kind));
    expect_moe_gradients({.score = RouterScore::topk_then_softmax,
                          .recompute = Recompute::selective,
                          .microbatches = 1,
                          .router_bias = true,
                          .expert_bias = true,
                          .activation = activation});
  }
}

TEST(MoeGradient, OfGivenChoicesByHashMatches) {
  for (const bool renormalise : {false, true}) {
    expect_moe_gradients(
        {.renormalise = renormalise, .z = 0.1, .microbatches = 2, .choice = moe::Choice::hash});
  }
}

TEST(MoeGradient, OfExpertChoiceMatches) {
  for (const auto score : {RouterScore::softmax_then_topk, RouterScore::sigmoid}) {
    expect_moe_gradients({.score = score, .z = 0.1, .microbatches = 2, .choice = moe::Choice::expert_choice});
  }
}

TEST(MoeGradient, PassesThroughTheJitterOfTheRouterAlone) {
  expect_moe_gradients(
      {.renormalise = false, .aux = 0.3, .z = 0.1, .microbatches = 2, .seed = 3, .jitter = 0.2});
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
  for (const auto score : {RouterScore::softmax_then_topk, RouterScore::sigmoid}) {
    expect_moe_gradients({.score = score, .z = 2.0, .microbatches = 2, .upstream = 0});
  }
}

TEST(MoeGradient, OfTheBalancingLossOfSigmoidScoresAloneMatches) {
  expect_moe_gradients({.score = RouterScore::sigmoid, .aux = 1.5, .microbatches = 2, .upstream = 0});
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
