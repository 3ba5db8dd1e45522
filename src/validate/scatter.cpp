#include "validate/scatter.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <vector>

#include "validate/stats.h"

namespace tessera::validate {
namespace {

constexpr double kWidth = 900, kHeight = 720;
constexpr double kLeft = 84, kTop = 76, kSide = 580;  // of the square plot
constexpr double kLegend = kLeft + kSide + 24;
constexpr std::size_t kMaxSources = 24;  // then "others"

// Told apart by hue and by lightness; the first ones go to the sources with the most runs.
constexpr std::array<std::string_view, 12> kColours = {"#1f77b4", "#ff7f0e", "#2ca02c", "#d62728",
                                                       "#9467bd", "#8c564b", "#e377c2", "#17becf",
                                                       "#bcbd22", "#3b3b98", "#006266", "#b33771"};

struct Dots {
  std::string source;
  std::vector<std::pair<double, double>> points;  // measured, predicted
};

struct Scale {
  double low = -1, high = 1;  // powers of ten
  [[nodiscard]] double x(double seconds) const {
    return kLeft + (std::log10(seconds) - low) / (high - low) * kSide;
  }
  [[nodiscard]] double y(double seconds) const {
    return kTop + kSide - (std::log10(seconds) - low) / (high - low) * kSide;
  }
};

std::string decade(int power) {
  const double v = std::pow(10.0, power);
  if (power < -3) return fmt::format("{:g} us", v * 1e6);
  if (power < 0) return fmt::format("{:g} ms", v * 1e3);
  return fmt::format("{:g} s", v);
}

std::string escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '>') {
      out += "&gt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

std::string text_at(double x, double y, std::string_view attributes, std::string_view text) {
  return fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" {}>{}</text>\n", x, y, attributes, escaped(text));
}

std::string axes(const Scale& s) {
  std::string out;
  out +=
      fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"#fafafa\" stroke=\"#999\"/>\n",
                  kLeft, kTop, kSide, kSide);
  for (int p = static_cast<int>(s.low); p <= static_cast<int>(s.high); ++p) {
    const double v = std::pow(10.0, p);
    if (p > s.low && p < s.high) {
      out += fmt::format("<path d=\"M{0:.1f} {1:.1f}V{2:.1f}M{3:.1f} {4:.1f}H{5:.1f}\" stroke=\"#ddd\"/>\n",
                         s.x(v), kTop, kTop + kSide, kLeft, s.y(v), kLeft + kSide);
    }
    out += text_at(s.x(v), kTop + kSide + 18, "text-anchor=\"middle\"", decade(p));
    out += text_at(kLeft - 8, s.y(v) + 4, "text-anchor=\"end\"", decade(p));
  }
  out +=
      text_at(kLeft + kSide / 2, kTop + kSide + 42, "text-anchor=\"middle\" font-weight=\"600\"", "measured");
  out += fmt::format(
      "<text transform=\"translate({:.1f} {:.1f}) rotate(-90)\" text-anchor=\"middle\" "
      "font-weight=\"600\">predicted</text>\n",
      kLeft - 62, kTop + kSide / 2);
  return out;
}

// The band and the diagonal, cut to the square.
std::string band(const Scale& s) {
  const double lo = std::pow(10.0, s.low), hi = std::pow(10.0, s.high);
  std::string out = fmt::format(
      "<polygon points=\"{:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} {:.1f},{:.1f} "
      "{:.1f},{:.1f}\" "
      "fill=\"#2ca02c\" fill-opacity=\"0.13\"/>\n",
      s.x(lo), s.y(lo), s.x(lo), s.y(lo * 1.1), s.x(hi / 1.1), s.y(hi), s.x(hi), s.y(hi), s.x(hi),
      s.y(hi * 0.9), s.x(lo / 0.9), s.y(lo));
  out += fmt::format("<path d=\"M{:.1f} {:.1f}L{:.1f} {:.1f}\" stroke=\"#555\" stroke-dasharray=\"5 4\"/>\n",
                     s.x(lo), s.y(lo), s.x(hi), s.y(hi));
  return out;
}

