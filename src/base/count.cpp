#include "base/count.h"

#include <charconv>
#include <cmath>
#include <string>

#include "base/text.h"

namespace tessera {

namespace {

double factor_of(char suffix) {
  switch (suffix) {
    case 'k':
    case 'K':
      return 1e3;
    case 'm':
    case 'M':
      return 1e6;
    case 'b':
    case 'B':
    case 'g':
    case 'G':
      return 1e9;
    case 't':
    case 'T':
      return 1e12;
    case 'p':
    case 'P':
      return 1e15;
    default:
      return 0.0;
  }
}

}  // namespace

std::optional<double> parse_count(std::string_view text) {
  std::string digits;
  for (const char c : trim(text)) {
    if (c != '_') digits += c;
  }
  double factor = 1.0;
  if (!digits.empty() && factor_of(digits.back()) > 0.0) {
    factor = factor_of(digits.back());
    digits.pop_back();
    digits = trim(digits);
  }
  double value = 0.0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, value);
  if (digits.empty() || error != std::errc() || stop != end || !std::isfinite(value * factor)) {
    return std::nullopt;
  }
  return value * factor;
}

}  // namespace tessera
