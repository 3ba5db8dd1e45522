#include "report/chart.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>
#include <string_view>
#include <utility>

#include "base/error.h"
#include "report/numbers.h"

namespace tessera::report {

namespace {

constexpr std::int32_t kDotsX = 2, kDotsY = 4;  // of a braille cell
constexpr std::int32_t kNobody = -1, kReference = -2, kText = -3;

struct Range {
  double low = std::numeric_limits<double>::infinity();
  double high = -std::numeric_limits<double>::infinity();
  void add(double v) {
    low = std::min(low, v);
    high = std::max(high, v);
  }
  // Where v lies from 0 to 1; halves, so that the difference cannot overflow.
  [[nodiscard]] double place(double v) const {
    const double span = high / 2 - low / 2;
    return span > 0 ? std::clamp((v / 2 - low / 2) / span, 0.0, 1.0) : 0.5;
  }
};

// Room around a range of one value, or of values that a double hardly tells apart.
Range widened(Range r) {
  const double size = std::max(std::abs(r.low), std::abs(r.high));
  if (r.high / 2 - r.low / 2 > size * 1e-9) return r;
  const double room = std::min(size > 0 ? size * 0.1 : 1.0, std::numeric_limits<double>::max() / 4);
  return {std::max(r.low - room, std::numeric_limits<double>::lowest()),
          std::min(r.high + room, std::numeric_limits<double>::max())};
}

struct Cell {
  std::uint8_t dots = 0;
  std::int32_t owner = kNobody;  // a series, kReference or kText
  std::string glyph;             // of kText
};

class Canvas {
 public:
  Canvas(std::int32_t width, std::int32_t height)
      : width_(width), height_(height), cells_(static_cast<std::size_t>(width * height)) {}
  [[nodiscard]] std::int32_t width() const { return width_; }
  [[nodiscard]] std::int32_t height() const { return height_; }
  [[nodiscard]] std::int32_t dots_x() const { return width_ * kDotsX; }
  [[nodiscard]] std::int32_t dots_y() const { return height_ * kDotsY; }
  [[nodiscard]] Cell& at(std::int32_t column, std::int32_t row) {
    return cells_[static_cast<std::size_t>(row * width_ + column)];
  }
  void dot(std::int32_t x, std::int32_t y, std::int32_t owner) {
    constexpr std::array<std::array<std::uint8_t, 4>, 2> bits = {
        {{0x01, 0x02, 0x04, 0x40}, {0x08, 0x10, 0x20, 0x80}}};
    Cell& cell = at(x / kDotsX, y / kDotsY);
    const std::uint8_t bit = bits[static_cast<std::size_t>(x % kDotsX)][static_cast<std::size_t>(y % kDotsY)];
    cell.dots = static_cast<std::uint8_t>(cell.dots | bit);
    if (cell.owner < 0 || (owner >= 0 && owner < cell.owner)) cell.owner = owner;
  }
  [[nodiscard]] std::string row_text(std::int32_t row, const Style& style) {
    std::string out, run;
    std::int32_t run_owner = kNobody;
    const auto flush = [&] { out += paint(std::exchange(run, {}), tone_of(run_owner), style); };
    std::int32_t end = width_;
    while (end > 0 && at(end - 1, row).owner == kNobody) --end;
    for (std::int32_t column = 0; column < end; ++column) {
      const Cell& cell = at(column, row);
      if (cell.owner != run_owner) flush();
      run_owner = cell.owner;
      run += cell.owner == kNobody ? " " : cell.owner == kText ? cell.glyph : braille(cell.dots);
    }
    flush();
    return out;
  }
  static Tone tone_of(std::int32_t owner) {
    if (owner == kNobody) return Tone::plain;
    if (owner == kReference || owner == kText) return Tone::warning;
    constexpr std::array<Tone, 4> tones = {Tone::accent, Tone::second, Tone::good, Tone::bad};
    return tones[static_cast<std::size_t>(owner) % tones.size()];
  }

