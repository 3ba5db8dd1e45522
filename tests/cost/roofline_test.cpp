// Which operators arithmetic bounds and which memory: closed forms, the ridge, and the floor of every time.
#include "cost/roofline.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "spec/presets.h"

namespace tessera::cost {
namespace {

RooflineQuestion question(const char* model, std::vector<std::int64_t> tokens) {
  return {.model = spec::model_preset(model),
          .calibration = calibration("h100-sxm"),
          .practice = graph::practice(graph::kDefaultPractice),
          .tokens = std::move(tokens)};
}

const RooflineOp& op(const RooflinePass& pass, std::string_view name) {
  const auto at = std::ranges::find(pass.ops, name, &RooflineOp::name);
  if (at == pass.ops.end()) throw Error(ErrorKind::internal, "no such operator", std::string(name), "");
  return *at;
}

TEST(Roofline, RidgeIsPeakOverBandwidth) {
  const Roofline r = roofline(question("llama-3-70b", {1}));
  EXPECT_NEAR(r.ridge(), 989.0e12 / 3352.0e9, 0.5);
}

TEST(Roofline, ProductHasTheIntensityOfItsShape) {
  const Roofline r = roofline(question("llama-3-70b", {1, 64, 4096}));
  for (const RooflinePass& pass : r.passes) {
    const auto m = static_cast<double>(pass.tokens);
    const double n = 8192, k = 64 * 128;  // o: heads times their width to hidden
    EXPECT_DOUBLE_EQ(op(pass, "o").intensity(), 2 * m * n * k / (2 * (m * n + m * k + n * k)));
  }
}

TEST(Roofline, FewTokensAreBoundByMemoryAndManyByArithmetic) {
  const Roofline r = roofline(question("llama-3-70b", {1, 4096}));
  for (const RooflineOp& one : r.passes[0].ops) EXPECT_EQ(one.bound, Bound::memory) << one.name;
  for (const char* name : {"qkv", "o", "up", "down", "head", "attention"})
    EXPECT_EQ(op(r.passes[1], name).bound, Bound::compute) << name;
  for (const char* name : {"input_layernorm", "rope", "act", "residual"})
    EXPECT_EQ(op(r.passes[1], name).bound, Bound::memory) << name;
  EXPECT_EQ(r.passes[0].share(Bound::compute), 0.0);
  EXPECT_GT(r.passes[1].share(Bound::compute), 0.9);
}

TEST(Roofline, ExpertsNeedAsManyTimesTheTokensAsTheyAreSparse) {
  const Roofline r = roofline(question("qwen3-30b-a3b", {512, 4096, 32768}));  // 8 of 128
  EXPECT_EQ(op(r.passes[0], "qkv").bound, Bound::compute);
  EXPECT_EQ(op(r.passes[0], "experts up").bound, Bound::memory);
  EXPECT_EQ(op(r.passes[1], "experts up").bound, Bound::memory);
  EXPECT_EQ(op(r.passes[2], "experts up").bound, Bound::compute);
}

TEST(Roofline, NoOperatorIsFasterThanItsRoof) {
  for (const char* model : {"llama-3-70b", "mixtral-8x7b", "deepseek-v3", "gpt2"}) {
    const Roofline r = roofline(question(model, {1, 100, 1024}));
    for (const RooflinePass& pass : r.passes) {
      for (const RooflineOp& one : pass.ops) {
        const double roof = std::max(one.flops / r.peak, one.bytes / r.bandwidth);
        EXPECT_GE(one.seconds, roof * (1.0 - 1e-9)) << model << ' ' << one.name << ' ' << pass.tokens;
      }
    }
  }
}

TEST(Roofline, PassOfMoreTokensThanASequenceHasSeveral) {
  RooflineQuestion q = question("gpt2", {100, 1000});
  q.sequence_length = 300;
  const Roofline r = roofline(q);
  EXPECT_EQ(r.passes[0].tokens, 100);
  EXPECT_EQ(r.passes[1].tokens, 900) << "whole sequences";
}

}  // namespace
}  // namespace tessera::cost
