// What only the CPU backend has: its own exponential on every instruction set, its limits, and the measured
// peaks. Agreement with the reference, gradients and splits are in the tests that run on every
// implementation.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "kernels/cpu/cpu_kernels.h"
#include "kernels/cpu/isa.h"
#include "kernels/fixtures.h"
#include "kernels/peak.h"

namespace tessera::kernels {
namespace {

std::vector<const cpu::Isa*> supported_isas() {
  std::vector<const cpu::Isa*> out;
  for (const cpu::Isa* isa : {&cpu::avx512(), &cpu::avx2(), &cpu::generic()}) {
    if (cpu::supported(*isa)) out.push_back(isa);
  }
  return out;
}

// Largest error of the table's exp on [low, high], in units in the last place of the true value.
template <class T>
double worst_ulps(const cpu::Loops<T>& loops, double low, double high) {
  constexpr int kDigits = std::numeric_limits<T>::digits;
  constexpr std::int64_t kCount = 50'003;  // not a multiple of any vector: the tail is tested too
  std::vector<T> x(kCount), y(kCount);
  for (std::int64_t i = 0; i < kCount; ++i) {
    x[i] = static_cast<T>(low + (high - low) * uniform(1, stream_of("exp"), i));
  }
  loops.exp(y.data(), x.data(), kCount);
  double worst = 0;
  for (std::int64_t i = 0; i < kCount; ++i) {
    const long double want = std::exp(static_cast<long double>(x[i]));
    const long double ulp = std::ldexp(1.0L, std::ilogb(want) + 1 - kDigits);
    const auto error = static_cast<double>(std::abs(y[i] - want) / ulp);
    worst = !(error <= worst) ? error : worst;  // a NaN stays
    if (std::isnan(worst)) return worst;
  }
  return worst;
}

TEST(Exponential, IsWithinOneUnitInTheLastPlaceOnEveryInstructionSet) {
  for (const cpu::Isa* isa : supported_isas()) {
    SCOPED_TRACE(isa->name);
    EXPECT_LE(worst_ulps(*isa->f32, -87.3, 88.7), 1.0);
    EXPECT_LE(worst_ulps(*isa->f32, -1, 1), 1.0);
    EXPECT_LE(worst_ulps(*isa->f64, -708, 709), 1.0);
    EXPECT_LE(worst_ulps(*isa->f64, -1, 1), 1.0);
  }
}

TEST(Exponential, KeepsNotANumberAndReachesZeroAndInfinity) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {std::nanf(""), inf, -inf, -200, 200, -0.0f, 0};
  for (const cpu::Isa* isa : supported_isas()) {
    SCOPED_TRACE(isa->name);
    std::vector<float> y(x.size());
    isa->f32->exp(y.data(), x.data(), static_cast<std::int64_t>(x.size()));
    EXPECT_TRUE(std::isnan(y[0]));
    EXPECT_EQ(std::vector<float>(y.begin() + 1, y.end()), (std::vector<float>{inf, 0, 0, inf, 1, 1}));
  }
}

TEST(CpuKernels, RefusesHeadsThatDoNotFitItsWorkspace) {
  const auto kernels = make_cpu();
  const AttentionShape shape{.batch = 1, .seq = 1, .heads = 1, .kv_heads = 1, .head_dim = 514, .scale = 1};
  const Owned qkv(DType::f32, {1, shape.qkv_dim()}), out(DType::f32, {1, shape.q_dim()}),
      lse(DType::f32, {1, 1});
  try {
    kernels->attention(out, lse, qkv, shape);
    FAIL() << "head_dim=514 was accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
    EXPECT_THAT(e.what(), ::testing::HasSubstr("head_dim=514 is above 512"));
    EXPECT_THAT(e.what(), ::testing::HasSubstr("more, smaller heads"));
  }
}

TEST(CpuKernels, AcceptsTheLargestHeadInBothDtypes) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const AttentionShape shape{
        .batch = 1, .seq = 70, .heads = 1, .kv_heads = 1, .head_dim = 512, .scale = 0.04};
    const Owned qkv = random(dtype, {70, shape.qkv_dim()}, 1);
    Owned out(dtype, {70, 512}), lse(dtype, {70, 1}), out_ref(dtype, {70, 512}), lse_ref(dtype, {70, 1});
    make_cpu()->attention(out, lse, qkv, shape);
    make_reference()->attention(out_ref, lse_ref, qkv, shape);
    for (std::int64_t i = 0; i < 70 * 512; ++i) {
      const double error = std::abs(get(out, i) - get(out_ref, i));
      ASSERT_TRUE(error <= (dtype == DType::f32 ? 1e-5 : 1e-13)) << "out[" << i << "] is off by " << error;
    }
    Owned dqkv(dtype, {70, shape.qkv_dim()}), dqkv_ref(dtype, {70, shape.qkv_dim()});
    make_cpu()->attention_backward(dqkv, out, qkv, out, lse, shape);
    make_reference()->attention_backward(dqkv_ref, out_ref, qkv, out_ref, lse_ref, shape);
    for (std::int64_t i = 0; i < dqkv.tensor().num_elements(); ++i) {
      const double error = std::abs(get(dqkv, i) - get(dqkv_ref, i));
      ASSERT_TRUE(error <= (dtype == DType::f32 ? 1e-4 : 1e-12)) << "dqkv[" << i << "] is off by " << error;
    }
  }
}

TEST(CpuKernels, PackedAndUnpackedWeightsGiveTheSameBits) {
  for (const DType dtype : {DType::f32, DType::f64}) {
    const auto kernels = make_cpu();
    const std::int64_t t = 37, n = 203, k = 1300;  // k spans two outer blocks
    const Owned x = random(dtype, {t, k}, 1), w = random(dtype, {n, k}, 2), dy = random(dtype, {t, n}, 3);
    const PackedWeight packed(*kernels, w), plain(*kernels, w, PackedWeight::Pack::no);
    Owned y(dtype, {t, n}), y2(dtype, {t, n}), dx(dtype, {t, k}), dx2(dtype, {t, k});
    kernels->linear(y, x, packed);
    kernels->linear(y2, x, plain);
    kernels->linear_dgrad(dx, dy, packed);
    kernels->linear_dgrad(dx2, dy, plain);
    EXPECT_EQ(values(y), values(y2));
    EXPECT_EQ(values(dx), values(dx2));
  }
}

TEST(Peaks, HoldsTwiceAsManySinglesAsDoublesAndNoBandwidthUnlessAsked) {
  const Peaks p = measure_peaks();
  EXPECT_GT(p.fma_f64.value, 1e8);
  EXPECT_GT(p.fma_f32.value, 1.5 * p.fma_f64.value);
  EXPECT_LT(p.fma_f32.value, 3 * p.fma_f64.value);
  EXPECT_EQ(p.read.value, 0);
  EXPECT_EQ(p.triad.value, 0);
}

}  // namespace
}  // namespace tessera::kernels
