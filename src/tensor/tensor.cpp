#include "tensor/tensor.h"

#include <fmt/format.h>

namespace tessera::tensor {

std::int64_t size_of(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return 8;
    case DType::f32:
      return 4;
    case DType::bf16:
      return 2;
    case DType::i64:
      return 8;
    case DType::i32:
      return 4;
    case DType::u8:
      return 1;
  }
  return 0;
}

DType stats_of(DType dtype) {
  return dtype == DType::f64 ? DType::f64 : DType::f32;
}

std::string_view name(DType dtype) {
  switch (dtype) {
    case DType::f64:
      return "f64";
    case DType::f32:
      return "f32";
    case DType::bf16:
      return "bf16";
    case DType::i64:
      return "i64";
    case DType::i32:
      return "i32";
    case DType::u8:
      return "u8";
  }
  return "unknown";
}

Shape::Shape(std::initializer_list<std::int64_t> dims) {
  TESSERA_CHECK(dims.size() <= kMaxDims, "a shape has at most four dims");
  for (const std::int64_t d : dims) {
    TESSERA_CHECK(d >= 0, "a dim is not negative");
    dims_[static_cast<std::size_t>(num_dims_++)] = d;
  }
}

std::int64_t Shape::operator[](std::int32_t i) const {
  const std::int32_t at = i < 0 ? i + num_dims_ : i;
  TESSERA_CHECK(at >= 0 && at < num_dims_, "dim index out of range");
  return dims_[static_cast<std::size_t>(at)];
}

std::int64_t Shape::num_elements() const {
  std::int64_t n = 1;
  for (std::int32_t i = 0; i < num_dims_; ++i) n *= dims_[static_cast<std::size_t>(i)];
  return n;
}

std::string Shape::text() const {
  std::string out = "[";
  for (std::int32_t i = 0; i < num_dims_; ++i) {
    out += fmt::format("{}{}", i == 0 ? "" : ", ", dims_[static_cast<std::size_t>(i)]);
  }
  return out + "]";
}

std::int64_t Tensor::row_elements() const {
  TESSERA_CHECK(shape_.num_dims() > 0, "a scalar has no rows");
  std::int64_t n = 1;
  for (std::int32_t i = 1; i < shape_.num_dims(); ++i) n *= shape_[i];
  return n;
}

namespace {
Shape with_rows(const Shape& s, std::int64_t rows) {
  switch (s.num_dims()) {
    case 1:
      return {rows};
    case 2:
      return {rows, s[1]};
    case 3:
      return {rows, s[1], s[2]};
    default:
      return {rows, s[1], s[2], s[3]};
  }
}
}  // namespace

Tensor Tensor::narrow_rows(std::int64_t begin, std::int64_t count) const {
  TESSERA_CHECK(begin >= 0 && count >= 0 && begin + count <= rows(), "narrow_rows out of range");
  auto* p = static_cast<std::byte*>(data_);
  if (p != nullptr) p += begin * row_elements() * size_of(dtype_);
  return {p, dtype_, with_rows(shape_, count), device_};
}

Tensor Tensor::reshaped(Shape shape) const {
  TESSERA_CHECK_EQ(shape.num_elements(), num_elements(), "reshaped keeps the number of elements");
  return {data_, dtype_, shape, device_};
}

}  // namespace tessera::tensor
