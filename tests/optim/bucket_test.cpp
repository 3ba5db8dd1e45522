// Buckets on thread ranks: sums and shards give the bits of one rank that has all of it, AdamW and clipping
// follow their formulas, the norm counts each element once, and the bytes are the closed form.
#include "optim/bucket.h"

#include <gtest/gtest.h>

#include <cmath>

#include "comm/thread_world.h"
#include "support/tensors.h"

namespace tessera::test {
namespace {

using kernels::AdamWOptions;
using optim::Bucket;

constexpr std::int64_t kElements = 24;
constexpr AdamWOptions kStep = {.lr = 0.1,
                                .beta1 = 0.9,
                                .beta2 = 0.99,
                                .eps = 1e-8,
                                .weight_decay = 0.01,
                                .bias_correction1 = 1 - 0.9,
                                .bias_correction2 = 1 - 0.99,
                                .grad_scale = 0.5};

// A bucket that owns its memory: random values, the gradient of `rank`, zero moments.
struct OwnedBucket {
  OwnedBucket(DType dtype, comm::Communicator& group, bool sharded)
      : value(random(dtype, {kElements}, 1)),
        grad(random(dtype, {kElements}, 100 + static_cast<std::uint64_t>(group.rank()))),
        m(zeros(dtype, {sharded ? kElements / group.size() : kElements})),
        v(zeros(dtype, {sharded ? kElements / group.size() : kElements})) {
    bucket.value = value;
    bucket.grad = grad;
    bucket.m = m;
    bucket.v = v;
    bucket.group = &group;
    bucket.sharded = sharded;
    // Three parameters, the middle one does not decay; borders do not fall on those of the shards.
    bucket.segments = {{0, 7, true}, {7, 6, false}, {13, 11, true}};
  }
  Owned value, grad, m, v;
  Bucket bucket;
};

struct StepOutcome {
  std::vector<double> value;
  double squares = 0.0;  // of all ranks
  std::vector<std::int64_t> bytes_sent;
};

// reduce, norm, apply, gather on `size` ranks; all ranks must end with the same values.
StepOutcome run_step(DType dtype, std::int32_t size, bool sharded) {
  StepOutcome out;
  std::vector<std::vector<double>> all(static_cast<std::size_t>(size));
  std::vector<double> squares(static_cast<std::size_t>(size));
  out.bytes_sent.resize(static_cast<std::size_t>(size));
  comm::ThreadWorld world({.size = size, .timeout = Seconds(20.0)});
  std::vector<Rank> members;
  for (std::int32_t r = 0; r < size; ++r) members.emplace_back(r);
  world.run([&](Rank rank) {
    const auto at = static_cast<std::size_t>(rank.value);
    const auto group = world.communicator(rank, members, "dp");
    const auto kernels = kernels::make_reference();
    OwnedBucket b(dtype, *group, sharded);
    optim::reduce(b.bucket, *kernels);
    const Owned sum = zeros(DType::f64, {1});
    optim::add_sum_squares(sum, b.bucket, *kernels);
    squares[at] = get(sum, 0);
    optim::apply(b.bucket, *kernels, kStep);
    optim::gather(b.bucket);
    all[at] = values(b.value);
    out.bytes_sent[at] = group->bytes_sent().value;
  });
  for (const std::vector<double>& v : all) EXPECT_EQ(v, all[0]);
  for (const double s : squares) out.squares += s;
  out.value = all[0];
  return out;
}

// The summed gradients in f64, in any order.
std::vector<double> summed_gradient(std::int32_t size) {
  std::vector<double> sum(kElements, 0.0);
  for (std::int32_t r = 0; r < size; ++r) {
    const Owned grad = random(DType::f64, {kElements}, 100 + static_cast<std::uint64_t>(r));
    for (std::int64_t i = 0; i < kElements; ++i) sum[i] += get(grad, i);
  }
  return sum;
}

class BucketOnRanks : public ::testing::TestWithParam<std::int32_t> {};
INSTANTIATE_TEST_SUITE_P(Ranks, BucketOnRanks, ::testing::Values(1, 2, 3, 4, 8));

TEST_P(BucketOnRanks, FirstStepOfAdamWFollowsTheFormula) {
  const std::vector<double> grad = summed_gradient(GetParam());
  const Owned before = random(DType::f64, {kElements}, 1);
  for (const bool sharded : {false, true}) {
    const StepOutcome got = run_step(DType::f64, GetParam(), sharded);
    for (std::int64_t i = 0; i < kElements; ++i) {
      const double g = 0.5 * grad[i];
      const double decay = i >= 7 && i < 13 ? 0.0 : 0.01;
      // m / bc1 = g and v / bc2 = g^2 in the first step.
      const double want = get(before, i) - 0.1 * (g / (std::sqrt(g * g) + 1e-8) + decay * get(before, i));
      EXPECT_TRUE(std::abs(got.value[i] - want) <= 1e-12) << i << ": " << got.value[i] << " want " << want;
    }
  }
}

TEST_P(BucketOnRanks, ShardsOfTheOptimizerGiveTheBitsOfWholeOnes) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    EXPECT_EQ(run_step(dtype, GetParam(), true).value, run_step(dtype, GetParam(), false).value);
  }
}

TEST_P(BucketOnRanks, TheNormCountsEachElementOnce) {
  double want = 0;
  for (const double g : summed_gradient(GetParam())) want += g * g;
  for (const bool sharded : {false, true}) {
    const double got = run_step(DType::f64, GetParam(), sharded).squares;
    EXPECT_TRUE(std::abs(got - want) <= 1e-12 * want) << got << " want " << want;
  }
}

TEST_P(BucketOnRanks, SendsTwiceAllButItsShareWithAndWithoutShards) {
  const std::int64_t n = GetParam();
  for (const bool sharded : {false, true}) {
    for (const std::int64_t sent : run_step(DType::f32, GetParam(), sharded).bytes_sent) {
      EXPECT_EQ(sent, 2 * (n - 1) * (kElements / n) * 4);
    }
  }
}

TEST(Bucket, ATiedCopyIsNeitherCountedNorUpdated) {
  const auto group = comm::make_self("dp");
  const auto kernels = kernels::make_reference();
  OwnedBucket b(DType::f64, *group, false);
  b.bucket.counted = false;
  b.bucket.updated = false;
  const std::vector<double> before = values(b.value);
  const Owned sum = zeros(DType::f64, {1});
  optim::add_sum_squares(sum, b.bucket, *kernels);
  EXPECT_EQ(get(sum, 0), 0.0);
  optim::apply(b.bucket, *kernels, kStep);
  optim::gather(b.bucket);
  EXPECT_EQ(values(b.value), before);
  EXPECT_EQ(values(b.m), std::vector<double>(kElements, 0.0));
}

TEST(Clipping, ScalesToTheLargestNormAndNeverUp) {
  EXPECT_EQ(optim::clip_coefficient(5.0, 0.0), 1.0);  // off
  EXPECT_EQ(optim::clip_coefficient(0.5, 1.0), 1.0);
  EXPECT_EQ(optim::clip_coefficient(0.0, 1.0), 1.0);
  EXPECT_DOUBLE_EQ(optim::clip_coefficient(4.0, 1.0), 1.0 / (4.0 + 1e-6));
}

TEST(Clipping, KeepsNanVisible) {
  EXPECT_TRUE(std::isnan(optim::clip_coefficient(NAN, 1.0)));
}

}  // namespace
}  // namespace tessera::test
