#include "report/numbers.h"

#include <fmt/format.h>

#include <cmath>

#include "base/text.h"

namespace tessera::report {

namespace {
constexpr const char* kUnknown = "--";
}

std::string fixed(double value, std::int32_t decimals) {
  if (!std::isfinite(value)) return kUnknown;
  if (std::abs(value) >= 1e6) return fmt::format("{:.3g}", value);
  std::string text = fmt::format("{:.{}f}", value, decimals);
  if (text.starts_with('-') && text.find_first_not_of("-0.") == std::string::npos) text.erase(0, 1);
  return text;
}

std::string percent(double fraction) {
  if (!std::isfinite(fraction)) return kUnknown;
  if (fraction > 0 && fraction < 0.0005) return "<0.1%";
  return fixed(fraction * 100, 1) + "%";
}

std::string duration(Seconds seconds) {
  if (!std::isfinite(seconds.value) || std::abs(seconds.value) > 1e9) return kUnknown;
  if (seconds.value == 0) return "0 s";
  return human(seconds);
}

std::string quantity(double count) {
  if (!std::isfinite(count)) return kUnknown;
  if (std::abs(count) >= 1e15) return fmt::format("{:.3g}", count);
  return human_count(count);
}

std::string grouped(std::int64_t n) {
  const std::string digits = fmt::format("{}", n);
  std::string text;
  for (std::size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && (digits.size() - i) % 3 == 0) text += ',';
    text += digits[i];
  }
  return text;
}

}  // namespace tessera::report
