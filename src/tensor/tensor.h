// Tensor: a non-owning, contiguous, row-major view with its dtype known at run time.
//
// Layers are written once against this type; only kernels are templated on the scalar (as<T>() checks the
// dtype). A Tensor is a value: copy it freely; the memory belongs to a Buffer or an Arena that must outlive
// it.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "base/error.h"
#include "base/quantity.h"

namespace tessera::tensor {

enum class DType : std::uint8_t { f64, f32, bf16, i64, i32, u8 };
[[nodiscard]] std::int64_t size_of(DType dtype);  // bytes of one element
[[nodiscard]] std::string_view name(DType dtype);

// What a sum over elements of this type is kept in, and the statistics and parameters beside them: f64 of
// f64, else f32.
[[nodiscard]] DType stats_of(DType dtype);

// Whose memory a tensor lies in. cpu: the host reads and writes it (a GPU may do so too, across the bus);
// cuda: a
// GPU's own, which only its kernels and copies address.
enum class Device : std::uint8_t { cpu, cuda };

// Up to four dims, outermost first. A scalar has no dims and one element.
class Shape {
 public:
  static constexpr std::int32_t kMaxDims = 4;
  Shape() = default;
  Shape(std::initializer_list<std::int64_t> dims);
  [[nodiscard]] std::int32_t num_dims() const { return num_dims_; }
  [[nodiscard]] std::int64_t operator[](std::int32_t i) const;  // negative i counts from the end
  [[nodiscard]] std::int64_t num_elements() const;
  [[nodiscard]] std::string text() const;  // "[4, 128]"
  friend bool operator==(const Shape&, const Shape&) = default;

 private:
  std::array<std::int64_t, kMaxDims> dims_{};
  std::int32_t num_dims_ = 0;
};

template <class T>
[[nodiscard]] constexpr DType dtype_of();
template <>
constexpr DType dtype_of<double>() {
  return DType::f64;
}
template <>
constexpr DType dtype_of<float>() {
  return DType::f32;
}
template <>
constexpr DType dtype_of<std::int64_t>() {
  return DType::i64;
}
template <>
constexpr DType dtype_of<std::int32_t>() {
  return DType::i32;
}
template <>
constexpr DType dtype_of<std::uint8_t>() {
  return DType::u8;
}

class Tensor {
 public:
  Tensor() = default;
  Tensor(void* data, DType dtype, Shape shape, Device device = Device::cpu)
      : data_(data), shape_(shape), dtype_(dtype), device_(device) {}

  [[nodiscard]] DType dtype() const { return dtype_; }
  [[nodiscard]] Device device() const { return device_; }
  [[nodiscard]] const Shape& shape() const { return shape_; }
  [[nodiscard]] std::int64_t dim(std::int32_t i) const { return shape_[i]; }
  [[nodiscard]] std::int64_t num_elements() const { return shape_.num_elements(); }
  [[nodiscard]] Bytes bytes() const { return Bytes(num_elements() * size_of(dtype_)); }
  [[nodiscard]] std::int64_t rows() const { return shape_[0]; }
  // Elements of one index of dim 0.
  [[nodiscard]] std::int64_t row_elements() const;
  [[nodiscard]] void* raw() const { return data_; }
  [[nodiscard]] bool empty() const { return data_ == nullptr || num_elements() == 0; }

  // Typed access on the host; Error{internal} when T is not the dtype, or the memory a GPU's.
  template <class T>
  [[nodiscard]] T* as() const {
    TESSERA_CHECK(device_ == Device::cpu, "a tensor of a GPU's memory read on the host");
    return address<T>();
  }
  // The same, for whom the memory belongs to.
  template <class T>
  [[nodiscard]] T* address() const {
    TESSERA_CHECK(dtype_of<T>() == dtype_, "tensor read as another dtype");
    return static_cast<T*>(data_);
  }
  template <class T>
  [[nodiscard]] std::span<T> span() const {
    return {as<T>(), static_cast<std::size_t>(num_elements())};
  }

  // Views of the same memory. narrow_rows: rows [begin, begin + count) of dim 0. reshaped: same number of
  // elements.
  [[nodiscard]] Tensor narrow_rows(std::int64_t begin, std::int64_t count) const;
  [[nodiscard]] Tensor reshaped(Shape shape) const;
  [[nodiscard]] Tensor flat() const { return reshaped({num_elements()}); }

 private:
  void* data_ = nullptr;
  Shape shape_;
  DType dtype_ = DType::f32;
  Device device_ = Device::cpu;
};

}  // namespace tessera::tensor
