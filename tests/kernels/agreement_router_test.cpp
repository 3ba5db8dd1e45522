// Further forms of the router: sigmoid scores, scale, selection bias, groups of experts, given choice. Values
// worked out by hand, then every implementation against the f64 reference that reads the same rounded inputs.
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;
class RouterForms : public Agreement {
 protected:
  [[nodiscard]] Owned of(Shape shape, std::initializer_list<double> list) const {
    return test::tensor_of(dtype_, shape, list);
  }
  // Index and weights of one token.
  struct Routed {
    std::vector<double> index, weights, probs;
  };
  [[nodiscard]] Routed route(const Tensor& logits, const Tensor& bias, const RouterOptions& options) const {
    const std::int64_t e = logits.dim(1), k = options.top_k;
    const Owned probs(dtype_, {1, e}), lse(dtype_, {1}), weights(dtype_, {1, k}), index(DType::i32, {1, k});
    kernels_->router(probs, lse, index, weights, logits, bias, options);
    return {values(index), values(weights), values(probs)};
  }
  static void expect_near(const std::vector<double>& got, const std::vector<double>& want) {
    ASSERT_EQ(got.size(), want.size());
    for (std::size_t i = 0; i < got.size(); ++i) {
      const double error = std::abs(got[i] - want[i]);
      EXPECT_TRUE(error <= 1e-6) << "element " << i << " is " << got[i] << ", expected " << want[i];
    }
  }
};

double logit(double p) {
  return std::log(p / (1 - p));
}

TEST_P(RouterForms, SigmoidWeightsAreTheScoresWithoutTheBiasThatChoseThem) {
  const Owned z = of({1, 4}, {logit(0.5), logit(0.2), logit(0.8), logit(0.6)});
  const Owned bias = of({4}, {0, 0.7, -0.4, 0});
  RouterOptions o = {.top_k = 2, .score = RouterScore::sigmoid, .renormalise = false, .scale = 2};
  // Choice scores 0.5, 0.9, 0.4, 0.6.
  Routed r = route(z, bias, o);
  EXPECT_EQ(r.index, (std::vector<double>{1, 3}));
  expect_near(r.weights, {0.4, 1.2});
  expect_near(r.probs, {0.5, 0.2, 0.8, 0.6});
  o.renormalise = true;
  r = route(z, bias, o);
  expect_near(r.weights, {0.5, 1.5});
  r = route(z, {}, o);
  EXPECT_EQ(r.index, (std::vector<double>{2, 3}));
  expect_near(r.weights, {2 * 0.8 / 1.4, 2 * 0.6 / 1.4});
}

// Six experts in three groups: by their largest, groups 0 and 2 are best; by the sum of two, groups 1 and 2.
TEST_P(RouterForms, GroupsAreRankedByTheirLargestOrTheirTwoLargestScores) {
  const Owned z = of({1, 6}, {logit(0.9), logit(0.1), logit(0.6), logit(0.6), logit(0.7), logit(0.55)});
  RouterOptions o = {.top_k = 2,
                     .score = RouterScore::sigmoid,
                     .renormalise = false,
                     .scale = 1,
                     .n_group = 3,
                     .topk_group = 2};
  EXPECT_EQ(route(z, {}, o).index, (std::vector<double>{0, 4}));
  o.group_score = GroupScore::top2_sum;
  EXPECT_EQ(route(z, {}, o).index, (std::vector<double>{4, 2}));
  o.topk_group = 3;
  EXPECT_EQ(route(z, {}, o).index, (std::vector<double>{0, 4}));
  o.topk_group = 1;
  EXPECT_EQ(route(z, {}, o).index, (std::vector<double>{4, 5}));
}

// With every choice score below zero a mask of zeros would choose hidden experts.
TEST_P(RouterForms, HiddenExpertsAreNeverChosenHoweverLowTheScores) {
  const Owned z = of({1, 4}, {0, 0, 0, 0}), bias = of({4}, {-5, -6, -1, -9});
  const RouterOptions o = {.top_k = 2,
                           .score = RouterScore::sigmoid,
                           .renormalise = true,
                           .scale = 1,
                           .n_group = 2,
                           .topk_group = 1};
  EXPECT_EQ(route(z, bias, o).index, (std::vector<double>{2, 3}));
}

TEST_P(RouterForms, EqualGroupsAndExpertsGoToTheLowerIndex) {
  const Owned z = of({1, 8}, {1, 1, 1, 1, 1, 1, 1, 1});
  RouterOptions o = {.top_k = 3,
                     .score = RouterScore::softmax_then_topk,
                     .renormalise = false,
                     .scale = 1,
                     .n_group = 4,
                     .topk_group = 2,
                     .group_score = GroupScore::top2_sum};
  EXPECT_EQ(route(z, {}, o).index, (std::vector<double>{0, 1, 2}));
}

TEST_P(RouterForms, SoftmaxFormsTakeScaleAndBiasToo) {
  const Owned z = of({1, 3}, {0, std::log(2.0), std::log(5.0)});  // probabilities 1/8, 2/8, 5/8
  const Owned bias = of({3}, {0.3, 0, 0});
  RouterOptions o = {.top_k = 2, .score = RouterScore::softmax_then_topk, .renormalise = false, .scale = 4};
  Routed r = route(z, bias, o);
  EXPECT_EQ(r.index, (std::vector<double>{2, 0}));
  expect_near(r.weights, {2.5, 0.5});
  o.renormalise = true;
  expect_near(route(z, bias, o).weights, {4 * 5.0 / 6, 4 * 1.0 / 6});
  o.score = RouterScore::topk_then_softmax;
  r = route(z, of({3}, {3, 0, 0}), o);
  EXPECT_EQ(r.index, (std::vector<double>{0, 2}));
  expect_near(r.weights, {4 * 1.0 / 6, 4 * 5.0 / 6});
}

