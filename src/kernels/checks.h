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
  explicit Call(std::string_view op) : op_(op) {}

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
  // The tensor that sets the dtype of the call: f64 or f32, of so many dims.
  void leads(std::string_view name, const Tensor& t, std::int32_t num_dims) {
    lead_name_ = name;
    lead_ = t;
    if (t.dtype() != DType::f64 && t.dtype() != DType::f32) {
      fail(fmt::format("{} is {}, expected f64 or f32", name, shape_text(t)));
    }
    if (t.shape().num_dims() != num_dims) {
      fail(fmt::format("{} is {}, expected {} dims", name, shape_text(t), num_dims));
    }
    has_memory(name, t);
  }
  void leads(std::string_view name, const Tensor& t) { leads(name, t, t.shape().num_dims()); }
  void is(std::string_view name, const Tensor& t, DType dtype, const Shape& shape) const {
    if (t.dtype() != dtype || t.shape() != shape) {
      fail(fmt::format("{} is {}, expected {} {} with {} {}", name, shape_text(t), tensor::name(dtype),
                       shape.text(), lead_name_, shape_text(lead_)));
    }
    has_memory(name, t);
  }
  void is(std::string_view name, const Tensor& t, const Shape& shape) const {
    is(name, t, lead_.dtype(), shape);
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
  std::string_view lead_name_;
  Tensor lead_;
};

}  // namespace tessera::kernels
