#include "report/waterfall.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "report/numbers.h"
#include "report/table.h"

namespace tessera::report {

namespace {

constexpr std::int64_t kTenths = 1000;  // of a percent
constexpr std::int32_t kMaxBar = 40;
constexpr std::int32_t kOtherColumns = 56;  // what the label and the numbers take

// A bar of [begin, end) of `width` cells, in eighths of a cell at its right end.
std::string bar(double begin, double end, std::int32_t width) {
  static constexpr std::array<const char*, 8> kEighths = {"",       "\u258f", "\u258e", "\u258d",
                                                          "\u258c", "\u258b", "\u258a", "\u2589"};
  const double first = std::floor(begin * width);
  const auto eighths = static_cast<std::int64_t>(std::llround((end * width - first) * 8.0));
  std::string text(static_cast<std::size_t>(std::max(0.0, first)), ' ');
  for (std::int64_t i = 0; i < eighths / 8; ++i) text += "\u2588";
  text += kEighths[static_cast<std::size_t>(std::max<std::int64_t>(0, eighths % 8))];
  return text;
}

}  // namespace

std::string_view describe(cost::Part part) {
  using cost::Part;
  switch (part) {
    case Part::ideal:
      return "useful work at peak";
    case Part::gemm:
      return "matrix products below peak";
    case Part::attention:
      return "attention below peak";
    case Part::memory_bound:
      return "norms, activations, softmax";
    case Part::launch:
      return "gaps between kernels";
    case Part::recompute:
      return "recomputation";
    case Part::imbalance:
      return "most loaded experts";
    case Part::tp:
      return "tensor-parallel communication";
    case Part::cp:
      return "context-parallel communication";
    case Part::ep:
      return "expert-parallel communication";
    case Part::pp:
      return "pipeline messages";
    case Part::bubble:
      return "pipeline bubble";
    case Part::dp:
      return "gradients and weights over dp";
    case Part::optimizer:
      return "optimizer";
    case Part::jitter:
      return "stragglers";
  }
  return "";
}

std::vector<std::int64_t> rounded_shares(std::span<const double> values, std::int64_t total) {
  const double sum = std::accumulate(values.begin(), values.end(), 0.0);
  TESSERA_CHECK(sum > 0.0, "shares of nothing");
  std::vector<std::int64_t> shares;
  std::vector<std::pair<double, std::size_t>> remainders;
  std::int64_t given = 0;
  for (const double v : values) {
    const double exact = v / sum * static_cast<double>(total);
    const double whole = std::floor(exact);
    remainders.emplace_back(exact - whole, shares.size());
    shares.push_back(static_cast<std::int64_t>(whole));
    given += shares.back();
  }
  std::stable_sort(remainders.begin(), remainders.end(),
                   [](const auto& a, const auto& b) { return a.first > b.first; });
  for (std::size_t i = 0; given < total; i = (i + 1) % remainders.size(), ++given) {
    ++shares[remainders[i].second];
  }
  return shares;
}

std::string waterfall(const PartSeconds& parts, const Style& style) {
  PartSeconds seconds = parts;
  for (double& s : seconds) s = std::isfinite(s) ? std::max(0.0, s) : 0.0;
  const double sum = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  if (!(sum > 0.0)) return "";
  const std::vector<std::int64_t> shares = rounded_shares(seconds, kTenths);
  const std::int32_t width = std::clamp(columns(style) - kOtherColumns, 8, kMaxBar);
  const auto share_text = [](std::int64_t tenths) { return fmt::format("{}.{}%", tenths / 10, tenths % 10); };

  Table table({{.header = "from peak to MFU", .align = Align::left},
               {.header = "time"},
               {.header = "share"},
               {.header = "", .align = Align::left, .drop = 1}});
  table.add_row({"peak", duration(Seconds(sum)), share_text(kTenths), bar(0.0, 1.0, width)}, Tone::faint);
  double left = 1.0;
  for (std::size_t p = 1; p < seconds.size(); ++p) {  // 0 is useful work
    if (seconds[p] <= 0.0) continue;
    const double begin = std::max(0.0, left - seconds[p] / sum);
    table.add_row({std::string(describe(static_cast<cost::Part>(p))), duration(Seconds(seconds[p])),
                   "-" + share_text(shares[p]), paint(bar(begin, left, width), Tone::warning, style)});
    left = begin;
  }
  table.add_footer({"MFU", duration(Seconds(seconds[0])), share_text(shares[0]),
                    paint(bar(0.0, seconds[0] / sum, width), Tone::good, style)});
  return table.render(style);
}

}  // namespace tessera::report
