// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011). A value is a pure function of (seed, stream, counter), so weights and samples are the same on
// every layout.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

namespace tessera {

// 64-bit FNV-1a of a name: the stream id of a parameter, a data order, a purpose.
[[nodiscard]] constexpr std::uint64_t stream_of(std::string_view name) {
  std::uint64_t h = 14695981039346656037ULL;
  for (const char c : name) {
    h ^= static_cast<unsigned char>(c);
    h *= 1099511628211ULL;
  }
  return h;
}

// The four 32-bit words of block `counter` of (seed, stream).
[[nodiscard]] std::array<std::uint32_t, 4> philox(std::uint64_t seed, std::uint64_t stream,
                                                  std::uint64_t counter);

// One value per counter: uniform in [0, 1) with 53 bits; standard normal (Box-Muller); integer in [0, n),
// unbiased to 2^-64 * n. Thread safe: no state.
[[nodiscard]] double uniform(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);
[[nodiscard]] double normal(std::uint64_t seed, std::uint64_t stream, std::uint64_t counter);
[[nodiscard]] std::uint64_t uniform_below(std::uint64_t n, std::uint64_t seed, std::uint64_t stream,
                                          std::uint64_t counter);

}  // namespace tessera
