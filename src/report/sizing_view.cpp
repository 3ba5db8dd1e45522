#include "report/sizing_view.h"

#include <fmt/format.h>

#include <vector>

#include "base/text.h"
#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"

namespace tessera::report {

namespace {

using explain::Size;
using explain::Sizing;

std::string money(double dollars) {
  return dollars > 0.0 ? quantity(dollars) : std::string("--");
}

const Size* at(const Sizing& s, std::int32_t index) {
  return index < 0 ? nullptr : &s.sizes[static_cast<std::size_t>(index)];
}

std::string notes_of(const Sizing& s, const Size& size) {
  std::vector<std::string> notes;
  if (!size.meets_deadline) notes.emplace_back("too late");
  if (&size == at(s, s.fewest)) notes.emplace_back("fewest");
  if (&size == at(s, s.cheapest)) notes.emplace_back("cheapest");
  if (&size == at(s, s.fastest)) notes.emplace_back("fastest");
  return join(notes, ", ");
}

std::string table_of(const SizingView& view, const Style& style) {
  Table table({{.header = "devices"},
               {.header = "step s"},
               {.header = "MFU"},
               {.header = "goodput"},
               {.header = "days"},
               {.header = "price"},
               {.header = "", .align = Align::left},
               {.header = "layout", .align = Align::left, .drop = 1}});
  const Sizing& sizing = *view.sizing;
  for (const Size& s : sizing.sizes) {
    table.add_row({grouped(s.devices), fmt::format("{:.3f}", s.cost.seconds()), percent(s.cost.mfu()),
                   percent(s.goodput.share), fixed(s.days, 1), money(s.price), notes_of(sizing, s),
                   cost::to_text(s.candidate)},
                  s.meets_deadline ? Tone::plain : Tone::faint);
  }
  return table.render(style);
}

// "512 devices: 34.2 days, 1.0 M, ...".
std::string answer(const char* what, const Size* s) {
  if (s == nullptr) return "";
  std::string text = fmt::format("{}: {} devices, {} days at MFU {}", what, grouped(s->devices),
                                 fixed(s->days, 1), percent(s->cost.mfu()));
  if (s->price > 0.0) text += fmt::format(", {} in all", money(s->price));
  if (s->goodput.failures_per_day > 0.0) {
    text += fmt::format("; {} failures a day, a checkpoint every {}", fixed(s->goodput.failures_per_day, 2),
                        duration(Seconds(s->goodput.interval_seconds)));
  }
  return text + ".";
}

}  // namespace

std::string sizing_page(const SizingView& view, const Style& style) {
  Page page(style);
  const Sizing& s = *view.sizing;
  const explain::SizingOptions& o = *view.options;
  page.title(fmt::format("{} on {}: {} tokens", view.model, view.cluster, quantity(o.tokens)));
  page.gap();
  page.block(table_of(view, page.inner()));
  if (!s.too_small.empty()) {
    page.paragraph(fmt::format("Nothing fits on {} device{}.", fmt::join(s.too_small, ", "),
                               s.too_small == std::vector<std::int32_t>{1} ? "" : "s"),
                   Tone::faint);
  }
  page.gap();
  if (s.fewest < 0) {
    page.paragraph(fmt::format("None of them is done in {} days: use more devices (--most-devices), fewer "
                               "tokens, or more time.",
                               fixed(o.deadline_days, 1)),
                   Tone::warning);
  }
  for (const std::string& line : {answer("Fewest", at(s, s.fewest)), answer("Cheapest", at(s, s.cheapest)),
                                  answer("Fastest", at(s, s.fastest))}) {
    if (!line.empty()) page.paragraph(line, Tone::plain);
  }
  return page.text();
}

}  // namespace tessera::report
