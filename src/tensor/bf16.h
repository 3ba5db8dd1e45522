// bfloat16: the upper half of a float. Rounding to the nearest, ties to even; NaN stays NaN. Arithmetic is
// that of float: a value is read as float, and one is stored by an assignment. For the host and, under nvcc,
// for kernels.
#pragma once
#include <bit>
#include <cstdint>

#include "tensor/tensor.h"

#ifdef __CUDACC__
#define TESSERA_ANYWHERE __host__ __device__
#else
#define TESSERA_ANYWHERE
#endif

namespace tessera::tensor {

class Bf16 {
 public:
  Bf16() = default;
  TESSERA_ANYWHERE explicit Bf16(float value) : bits_(rounded(value)) {}
  TESSERA_ANYWHERE Bf16& operator=(float value) {
    bits_ = rounded(value);
    return *this;
  }
  TESSERA_ANYWHERE Bf16& operator+=(float value) { return *this = float(*this) + value; }
  // NOLINTNEXTLINE(google-explicit-constructor): every bf16 is a float
  TESSERA_ANYWHERE operator float() const {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits_) << 16U);
  }

 private:
  TESSERA_ANYWHERE static std::uint16_t rounded(float value) {
#if defined(__CUDA_ARCH__)
    std::uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
#else
    const auto bits = std::bit_cast<std::uint32_t>(value);
    // quiet NaN
    if ((bits & 0x7fffffffU) > 0x7f800000U) return static_cast<std::uint16_t>(bits >> 16U | 0x40U);
    return static_cast<std::uint16_t>((bits + 0x7fffU + (bits >> 16U & 1U)) >> 16U);
#endif
  }

  std::uint16_t bits_;
};
static_assert(sizeof(Bf16) == 2);

template <>
constexpr DType dtype_of<Bf16>() {
  return DType::bf16;
}

}  // namespace tessera::tensor
