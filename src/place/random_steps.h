// A sequence of random numbers for searches: Philox blocks of (seed, stream), used word by word. Small and
// exact on every machine. Not thread safe; one for each search.
#pragma once
#include <array>
#include <cstdint>

#include "base/random.h"

namespace tessera::place {

class RandomSteps {
 public:
  RandomSteps(std::uint64_t seed, std::uint64_t stream) : seed_(seed), stream_(stream) {}
  [[nodiscard]] std::uint32_t word() {
    if (used_ == block_.size()) {
      block_ = philox(seed_, stream_, counter_++);
      used_ = 0;
    }
    return block_[used_++];
  }
  // In [0, n), n < 2^31; the bias is below n / 2^32.
  [[nodiscard]] std::int32_t below(std::int32_t n) {
    return static_cast<std::int32_t>((static_cast<std::uint64_t>(word()) * static_cast<std::uint64_t>(n)) >>
                                     32U);
  }
  [[nodiscard]] double uniform() { return word() * 0x1p-32; }

 private:
  std::uint64_t seed_, stream_, counter_ = 0;
  std::array<std::uint32_t, 4> block_{};
  std::size_t used_ = 4;
};

}  // namespace tessera::place
