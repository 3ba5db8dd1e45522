// The mixture of experts on every factorisation of 2 and 4 ranks against one rank that runs the same
// micro-batches: outputs, gradients, losses, statistics, bytes.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "moe/problems.h"

namespace tessera::test {
namespace {

using kernels::Activation;
using kernels::GroupScore;
using kernels::RouterScore;
using moe::BalanceUnit;
using moe::Choice;
using moe::DropPolicy;
using moe::Padding;
using nn::Recompute;
using Shared = MoeCase::Shared;

constexpr double kBound = 1e-12;

// dp is what the micro-batches are dealt over; ep and etp fold over tp and dp.
const std::vector<RankLayout>& layouts() {
  static const std::vector<RankLayout> list = {
      {.tp = 2},
      {.dp = 2, .ep = 2},
      {.tp = 2, .ep = 2},
      {.tp = 2, .etp = 2},
      {.dp = 2, .etp = 2},
      {.tp = 2, .dp = 2, .ep = 2, .etp = 2},
      {.dp = 4, .ep = 2, .etp = 2},
      {.dp = 4, .ep = 4},
      {.tp = 4, .ep = 4},
      {.tp = 2, .dp = 2, .ep = 4},
      {.tp = 2, .dp = 2, .ep = 2},
      {.tp = 4, .ep = 2},
  };
  return list;
}
std::string text(const RankLayout& l) {
  return fmt::format("tp{}_cp{}_dp{}_ep{}_etp{}", l.tp, l.cp, l.dp, l.ep, l.etp);
}

struct Named {
  const char* name;
  MoeCase value;
};
const Named kCases[] = {
    {"dropless", {.aux = 0.7, .z = 0.3}},
    {"sequence_unit", {.unit = BalanceUnit::sequence, .aux = 0.7, .z = 0.3}},
    {"global_unit", {.renormalise = false, .unit = BalanceUnit::global_batch, .aux = 0.7}},
    {"capacity_position", {.aux = 0.2, .capacity = 0.8}},
    {"capacity_probs", {.renormalise = false, .aux = 0.2, .capacity = 0.8, .drops = DropPolicy::probs}},
    {"capacity_one_row", {.capacity = 0.01, .drops = DropPolicy::probs}},
    {"selective", {.recompute = Recompute::selective, .aux = 0.7, .capacity = 1.5}},
    {"one_expert", {.top_k = 1, .renormalise = false, .aux = 0.1, .one_expert = true}},
    {"all_experts", {.top_k = 4, .renormalise = false, .z = 0.1}},
    {"sigmoid_groups",
     {.score = RouterScore::sigmoid,
      .unit = BalanceUnit::sequence,
      .aux = 0.7,
      .z = 0.3,
      .scale = 2.5,
      .n_group = 2,
      .topk_group = 1,
      .group_score = GroupScore::top2_sum,
      .correction = true,
      .shared = Shared::plain}},
    {"softmax_groups_biased",
     {.renormalise = false,
      .recompute = Recompute::selective,
      .aux = 0.2,
      .capacity = 1.0,
      .scale = 4,
      .n_group = 2,
      .topk_group = 1,
      .correction = true,
      .shared = Shared::plain}},
    {"gated_shared", {.renormalise = false, .aux = 0.2, .shared = Shared::gated}},
    {"gated_shared_selective",
     {.renormalise = false, .recompute = Recompute::selective, .aux = 0.2, .shared = Shared::gated}},
    {"biases",
     {.score = RouterScore::topk_then_softmax,
      .router_bias = true,
      .expert_bias = true,
      .activation = {.kind = Activation::clamped_swiglu, .limit = 0.9}}},
    {"ungated", {.router_bias = true, .expert_bias = true, .activation = {.kind = Activation::gelu}}},
    {"hash", {.renormalise = false, .choice = Choice::hash}},
    {"expert_choice", {.z = 0.2, .choice = Choice::expert_choice}},
    {"expert_choice_sigmoid",
     {.score = RouterScore::sigmoid,
      .capacity = 0.5,
      .shared = Shared::plain,
      .choice = Choice::expert_choice}},
    {"jitter", {.aux = 0.2, .z = 0.3, .jitter = 0.3}},
    {"padded", {.aux = 0.2, .capacity = 0.8, .padding = Padding::to_capacity}},
    {"padded_biases",
     {.recompute = Recompute::selective,
      .capacity = 1.5,
      .drops = DropPolicy::probs,
      .expert_bias = true,
      .padding = Padding::to_capacity}},
};

std::string name_of(const ::testing::TestParamInfo<std::tuple<Named, RankLayout>>& info) {
  return std::string(std::get<0>(info.param).name) + "_" + text(std::get<1>(info.param));
}

// Sequences of 6 tokens in chunks of one.
class MoeOnContextRanks : public ::testing::TestWithParam<std::tuple<Named, RankLayout>> {};
INSTANTIATE_TEST_SUITE_P(All, MoeOnContextRanks,
                         ::testing::Combine(::testing::ValuesIn(kCases),
                                            ::testing::Values(RankLayout{.cp = 3},
                                                              RankLayout{.tp = 2, .cp = 3},
                                                              RankLayout{.tp = 2, .ep = 2, .etp = 1, .cp = 3},
                                                              RankLayout{.dp = 2, .ep = 2, .cp = 3},
                                                              RankLayout{.dp = 2, .etp = 2, .cp = 3})),
                         name_of);

void expect_equal_stats(const WorldStats& all, const WorldStats& one, const RankLayout& layout) {
  EXPECT_EQ(all.sum.chosen, one.sum.chosen);
  EXPECT_EQ(all.sum.dropped, one.sum.dropped);
  EXPECT_EQ(all.sum.tokens, one.sum.tokens);
  EXPECT_TRUE(near("aux", {all.sum.aux_loss}, {one.sum.aux_loss}, kBound));
  EXPECT_TRUE(near("z", {all.sum.z_loss}, {one.sum.z_loss}, kBound));
  EXPECT_TRUE(near("entropy", {all.sum.entropy}, {one.sum.entropy}, kBound));
  EXPECT_TRUE(near("logits", {all.sum.logit_squares}, {one.sum.logit_squares}, kBound));
  EXPECT_EQ(all.sum.max_abs_logit, one.sum.max_abs_logit);
  EXPECT_EQ(all.sum.unserved, one.sum.unserved);
  EXPECT_EQ(all.sum.received_rows, layout.etp * one.sum.received_rows) << "etp ranks all see a row";
  EXPECT_EQ(one.sum.received_rows, one.total(one.sum.chosen) - one.total(one.sum.dropped));
}

class MoeOnRanks : public ::testing::TestWithParam<std::tuple<Named, RankLayout>> {};
INSTANTIATE_TEST_SUITE_P(All, MoeOnRanks,
                         ::testing::Combine(::testing::ValuesIn(kCases), ::testing::ValuesIn(layouts())),
                         name_of);

TEST_P(MoeOnRanks, EqualOneRank) {
  const auto& [named, layout] = GetParam();
  const LayerProblem p = moe_problem(named.value);
  WorldStats one, all;
  const LayerResult want = run_moe(p, {}, one);
  const LayerResult got = run_moe(p, layout, all);
  expect_near(p, got, want, kBound);
  // A row visits its expert whole unless etp slices it, as tp slices a shared expert: then the forward bits
  // are those of one rank.
  if (layout.etp == 1 && (layout.tp == 1 || named.value.shared == Shared::none)) {
    EXPECT_EQ(got.y, want.y);
  }

  expect_equal_stats(all, one, layout);
}

// The order of the rows inside an expert is that of the ranks, so the bits are not those of one rank.
TEST_P(MoeOnContextRanks, EqualOneRank) {
  const auto& [named, layout] = GetParam();
  const LayerProblem p = moe_problem(named.value);
  WorldStats one, all;
  const LayerResult want = run_moe(p, {}, one);
  expect_near(p, run_moe(p, layout, all), want, kBound);
  expect_equal_stats(all, one, layout);
}

// f32 keeps 24 bits; the choices of experts are those of f64, whose margins are far wider.
TEST(MoeOnFastKernels, InF32StaysNearTheReference) {
  for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
    const MoeCase c{.unit = BalanceUnit::sequence, .aux = 0.7, .z = 0.3, .capacity = 0.8, .drops = policy};
    const LayerProblem p = moe_problem(c);
    const LayerResult want = run_layer(p, {});
    for (const RankLayout& layout : {RankLayout{}, RankLayout{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
      SCOPED_TRACE(text(layout));
      expect_near(p, run_layer(fast_f32(moe_problem(c)), layout), want, 5e-6);
    }
  }
}

TEST(MoeOrder, SplitFusedAndRecomputedPassesGiveTheSameBits) {
  for (const RankLayout& layout : {RankLayout{}, RankLayout{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    const LayerProblem p = moe_problem({.aux = 0.7, .z = 0.3, .capacity = 0.8, .drops = DropPolicy::probs});
    const LayerResult split = run_layer(p, layout, {.order = PassOrder::split});
    expect_same_bits(run_layer(p, layout, {.order = PassOrder::fused}), split);
    expect_same_bits(run_layer(p, layout, {.order = PassOrder::split_with_recompute}), split);
  }
}

// Of one micro-batch a rank: rows this rank sends to others and computes, from the chosen experts of all
// ranks.
TEST(MoeBytes, EqualTheClosedForms) {
  const std::int64_t row = 8 * 8;  // H b
  for (const RankLayout& l : layouts()) {
    for (const MoeCase& c :
         {MoeCase{.recompute = Recompute::selective}, MoeCase{.unit = BalanceUnit::sequence, .aux = 0.1},
          MoeCase{.unit = BalanceUnit::global_batch, .aux = 0.1},
          MoeCase{.capacity = 8.0, .drops = DropPolicy::position},
          MoeCase{.capacity = 8.0, .drops = DropPolicy::probs}}) {
      SCOPED_TRACE(text(l));
      MoeCase one_each = c;
      one_each.microbatches = l.dp;
      const std::int64_t tokens = 12 / l.tp;
      const auto ranks = static_cast<std::size_t>(l.world());
      std::vector<std::vector<std::int64_t>> chosen(ranks);  // nothing is dropped here: choices are rows
      const LayerResult r =
          run_layer(moe_problem(one_each), l, {.inspect = [&](const Place& place, LayerRig& rig) {
                      chosen[place.rank] = dynamic_cast<const moe::MoeLayer&>(rig.layer()).stats().chosen;
                    }});
      const std::int32_t local = kExperts / l.ep;
      const auto rows = [&](std::size_t from, std::int32_t ep_rank) {
        std::int64_t n = 0;
        for (std::int32_t i = 0; i < local; ++i) n += chosen[from][ep_rank * local + i];
        return n;
      };
      for (std::int32_t rank = 0; rank < l.world(); ++rank) {
        const std::int32_t block = rank - rank % (l.ep * l.etp);
        const std::int32_t mine = rank / l.etp % l.ep;
        std::int64_t sent = 0, received = 0, part_own = 0, part_others = 0;
        for (std::int32_t p = 0; p < l.ep; ++p) {
          for (std::int32_t q = 0; q < l.etp; ++q) {
            const std::int64_t n = rows(static_cast<std::size_t>(block + p * l.etp + q), mine);
            const bool own_column = q == rank % l.etp;
            (own_column ? part_own : part_others) += n;
            if (own_column && p != mine) received += n;
          }
          if (p != mine) sent += rows(static_cast<std::size_t>(rank), p);
        }
        const std::int64_t travel = (sent + received + (l.etp - 1) * part_own + part_others) * row;
        std::int64_t decide = (l.ep - 1) * kExperts * 4 + (l.etp - 1) * kExperts * 4;
        if (c.aux > 0 && c.unit == BalanceUnit::sequence) decide += (l.tp - 1) * 2 * kExperts * 4;
        if (c.capacity > 0) decide += (l.tp - 1) * tokens * 2 * 4;
        if (c.capacity > 0 && c.drops == DropPolicy::probs) decide += (l.tp - 1) * tokens * 2 * 8;
        EXPECT_EQ(r.bytes[rank].forward, travel + decide);
        EXPECT_EQ(r.bytes[rank].input, travel);
        EXPECT_EQ(r.bytes[rank].weight, 0);
      }
    }
  }
}

TEST(MoeMemory, MaxRowsBoundsWhatCanArrive) {
  const nn::Dims dims{.dtype = DType::f64, .batch = 2, .seq = 6, .hidden = 8, .tp = 2};
  moe::Options o = moe_options({.top_k = 2}, dims, {.tp = 2});
  EXPECT_EQ(moe::MoeLayer::max_rows(o, 1, 1), 6 * 2);
  EXPECT_EQ(moe::MoeLayer::max_rows(o, 2, 1), 2 * 6 * 2);
  EXPECT_EQ(moe::MoeLayer::max_rows(o, 4, 2), 4 * 2 * 6 * 1) << "one local expert: a token comes once";
  o.capacity_factor = 1.0;  // C = 6
  o.units_in_group = 2;
  EXPECT_EQ(moe::MoeLayer::max_rows(o, 2, 2), 2 * 6 * 2);
  o.units_in_group = 100;
  EXPECT_EQ(moe::MoeLayer::max_rows(o, 2, 2), 2 * 2 * 6 * 2) << "never more than dropless";
}

}  // namespace
}  // namespace tessera::test
