// Fixtures of the kernel tests. Kernel tests run once per implementation and dtype (implementations.h).
#pragma once
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/implementations.h"
#include "kernels/kernels.h"
#include "support/compare.h"
#include "support/tensors.h"

namespace tessera::kernels {

using tensor::Shape;
using test::copy_of;
using test::get;
using test::Owned;
using test::random;
using test::random_ids;
using test::Terms;
using test::values;
using test::zeros;

// A linear weight with its packed copy, as the layers hold it. The value's memory belongs to the caller.
class PackedWeight {
 public:
  enum class Pack { yes, no };
  PackedWeight(Kernels& kernels, const Tensor& value_NK, Pack pack = Pack::yes) : kernels_(kernels) {
    weight_.value_NK = value_NK;
    const Bytes bytes = kernels.packed_bytes(value_NK.dtype(), value_NK.dim(0), value_NK.dim(1));
    if (pack == Pack::yes && bytes.value > 0) {
      packed_ = Owned(DType::u8, {bytes.value});
      weight_.packed = packed_;
    }
    repack();
  }
  void repack() { kernels_.pack(weight_); }
  operator const Weight&() const { return weight_; }  // NOLINT: reads better in calls

 private:
  Kernels& kernels_;
  Owned packed_;
  Weight weight_;
};

// Columns [begin, begin + count) of a matrix, copied.
inline Owned columns(const Tensor& x, std::int64_t begin, std::int64_t count) {
  Owned out(x.dtype(), {x.dim(0), count});
  for (std::int64_t r = 0; r < x.dim(0); ++r) {
    for (std::int64_t c = 0; c < count; ++c) {
      test::set(out, r * count + c, get(x, r * x.dim(1) + begin + c));
    }
  }
  return out;
}
inline void put_columns(const Tensor& x, std::int64_t begin, const Tensor& part) {
  for (std::int64_t r = 0; r < x.dim(0); ++r) {
    for (std::int64_t c = 0; c < part.dim(1); ++c) {
      test::set(x, r * x.dim(1) + begin + c, get(part, r * part.dim(1) + c));
    }
  }
}

inline Owned magnitude_of(const Tensor& x) {
  Owned out = copy_of(x);
  for (std::int64_t i = 0; i < x.num_elements(); ++i) test::set(out, i, std::abs(get(x, i)));
  return out;
}

// The largest |x| of each row, times a factor.
inline std::vector<double> row_largest(const Tensor& x, double factor) {
  std::vector<double> out(static_cast<std::size_t>(x.dim(0)), 0.0);
  for (std::int64_t i = 0; i < x.num_elements(); ++i) {
    double& at = out[static_cast<std::size_t>(i / x.row_elements())];
    at = std::max(at, factor * std::abs(get(x, i)));
  }
  return out;
}

// Everything that runs on one subject.
class KernelTest : public ::testing::TestWithParam<Subject> {
 protected:
  KernelTest() : dtype_(GetParam().dtype), kernels_(GetParam().implementation.make()) {}
  DType dtype_;
  std::unique_ptr<Kernels> kernels_;
};

// In f64 only: gradients.
class KernelGradients : public KernelTest {};

enum class Side { got, want };

// The same numbers for the subject and for the truth: rounded to the subject's dtype, held in f64 too.
class Pair {
 public:
  Pair() = default;
  Pair(Owned got, Owned want) : got_(std::move(got)), want_(std::move(want)) {}
  [[nodiscard]] Tensor operator[](Side side) const { return side == Side::got ? got_ : want_; }
  [[nodiscard]] Tensor got() const { return got_; }
  [[nodiscard]] Tensor want() const { return want_; }

 private:
  Owned got_, want_;
};

// The subject against the f64 reference reading the same rounded inputs.
class Agreement : public KernelTest {
 protected:
  // Every other case stands off the 64-byte borders, each tensor by another distance.
  void next_case() { shifted_ = !shifted_; }
  [[nodiscard]] Kernels& kernels(Side side) { return side == Side::got ? *kernels_ : *truth_; }
  [[nodiscard]] Kernels& truth() { return *truth_; }

  [[nodiscard]] Pair pair_of(const Tensor& rounded) {
    const std::int64_t shift = shifted_ ? 1 + count_++ % 3 : 0;
    const bool floating = rounded.dtype() == dtype_;
    return {test::cast(rounded, rounded.dtype(), shift),
            test::cast(rounded, floating ? DType::f64 : rounded.dtype())};
  }
  [[nodiscard]] Pair input(Shape shape, std::uint64_t seed, double spread = 1, double mean = 0) {
    return pair_of(random(dtype_, shape, seed, spread, mean));
  }
  [[nodiscard]] Pair ids(Shape shape, std::uint64_t seed, std::int64_t begin, std::int64_t end) {
    return pair_of(random_ids(DType::i32, shape, seed, begin, end));
  }
  // Poisoned.
  [[nodiscard]] Pair output(Shape shape) {
    const std::int64_t shift = shifted_ ? 1 + count_++ % 3 : 0;
    return {Owned(dtype_, shape, shift), Owned(DType::f64, shape)};
  }
  [[nodiscard]] Pair index_output(Shape shape) {
    return {Owned(DType::i32, shape), Owned(DType::i32, shape)};
  }
  // What the truth knows, rounded to the subject's dtype for both.
  [[nodiscard]] Pair rounded(const Tensor& f64) { return pair_of(test::cast(f64, dtype_)); }

  void expect_match(const std::string& what, const Pair& pair, const Terms& terms) {
    EXPECT_TRUE(test::matches(GetParam().name() + " " + what, pair.got(), pair.want(), terms));
  }
  void expect_same_integers(const std::string& what, const Pair& pair) {
    EXPECT_EQ(values(pair.got()), values(pair.want())) << what;
  }
  // Copies and maxima: no rounding at all.
  void expect_exact(const std::string& what, const Pair& pair) {
    EXPECT_EQ(values(pair.got()), values(pair.want())) << what;
  }

 private:
  std::unique_ptr<Kernels> truth_ = make_reference();
  bool shifted_ = true;
  std::int64_t count_ = 0;
};

inline constexpr Side kSides[] = {Side::got, Side::want};

inline std::string subject_name(const ::testing::TestParamInfo<Subject>& info) {
  return info.param.name();
}

inline std::vector<Subject> f64_subjects() {
  std::vector<Subject> out;
  for (const Implementation& i : implementations()) out.push_back({i, DType::f64});
  return out;
}

}  // namespace tessera::kernels
