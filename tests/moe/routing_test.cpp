// Capacity, drops, counts and balancing coefficients by hand.
#include "moe/routing.h"

#include <gtest/gtest.h>

#include "moe/problems.h"

namespace tessera::test {
namespace {

using moe::BalanceUnit;
using moe::DropPolicy;

TEST(Capacity, RoundsUpAndForgivesRounding) {
  EXPECT_EQ(moe::capacity_rows(1.0, 12, 2, 4), 6);
  EXPECT_EQ(moe::capacity_rows(1.25, 12, 2, 4), 8);  // 7.5
  EXPECT_EQ(moe::capacity_rows(1.1, 20, 2, 4), 11);  // 1.1 * 10 is 11.000000000000002 in f64
  EXPECT_EQ(moe::capacity_rows(0.01, 12, 1, 8), 1);
  EXPECT_EQ(moe::capacity_rows(1.1, 7, 1, 7), 2);
}

// Tokens 0..4 choose two of three experts.
struct Choices {
  Owned index = tensor_of(DType::i32, {5, 2}, {0, 1, 0, 2, 1, 0, 0, 1, 2, 0});
  Owned weights = tensor_of(DType::f64, {5, 2}, {.6, .4, .9, .1, .5, .5, .7, .3, .8, .2});
  Owned order = Owned(DType::i32, {10});
  Owned start = Owned(DType::i32, {4});
  Values marks(DropPolicy policy, std::int64_t capacity, std::int64_t first, std::int64_t tokens) {
    const Owned pos(DType::i32, {tokens, 2});
    moe::mark_drops(pos, index, weights, {.order_n = order, .start_E1 = start}, policy, capacity, first);
    return values(pos);
  }
};

TEST(Drops, PositionKeepsTheFirstChoicesInTokenOrder) {
  Choices c;
  // Expert 0 is asked by choices 0, 2, 5, 6, 9; expert 1 by 1, 4, 7; expert 2 by 3, 8.
  EXPECT_EQ(c.marks(DropPolicy::position, 2, 0, 5), (Values{0, 0, 0, 0, 0, -1, -1, -1, 0, -1}));
  EXPECT_EQ(c.marks(DropPolicy::position, 5, 0, 5), Values(10, 0.0)) << "exactly full";
  EXPECT_EQ(c.marks(DropPolicy::position, 0, 0, 5), Values(10, -1.0));
}

TEST(Drops, ProbsKeepsTheHighestWeightsAndTheLowerTokenOfEquals) {
  Choices c;
  EXPECT_EQ(c.marks(DropPolicy::probs, 2, 0, 5), (Values{-1, 0, 0, 0, 0, -1, 0, -1, 0, -1}));
  set(c.weights, 5, .7);  // tokens 2 and 3 ask for expert 0 with equal weight
  EXPECT_EQ(c.marks(DropPolicy::probs, 2, 0, 5), (Values{-1, 0, 0, 0, 0, 0, -1, -1, 0, -1}));
}

TEST(Drops, AreTheSameHoweverTheTokensAreDealtToRanks) {
  Choices c;
  for (const DropPolicy policy : {DropPolicy::position, DropPolicy::probs}) {
    for (std::int64_t capacity = 0; capacity < 6; ++capacity) {
      const Values whole = c.marks(policy, capacity, 0, 5);
      for (std::int64_t cut = 1; cut < 5; ++cut) {
        Values parts = c.marks(policy, capacity, 0, cut);
        std::ranges::copy(c.marks(policy, capacity, cut, 5 - cut), std::back_inserter(parts));
        EXPECT_EQ(parts, whole) << "capacity " << capacity << ", cut at token " << cut;
      }
    }
  }
}

moe::Options options_of(BalanceUnit unit) {
  const nn::Dims dims{.dtype = DType::f64, .batch = 2, .seq = 3, .hidden = 8, .tp = 1};
  return {.dims = dims,
          .num_experts = 3,
          .intermediate = 4,
          .router = {.top_k = 2, .score = kernels::RouterScore::softmax_then_topk, .renormalise = true},
          .norm_eps = 1e-5,
          .recompute = nn::Recompute::none,
          .unit = unit,
          .aux_loss_coef = 0.5};
}

TEST(Balance, CountsBySequenceAcrossTheCutOfARank) {
  const auto kernels = kernels::make_reference();
  const Owned index = tensor_of(DType::i32, {3, 2}, {0, 1, 0, 2, 1, 0});  // tokens 1, 2 | 3
  const Owned unit(DType::i32, {3}), counts(DType::i32, {2, 3}), one(DType::i32, {1, 3});
  moe::fill_units(unit, options_of(BalanceUnit::sequence), 1);
  EXPECT_EQ(values(unit), (Values{0, 0, 1}));
  kernels->count_choices(counts, index, unit);
  EXPECT_EQ(values(counts), (Values{2, 1, 1, 1, 1, 0}));
  moe::fill_units(unit, options_of(BalanceUnit::micro_batch), 1);
  kernels->count_choices(one, index, unit);
  EXPECT_EQ(values(one), (Values{3, 2, 1}));
}

TEST(Balance, CoefficientsFollowTheFormula) {
  const auto kernels = kernels::make_reference();
  const Owned counts = tensor_of(DType::i32, {2, 3}, {4, 2, 0, 1, 2, 3});
  const Owned aux(DType::f64, {2, 3});
  kernels->scale_counts(aux, counts, moe::balance_scale(options_of(BalanceUnit::sequence), 0.25));
  for (std::int64_t i = 0; i < 6; ++i) {
    EXPECT_DOUBLE_EQ(get(aux, i), 0.25 * 0.5 * 3 * get(counts, i) / (2 * 3.0 * 3.0));
  }
  const Owned global(DType::f64, {1, 3}), frequency = tensor_of(DType::f64, {1, 3}, {0.5, 0.3, 0.2});
  kernels->scale_counts(global, frequency, moe::frequency_scale(options_of(BalanceUnit::global_batch), 0.01));
  EXPECT_DOUBLE_EQ(get(global, 1), 0.5 * 3 * 0.3 * 0.01);
}

// c at perfect balance: uniform scores and equal counts.
TEST(Balance, LossIsTheCoefficientAtPerfectBalance) {
  const auto kernels = kernels::make_reference();
  for (const BalanceUnit unit :
       {BalanceUnit::sequence, BalanceUnit::micro_batch, BalanceUnit::global_batch}) {
    const moe::Options o = options_of(unit);
    const Owned index = tensor_of(DType::i32, {6, 2}, {0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2, 0});
    const Owned probs(DType::f64, {6, 3}), frequency(DType::f64, {1, 3});
    set_all(probs, 1.0 / 3);
    set_all(frequency, 1.0 / 3);
    const std::int64_t units = moe::num_units(o);
    const Owned counts(DType::i32, {units, 3}), aux(DType::f64, {units, 3}), of_token(DType::i32, {6});
    moe::fill_units(of_token, o, 0);
    if (unit == BalanceUnit::global_batch) {
      kernels->scale_counts(aux, frequency, moe::frequency_scale(o, 1.0 / 6));
    } else {
      kernels->count_choices(counts, index, of_token);
      kernels->scale_counts(aux, counts, moe::balance_scale(o, 1.0 / static_cast<double>(units)));
    }
    const Owned value = zeros(DType::f64, {1});
    kernels->balance_value(value, probs, aux, of_token, o.router.score);
    EXPECT_NEAR(get(value, 0), 0.5, 1e-14);
  }
}

}  // namespace
}  // namespace tessera::test
