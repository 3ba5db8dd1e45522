// The argument checks of the public functions of Kernels: what every backend refuses, in the same words.
#pragma once
#include <fmt/format.h>

#include <string>
#include <string_view>

#include "kernels/kernels.h"

namespace tessera::kernels {

using tensor::Shape;

inline std::string shape_text(const Tensor& t) {
  return fmt::format("{} {}", tensor::name(t.dtype()), t.shape().text());
}

// The checks of one call. Dims are read from one named tensor and every other one is compared with it.
class Call {
 public:
  Call(std::string_view op, bool takes_bf16) : op_(op), takes_bf16_(takes_bf16) {}

  [[noreturn]] void fail(const std::string& what) const {
    throw Error(ErrorKind::internal, fmt::format("{}: {}", op_, what), fmt::format("kernels: {}", op_),
                "this is a defect of the calling layer: please report it with the job");
  }
  void require(bool good, std::string_view what) const {
    if (!good) fail(std::string(what));
  }
  void has_memory(std::string_view name, const Tensor& t) const {
    if (t.raw() == nullptr && t.num_elements() > 0)
      fail(fmt::format("{} {} has no memory", name, shape_text(t)));
  }
  // The tensor that errors name beside another whose shape is wrong.
  void shapes(std::string_view name, const Tensor& t) {
    lead_name_ = name;
    lead_ = t;
  }
  // The tensor that sets the dtype of the call: f64, f32 or, where the backend takes it, bf16; of so many
  // dims.
  void leads(std::string_view name, const Tensor& t, std::int32_t num_dims) {
    shapes(name, t);
    dtype_ = t.dtype();
    const bool bf16 = t.dtype() == DType::bf16 && takes_bf16_;
    if (t.dtype() != DType::f64 && t.dtype() != DType::f32 && !bf16) {
      fail(fmt::format("{} is {}, expected {}", name, shape_text(t),
                       takes_bf16_ ? "f64, f32 or bf16" : "f64 or f32"));
    }
    if (t.shape().num_dims() != num_dims) {
      fail(fmt::format("{} is {}, expected {} dims", name, shape_text(t), num_dims));
    }
    has_memory(name, t);
  }
  void leads(std::string_view name, const Tensor& t) { leads(name, t, t.shape().num_dims()); }
  // The same where all tensors are statistics or parameters.
  void leads_stats(std::string_view name, const Tensor& t, std::int32_t num_dims) {
    takes_bf16_ = false;
    leads(name, t, num_dims);
  }
  void is(std::string_view name, const Tensor& t, DType dtype, const Shape& shape) const {
    if (t.dtype() != dtype || t.shape() != shape) {
      fail(fmt::format("{} is {}, expected {} {} with {} {}", name, shape_text(t), tensor::name(dtype),
                       shape.text(), lead_name_, shape_text(lead_)));
    }
    has_memory(name, t);
  }
  void is(std::string_view name, const Tensor& t, const Shape& shape) const { is(name, t, dtype_, shape); }
  // A statistic or parameter beside the activations that lead.
  void is_stats(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, tensor::stats_of(dtype_), shape);
  }
  // Of the activations' type, or of their statistics'.
  void is_either(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, t.dtype() == tensor::stats_of(dtype_) ? t.dtype() : dtype_, shape);
  }
  void is_index(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, DType::i32, shape);
  }
  void num_dims(std::string_view name, const Tensor& t, std::int32_t want) const {
    if (t.shape().num_dims() != want) {
      fail(fmt::format("{} is {}, expected {} dims with {} {}", name, shape_text(t), want, lead_name_,
                       shape_text(lead_)));
    }
  }
  // Every index is in [lowest, end).
  void in_range(std::string_view name, const Tensor& index, std::int64_t lowest, std::int64_t end) const {
    const std::int32_t* at = index.as<std::int32_t>();
    for (std::int64_t i = 0; i < index.num_elements(); ++i) {
      if (at[i] < lowest || at[i] >= end) {
        fail(fmt::format("{} {} holds {} at {}, expected values in [{}, {})", name, shape_text(index), at[i],
                         i, lowest, end));
      }
    }
  }

 private:
  std::string_view op_;
  bool takes_bf16_;
  std::string_view lead_name_;
  Tensor lead_;
  DType dtype_ = DType::f64;
};

}  // namespace tessera::kernels
