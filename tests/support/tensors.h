// Tensors that own their memory, for tests. Every one starts poisoned (NaN; the smallest value for integers)
// and stands between guard bytes that are checked when it dies, so that a kernel which leaves an element
// unwritten or writes outside its output fails the test.
//
//   Owned x = random(DType::f64, {T, H}, 1);      // standard normal, a function of the seed alone
//   Owned y(DType::f64, {T, H});                  // poisoned output
//   kernels->rms_norm(y, rstd, x, w, 1e-5);       // an Owned is a Tensor wherever one is wanted
//   std::vector<double> v = values(y);
#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "base/random.h"
#include "tensor/bf16.h"
#include "tensor/tensor.h"

namespace tessera::test {

using tensor::DType;
using tensor::Shape;
using tensor::Tensor;

// All elements as double, and back (rounded to the tensor's dtype).
[[nodiscard]] inline double get(const Tensor& t, std::int64_t i) {
  switch (t.dtype()) {
    case DType::f64:
      return t.as<double>()[i];
    case DType::f32:
      return static_cast<double>(t.as<float>()[i]);
    case DType::i64:
      return static_cast<double>(t.as<std::int64_t>()[i]);
    case DType::i32:
      return static_cast<double>(t.as<std::int32_t>()[i]);
    case DType::u8:
      return static_cast<double>(t.as<std::uint8_t>()[i]);
    case DType::bf16:
      return static_cast<double>(static_cast<float>(t.as<tensor::Bf16>()[i]));
  }
  return std::numeric_limits<double>::quiet_NaN();
}
inline void set(const Tensor& t, std::int64_t i, double value) {
  switch (t.dtype()) {
    case DType::f64:
      t.as<double>()[i] = value;
      return;
    case DType::f32:
      t.as<float>()[i] = static_cast<float>(value);
      return;
    case DType::i64:
      t.as<std::int64_t>()[i] = static_cast<std::int64_t>(value);
      return;
    case DType::i32:
      t.as<std::int32_t>()[i] = static_cast<std::int32_t>(value);
      return;
    case DType::u8:
      t.as<std::uint8_t>()[i] = static_cast<std::uint8_t>(value);
      return;
    case DType::bf16:
      t.as<tensor::Bf16>()[i] = static_cast<float>(value);
      return;
  }
}
[[nodiscard]] inline std::vector<double> values(const Tensor& t) {
  std::vector<double> out;
  for (std::int64_t i = 0; i < t.num_elements(); ++i) out.push_back(get(t, i));
  return out;
}
inline void set_values(const Tensor& t, std::span<const double> from) {
  TESSERA_CHECK_EQ(from.size(), t.num_elements(), "set_values needs one value an element");
  for (std::int64_t i = 0; i < t.num_elements(); ++i) set(t, i, from[static_cast<std::size_t>(i)]);
}
inline void set_all(const Tensor& t, double value) {
  for (std::int64_t i = 0; i < t.num_elements(); ++i) set(t, i, value);
}
// NaN, or the smallest value of an integer type.
inline void poison(const Tensor& t) {
  const bool floating = t.dtype() == DType::f64 || t.dtype() == DType::f32 || t.dtype() == DType::bf16;
  if (floating) return set_all(t, std::numeric_limits<double>::quiet_NaN());
  if (t.dtype() == DType::i32) return set_all(t, std::numeric_limits<std::int32_t>::min());
  if (t.dtype() == DType::i64) {
    std::fill_n(t.as<std::int64_t>(), t.num_elements(), std::numeric_limits<std::int64_t>::min());
    return;
  }
  std::memset(t.raw(), 0xee, static_cast<std::size_t>(t.bytes().value));
}

// Where the tensors of tests live: the heap, or memory that a GPU addresses too, where one is tested.
struct Allocation {
  void* (*take)(std::size_t) = &std::malloc;
  void (*give)(void*) = &std::free;
};
inline Allocation& allocation() {
  static Allocation one;
  return one;
}
template <class T>
struct TestMemory {
  using value_type = T;
  TestMemory() = default;
  template <class U>
  TestMemory(const TestMemory<U>&) {}
  T* allocate(std::size_t n) { return static_cast<T*>(allocation().take(n * sizeof(T))); }
  void deallocate(T* p, std::size_t) { allocation().give(p); }
  friend bool operator==(const TestMemory&, const TestMemory&) { return true; }
};

class Owned {
 public:
  Owned() = default;  // the empty tensor
  // shift: the data starts that many elements past a 64-byte border, as a row inside a larger tensor would.
  Owned(DType dtype, Shape shape, std::int64_t shift = 0) {
    const std::int64_t n = shape.num_elements() * tensor::size_of(dtype);
    const std::int64_t lead = kGuard + shift * tensor::size_of(dtype);
    memory_.assign(static_cast<std::size_t>(lead + n + kGuard + 64), kGuardByte);
    const auto address = reinterpret_cast<std::uintptr_t>(memory_.data());
    begin_ = lead + static_cast<std::int64_t>((64 - address % 64) % 64);
    tensor_ = Tensor(memory_.data() + begin_, dtype, shape);
    poison(tensor_);
  }
  Owned(Owned&& other) noexcept { swap(other); }
  Owned& operator=(Owned&& other) noexcept {
    swap(other);
    return *this;
  }
  Owned(const Owned&) = delete;
  Owned& operator=(const Owned&) = delete;
  ~Owned() {
    if (!guards_intact())
      ADD_FAILURE() << "a tensor " << tensor_.shape().text() << " was written outside its bounds";
  }

