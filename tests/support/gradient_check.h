// Gradient check by central differences, in f64. The scalar should be a random weighting of every output
// (dot(upstream, y) of tests/support/tensors.h) and the weights random: with an upstream gradient of ones,
// whole terms of a backward pass can be missing unseen. Keep points away from kinks (top-k changes, max).
//
// Two forms, the same check:
//   flat:      EXPECT_TRUE(gradient_matches("f", f, x, dx));         double f(std::span<const double> x)
//   in place:  EXPECT_TRUE(gradient_matches("w", w, dw, loss));      w is a Tensor that loss() reads; each
//              element is moved and put back.
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/random.h"
#include "support/tensors.h"

namespace tessera::test {

// Error of a correct gradient is about 1e-10 of the tensor's largest gradient at this step; a missing term is
// orders of magnitude above the bound.
inline constexpr double kGradientStep = 1e-5;
inline constexpr double kGradientBound = 1e-7;

struct GradientCheck {
  std::int64_t max_coordinates = 400;  // larger tensors are sampled
  std::uint64_t seed = 1;
  double bound = kGradientBound;
};

using ScalarFunction = std::function<double(std::span<const double>)>;

namespace detail {
// Coordinates to look at: all, or a random sample.
inline std::vector<std::int64_t> coordinates(std::int64_t n, const GradientCheck& options) {
  std::vector<std::int64_t> out;
  for (std::int64_t j = 0; j < std::min(n, options.max_coordinates); ++j) {
    const auto draw = uniform_below(static_cast<std::uint64_t>(n), options.seed, stream_of("coordinates"),
                                    static_cast<std::uint64_t>(j));
    out.push_back(n <= options.max_coordinates ? j : static_cast<std::int64_t>(draw));
  }
  return out;
}
}  // namespace detail

[[nodiscard]] inline ::testing::AssertionResult gradient_matches(std::string_view name,
                                                                 const ScalarFunction& f,
                                                                 std::span<const double> at,
                                                                 std::span<const double> gradient,
                                                                 const GradientCheck& options = {}) {
  if (at.size() != gradient.size()) {
    return ::testing::AssertionFailure()
           << name << ": " << at.size() << " inputs but " << gradient.size() << " gradients";
  }
  double largest = 0;
  for (std::size_t i = 0; i < gradient.size(); ++i) {
    if (!std::isfinite(gradient[i])) {
      return ::testing::AssertionFailure() << name << "[" << i << "]: gradient is " << gradient[i];
    }
    largest = std::max(largest, std::abs(gradient[i]));
  }
  std::vector<double> x(at.begin(), at.end());
  double worst = -1;
  std::string text;
  const auto n = static_cast<std::int64_t>(x.size());
  for (const std::int64_t coordinate : detail::coordinates(n, options)) {
    const auto i = static_cast<std::size_t>(coordinate);
    const double h = kGradientStep * std::max(1.0, std::abs(at[i]));
    const double above = at[i] + h;
    const double below = at[i] - h;
    x[i] = above;
    const double f_above = f(x);
    x[i] = below;
    const double f_below = f(x);
    x[i] = at[i];
    const double want = (f_above - f_below) / (above - below);
    const double error = std::abs(gradient[i] - want);
    if (!(error <= options.bound * std::max(largest, std::abs(want))) && !(error <= worst)) {
      worst = error;
      text = std::string(name) + "[" + std::to_string(i) + "]: gradient " + std::to_string(gradient[i]) +
             ", central difference " + std::to_string(want) + ", error " +
             std::to_string(error / std::max(largest, std::abs(want))) + " of the largest gradient";
    }
  }
  if (!text.empty()) return ::testing::AssertionFailure() << text;
  return ::testing::AssertionSuccess();
}

// `x` is read by loss() and moved in place; `dx` is the gradient to check. Both f64.
[[nodiscard]] inline ::testing::AssertionResult gradient_matches(std::string_view name, const Tensor& x,
                                                                 const Tensor& dx,
                                                                 const std::function<double()>& loss,
                                                                 const GradientCheck& options = {}) {
  if (x.dtype() != DType::f64 || dx.dtype() != DType::f64) {
    return ::testing::AssertionFailure() << name << ": gradient checks are in f64";
  }
  const std::vector<double> at = values(x);
  const ScalarFunction f = [&](std::span<const double> moved) {
    set_values(x, moved);
    return loss();
  };
  const auto result = gradient_matches(name, f, at, values(dx), options);
  set_values(x, at);
  return result;
}

}  // namespace tessera::test
