// at(v, i): v[i] with a signed index, as all counts here are signed. Inside of this room.
#pragma once
#include <cstddef>
#include <cstdint>

namespace tessera::place {

template <class Container>
[[nodiscard]] constexpr decltype(auto) at(Container&& values, std::int64_t i) {
  return values[static_cast<std::size_t>(i)];
}
template <class Container>
[[nodiscard]] constexpr std::int32_t count(const Container& values) {
  return static_cast<std::int32_t>(values.size());
}
[[nodiscard]] constexpr std::size_t size_of(std::int64_t n) {
  return static_cast<std::size_t>(n);
}

}  // namespace tessera::place