  [[nodiscard]] const Tensor& tensor() const { return tensor_; }
  operator Tensor() const { return tensor_; }  // NOLINT: tests read better
  template <class T>
  [[nodiscard]] T* as() const {
    return tensor_.as<T>();
  }
  [[nodiscard]] bool guards_intact() const {
    const auto end = begin_ + tensor_.bytes().value;
    const auto at = [&](std::int64_t i) { return memory_[static_cast<std::size_t>(i)]; };
    if (memory_.empty()) return true;
    for (std::int64_t i = 0; i < begin_; ++i) {
      if (at(i) != kGuardByte) return false;
    }
    for (auto i = end; i < static_cast<std::int64_t>(memory_.size()); ++i) {
      if (at(i) != kGuardByte) return false;
    }
    return true;
  }

 private:
  static constexpr std::int64_t kGuard = 128;
  static constexpr std::uint8_t kGuardByte = 0xa5;
  void swap(Owned& other) noexcept {
    memory_.swap(other.memory_);
    std::swap(begin_, other.begin_);
    std::swap(tensor_, other.tensor_);
  }

  std::vector<std::uint8_t, TestMemory<std::uint8_t>> memory_;
  std::int64_t begin_ = 0;
  Tensor tensor_;
};

// mean + spread * standard normal; the same numbers (rounded) for every dtype.
[[nodiscard]] inline Owned random(DType dtype, Shape shape, std::uint64_t seed, double spread = 1,
                                  double mean = 0) {
  Owned out(dtype, shape);
  for (std::int64_t i = 0; i < shape.num_elements(); ++i) {
    set(out, i, mean + spread * normal(seed, stream_of("test"), static_cast<std::uint64_t>(i)));
  }
  return out;
}
[[nodiscard]] inline Owned zeros(DType dtype, Shape shape) {
  Owned out(dtype, shape);
  set_all(out, 0);
  return out;
}
// Uniform integers in [begin, end).
[[nodiscard]] inline Owned random_ids(DType dtype, Shape shape, std::uint64_t seed, std::int64_t begin,
                                      std::int64_t end) {
  Owned out(dtype, shape);
  for (std::int64_t i = 0; i < shape.num_elements(); ++i) {
    const auto draw = uniform_below(static_cast<std::uint64_t>(end - begin), seed, stream_of("test ids"),
                                    static_cast<std::uint64_t>(i));
    set(out, i, static_cast<double>(begin + static_cast<std::int64_t>(draw)));
  }
  return out;
}
[[nodiscard]] inline Owned tensor_of(DType dtype, Shape shape, std::initializer_list<double> list) {
  Owned out(dtype, shape);
  set_values(out, {list.begin(), list.size()});
  return out;
}
// The same values in another dtype, or a copy. An empty tensor stays empty.
[[nodiscard]] inline Owned cast(const Tensor& from, DType dtype, std::int64_t shift = 0) {
  if (from.raw() == nullptr) return {};
  Owned out(dtype, from.shape(), shift);
  for (std::int64_t i = 0; i < from.num_elements(); ++i) set(out, i, get(from, i));
  return out;
}
[[nodiscard]] inline Owned copy_of(const Tensor& from) {
  return cast(from, from.dtype());
}

[[nodiscard]] inline bool same_bits(const Tensor& a, const Tensor& b) {
  return a.dtype() == b.dtype() && a.shape() == b.shape() &&
         (a.num_elements() == 0 ||
          std::memcmp(a.raw(), b.raw(), static_cast<std::size_t>(a.bytes().value)) == 0);
}

// sum_i upstream_i * y_i in f64: the scalar whose gradient with respect to y is `upstream`.
[[nodiscard]] inline double dot(const Tensor& upstream, const Tensor& y) {
  TESSERA_CHECK_EQ(upstream.num_elements(), y.num_elements(), "dot needs equal sizes");
  double sum = 0;
  for (std::int64_t i = 0; i < y.num_elements(); ++i) sum += get(upstream, i) * get(y, i);
  return sum;
}

}  // namespace tessera::test
