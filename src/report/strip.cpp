#include "report/strip.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string_view>
#include <vector>

#include "base/math.h"

namespace tessera::report {

namespace {

// Load over the mean of all experts; 0 is dead, NaN unknown, infinity overload.
using Ratio = double;

// Which of the experts under one glyph to show.
double telling(Ratio r) {
  if (std::isnan(r)) return -1.0;
  if (r >= kOverload) return 1e6 + std::min(r, 1e6);
  if (r <= 0) return 1e5;
  return std::abs(std::log(r));
}

struct Cell {
  std::string_view glyph;
  Tone tone;
};

Cell cell_of(Ratio r) {
  constexpr std::array<std::string_view, 8> bars = {"\u2581", "\u2582", "\u2583", "\u2584",
                                                    "\u2585", "\u2586", "\u2587", "\u2588"};
  if (std::isnan(r)) return {"?", Tone::faint};
  if (r <= 0) return {"\u00d7", Tone::bad};
  if (r >= kOverload) return {bars[7], Tone::bad};
  const auto level = static_cast<std::size_t>(std::clamp(std::lround(r * 4.0), 1L, 7L) - 1);
  return {bars[level], r >= 1.5 || r <= 0.5 ? Tone::warning : Tone::good};
}

std::vector<Ratio> ratios(std::span<const double> load) {
  double largest = 0;
  for (const double v : load) {
    if (std::isfinite(v)) largest = std::max(largest, v);
  }
  double sum = 0;  // in units of the largest, so that it cannot overflow
  std::int64_t count = 0;
  for (const double v : load) {
    if (!std::isfinite(v)) continue;
    if (largest > 0) sum += std::max(v, 0.0) / largest;
    ++count;
  }
  std::vector<Ratio> out;
  for (const double v : load) {
    if (std::isinf(v)) {
      out.push_back(v > 0 ? kOverload : 0.0);
    } else if (std::isnan(v) || v <= 0 || sum == 0) {
      out.push_back(std::isnan(v) ? v : 0.0);
    } else {
      out.push_back(v / largest / (sum / static_cast<double>(count)));
    }
  }
  return out;
}

}  // namespace

std::int32_t experts_per_glyph(std::int32_t num_experts, std::int32_t max_width) {
  if (num_experts <= 0) return 1;
  return static_cast<std::int32_t>(div_ceil(num_experts, std::max(1, max_width)));
}

std::string heat_strip(std::span<const double> load, const Style& style, std::int32_t max_width) {
  const std::vector<Ratio> all = ratios(load);
  const auto per_glyph = static_cast<std::size_t>(
      experts_per_glyph(static_cast<std::int32_t>(all.size()), std::min(max_width, columns(style))));
  std::string out, run;
  Tone run_tone = Tone::plain;
  for (std::size_t first = 0; first < all.size(); first += per_glyph) {
    const std::size_t last = std::min(first + per_glyph, all.size());
    const auto shown = std::max_element(all.begin() + static_cast<std::ptrdiff_t>(first),
                                        all.begin() + static_cast<std::ptrdiff_t>(last),
                                        [](Ratio a, Ratio b) { return telling(a) < telling(b); });
    const Cell cell = cell_of(*shown);
    if (cell.tone != run_tone) {
      out += paint(run, run_tone, style);
      run.clear();
      run_tone = cell.tone;
    }
    run += cell.glyph;
  }
  return out + paint(run, run_tone, style);
}

}  // namespace tessera::report
