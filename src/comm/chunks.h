// How a ring cuts a tensor: N chunks of ceil(n / N) elements, the last ones short or empty. Shared by the
// backends and by the byte counts, so that both speak of the same chunks.
#pragma once
#include <algorithm>
#include <cstdint>

#include "base/math.h"

namespace tessera::comm {

class Chunks {
 public:
  Chunks(std::int64_t elements, std::int32_t size) : elements_(elements), length_(div_ceil(elements, size)) {}
  [[nodiscard]] std::int64_t length() const { return length_; }  // of a full chunk
  [[nodiscard]] std::int64_t begin(std::int32_t c) const { return std::min(c * length_, elements_); }
  [[nodiscard]] std::int64_t count(std::int32_t c) const { return begin(c + 1) - begin(c); }

 private:
  std::int64_t elements_;
  std::int64_t length_;
};

// Elements that `rank` sends in one ring all-reduce: it passes on every chunk but its own while reducing and
// every chunk but its successor's while gathering.
[[nodiscard]] std::int64_t ring_elements_sent(std::int64_t elements, std::int32_t rank, std::int32_t size);

}  // namespace tessera::comm
