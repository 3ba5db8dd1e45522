#include "moe/random_routing.h"

#include <algorithm>
#include <array>

#include "base/error.h"
#include "base/math.h"
#include "base/random.h"

namespace tessera::moe {

namespace {

using tensor::Tensor;

// A stream of its own for each purpose and layer.
std::uint64_t stream(std::uint64_t purpose, std::int32_t layer) {
  return purpose + static_cast<std::uint64_t>(layer);
}
constexpr std::uint64_t kHash = stream_of("moe.hash");
constexpr std::uint64_t kJitter = stream_of("moe.jitter");
constexpr std::int64_t kWords = 4;  // of a block of Philox

template <class T>
void multiply(T* out, const T* x, std::int64_t rows, std::int64_t columns, double eps,
              std::int64_t first_token, const DrawKey& key) {
  const std::int64_t blocks = div_ceil(columns, kWords);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t b = 0; b < blocks; ++b) {
      const auto counter = static_cast<std::uint64_t>((first_token + r) * blocks + b);
      const std::array<std::uint32_t, 4> words = philox(key.seed, stream(kJitter, key.layer), counter);
      const std::int64_t begin = b * kWords;
      const std::int64_t end = std::min(begin + kWords, columns);
      for (std::int64_t c = begin; c < end; ++c) {
        const double u = static_cast<double>(words[static_cast<std::size_t>(c - begin)]) * 0x1p-32;
        const std::int64_t at = r * columns + c;
        out[at] = x[at] * static_cast<T>(1.0 - eps + 2.0 * eps * u);
      }
    }
  }
}

}  // namespace

void hash_choices(Tensor index_tK, Tensor ids_t, std::int32_t num_experts, const DrawKey& key) {
  constexpr std::int32_t kAttemptBits = 20;
  const std::int64_t top_k = index_tK.dim(1);
  std::int32_t* index = index_tK.as<std::int32_t>();
  const std::int32_t* ids = ids_t.as<std::int32_t>();
  TESSERA_CHECK_EQ(ids_t.num_elements(), index_tK.rows(), "one id a token");
  for (std::int64_t t = 0; t < index_tK.rows(); ++t) {
    std::int32_t* row = index + t * top_k;
    std::uint64_t counter = static_cast<std::uint64_t>(ids[t]) << kAttemptBits;
    for (std::int64_t k = 0; k < top_k; ++counter) {
      const auto drawn = static_cast<std::int32_t>(uniform_below(
          static_cast<std::uint64_t>(num_experts), key.seed, stream(kHash, key.layer), counter));
      row[k] = drawn;
      if (std::find(row, row + k, drawn) == row + k) ++k;
    }
  }
}

void multiply_jitter(Tensor out_tH, Tensor x_tH, double eps, std::int64_t first_token, const DrawKey& key) {
  TESSERA_CHECK_EQ(out_tH.num_elements(), x_tH.num_elements(), "jitter keeps the shape");
  if (x_tH.dtype() == tensor::DType::f64) {
    multiply(out_tH.as<double>(), x_tH.as<double>(), x_tH.rows(), x_tH.row_elements(), eps, first_token, key);
  } else {
    multiply(out_tH.as<float>(), x_tH.as<float>(), x_tH.rows(), x_tH.row_elements(), eps, first_token, key);
  }
}

}  // namespace tessera::moe
