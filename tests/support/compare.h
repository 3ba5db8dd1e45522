// Comparison with a computed allowance. Allowed error of one element with f64 reference r that is a sum of K
// terms whose absolute values add up to s:
//
//   allowed = u_out |r| + 4 sqrt(K) u_acc s + m,      u = unit roundoff: 2^-53 of f64, 2^-24 of f32
//
// Never scaled by the result alone: a sum can cancel. m is the smallest normal number: below it a result may
// be flushed to zero. Non-finite values never match.
//
//   EXPECT_TRUE(matches("y", y, y_f64, Terms{.count = K, .scale = sum_of_abs_products}));
//
// The largest percentage of the allowance that was used, by name, is printed at the end of the program.
#pragma once
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "support/tensors.h"

namespace tessera::test {

[[nodiscard]] inline double unit_roundoff(DType dtype) {
  return dtype == DType::f32 ? 0x1p-24 : 0x1p-53;
}

// The sum behind each element: number of terms, and the sum of their absolute values, either one value for
// all elements, one a row of the tensor, or one an element.
struct Terms {
  std::int64_t count = 1;
  std::vector<double> scale;
};

[[nodiscard]] inline double allowed_error(DType dtype, double want, std::int64_t count, double scale) {
  const double u = unit_roundoff(dtype);
  const double terms = static_cast<double>(std::max<std::int64_t>(count, 1));
  const double smallest = dtype == DType::f32 ? 0x1p-126 : 0x1p-1022;
  return u * std::abs(want) + 4 * std::sqrt(terms) * u * scale + smallest;
}

// Largest percentage of the allowance used so far, by name.
[[nodiscard]] inline std::map<std::string, double>& allowance_used() {
  static std::map<std::string, double> table;
  return table;
}
class AllowanceReport : public ::testing::Environment {
 public:
  void TearDown() override {
    for (const auto& [name, percent] : allowance_used()) {
      fmt::print("[ ALLOWED  ] {:<44} {:5.1f} % of the computed allowance used\n", name, percent);
    }
  }
};
inline const auto* const allowance_report = ::testing::AddGlobalTestEnvironment(new AllowanceReport);

namespace detail {
inline bool finite(double x) {  // by bit pattern: holds under every compiler option
  return ((std::bit_cast<std::uint64_t>(x) >> 52) & 0x7ff) != 0x7ff;
}
inline std::string index_text(const Shape& shape, std::int64_t i) {
  std::string out;
  for (std::int32_t d = shape.num_dims() - 1; d >= 0; --d) {
    out = fmt::format("{}{}{}", i % shape[d], out.empty() ? "" : ", ", out);
    i /= shape[d];
  }
  return "[" + out + "]";
}
}  // namespace detail

// `got` in any floating dtype against `want` in f64, of the same shape.
[[nodiscard]] inline ::testing::AssertionResult matches(std::string_view name, const Tensor& got,
                                                        const Tensor& want, const Terms& terms) {
  if (got.shape() != want.shape()) {
    return ::testing::AssertionFailure()
           << name << ": got " << got.shape().text() << ", want " << want.shape().text();
  }
  const std::int64_t n = want.num_elements();
  const auto scales = static_cast<std::int64_t>(terms.scale.size());
  if (n > 0 && (scales == 0 || n % scales != 0)) {
    return ::testing::AssertionFailure() << name << ": " << scales << " scales for " << n << " elements";
  }
  double worst = 0;
  std::int64_t bad = 0;
  std::string text;
  for (std::int64_t i = 0; i < n; ++i) {
    const double g = get(got, i);
    const double w = get(want, i);
    const double scale = terms.scale[static_cast<std::size_t>(i / (n / scales))];
    const double allowed = allowed_error(got.dtype(), w, terms.count, scale);
    const double error = std::abs(g - w);
    const bool good = detail::finite(g) && detail::finite(w) && detail::finite(allowed) && error <= allowed;
    if (good) {
      worst = std::max(worst, error == 0 ? 0 : 100 * error / allowed);
      continue;
    }
    if (bad++ == 0) {
      text = fmt::format("{}{}: got {:.9g}, want {:.9g}, error {:.3g}, allowed {:.3g} ({:.0f} %)", name,
                         detail::index_text(want.shape(), i), g, w, error, allowed, 100 * error / allowed);
    }
  }
  if (bad > 0)
    return ::testing::AssertionFailure() << text << "; " << bad << " of " << n << " elements are off";
  double& used = allowance_used()[std::string(name)];
  used = std::max(used, worst);
  return ::testing::AssertionSuccess();
}

// Sums of the same terms in another order, both in f64: parallel against serial. One scale for the tensor:
// its largest value.
[[nodiscard]] inline ::testing::AssertionResult matches_reordered(std::string_view name, const Tensor& got,
                                                                  const Tensor& want, std::int64_t count) {
  double largest = 0;
  for (std::int64_t i = 0; i < want.num_elements(); ++i) largest = std::max(largest, std::abs(get(want, i)));
  return matches(name, got, want, Terms{.count = count, .scale = {largest}});
}

// |x| of every element, for Terms::scale.
[[nodiscard]] inline std::vector<double> magnitudes(const Tensor& x, double factor = 1) {
  std::vector<double> out = values(x);
  for (double& v : out) v = factor * std::abs(v);
  return out;
}

}  // namespace tessera::test