std::vector<Dots> dots_of(std::span<const Outcome> outcomes,
                          const std::function<bool(const Outcome&)>& which) {
  std::map<std::string, Dots> by_source;
  for (const Outcome& o : outcomes) {
    if (!o.timed() || !which(o)) continue;
    Dots& d = by_source[o.question->source];
    d.source = o.question->source;
    d.points.emplace_back(o.measured(), o.predicted());
  }
  std::vector<Dots> all;
  for (auto& [source, d] : by_source) all.push_back(std::move(d));
  std::stable_sort(all.begin(), all.end(),
                   [](const Dots& a, const Dots& b) { return a.points.size() > b.points.size(); });
  if (all.size() > kMaxSources) {
    Dots others{.source = "others", .points = {}};
    for (std::size_t i = kMaxSources - 1; i < all.size(); ++i) {
      others.points.insert(others.points.end(), all[i].points.begin(), all[i].points.end());
    }
    all.resize(kMaxSources - 1);
    all.push_back(std::move(others));
  }
  return all;
}

Scale scale_of(const std::vector<Dots>& all) {
  double low = 1e300, high = 0;
  for (const Dots& d : all) {
    for (const auto& [m, p] : d.points) {
      low = std::min({low, m, p});
      high = std::max({high, m, p});
    }
  }
  Scale s{.low = std::floor(std::log10(low)), .high = std::ceil(std::log10(high))};
  if (!(s.high > s.low)) s.high = s.low + 1;
  return s;
}

std::string marks(const Dots& d, std::size_t index, const Scale& s) {
  const std::string_view colour = kColours[index % kColours.size()];
  // The second round of colours is drawn hollow.
  const bool hollow = index >= kColours.size();
  std::string out = hollow ? fmt::format("<g fill=\"none\" stroke=\"{}\" stroke-width=\"1.4\">", colour)
                           : fmt::format("<g fill=\"{}\" fill-opacity=\"0.7\">", colour);
  for (const auto& [m, p] : d.points) {
    out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.6\"/>", s.x(m), s.y(p));
  }
  out += "</g>\n";
  const double y = kTop + 34 + 22 * static_cast<double>(index);
  out += fmt::format("<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"4.5\" {}/>\n", kLegend + 6, y - 4,
                     hollow ? fmt::format("fill=\"none\" stroke=\"{}\" stroke-width=\"1.6\"", colour)
                            : fmt::format("fill=\"{}\"", colour));
  out += text_at(kLegend + 18, y, "", fmt::format("{} ({})", d.source, d.points.size()));
  return out;
}

}  // namespace

std::string scatter_svg(std::span<const Outcome> outcomes, const std::function<bool(const Outcome&)>& which,
                        const ScatterOptions& options) {
  const std::vector<Dots> all = dots_of(outcomes, which);
  std::string out = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" width=\"{0}\" height=\"{1}\" "
      "font-family=\"sans-serif\" font-size=\"13\" fill=\"#222\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"#ffffff\"/>\n",
      kWidth, kHeight);
  out += text_at(kLeft, 30, "font-size=\"18\" font-weight=\"600\"", options.title);
  if (all.empty()) {
    out += text_at(kLeft, 54, "fill=\"#555\"", "no row has both a prediction and a measured step time");
    return out + "</svg>\n";
  }
  std::vector<double> errors;
  for (const Dots& d : all) {
    for (const auto& [m, p] : d.points) errors.push_back(p / m - 1);
  }
  const ErrorStats stats = error_stats(errors);
  out += text_at(kLeft, 54, "fill=\"#555\"",
                 options.subtitle.empty() ? fmt::format("{} runs, median error {:.1f} %, band of 10 %",
                                                        stats.rows, 100 * stats.median)
                                          : options.subtitle);
  const Scale s = scale_of(all);
  out += axes(s) + band(s);
  out += text_at(kLegend, kTop + 8, "font-weight=\"600\"", "source (runs)");
  for (std::size_t i = 0; i < all.size(); ++i) out += marks(all[i], i, s);
  return out + "</svg>\n";
}

}  // namespace tessera::validate