 private:
  static std::string braille(std::uint8_t dots) {
    // U+2800 + dots in UTF-8.
    return {'\xe2', static_cast<char>(0xa0 + (dots >> 6)), static_cast<char>(0x80 + (dots & 0x3f))};
  }
  std::int32_t width_, height_;
  std::vector<Cell> cells_;
};

struct Scale {
  Range x, y;
  const Canvas& canvas;
  [[nodiscard]] std::int32_t column(double v) const {  // of dots
    return static_cast<std::int32_t>(std::lround(x.place(v) * (canvas.dots_x() - 1)));
  }
  [[nodiscard]] std::int32_t row(double v) const {  // of dots, 0 on top
    return static_cast<std::int32_t>(std::lround((1 - y.place(v)) * (canvas.dots_y() - 1)));
  }
};

// Bresenham. Points that share a column so leave the column's range from smallest to largest.
void draw_line(Canvas& canvas, std::int32_t x0, std::int32_t y0, std::int32_t x1, std::int32_t y1,
               std::int32_t owner) {
  const std::int32_t dx = std::abs(x1 - x0), dy = -std::abs(y1 - y0);
  const std::int32_t step_x = x0 < x1 ? 1 : -1, step_y = y0 < y1 ? 1 : -1;
  std::int32_t error = dx + dy;
  const bool dotted = owner > 0;
  while (true) {
    if (!dotted || x0 % 2 == 0) canvas.dot(x0, y0, owner);
    if (x0 == x1 && y0 == y1) return;
    const std::int32_t twice = 2 * error;
    if (twice >= dy) {
      error += dy;
      x0 += step_x;
    }
    if (twice <= dx) {
      error += dx;
      y0 += step_y;
    }
  }
}

void draw_series(Canvas& canvas, const Scale& scale, const Series& series, std::int32_t owner) {
  std::optional<std::pair<std::int32_t, std::int32_t>> last;
  for (std::size_t i = 0; i < series.values.size(); ++i) {
    if (!std::isfinite(series.values[i])) {
      last.reset();
      continue;
    }
    const std::pair point{scale.column(series.first_x + series.x_step * static_cast<double>(i)),
                          scale.row(series.values[i])};
    const auto [x0, y0] = last.value_or(point);
    draw_line(canvas, x0, y0, point.first, point.second, owner);
    last = point;
  }
}

void draw_reference(Canvas& canvas, const Scale& scale, double value) {
  const std::int32_t y = scale.row(value);
  for (std::int32_t x = 0; x < canvas.dots_x(); ++x) {
    if (x / kDotsX % 3 != 2) canvas.dot(x, y, kReference);
  }
}

// Writes the label into its line, as far right as no series is in the way. False when there is no such place.
bool write_label(Canvas& canvas, std::int32_t row, std::string_view label) {
  const std::string text = " " + std::string(label) + " ";
  const std::int32_t length = display_width(text);
  if (length != static_cast<std::int32_t>(text.size()))
    return false;  // one byte a column: simple labels only
  const auto is_free = [&](std::int32_t c) {
    return canvas.at(c, row).owner == kNobody || canvas.at(c, row).owner == kReference;
  };
  for (std::int32_t first = canvas.width() - length - 3; first >= 0; --first) {
    std::int32_t c = first;
    while (c < first + length && is_free(c)) ++c;
    if (c < first + length) continue;
    for (c = first; c < first + length; ++c) {
      canvas.at(c, row) = {.owner = kText,
                           .glyph = std::string(1, text[static_cast<std::size_t>(c - first)])};
    }
    return true;
  }
  return false;
}

std::string tick_text(double v, const Ticks& ticks) {
  const double largest = std::max(std::abs(ticks.at.front()), std::abs(ticks.at.back()));
  if (largest >= 1e6 || ticks.decimals > 6) return fmt::format("{:.4g}", v);
  return fixed(v, ticks.decimals);
}

// The legend and the y label, wrapped item by item.
std::string heading(const std::vector<Series>& series, const std::vector<std::string>& unplaced,
                    const ChartOptions& options) {
  struct Item {
    std::string text;
    Tone tone;
  };
  std::vector<Item> items;
  if (series.size() == 1) {
    const std::string& label = series[0].label;
    const std::string& unit = options.y_label;
    const std::string text = label.empty() || unit.empty() ? label + unit : label + ", " + unit;
    if (!text.empty()) items.push_back({text, Tone::faint});
  } else {
    if (!options.y_label.empty()) items.push_back({options.y_label, Tone::faint});
    for (std::size_t i = 0; i < series.size(); ++i) {
      items.push_back({(i == 0 ? "\u2809\u2809 " : "\u2801\u2801 ") + series[i].label,
                       Canvas::tone_of(static_cast<std::int32_t>(i))});
    }
  }
  for (const std::string& text : unplaced) items.push_back({"\u2812\u2812 " + text, Tone::warning});
  const std::int32_t width = columns(options.style);
  std::string out, line;
  std::int32_t used = 0;
  for (const Item& item : items) {
    const std::string text = clip(item.text, width);
    if (used > 0 && used + 3 + display_width(text) > width) {
      out += std::exchange(line, {}) + "\n";
      used = 0;
    }
    if (used > 0) line += "   ";
    used += (used > 0 ? 3 : 0) + display_width(text);
    line += paint(text, item.tone, options.style);
  }
  return line.empty() ? out : out + line + "\n";
}

// Axis line, tick labels and x label below the plot; margin: columns left of the plot's first cell.
std::string x_axis(const Scale& scale, const Ticks& ticks, std::int32_t margin, const ChartOptions& options) {
  const std::int32_t width = scale.canvas.width();
  std::vector<std::string> axis(static_cast<std::size_t>(width), "\u2500");
  std::string labels(static_cast<std::size_t>(margin + width), ' ');
  std::int32_t free_from = 0;
  for (const double v : ticks.at) {
    const std::int32_t cell = scale.column(v) / kDotsX;
    const std::string text = tick_text(v, ticks);
    const auto length = static_cast<std::int32_t>(text.size());
    const std::int32_t first = std::min(margin + cell - (length - 1) / 2, margin + width - length);
    if (first < free_from) continue;
    axis[static_cast<std::size_t>(cell)] = "\u252c";
    labels.replace(static_cast<std::size_t>(first), text.size(), text);
    free_from = first + length + 2;
  }
  std::string line = std::string(static_cast<std::size_t>(margin - 1), ' ') + "\u2514";
  for (const std::string& glyph : axis) line += glyph;
  std::string out = paint(line, Tone::faint, options.style) + "\n";
  const std::string x_label = clip(options.x_label, margin + width);
  const std::int32_t start = margin + width - display_width(x_label);
  std::string below;
  if (start >= free_from || x_label.empty()) {
    labels.resize(static_cast<std::size_t>(start));
    labels += x_label;
  } else {
    below = pad(x_label, margin + width, Align::right);
  }
  labels.resize(labels.find_last_not_of(' ') + 1);
  out += paint(labels, Tone::faint, options.style) + "\n";
  return below.empty() ? out : out + paint(below, Tone::faint, options.style) + "\n";
}

struct Extent {
  Range x, y;
  bool any = false;
  bool whole_x = true;
};

Extent extent_of(const std::vector<Series>& series, const std::vector<ReferenceLine>& lines) {
  Extent e;
  for (const Series& s : series) {
    TESSERA_CHECK(s.x_step > 0 && std::isfinite(s.x_step) && std::isfinite(s.first_x),
                  "a series of a chart goes from a finite first_x by an x_step above 0");
    e.whole_x = e.whole_x && std::floor(s.first_x) == s.first_x && std::floor(s.x_step) == s.x_step;
    for (std::size_t i = 0; i < s.values.size(); ++i) {
      e.x.add(s.first_x + s.x_step * static_cast<double>(i));  // gaps at the ends keep their place
      if (!std::isfinite(s.values[i])) continue;
      e.y.add(s.values[i]);
      e.any = true;
    }
  }
  for (const ReferenceLine& line : lines) {
    if (std::isfinite(line.value)) e.y.add(line.value);
  }
  return e;
}

}  // namespace

Ticks nice_ticks(double low, double high, std::int32_t max_count, bool whole) {
  TESSERA_CHECK(std::isfinite(low) && std::isfinite(high) && max_count >= 1, "ticks need a finite range");
  Ticks out;
  const double rough = (high / 2 - low / 2) / max_count;  // half of the step at least needed
  if (!(rough > 0)) {
    out.at.push_back(low);
    return out;
  }
  auto exponent = static_cast<std::int32_t>(std::floor(std::log10(rough)));
  if (whole) exponent = std::max(exponent, 0);
  for (; true; ++exponent) {
    for (const double digit : {1.0, 2.0, 5.0}) {
      const double step = digit * std::pow(10.0, exponent);
      const double first = std::ceil(low / step - 1e-9), last = std::floor(high / step + 1e-9);
      if (!(last - first < max_count)) continue;
      for (std::int32_t i = 0; first + i <= last && i < max_count; ++i) out.at.push_back((first + i) * step);
      out.decimals = std::max(0, -exponent);
      if (out.at.empty()) out.at.push_back(whole ? std::round(low) : low);
      return out;
    }
  }
}

std::string line_chart(const std::vector<Series>& series, const std::vector<ReferenceLine>& lines,
                       const ChartOptions& options) {
  const Extent extent = extent_of(series, lines);
  if (!extent.any) return "";
  const Range y = widened(extent.y);
  const std::int32_t height = std::max(2, options.height);
  const Ticks y_ticks = nice_ticks(y.low, y.high, std::max(2, height / 2));
  std::int32_t label_width = 0;
  for (const double v : y_ticks.at) label_width = std::max(label_width, display_width(tick_text(v, y_ticks)));
  const std::int32_t margin = label_width + 2;
  Canvas canvas(std::max(4, columns(options.style) - margin), height);
  const Scale scale{extent.x, y, canvas};
  std::vector<std::string> unplaced;
  for (const ReferenceLine& line : lines) {
    if (std::isfinite(line.value)) draw_reference(canvas, scale, line.value);
  }
  for (std::size_t i = series.size(); i-- > 0;) {
    draw_series(canvas, scale, series[i], static_cast<std::int32_t>(i));
  }
  for (const ReferenceLine& line : lines) {
    if (!std::isfinite(line.value)) continue;
    const std::string text = line.label + (line.label.empty() ? "" : " ") + fixed(line.value, 2);
    if (!write_label(canvas, scale.row(line.value) / kDotsY, text)) unplaced.push_back(text);
  }
  std::vector<std::string> labels(static_cast<std::size_t>(height));
  for (const double v : y_ticks.at) {
    labels[static_cast<std::size_t>(scale.row(v) / kDotsY)] = tick_text(v, y_ticks);
  }
  std::string out = heading(series, unplaced, options);
  for (std::int32_t row = 0; row < height; ++row) {
    const std::string& label = labels[static_cast<std::size_t>(row)];
    const std::string axis = pad(label, label_width, Align::right) + (label.empty() ? " \u2502" : " \u2524");
    out += paint(axis, Tone::faint, options.style) + canvas.row_text(row, options.style) + "\n";
  }
  const std::int32_t x_count = std::max(1, canvas.width() / 10);
  return out +
         x_axis(scale, nice_ticks(extent.x.low, extent.x.high, x_count, extent.whole_x), margin, options);
}

}  // namespace tessera::report
