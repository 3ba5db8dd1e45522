#include "ckpt/mxfp4.h"

#include <cmath>
#include <limits>

namespace tessera::ckpt {

double mxfp4_value(std::uint8_t four_bits, std::uint8_t scale) {
  constexpr std::array<double, 8> kMagnitudes = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  constexpr int kBias = 127;
  constexpr int kNan = 255;  // as a scale
  if (scale == kNan) return std::numeric_limits<double>::quiet_NaN();
  const double magnitude = std::ldexp(kMagnitudes[four_bits & 7U], scale - kBias);
  return (four_bits & 8U) != 0 ? -magnitude : magnitude;
}

namespace {

template <class T>
void fill(const Mxfp4Matrix& m, const layout::Slice& wanted, T* out) {
  const std::int64_t groups = m.in / kMxfp4Group;
  for (std::int64_t r = wanted.begin[0]; r < wanted.begin[0] + wanted.size[0]; ++r) {
    const std::int64_t row = (m.first + r * m.step) * groups;
    for (std::int64_t c = wanted.begin[1]; c < wanted.begin[1] + wanted.size[1]; ++c) {
      const std::int64_t group = row + c / kMxfp4Group;
      const auto pair =
          std::to_integer<std::uint8_t>(m.blocks[group * kMxfp4GroupBytes + c % kMxfp4Group / 2]);
      const auto half = static_cast<std::uint8_t>(c % 2 == 0 ? pair & 15U : pair >> 4U);
      *out++ = static_cast<T>(mxfp4_value(half, std::to_integer<std::uint8_t>(m.scales[group])));
    }
  }
}

}  // namespace

void gather(const Mxfp4Matrix& matrix, const layout::Slice& wanted, const tensor::Tensor& to) {
  if (to.dtype() == tensor::DType::f64) {
    fill(matrix, wanted, to.as<double>());
  } else {
    fill(matrix, wanted, to.as<float>());
  }
}

}  // namespace tessera::ckpt
