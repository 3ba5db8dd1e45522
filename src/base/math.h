// Integer division, spelt: each form says how it rounds. All throw Error{internal} on a divisor below 1.
#pragma once
#include <cstdint>

#include "base/error.h"

namespace tessera {

[[nodiscard]] constexpr std::int64_t div_floor(std::int64_t a, std::int64_t b) {
  TESSERA_CHECK(a >= 0 && b > 0, "div_floor needs a >= 0 and b > 0");
  return a / b;
}
[[nodiscard]] constexpr std::int64_t div_ceil(std::int64_t a, std::int64_t b) {
  TESSERA_CHECK(a >= 0 && b > 0, "div_ceil needs a >= 0 and b > 0");
  return a / b + (a % b != 0 ? 1 : 0);
}
[[nodiscard]] constexpr std::int64_t div_exact(std::int64_t a, std::int64_t b) {
  TESSERA_CHECK(b > 0, "div_exact needs b > 0");
  TESSERA_CHECK_EQ(a % b, 0, "div_exact leaves a remainder");
  return a / b;
}
[[nodiscard]] constexpr std::int64_t round_up(std::int64_t a, std::int64_t multiple) {
  return div_ceil(a, multiple) * multiple;
}
static_assert(div_ceil(33'554'433, 2) == 16'777'217);
static_assert(round_up(65, 64) == 128);

}  // namespace tessera
