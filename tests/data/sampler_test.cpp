#include "data/sampler.h"

#include <numeric>
#include <set>

#include "data/support.h"

namespace tessera::data {
namespace {
using test::expect_error;

std::vector<std::int64_t> epoch_of(const SampleOrder& order, std::int64_t epoch) {
  std::vector<std::int64_t> out;
  for (std::int64_t i = 0; i < order.num_sequences(); ++i) {
    out.push_back(order.sequence_at(epoch * order.num_sequences() + i));
  }
  return out;
}

std::shared_ptr<const MemoryTokens> counting(std::int64_t tokens) {
  std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  return std::make_shared<MemoryTokens>(ids);
}

TEST(SampleOrder, EachEpochSeesEachSequenceOnce) {
  std::vector<std::int64_t> sizes(70);
  std::iota(sizes.begin(), sizes.end(), 1);
  for (const std::int64_t n : {127, 128, 129, 1000, 4095, 4096, 4097, 10007}) sizes.push_back(n);
  for (const std::int64_t n : sizes) {
    for (const std::int64_t epoch : {0, 1, 2, 1000}) {
      std::vector<std::int64_t> seen = epoch_of(SampleOrder(n, 42), epoch);
      std::sort(seen.begin(), seen.end());
      for (std::int64_t i = 0; i < n; ++i) ASSERT_EQ(seen[i], i) << "N " << n << " epoch " << epoch;
    }
  }
}

TEST(SampleOrder, EpochsAndSeedsHaveOrdersOfTheirOwn) {
  const SampleOrder order(500, 1);
  EXPECT_NE(epoch_of(order, 0), epoch_of(order, 1));
  EXPECT_NE(epoch_of(order, 0), epoch_of(SampleOrder(500, 2), 0));
  EXPECT_EQ(epoch_of(order, 3), epoch_of(SampleOrder(500, 1), 3));
  EXPECT_EQ(order.epoch_of(499), 0);
  EXPECT_EQ(order.epoch_of(500), 1);
}

// The recorded values hold the order still: runs resume across versions and machines.
TEST(SampleOrder, IsTheSameOnEveryMachine) {
  const SampleOrder order(1000, 1234);
  std::vector<std::int64_t> first;
  for (std::int64_t i = 0; i < 6; ++i) first.push_back(order.sequence_at(i));
  EXPECT_THAT(first, testing::ElementsAre(201, 238, 291, 722, 422, 798));
}

// Chi-square of (position, sequence) over epochs, 30 x 30 cells: 841 degrees of freedom, mean 841,
// deviation 41.
TEST(SampleOrder, EverySequenceComesEquallyOftenAtEveryPosition) {
  constexpr std::int64_t kN = 30;
  constexpr std::int64_t kEpochs = 6000;
  for (const std::uint64_t seed : {0, 1, 99}) {
    const SampleOrder order(kN, seed);
    std::vector<double> cell(kN * kN, 0.0);
    for (std::int64_t i = 0; i < kN * kEpochs; ++i) cell[(i % kN) * kN + order.sequence_at(i)] += 1.0;
    const double expected = static_cast<double>(kEpochs) / kN;
    double chi2 = 0.0;
    for (const double c : cell) chi2 += (c - expected) * (c - expected) / expected;
    EXPECT_GT(chi2, 841.0 - 5 * 41.0);
    EXPECT_LT(chi2, 841.0 + 5 * 41.0);
  }
}

TEST(SampleOrder, NeighboursInTheOrderAreNotNeighboursInTheText) {
  const std::vector<std::int64_t> seen = epoch_of(SampleOrder(4000, 5), 0);
  double a = 0.0, b = 0.0;
  for (std::size_t i = 0; i + 1 < seen.size(); ++i) {
    a += (seen[i] - 1999.5) * (seen[i + 1] - 1999.5);
    b += (seen[i] - 1999.5) * (seen[i] - 1999.5);
  }
  EXPECT_LT(std::abs(a / b), 5.0 / std::sqrt(4000.0));
}

TEST(SampleOrder, HoldsAtHugeCounts) {
  const std::int64_t n = (std::int64_t{1} << 50) + 7;
  const SampleOrder order(n, 3);
  std::set<std::int64_t> seen;
  for (std::int64_t i = 0; i < 2000; ++i) {
    const std::int64_t s = order.sequence_at(n - 1000 + i);
    ASSERT_GE(s, 0);
    ASSERT_LT(s, n);
    seen.insert(s);
  }
  EXPECT_EQ(seen.size(), 2000);
}

TEST(SampleOrder, RefusesANegativeSampleAndAnEmptyOrder) {
  const SampleOrder order(10, 0);
  EXPECT_THROW(static_cast<void>(order.sequence_at(-1)), Error);
  EXPECT_THROW(SampleOrder(0, 0), Error);
}

TEST(Sampler, CountsSequencesSoThatTheLastTargetIsInTheText) {
  EXPECT_EQ(num_sequences(*counting(5), 4), 1);
  EXPECT_EQ(num_sequences(*counting(8), 4), 1);
  EXPECT_EQ(num_sequences(*counting(9), 4), 2);
  expect_error(ErrorKind::config,
               {"4 tokens are too few", "sequence of 4 inputs", "mend: use a sequence length of at most 3"},
               [] { return num_sequences(*counting(4), 4); });
  expect_error(ErrorKind::config, {"0 tokens are too few"}, [] { return num_sequences(*counting(0), 4); });
}

TEST(Sampler, TargetsAreTheInputsMovedOnByOne) {
  const auto source = counting(1001);
  const SampleOrder order(num_sequences(*source, 10), 8);
  ASSERT_EQ(order.num_sequences(), 100);
  std::vector<std::int32_t> inputs(10), targets(10);
  std::vector<int> times_input(1001, 0), times_target(1001, 0);
  for (std::int64_t i = 0; i < 100; ++i) {
    fill_inputs_targets(*source, order, i, 10, inputs, targets);
    EXPECT_EQ(inputs[0], 10 * order.sequence_at(i));
    for (std::size_t k = 0; k < 10; ++k) {
      EXPECT_EQ(targets[k], inputs[k] + 1);
      ++times_input[inputs[k]];
      ++times_target[targets[k]];
    }
  }
  for (int t = 0; t < 1000; ++t) EXPECT_EQ(times_input[t], 1) << t;
  for (int t = 1; t < 1001; ++t) EXPECT_EQ(times_target[t], 1) << t;
}

TEST(Sampler, WorksWithSequencesOfOneToken) {
  std::vector<std::int32_t> input(1), target(1);
  fill_sequence(*counting(3), 1, 1, input, target);
  EXPECT_EQ(input[0], 1);
  EXPECT_EQ(target[0], 2);
}

using Batch = std::vector<std::int32_t>;

// All inputs and targets of steps first .. last - 1, in order of the global batch, drawn by `dp` replicas
// that each open the source for themselves.
Batch run(std::int64_t dp, std::int64_t first, std::int64_t last) {
  constexpr std::int64_t kBatch = 8;
  constexpr std::int64_t kSeq = 7;
  Batch out(static_cast<std::size_t>((last - first) * kBatch * 2 * kSeq));
  for (std::int64_t replica = 0; replica < dp; ++replica) {
    const auto source = counting(200);
    const SampleOrder order(num_sequences(*source, kSeq), 77);
    for (std::int64_t step = first; step < last; ++step) {
      for (std::int64_t b = replica * kBatch / dp; b < (replica + 1) * kBatch / dp; ++b) {
        const auto at = static_cast<std::size_t>(((step - first) * kBatch + b) * 2 * kSeq);
        fill_inputs_targets(*source, order, step * kBatch + b, kSeq, std::span(out).subspan(at, kSeq),
                            std::span(out).subspan(at + kSeq, kSeq));
      }
    }
  }
  return out;
}

TEST(Sampler, AResumedRunGoesOnAtTheExactSample) {
  const Batch whole = run(1, 0, 20);  // more than five epochs
  for (const std::int64_t cut : {1, 3, 4, 11, 19}) {
    Batch resumed = run(1, 0, cut);
    const Batch rest = run(1, cut, 20);
    resumed.insert(resumed.end(), rest.begin(), rest.end());
    EXPECT_EQ(resumed, whole) << cut;
  }
}

TEST(Sampler, EveryDataParallelSplitSeesTheSameSamples) {
  const Batch one = run(1, 0, 9);
  for (const std::int64_t dp : {2, 4, 8}) EXPECT_EQ(run(dp, 0, 9), one) << dp;
}

TEST(Split, TrainingAndValidationShareNoToken) {
  const auto [train, validation] = split_train_validation(counting(1000), 0.1);
  EXPECT_EQ(train->num_tokens(), 900);
  EXPECT_EQ(validation->num_tokens(), 100);
  EXPECT_EQ(test::all_tokens(*train).back(), 899);
  EXPECT_EQ(test::all_tokens(*validation).front(), 900);
  const std::int64_t n = num_sequences(*train, 100);
  EXPECT_EQ(n, 8);  // not 9: the ninth would need token 900 as its last target
  EXPECT_EQ(split_train_validation(counting(10), 0.0).validation->num_tokens(), 0);
}

TEST(Split, RefusesAFractionOutsideItsRange) {
  for (const double fraction : {-0.1, 1.0, std::numeric_limits<double>::quiet_NaN()}) {
    expect_error(ErrorKind::config, {"a validation fraction of", "mend: use a fraction from 0 to below 1"},
                 [&] { return split_train_validation(counting(10), fraction); });
  }
}

TEST(MemoryTokens, KnowsItsBoundAndRefusesNegativeIds) {
  EXPECT_EQ(MemoryTokens({3, 9, 1}).vocab_bound(), 10);
  expect_error(ErrorKind::config, {"token 1 is -2", "memory"}, [] { MemoryTokens({1, -2}); });
}

}  // namespace
}  // namespace tessera::data
