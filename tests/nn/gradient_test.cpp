// Backward passes of the dense layers beside attention against central differences, in f64 with random
// upstream gradients.
#include <gtest/gtest.h>

#include "nn/problems.h"
#include "support/layer_gradients.h"

namespace tessera::test {
namespace {

using nn::Recompute;

class BothRecomputeModes : public ::testing::TestWithParam<Recompute> {};
INSTANTIATE_TEST_SUITE_P(Layers, BothRecomputeModes, ::testing::Values(Recompute::none, Recompute::selective),
                         [](const auto& info) {
                           return info.param == Recompute::none ? "keep" : "selective";
                         });

TEST_P(BothRecomputeModes, MlpGradientsMatchCentralDifferences) {
  expect_gradients(mlp_problem(GetParam(), 2));
}

TEST_P(BothRecomputeModes, MlpWithBiasesMatchesCentralDifferences) {
  expect_gradients(mlp_problem(GetParam(), 2, MlpForm::llama_biased));
}

TEST_P(BothRecomputeModes, MlpWithGeluAndLayerNormMatchesCentralDifferences) {
  expect_gradients(mlp_problem(GetParam(), 2, MlpForm::gpt2));
}

TEST(EmbeddingGradient, TableAndPositionsMatchCentralDifferences) {
  expect_gradients(embedding_problem(2, true), CheckInput::no);
}

TEST(EmbeddingGradient, TableMatchesCentralDifferences) {
  expect_gradients(embedding_problem(2), CheckInput::no);
}

TEST(HeadGradient, MatchesCentralDifferencesWithIgnoredTargets) {
  expect_gradients(head_problem(2));
}

TEST(HeadGradient, WithLayerNormMatchesCentralDifferences) {
  expect_gradients(head_problem(2, true));
}

// Shown able to fail: a gradient that is off in one element by a thousandth is refused.
TEST(GradientCheckOfLayers, SeesAWrongGradient) {
  LayerProblem p = mlp_problem(Recompute::none);
  RankGroups groups({}, 0, nullptr);
  LayerRig rig(p, groups.place);
  (void)rig.forward();
  rig.backward(PassOrder::fused);
  const Tensor grad = rig.params().grad(1);
  set(grad, 5, get(grad, 5) + 1e-3);
  EXPECT_FALSE(gradient_matches("gate_up", rig.params().value(1), grad, [&] { return rig.forward(); }));
}

}  // namespace
}  // namespace tessera::test
