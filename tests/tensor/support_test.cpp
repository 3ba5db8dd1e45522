// The instruments of the numeric tests themselves: a wrong gradient, a NaN, a value just outside its
// allowance and a write outside a tensor must be seen.
#include <gtest/gtest-spi.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/compare.h"
#include "support/gradient_check.h"
#include "support/tensors.h"

namespace tessera::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(OwnedTensor, StartsPoisonedInEveryDtype) {
  EXPECT_TRUE(std::isnan(get(Owned(DType::f64, {3}), 2)));
  EXPECT_TRUE(std::isnan(get(Owned(DType::f32, {3}), 0)));
  EXPECT_EQ(Owned(DType::i32, {1}).as<std::int32_t>()[0], std::numeric_limits<std::int32_t>::min());
  EXPECT_EQ(Owned(DType::i64, {1}).as<std::int64_t>()[0], std::numeric_limits<std::int64_t>::min());
}

TEST(OwnedTensor, StandsOnABorderOrSoManyElementsPastIt) {
  for (const std::int64_t shift : {0, 1, 3}) {
    const Owned x(DType::f32, {5}, shift);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.tensor().raw()) % 64,
              static_cast<std::uintptr_t>(4 * shift));
    set_all(x, 1);
    EXPECT_TRUE(x.guards_intact());
  }
}

TEST(OwnedTensor, WritesJustOutsideAreSeen) {
  for (const std::int64_t outside : {-1, 5}) {
    EXPECT_NONFATAL_FAILURE(
        {
          const Owned x(DType::f32, {5});
          x.as<float>()[outside] = 0;
        },
        "[5] was written outside its bounds");
  }
}

TEST(OwnedTensor, MovesKeepTheMemory) {
  Owned a = random(DType::f64, {4}, 1);
  const void* at = a.tensor().raw();
  const Owned b = std::move(a);
  EXPECT_EQ(b.tensor().raw(), at);
  EXPECT_TRUE(b.guards_intact());
}

TEST(RandomTensor, IsTheSameNumbersRoundedInEveryDtype) {
  const Owned f64 = random(DType::f64, {50}, 7, 2, 1), f32 = random(DType::f32, {50}, 7, 2, 1);
  for (std::int64_t i = 0; i < 50; ++i) EXPECT_EQ(get(f32, i), static_cast<float>(get(f64, i)));
  EXPECT_FALSE(same_bits(f64, random(DType::f64, {50}, 8, 2, 1)));
  for (const double v : values(random_ids(DType::i32, {200}, 1, -2, 3))) {
    EXPECT_GE(v, -2);
    EXPECT_LT(v, 3);
  }
}

// f(x) = sum of u x^3.
struct Cubic {
  std::vector<double> u = {0.7, -1.3, 0.2, 2.1};
  double operator()(std::span<const double> x) const {
    double sum = 0;
    for (std::size_t i = 0; i < u.size(); ++i) sum += u[i] * x[i] * x[i] * x[i];
    return sum;
  }
};
const std::vector<double> kAt = {0.3, -2.0, 1.1, 40.0};
std::vector<double> cubic_gradient() {
  std::vector<double> out;
  for (std::size_t i = 0; i < kAt.size(); ++i) out.push_back(3 * Cubic().u[i] * kAt[i] * kAt[i]);
  return out;
}

TEST(GradientCheck, AcceptsTheGradient) {
  EXPECT_TRUE(gradient_matches("cubic", Cubic(), kAt, cubic_gradient()));
}

TEST(GradientCheck, SeesAFaultOfAMillionthOfTheLargestGradient) {
  std::vector<double> wrong = cubic_gradient();
  wrong[1] += 1e-6 * wrong[3];
  const auto result = gradient_matches("cubic", Cubic(), kAt, wrong);
  EXPECT_FALSE(result);
  EXPECT_NE(std::string(result.message()).find("cubic[1]"), std::string::npos) << result.message();
}

TEST(GradientCheck, SeesNaNInTheGradientAndInTheFunction) {
  std::vector<double> wrong = cubic_gradient();
  wrong[2] = kNaN;
  EXPECT_FALSE(gradient_matches("cubic", Cubic(), kAt, wrong));
  const auto nan = [](std::span<const double>) { return kNaN; };
  EXPECT_FALSE(gradient_matches("nan", nan, kAt, cubic_gradient()));
}

