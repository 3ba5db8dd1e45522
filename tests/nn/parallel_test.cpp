// The dense layers on 2 and 4 tensor-parallel ranks, in other orders of passes and with recomputation,
// against one rank; their memory and the bytes they send against what layers.h states.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "nn/attention_problems.h"

namespace tessera::test {
namespace {

using nn::Recompute;

constexpr double kBound = 1e-12;  // of the largest value: sums of a few dozen terms in another order

struct Case {
  std::string name;
  std::function<LayerProblem()> problem;
};
void PrintTo(const Case& c, std::ostream* out) {
  *out << c.name;
}

const std::vector<Case>& cases() {
  static const std::vector<Case> list = {
      {"mlp", [] { return mlp_problem(Recompute::none, 2); }},
      {"mlp_selective", [] { return mlp_problem(Recompute::selective, 2); }},
      {"mlp_biased", [] { return mlp_problem(Recompute::none, 2, MlpForm::llama_biased); }},
      {"mlp_gpt2", [] { return mlp_problem(Recompute::none, 2, MlpForm::gpt2); }},
      {"mlp_gpt2_selective", [] { return mlp_problem(Recompute::selective, 2, MlpForm::gpt2); }},
      {"embedding", [] { return embedding_problem(2); }},
      {"embedding_positions", [] { return embedding_problem(2, true); }},
      {"head", [] { return head_problem(2); }},
      {"head_layer_norm", [] { return head_problem(2, true); }},
  };
  return list;
}

class DenseLayers : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(All, DenseLayers, ::testing::ValuesIn(cases()),
                         [](const auto& info) { return info.param.name; });

TEST_P(DenseLayers, OnTwoAndFourRanksEqualOneRank) {
  const LayerProblem p = GetParam().problem();
  const LayerResult one = run_layer(p, {});
  for (const std::int32_t tp : {2, 4}) {
    SCOPED_TRACE(fmt::format("tp={}", tp));
    expect_near(p, run_layer(p, {.tp = tp}), one, kBound);
  }
}

TEST_P(DenseLayers, SplitFusedAndRecomputedPassesGiveTheSameBits) {
  const LayerProblem p = GetParam().problem();
  for (const std::int32_t tp : {1, 2}) {
    SCOPED_TRACE(fmt::format("tp={}", tp));
    const LayerResult split = run_layer(p, {.tp = tp}, {.order = PassOrder::split});
    expect_same_bits(run_layer(p, {.tp = tp}, {.order = PassOrder::fused}), split);
    expect_same_bits(run_layer(p, {.tp = tp}, {.order = PassOrder::split_with_recompute}), split);
  }
}

// f32 keeps 24 bits; sums have a few dozen terms and the losses of rounding add up over three linears.
TEST_P(DenseLayers, OnTheFastKernelsInF32StayNearTheReference) {
  const LayerProblem p = GetParam().problem();
  const LayerResult want = run_layer(p, {});
  for (const std::int32_t tp : {1, 2}) {
    SCOPED_TRACE(fmt::format("tp={}", tp));
    expect_near(p, run_layer(fast_f32(GetParam().problem()), {.tp = tp}), want, 2e-6);
  }
}

TEST(SelectiveRecompute, ChangesNoBitsAndKeepsLess) {
  const LayerProblem keep[] = {attention_case({.kv_heads = 2, .recompute = Recompute::none}),
                               mlp_problem(Recompute::none)};
  const LayerProblem drop[] = {attention_case({.kv_heads = 2, .recompute = Recompute::selective}),
                               mlp_problem(Recompute::selective)};
  for (int i = 0; i < 2; ++i) {
    for (const std::int32_t tp : {1, 2}) {
      const LayerResult a = run_layer(keep[i], {.tp = tp});
      const LayerResult b = run_layer(drop[i], {.tp = tp});
      expect_same_bits(b, a);
      EXPECT_LE(b.slot_bytes[0], a.slot_bytes[0]);
    }
  }
}

TEST(SelectiveRecompute, DropsTheNormalisedRowsFromTheSavedSlot) {
  const auto saved_bytes = [](const LayerProblem& p) {
    RankGroups groups({}, 0, nullptr);
    RankParams params(p.params);
    tensor::Arena counting;
    p.make(groups.place, p.dims, params)->reserve_saved(counting);
    return counting.used().value;
  };
  const std::int64_t rows = 12;
  EXPECT_EQ(saved_bytes(attention_case({.kv_heads = 2, .recompute = Recompute::none})) -
                saved_bytes(attention_case({.kv_heads = 2, .recompute = Recompute::selective})),
            rows * 8 * 8);
  EXPECT_EQ(saved_bytes(mlp_problem(Recompute::none)) - saved_bytes(mlp_problem(Recompute::selective)),
            rows * (8 + kIntermediate) * 8);
}

// S = T H b; every rank sends (tp - 1) / tp S in an all_gather or reduce_scatter.
TEST(BytesSent, EqualTheClosedForms) {
  for (const std::int32_t tp : {1, 2, 4}) {
    SCOPED_TRACE(fmt::format("tp={}", tp));
    const std::int64_t tokens = 12;
    const std::int64_t share = (tp - 1) * tokens * 8 * 8 / tp;
    const auto expect = [&](const LayerProblem& p, PhaseBytes want) {
      for (const PhaseBytes& got : run_layer(p, {.tp = tp}).bytes) {
        EXPECT_EQ(got.forward, want.forward);
        EXPECT_EQ(got.input, want.input);
        EXPECT_EQ(got.weight, want.weight);
      }
    };
    expect(attention_case({.recompute = Recompute::none}), {.forward = 2 * share, .input = 2 * share});
    expect(attention_case({.recompute = Recompute::selective}), {.forward = 2 * share, .input = 3 * share});
    expect(mlp_problem(Recompute::none), {.forward = 2 * share, .input = 2 * share});
    expect(mlp_problem(Recompute::selective), {.forward = 2 * share, .input = 3 * share});
    expect(embedding_problem(), {.forward = share, .input = share});
    expect(head_problem(), {.forward = share + (tp - 1) * 3 * tokens * 8, .input = share});
  }
}

TEST(Head, GivesEveryRankTheSameLossAndNoneForIgnoredTokens) {
  const LayerProblem p = head_problem();
  std::vector<double> losses(4);
  const LayerResult one = run_layer(p, {});
  (void)run_layer(p, {.tp = 4}, {.inspect = [&](const Place& place, LayerRig& rig) {
                    const auto& head = dynamic_cast<const nn::Head&>(rig.layer());
                    losses[place.rank] = head.loss(0);
                    EXPECT_EQ(get(head.loss_T(0), 2), 0.0);
                    EXPECT_EQ(get(head.loss_T(0), 7), 0.0);
                    EXPECT_GT(get(head.loss_T(0), 1), 0.0);
                    EXPECT_EQ(head.logits(0).shape(), (Shape{12, kVocab / 4}));
                  }});
  for (const double loss : losses) EXPECT_EQ(loss, losses[0]);
  EXPECT_NEAR(losses[0], one.loss, 1e-12);
  EXPECT_NEAR(one.loss, std::log(static_cast<double>(kVocab)), 1.5);
}

TEST(Head, OverwritesTheGradientItIsGiven) {
  LayerProblem p = head_problem();
  const LayerResult a = run_layer(p, {});
  set_all(p.upstream[0], 123.0);
  EXPECT_EQ(run_layer(p, {}).dx, a.dx);
}

TEST(Embedding, GivesTheSameBitsOnAnyNumberOfRanks) {
  const LayerProblem p = embedding_problem();
  EXPECT_EQ(run_layer(p, {.tp = 4}).y, run_layer(p, {}).y);
}

TEST(LayerSlots, RefuseASlotThatWasNotReserved) {
  const LayerProblem p = mlp_problem(Recompute::none);
  RankGroups groups({}, 0, nullptr);
  LayerRig rig(p, groups.place);
  const auto kernels = kernels::make_reference();
  tensor::Arena scratch(Bytes(1 << 16));
  nn::Context ctx{*kernels, *groups.place.tp, scratch, {}};
  EXPECT_THROW(rig.layer().forward(ctx, {1, 1}, {}, rig.x(0), rig.y(0), nn::Pass::forward), Error);
  EXPECT_THROW(rig.layer().backward_weight(ctx, {0, 5}, {}), Error);
}

}  // namespace
}  // namespace tessera::test
