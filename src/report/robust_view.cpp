#include "report/robust_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/text.h"
#include "report/numbers.h"
#include "report/table.h"

namespace tessera::report {

namespace {

using explain::Disturbance;
using explain::Robust;

std::string seconds(double s) {
  return std::isfinite(s) ? fmt::format("{:.3f}", s) : std::string("--");
}

std::string beyond(const Robust& r) {
  if (!std::isfinite(r.quantile_seconds)) return "--";
  const double more = r.quantile_seconds / r.nominal_seconds - 1.0;
  return (more >= 0.0 ? "+" : "") + percent(more);
}

// "slow nodes 12 ms, busy network 230 ms".
std::string causes(const std::array<double, explain::kNumDisturbances>& price) {
  std::vector<std::string> words;
  for (std::int32_t d = 0; d < explain::kNumDisturbances; ++d) {
    const double s = price[static_cast<std::size_t>(d)];
    constexpr double kSeen = 0.5e-3;
    if (std::isfinite(s) && std::abs(s) < kSeen) continue;
    words.push_back(fmt::format("{} {}", name(static_cast<Disturbance>(d)),
                                std::isfinite(s) ? fixed(s * 1e3, 0) + " ms" : "the memory"));
  }
  return words.empty() ? "nothing" : join(words, ", ");
}

}  // namespace

std::string_view name(Disturbance d) {
  switch (d) {
    case Disturbance::nodes:
      return "slow nodes";
    case Disturbance::network:
      return "a busy network";
    case Disturbance::routing:
      return "uneven routing";
  }
  return "";
}

std::string quantile_name(double quantile) {
  return fmt::format("p{:g}", std::round(quantile * 1e6) / 1e4);
}

std::string robust_table(const RobustView& view, const Style& style) {
  const bool overflows = std::ranges::any_of(view.times, [](const Robust& r) { return r.overflows > 0; });
  std::vector<Column> columns = {{.header = "#"},
                                 {.header = "layout", .align = Align::left},
                                 {.header = "planned s"},
                                 {.header = "mean", .drop = 1},
                                 {.header = quantile_name(view.options->quantile)},
                                 {.header = "beyond"},
                                 {.header = "worst", .drop = 2}};
  if (overflows) columns.push_back({.header = "no memory"});
  columns.push_back({.header = "", .align = Align::left});
  Table table(columns);
  const std::int32_t choice = explain::robust_choice(view.times);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(view.times.size()); ++i) {
    if (i >= view.shown && i != choice) continue;
    const Robust& r = view.times[static_cast<std::size_t>(i)];
    std::vector<std::string> cells = {
        fmt::format("{}", i + 1),    cost::to_text(view.candidates[static_cast<std::size_t>(i)]),
        seconds(r.nominal_seconds),  seconds(r.mean_seconds),
        seconds(r.quantile_seconds), beyond(r),
        seconds(r.worst_seconds)};
    if (overflows)
      cells.push_back(r.overflows > 0 ? fmt::format("{} of {}", r.overflows, view.options->scenarios) : "");
    cells.emplace_back(i == choice ? "choice" : "");
    table.add_row(cells, i == choice ? Tone::good : Tone::plain);
  }
  return table.render(style);
}

std::string robust_sentence(const RobustView& view) {
  const std::int32_t choice = explain::robust_choice(view.times);
  const Robust& first = view.times.front();
  const Robust& best = view.times[static_cast<std::size_t>(choice)];
  const std::string p = quantile_name(view.options->quantile);
  if (!std::isfinite(best.quantile_seconds)) {
    return fmt::format(
        "None of these layouts keeps within memory in {} of {} scenarios; layout {} runs out least often, in "
        "{}. "
        "--memory 0.9 plans layouts that leave room for uneven routing.",
        std::ceil(view.options->quantile * view.options->scenarios - 1e-9), view.options->scenarios,
        choice + 1, best.overflows);
  }
  if (choice == 0) {
    return fmt::format(
        "The choice holds: the fastest as planned is the fastest at {}, {} s beside {} s. What it pays "
        "there, "
        "one cause at a time: {}.",
        p, seconds(best.quantile_seconds), seconds(best.nominal_seconds), causes(view.price_of_first));
  }
  std::string text = fmt::format(
      "The choice changes: at {} layout {} takes {} s, the one that is fastest as "
      "planned ",
      p, choice + 1, seconds(best.quantile_seconds));
  text +=
      std::isfinite(first.quantile_seconds)
          ? fmt::format("{} s ({} more)", seconds(first.quantile_seconds),
                        percent(first.quantile_seconds / best.quantile_seconds - 1.0))
          : fmt::format("runs out of memory in {} of {} scenarios", first.overflows, view.options->scenarios);
  return text +
         fmt::format(
             ". As planned it is {} slower. What each pays there, one cause at a time: the fastest {}; "
             "the robust one {}.",
             percent(best.nominal_seconds / first.nominal_seconds - 1.0), causes(view.price_of_first),
             causes(view.price_of_choice));
}

}  // namespace tessera::report