TEST(GradientCheck, SeesAGradientOfZeroWhereThereIsOne) {
  EXPECT_FALSE(gradient_matches("cubic", Cubic(), kAt, std::vector<double>(4, 0.0)));
}

TEST(GradientCheck, RefusesAnotherNumberOfGradients) {
  EXPECT_FALSE(gradient_matches("cubic", Cubic(), kAt, std::vector<double>(3, 0.0)));
}

TEST(GradientCheck, InPlacePutsTheValuesBack) {
  const Owned x = tensor_of(DType::f64, {4}, {0.3, -2.0, 1.1, 40.0});
  const Owned dx(DType::f64, {4}), before = copy_of(x);
  set_values(dx, cubic_gradient());
  const auto loss = [&] { return Cubic()(values(x)); };
  EXPECT_TRUE(gradient_matches("x", x, dx, loss));
  EXPECT_TRUE(same_bits(x, before));
  set(dx, 0, 0);
  set(dx, 3, 0);
  EXPECT_FALSE(gradient_matches("x", x, dx, loss));
}

TEST(Allowance, IsRoundoffOfTheResultPlusThatOfTheSum) {
  EXPECT_NEAR(allowed_error(DType::f32, 0, 16, 3), 4 * 4 * 0x1p-24 * 3, 0x1p-120);
  EXPECT_NEAR(allowed_error(DType::f32, -2, 16, 0), 2 * 0x1p-24, 0x1p-120);
  EXPECT_DOUBLE_EQ(allowed_error(DType::f64, 1, 4, 1), 9 * 0x1p-53);
}

TEST(Comparison, AcceptsWithinAndRefusesBeyondTheAllowance) {
  const Owned want = tensor_of(DType::f64, {2, 2}, {1, 1, 1, 1});
  const Terms terms{.count = 4, .scale = {1}};
  const double allowed = allowed_error(DType::f32, 1, 4, 1);
  const Owned inside = tensor_of(DType::f32, {2, 2}, {1, 1, 1 + 0.8 * allowed, 1});
  EXPECT_TRUE(matches("support inside", inside, want, terms));
  EXPECT_GT(allowance_used()["support inside"], 50);
  const Owned outside = tensor_of(DType::f32, {2, 2}, {1, 1, 1, 1 + 1.3 * allowed});
  const auto result = matches("support outside", outside, want, terms);
  EXPECT_FALSE(result);
  const std::string text = result.message();
  EXPECT_NE(text.find("support outside[1, 1]: got 1."), std::string::npos) << text;
  EXPECT_NE(text.find("1 of 4 elements"), std::string::npos) << text;
}

TEST(Comparison, NeverAcceptsNaNOrInfinityOnEitherSide) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double bad : {kNaN, infinity, -infinity}) {
    const Owned odd = tensor_of(DType::f64, {1}, {bad}), one = tensor_of(DType::f64, {1}, {1});
    EXPECT_FALSE(matches("odd", odd, one, {.count = 1, .scale = {1}}));
    EXPECT_FALSE(matches("odd", one, odd, {.count = 1, .scale = {1}}));
    EXPECT_FALSE(matches("odd", odd, odd, {.count = 1, .scale = {1}}));
    EXPECT_FALSE(matches("odd", one, one, {.count = 1, .scale = {bad}}));
  }
}

TEST(Comparison, RefusesOtherShapesAndMissingScales) {
  const Owned a = zeros(DType::f64, {2, 3}), b = zeros(DType::f64, {3, 2});
  EXPECT_FALSE(matches("shape", a, b, {.count = 1, .scale = {1}}));
  EXPECT_FALSE(matches("scales", a, a, {.count = 1, .scale = {}}));
  EXPECT_FALSE(matches("scales", a, a, {.count = 1, .scale = {1, 1, 1, 1}}));
}

TEST(Comparison, ScalesMayBePerRow) {
  const Owned want = zeros(DType::f64, {2, 2}), got = tensor_of(DType::f64, {2, 2}, {0, 0, 0x1p-51, 0});
  EXPECT_TRUE(matches("row", got, want, {.count = 1, .scale = {0, 1}}));
  EXPECT_FALSE(matches("row", got, want, {.count = 1, .scale = {1, 0}}));
}

}  // namespace
}  // namespace tessera::test