TEST_P(RouterForms, AGivenChoiceIsWeighedAsItStands) {
  const Owned z = of({1, 3}, {0, std::log(2.0), std::log(5.0)});
  const Owned probs(dtype_, {1, 3}), lse(dtype_, {1}), weights(dtype_, {1, 2});
  const Owned index = test::tensor_of(DType::i32, {1, 2}, {0, 1});
  for (const RouterScore score : {RouterScore::softmax_then_topk, RouterScore::topk_then_softmax}) {
    kernels_->router(probs, lse, index, weights, z,
                     {.top_k = 2, .score = score, .renormalise = true, .given_index = true});
    EXPECT_EQ(values(index), (std::vector<double>{0, 1}));
    expect_near(values(weights), {1.0 / 3, 2.0 / 3});
  }
}

TEST_P(RouterForms, SaturatedSigmoidScoresStayFinite) {
  const Owned z = of({1, 4}, {-1e4, -200, 90, 1e4}), bias = of({4}, {3, 2, 0, 0});
  const Owned probs(dtype_, {1, 4}), lse(dtype_, {1}), weights(dtype_, {1, 2}), index(DType::i32, {1, 2});
  const RouterOptions o = {.top_k = 2, .score = RouterScore::sigmoid, .renormalise = true};
  kernels_->router(probs, lse, index, weights, z, bias, o);
  EXPECT_EQ(values(index), (std::vector<double>{0, 1}));
  for (const double w : values(weights)) EXPECT_TRUE(w >= 0 && w <= 1) << w;  // both scores next to nothing
  const Owned dlogits(dtype_, {1, 4}), dweights = of({1, 2}, {1, -1});
  kernels_->router_backward(dlogits, dweights, probs, lse, index, weights, {}, {}, 0, o);
  for (const double d : values(dlogits)) EXPECT_TRUE(std::abs(d) <= 1) << d;
}

struct FormCase {
  std::int64_t t, e;
  RouterOptions options;
  bool bias;
};
std::vector<FormCase> form_cases() {
  std::vector<FormCase> out;
  for (const RouterScore score :
       {RouterScore::softmax_then_topk, RouterScore::topk_then_softmax, RouterScore::sigmoid}) {
    for (const bool renormalise : {false, true}) {
      for (const bool bias : {false, true}) {
        out.push_back({7, 12, {3, score, renormalise, 2.5}, bias});
        out.push_back({5, 60, {4, score, renormalise, 1, 5, 2, GroupScore::top2_sum}, bias});
        out.push_back({3, 160, {6, score, renormalise, 16, 8, 3, GroupScore::max}, bias});
        out.push_back({2, 5, {2, score, renormalise, 1, 5, 3, GroupScore::top2_sum}, bias});
      }
    }
  }
  return out;
}

TEST_P(RouterForms, EveryFormAgreesForwardAndBackward) {
  const std::int64_t units = 2;
  const double z_scale = 0.01;
  for (const FormCase& c : form_cases()) {
    const RouterOptions& o = c.options;
    SCOPED_TRACE(fmt::format("T={} E={} K={} form {} {} groups {} bias {}", c.t, c.e, o.top_k, int(o.score),
                             o.renormalise, o.n_group, c.bias));
    next_case();
    const Pair logits = input({c.t, c.e}, 1, 2), bias = c.bias ? input({c.e}, 2, 0.1) : Pair();
    const Pair probs = output({c.t, c.e}), lse = output({c.t}), weights = output({c.t, o.top_k});
    const Pair index = index_output({c.t, o.top_k});
    for (const Side s : kSides) {
      kernels(s).router(probs[s], lse[s], index[s], weights[s], logits[s], bias[s], o);
    }
    expect_same_integers("router form index", index);
    const double spread = 1 + 4;  // of the logits: exp of a difference
    std::vector<double> p_scale = magnitudes(probs.want()), w_scale = magnitudes(weights.want());
    for (double& v : p_scale) v *= spread;
    for (double& v : w_scale) v *= spread;
    expect_match("router form probs", probs, {.count = c.e, .scale = p_scale});
    expect_match("router form weights", weights, {.count = c.e, .scale = w_scale});

    const Pair p = rounded(probs.want()), l = rounded(lse.want()), w = rounded(weights.want());
    const Pair dweights = input({c.t, o.top_k}, 3), dlogits = output({c.t, c.e});
    const Pair aux = input({units, c.e}, 4), unit = ids({c.t}, 5, 0, units);
    for (const Side s : kSides) {
      kernels(s).router_backward(dlogits[s], dweights[s], p[s], l[s], index[s], w[s], aux[s], unit[s],
                                 z_scale, o, logits[s]);
    }
    // A term is at most the scale times |dw| of about one, weights and scores below one, over the sum of the
    // scores (at least that of k halves of sigmoids around zero).
    const double largest = 4 * o.scale + 2 + 2 * z_scale * 10;
    expect_match("router form dlogits", dlogits, {.count = c.e, .scale = {largest}});
  }
}

INSTANTIATE_TEST_SUITE_P(All, RouterForms, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
