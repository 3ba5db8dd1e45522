// MXFP4 (Open Compute Project, "Microscaling Formats" 1.0), as the published files of gpt_oss hold the
// matrices of their experts: 32 neighbours share a power of two. A tensor is stored as blocks
// [..., in / 32, 16] of two 4-bit numbers a byte, the low half first, and scales [..., in / 32], exponents
// with a bias of 127. Every value is exact in f32 (but for scales below 2^-125, which no model has).
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>

#include "layout/layout.h"
#include "tensor/tensor.h"

namespace tessera::ckpt {

inline constexpr std::int64_t kMxfp4Group = 32;
inline constexpr std::int64_t kMxfp4GroupBytes = 16;

// Rows of `in` numbers; row r of the engine's tensor is row first + r * step of the file's.
struct Mxfp4Matrix {
  const std::byte* blocks = nullptr;
  const std::byte* scales = nullptr;
  std::int64_t in = 0;  // a multiple of 32
  std::int64_t first = 0;
  std::int64_t step = 1;
};

// The 4-bit number (1 sign, 2 exponent, 1 fraction bit) times 2^(scale - 127).
[[nodiscard]] double mxfp4_value(std::uint8_t four_bits, std::uint8_t scale);

// Fills `to` (contiguous f32 or f64) with the rectangle `wanted`.
void gather(const Mxfp4Matrix& matrix, const layout::Slice& wanted, const tensor::Tensor& to);

}  // namespace tessera::ckpt
