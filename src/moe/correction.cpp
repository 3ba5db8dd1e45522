#include "moe/correction.h"

#include "base/error.h"

namespace tessera::moe {

namespace {

// sign(mean N - N_e) in whole numbers: E N_e against the sum.
std::int32_t direction(std::int64_t count, std::int64_t sum, std::int64_t experts) {
  const std::int64_t scaled = count * experts;
  return scaled < sum ? 1 : scaled > sum ? -1 : 0;
}

}  // namespace

void move_correction(tensor::Tensor bias_E, std::span<const std::int64_t> chosen, double rate,
                     CorrectionMean mean) {
  TESSERA_CHECK_EQ(bias_E.num_elements(), std::ssize(chosen), "one count an expert");
  const std::int64_t experts = std::ssize(chosen);
  std::int64_t sum = 0;
  for (const std::int64_t n : chosen) sum += n;
  std::int64_t directions = 0;
  for (const std::int64_t n : chosen) directions += direction(n, sum, experts);
  const double drift =
      mean == CorrectionMean::centred ? static_cast<double>(directions) / static_cast<double>(experts) : 0.0;
  for (std::int64_t e = 0; e < experts; ++e) {
    const double step = rate * (direction(chosen[static_cast<std::size_t>(e)], sum, experts) - drift);
    if (bias_E.dtype() == tensor::DType::f64) {
      bias_E.as<double>()[e] += step;
    } else {
      float& b = bias_E.as<float>()[e];
      b = static_cast<float>(static_cast<double>(b) + step);
    }
  }
}

}  // namespace tessera::moe
