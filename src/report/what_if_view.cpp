#include "report/what_if_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/text.h"
#include "report/numbers.h"
#include "report/table.h"
#include "report/waterfall.h"
#include "search/search.h"

namespace tessera::report {

namespace {

using explain::Change;

std::string signed_percent(double fraction) {
  return (fraction >= 0.0 ? "+" : "") + percent(fraction);
}

std::string seconds(double s) {
  return fmt::format("{:.3f}", s);
}

void add_row(Table& table, const WhatIfView& view, const Change& c) {
  const cost::StepCost& s = c.priced.cost;
  const double gain = c.gain(*view.setup, *view.base);
  const std::string verdict = c.priced.fits ? "" : "too much";
  const Tone tone = !c.priced.fits ? Tone::faint : gain > 0.0 ? Tone::good : Tone::plain;
  table.add_row({c.text, seconds(s.seconds()), signed_percent(gain), percent(s.mfu()),
                 fixed(s.memory.reserved() / 1e9, 1), verdict},
                tone);
}

}  // namespace

std::string what_if_table(const WhatIfView& view, const Style& style) {
  std::vector<const Change*> shown;
  for (const Change& c : view.changes)
    if (c.priced.valid()) shown.push_back(&c);
  std::ranges::stable_sort(shown, [&](const Change* a, const Change* b) {
    if (a->priced.fits != b->priced.fits) return a->priced.fits;
    return a->gain(*view.setup, *view.base) > b->gain(*view.setup, *view.base);
  });
  Table table({{.header = "change", .align = Align::left},
               {.header = "step s"},
               {.header = "gain"},
               {.header = "MFU"},
               {.header = "GB", .drop = 1},
               {.header = "", .align = Align::left}});
  const cost::StepCost& base = view.base->cost;
  table.add_row({"as it is", seconds(base.seconds()), "", percent(base.mfu()),
                 fixed(base.memory.reserved() / 1e9, 1), view.base->fits ? "" : "too much"},
                Tone::strong);
  table.add_rule();
  for (const Change* c : shown) add_row(table, view, *c);
  std::string text = table.render(style);
  for (const Change& c : view.changes) {
    if (c.priced.valid()) continue;
    for (const std::string& line : wrap("not possible: " + c.text + ": " + c.priced.invalid, columns(style)))
      text += paint(line, Tone::faint, style) + "\n";
  }
  return text;
}

namespace {
std::string capital(std::string text) {
  if (!text.empty() && text.front() >= 'a' && text.front() <= 'z')
    text.front() = static_cast<char>(text.front() - 'a' + 'A');
  return text;
}
}  // namespace

std::string against_sentence(const AgainstView& view) {
  const double chosen = view.chosen->seconds();
  const double other = view.other->seconds();
  std::string text =
      fmt::format("{} takes {} s a step, {} {} s ({}).", capital(view.chosen_name), seconds(chosen),
                  view.other_name, seconds(other), signed_percent(other / chosen - 1.0));
  if (!view.other->fits) {
    text += fmt::format(" {} does not fit: {} GB are reserved.", capital(view.other_name),
                        fixed(view.other->cost.memory.reserved() / 1e9, 1));
  }
  std::vector<std::string> saved, paid;
  constexpr double kWorthSaying = 0.002;  // of the step
  for (const explain::Difference& d : explain::differences(view.chosen->cost, view.other->cost)) {
    if (std::abs(d.seconds) < kWorthSaying * chosen) continue;
    std::vector<std::string>& list = d.seconds > 0.0 ? saved : paid;
    list.push_back(fmt::format("{} {} s", describe(d.part), seconds(std::abs(d.seconds))));
  }
  if (!saved.empty()) text += fmt::format(" It saves {}", join(saved, ", "));
  if (!saved.empty() && !paid.empty()) text += fmt::format(" and pays {}", join(paid, ", "));
  if (saved.empty() && !paid.empty()) text += fmt::format(" It pays {}", join(paid, ", "));
  return text + (saved.empty() && paid.empty() ? "" : ".");
}

std::string against_table(const AgainstView& view, const Style& style) {
  Table table({{.header = "ms of a step", .align = Align::left},
               {.header = view.chosen_name},
               {.header = view.other_name},
               {.header = "difference"}});
  const auto ms = [](double s) { return fixed(s * 1e3, 1); };
  for (std::int32_t p = 0; p < cost::kNumParts; ++p) {
    const auto part = static_cast<cost::Part>(p);
    const double a = view.chosen->cost[part], b = view.other->cost[part];
    if (a == 0.0 && b == 0.0) continue;
    table.add_row({std::string(describe(part)), ms(a), ms(b), (b >= a ? "+" : "") + ms(b - a)});
  }
  const double a = view.chosen->seconds(), b = view.other->seconds();
  table.add_footer({"step", ms(a), ms(b), (b >= a ? "+" : "") + ms(b - a)});
  return table.render(style);
}

std::string margin_sentence(const AgainstView& view) {
  std::vector<std::string> turns;
  for (const explain::Margin& m : view.margins) {
    if (m.factor == 0.0) continue;
    turns.push_back(m.factor < 1.0
                        ? fmt::format("{} {} lower", explain::name(m.coefficient), percent(1.0 - m.factor))
                        : fmt::format("{} {} higher", explain::name(m.coefficient), percent(m.factor - 1.0)));
  }
  if (view.margins.empty()) return "";
  if (turns.empty()) return "No single coefficient turns the order within a factor of 8.";
  return fmt::format("The order turns with: {}. Nothing else turns it within a factor of 8.",
                     join(turns, "; "));
}

}  // namespace tessera::report
