// Values worked out by hand, and accumulation against its definition: these do not lean on the reference.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "kernels/fixtures.h"

namespace tessera::kernels {
namespace {

using test::magnitudes;

class KnownValues : public KernelTest {
 protected:
  [[nodiscard]] Owned of(Shape shape, std::initializer_list<double> list) const {
    return test::tensor_of(dtype_, shape, list);
  }
  [[nodiscard]] Owned blank(Shape shape) const { return Owned(dtype_, shape); }
  // `steps` roundings of values around one.
  void expect_values(const std::string& what, const Tensor& got, std::initializer_list<double> want,
                     std::int64_t steps = 4) const {
    const Owned truth = test::tensor_of(DType::f64, got.shape(), want);
    EXPECT_TRUE(
        test::matches(GetParam().name() + " known " + what, got, truth, {.count = steps, .scale = {2}}));
  }
};

const double kLn2 = std::log(2.0), kLn3 = std::log(3.0), kLn5 = std::log(5.0);

TEST_P(KnownValues, LinearOfSmallIntegers) {
  const Owned x = of({2, 3}, {1, 2, 3, -1, 0, 2}), w = of({2, 3}, {1, -1, 2, 0, 3, 1}),
              dy = of({2, 2}, {1, 2, -1, 3});
  const Owned y = blank({2, 2}), dx = blank({2, 3}), dw = of({2, 3}, {10, 10, 10, 10, 10, 10});
  const PackedWeight weight(*kernels_, w);
  kernels_->linear(y, x, weight);
  kernels_->linear_dgrad(dx, dy, weight);
  kernels_->linear_wgrad(dw, dy, x);
  EXPECT_EQ(values(y), (std::vector<double>{5, 9, 3, 2}));
  EXPECT_EQ(values(dx), (std::vector<double>{1, 5, 4, -1, 10, 1}));
  EXPECT_EQ(values(dw), (std::vector<double>{12, 12, 11, 9, 14, 22}));
}

TEST_P(KnownValues, RmsNormAddsEpsToTheMeanOfSquares) {
  const Owned x = of({1, 2}, {3, 4}), w = of({2}, {2, -1}), y = blank({1, 2}), rstd = blank({1});
  kernels_->rms_norm(y, rstd, x, w, 0.5);  // mean of squares 12.5
  const double r = 1 / std::sqrt(13.0);
  expect_values("rstd", rstd, {r});
  expect_values("rms_norm", y, {6 * r, -4 * r});
}

TEST_P(KnownValues, RopeTurnsPairsHalfAHeadApartByTheAngleOfTheirPosition) {
  const AttentionShape shape = {.batch = 2, .seq = 2, .heads = 1, .kv_heads = 1, .head_dim = 4, .scale = 1};
  const Owned cos = of({2, 2}, {1, 1, 0, 1}),
              sin = of({2, 2}, {0, 0, 1, 0});  // position 1, pair 0: 90 degrees
  const Owned qkv = blank({4, 12});
  std::vector<double> start(48);
  std::iota(start.begin(), start.end(), 1.0);
  test::set_values(qkv, start);
  kernels_->rope(qkv, cos, sin, shape, false);
  std::vector<double> want = start;
  for (const std::size_t row : {1U, 3U}) {
    for (const std::size_t head : {0U, 4U}) {  // query and key; the value stays
      const std::size_t a = row * 12 + head, b = a + 2;
      want[a] = -start[b];
      want[b] = start[a];
    }
  }
  EXPECT_EQ(values(qkv), want);
  kernels_->rope(qkv, cos, sin, shape, true);
  EXPECT_EQ(values(qkv), start);
}

TEST_P(KnownValues, AttentionWeighsEarlierKeysByTheirScores) {
  // One head of one dim: q | k | v. Scores of row 1: 0 and ln 3, so weights 1/4 and 3/4.
  const AttentionShape shape = {.batch = 1, .seq = 2, .heads = 1, .kv_heads = 1, .head_dim = 1, .scale = 0.5};
  const Owned qkv = of({2, 3}, {7, 0, 1, 2, kLn3, 5}), out = blank({2, 1}), lse = blank({2, 1});
  kernels_->attention(out, lse, qkv, shape);
  expect_values("attention out", out, {1, 0.25 + 3.75}, 8);
  expect_values("attention lse", lse, {0, 2 * kLn2}, 8);
}

TEST_P(KnownValues, AttentionGroupsQueryHeadsOntoTheirKeyHead) {
  // Queries of zero average the values; heads 0 and 1 read kv head 0, heads 2 and 3 kv head 1.
  const AttentionShape shape = {.batch = 1, .seq = 1, .heads = 4, .kv_heads = 2, .head_dim = 1, .scale = 1};
  const Owned qkv = of({1, 8}, {0, 0, 0, 0, 9, 9, 10, 20}), out = blank({1, 4}), lse = blank({1, 4});
  kernels_->attention(out, lse, qkv, shape);
  EXPECT_EQ(values(out), (std::vector<double>{10, 10, 20, 20}));
}

TEST_P(KnownValues, SwigluGatesBySilu) {
  const Owned gate_up = of({1, 4}, {0, kLn3, 2, 2}), h = blank({1, 2});  // sigmoid(ln 3) = 3/4
  kernels_->swiglu(h, gate_up);
  expect_values("swiglu", h, {0, 1.5 * kLn3});
}

TEST_P(KnownValues, EmbeddingGivesZeroRowsForIdsOfOtherShares) {
  const Owned table = of({2, 2}, {1, 2, 3, 4}), ids = test::tensor_of(DType::i32, {4}, {5, 4, 3, 6});
  const Owned y = blank({4, 2});
  kernels_->embedding(y, ids, table, 4);
  EXPECT_EQ(values(y), (std::vector<double>{3, 4, 1, 2, 0, 0, 0, 0}));
}

TEST_P(KnownValues, CrossEntropyOfOneToThree) {
  const Owned logits = of({2, 2}, {0, kLn3, 0, kLn3}), targets = test::tensor_of(DType::i32, {2}, {1, -1});
  const Owned stats = blank({3, 2}), loss = blank({2}), lse = blank({2});
  kernels_->cross_entropy_stats(stats, logits, targets, 0);
  kernels_->cross_entropy_join(loss, lse, stats.tensor().reshaped({1, 3, 2}), targets);
  expect_values("loss", loss, {2 * kLn2 - kLn3, 0});
  expect_values("lse", lse, {2 * kLn2, 2 * kLn2});
  kernels_->cross_entropy_backward(logits, lse, targets, 0, 0.5);
  expect_values("dlogits", logits, {0.125, -0.125, 0, 0});
}

TEST_P(KnownValues, RouterWeightsInAllForms) {
  const Owned logits = of({1, 3}, {0, kLn2, kLn5});  // probabilities 1/8, 2/8, 5/8
  const Owned probs = blank({1, 3}), lse = blank({1}), weights = blank({1, 2}), index(DType::i32, {1, 2});
  const auto route = [&](RouterScore score, bool renormalise) {
    kernels_->router(probs, lse, index, weights, logits, {2, score, renormalise});
    EXPECT_EQ(values(index), (std::vector<double>{2, 1}));
  };
  route(RouterScore::softmax_then_topk, false);
  expect_values("router probs", probs, {0.125, 0.25, 0.625});
  expect_values("router lse", lse, {3 * kLn2});
  expect_values("router weights", weights, {0.625, 0.25});
  route(RouterScore::softmax_then_topk, true);
  expect_values("router weights", weights, {5.0 / 7, 2.0 / 7});
  route(RouterScore::topk_then_softmax, false);
  expect_values("router weights", weights, {5.0 / 7, 2.0 / 7});
}

TEST_P(KnownValues, CombineAddsTheNamedRows) {
  const Owned x = of({2, 1}, {100, 200}), rows = of({3, 1}, {1, 2, 4}),
              weights = of({2, 2}, {10, 20, 30, 40});
  const Owned pos = test::tensor_of(DType::i32, {2, 2}, {2, 0, -1, 1}), y = blank({2, 1});
  kernels_->combine(y, x, rows, pos, weights);
  EXPECT_EQ(values(y), (std::vector<double>{100 + 40 + 20, 200 + 80}));
  kernels_->sum_rows(y, rows, pos, Write::overwrite);
  EXPECT_EQ(values(y), (std::vector<double>{5, 2}));
  const Owned copy = blank({2, 1}), index = test::tensor_of(DType::i32, {2}, {2, 0});
  kernels_->gather_rows(copy, rows, index);
  EXPECT_EQ(values(copy), (std::vector<double>{4, 1}));
}

TEST_P(KnownValues, ElementwiseAndSums) {
  const Owned x = blank({1000}), y = blank({1000});
  for (std::int64_t i = 0; i < 1000; ++i) test::set(x, i, static_cast<double>(i + 1));
  EXPECT_EQ(kernels_->sum(x), 500'500);
  EXPECT_EQ(kernels_->sum_squares(x), 333'833'500);
  EXPECT_EQ(kernels_->sum(Tensor(x.tensor().narrow_rows(0, 0))), 0);
  kernels_->fill(y, 0.5);
  kernels_->accumulate(y, x);
  EXPECT_EQ(get(y, 999), 1000.5);
  kernels_->add(y, x, x);
  EXPECT_EQ(get(y, 999), 2000);
}

// What a call that accumulates adds is what it writes from zero.
TEST_P(KnownValues, AccumulationAddsToWhatWasThere) {
  const std::int64_t t = 6, n = 5, k = 7;
  const Owned x = random(dtype_, {t, k}, 1), w = random(dtype_, {n, k}, 2), dy = random(dtype_, {t, n}, 3);
  const Owned scale = random(dtype_, {k}, 4), dx = random(dtype_, {t, k}, 5), rstd = random(dtype_, {t}, 6);
  const Owned ids = random_ids(DType::i32, {t}, 7, 0, n), pos = random_ids(DType::i32, {t, 2}, 8, -1, n);
  const PackedWeight weight(*kernels_, w);
  struct Case {
    const char* name;
    Shape shape;
    std::function<void(const Tensor&, Write)> call;
  };
  const std::vector<Case> cases = {
      {"linear_dgrad", {t, k}, [&](const Tensor& y, Write m) { kernels_->linear_dgrad(y, dy, weight, m); }},
      {"linear_wgrad", {n, k}, [&](const Tensor& y, Write) { kernels_->linear_wgrad(y, dy, x); }},
      {"rms_norm_dgrad",
       {t, k},
       [&](const Tensor& y, Write m) { kernels_->rms_norm_dgrad(y, dx, x, rstd, scale, m); }},
      {"rms_norm_wgrad", {k}, [&](const Tensor& y, Write) { kernels_->rms_norm_wgrad(y, dx, x, rstd); }},
      {"embedding_wgrad", {n, k}, [&](const Tensor& y, Write) { kernels_->embedding_wgrad(y, dx, ids, 0); }},
      {"sum_rows", {t, k}, [&](const Tensor& y, Write m) { kernels_->sum_rows(y, w, pos, m); }},
  };
  for (const Case& c : cases) {
    const Owned start = random(dtype_, c.shape, 9, 3), from_zero = zeros(dtype_, c.shape),
                more = copy_of(start);
    c.call(from_zero, Write::accumulate);
    c.call(more, Write::accumulate);
    const Owned want = test::cast(start, DType::f64);
    std::vector<double> terms = magnitudes(start);
    for (std::int64_t i = 0; i < want.tensor().num_elements(); ++i) {
      test::set(want, i, get(start, i) + get(from_zero, i));
      terms[static_cast<std::size_t>(i)] += t;  // the sums themselves are of a few terms around one
    }
    EXPECT_TRUE(test::matches(GetParam().name() + " accumulation", more, want, {.count = t, .scale = terms}))
        << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(All, KnownValues, ::testing::ValuesIn(subjects()), subject_name);

}  // namespace
}  // namespace tessera::kernels
