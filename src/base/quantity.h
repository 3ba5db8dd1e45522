// Quantities with units. Only operators that mean something exist; each one between two quantities has a
// static_assert with real numbers beside it.
#pragma once
#include <compare>
#include <cstdint>

namespace tessera {

template <class Tag, class Rep>
struct Quantity {
  Rep value{};
  constexpr Quantity() = default;
  constexpr explicit Quantity(Rep v) : value(v) {}
  friend constexpr auto operator<=>(const Quantity&, const Quantity&) = default;
  friend constexpr Quantity operator+(Quantity a, Quantity b) { return Quantity(a.value + b.value); }
  friend constexpr Quantity operator-(Quantity a, Quantity b) { return Quantity(a.value - b.value); }
  constexpr Quantity& operator+=(Quantity b) {
    value += b.value;
    return *this;
  }
  friend constexpr Quantity operator*(Quantity a, Rep n) { return Quantity(a.value * n); }
  friend constexpr Quantity operator*(Rep n, Quantity a) { return Quantity(a.value * n); }
};

using Bytes = Quantity<struct BytesTag, std::int64_t>;
using Flops = Quantity<struct FlopsTag, std::int64_t>;
using Seconds = Quantity<struct SecondsTag, double>;
using BytesPerSecond = Quantity<struct BytesPerSecondTag, double>;
using FlopsPerSecond = Quantity<struct FlopsPerSecondTag, double>;

constexpr BytesPerSecond gigabytes_per_second(double v) {
  return BytesPerSecond(v * 1e9);
}
constexpr FlopsPerSecond gigaflops_per_second(double v) {
  return FlopsPerSecond(v * 1e9);
}

constexpr Seconds operator/(Bytes b, BytesPerSecond r) {
  return Seconds(static_cast<double>(b.value) / r.value);
}
static_assert((Bytes(8'000'000'000) / gigabytes_per_second(400)).value == 0.02);

constexpr Seconds operator/(Flops f, FlopsPerSecond r) {
  return Seconds(static_cast<double>(f.value) / r.value);
}
static_assert((Flops(2'000'000'000) / gigaflops_per_second(100)).value == 0.02);

constexpr FlopsPerSecond operator/(Flops f, Seconds s) {
  return FlopsPerSecond(static_cast<double>(f.value) / s.value);
}
static_assert((Flops(5'000'000'000) / Seconds(0.5)).value == 1e10);

constexpr BytesPerSecond operator/(Bytes b, Seconds s) {
  return BytesPerSecond(static_cast<double>(b.value) / s.value);
}
static_assert((Bytes(3'000) / Seconds(1e-6)).value == 3e9);

}  // namespace tessera
