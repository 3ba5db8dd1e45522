#include "base/random.h"

#include <cmath>
#include <numbers>

#include "base/error.h"

namespace tessera {

std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  std::array<std::uint32_t, 4> c = {
      static_cast<std::uint32_t>(counter), static_cast<std::uint32_t>(counter >> 32),
      static_cast<std::uint32_t>(stream), static_cast<std::uint32_t>(stream >> 32)};
  auto k0 = static_cast<std::uint32_t>(seed);
  auto k1 = static_cast<std::uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t p0 = std::uint64_t{0xD2511F53} * c[0];
    const std::uint64_t p1 = std::uint64_t{0xCD9E8D57} * c[2];
    c = {static_cast<std::uint32_t>(p1 >> 32) ^ c[1] ^ k0, static_cast<std::uint32_t>(p1),
         static_cast<std::uint32_t>(p0 >> 32) ^ c[3] ^ k1, static_cast<std::uint32_t>(p0)};
    k0 += 0x9E3779B9;
    k1 += 0xBB67AE85;
  }
  return c;
}

namespace {
std::uint64_t join(std::uint32_t high, std::uint32_t low) {
  return (std::uint64_t{high} << 32) | low;
}
double to_unit(std::uint64_t bits) {
  return static_cast<double>(bits >> 11) * 0x1p-53;
}
}  // namespace

double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto w = philox(seed, stream, counter);
  return to_unit(join(w[0], w[1]));
}

double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter) {
  const auto w = philox(seed, stream, counter);
  const double u = 1.0 - to_unit(join(w[0], w[1]));  // (0, 1]
  const double v = to_unit(join(w[2], w[3]));
  return std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * v);
}

std::uint64_t uniform_below(std::uint64_t n, std::uint64_t seed, std::uint64_t stream,
                            std::uint64_t counter) {
  TESSERA_CHECK(n > 0, "uniform_below needs n > 0");
  const auto w = philox(seed, stream, counter);
  __extension__ using u128 = unsigned __int128;
  return static_cast<std::uint64_t>((u128{join(w[0], w[1])} * n) >> 64);
}

}  // namespace tessera
