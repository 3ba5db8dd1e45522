#include "report/sizing_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>
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

// "Fewest: 512 devices, 34.2 days at MFU 48.1%, ...".
std::string answer(const std::string& what, const Size& s) {
  std::string text = fmt::format("{}: {} devices, {} days at MFU {}", what, grouped(s.devices),
                                 fixed(s.days, 1), percent(s.cost.mfu()));
  if (s.price > 0.0) text += fmt::format(", {} in all", money(s.price));
  text += fmt::format(", with {}", cost::to_text(s.candidate));
  if (s.goodput.failures_per_day > 0.0) {
    text += fmt::format("; {} failures a day, a checkpoint every {}, goodput {}",
                        fixed(s.goodput.failures_per_day, 2), duration(Seconds(s.goodput.interval_seconds)),
                        percent(s.goodput.share));
  }
  return text + ".";
}

// One size may be several answers.
std::vector<std::string> answers(const Sizing& s) {
  const std::pair<const char*, std::int32_t> all[] = {
      {"fewest", s.fewest}, {"cheapest", s.cheapest}, {"fastest", s.fastest}};
  std::vector<std::string> out;
  std::vector<std::int32_t> said;
  for (const auto& [what, index] : all) {
    if (index < 0 || std::ranges::find(said, index) != said.end()) continue;
    said.push_back(index);
    std::vector<std::string> names;
    for (const auto& [other, at_index] : all) {
      if (at_index == index) names.emplace_back(other);
    }
    std::string title = join(names, " and ");
    title.front() = static_cast<char>(title.front() - 'a' + 'A');
    out.push_back(answer(title, *at(s, index)));
  }
  return out;
}

std::string assumptions(const SizingView& view) {
  const explain::Reliability& r = view.options->reliability;
  const cost::Workload& w = view.setup->work;
  std::string text = fmt::format("assumes steps of {} sequences of {} tokens in {}; ", w.global_batch_size,
                                 w.sequence_length, spec::name(w.precision));
  if (r.device_mtbf_hours <= 0.0) return text + "nothing fails (--mtbf)";
  text += fmt::format(
      "a device fails every {} hours (--mtbf), a checkpoint holds the steps up {}, from a "
      "failure to the next step it is {}",
      grouped(static_cast<std::int64_t>(r.device_mtbf_hours)), duration(Seconds(r.checkpoint_seconds)),
      duration(Seconds(r.restart_seconds)));
  return text;
}

std::string nothing_serves(const SizingView& view) {
  const Sizing& s = *view.sizing;
  if (s.nearest < 0) return "There is no layout on any of these sizes.";
  const Size& near = *at(s, s.nearest);
  return fmt::format(
      "None of them is done in {} days. The nearest: {} devices in {} days. More devices (--max-devices), "
      "another batch (--gbs) or fewer tokens may be.",
      fixed(view.options->deadline_days, 1), grouped(near.devices), fixed(near.days, 1));
}

std::string listed(const std::vector<std::int32_t>& devices) {
  std::vector<std::string> words;
  for (const std::int32_t n : devices) words.push_back(grouped(n));
  return join(words, ", ") + (devices == std::vector<std::int32_t>{1} ? " device" : " devices");
}

std::string marginal_table(const SizingView& view, const Style& style) {
  const Size& base = *view.base;
  Table table({{.header = "change", .align = Align::left},
               {.header = "days"},
               {.header = "saved"},
               {.header = "price", .drop = 2},
               {.header = "saved"},
               {.header = "worth"},
               {.header = "layout", .align = Align::left, .drop = 1}});
  table.add_row(
      {"as it is", fixed(base.days, 2), "", money(base.price), "", "", cost::to_text(base.candidate)},
      Tone::strong);
  table.add_rule();
  for (const explain::Marginal& m : view.marginals) {
    const double worth = m.worth(base);
    const bool same = m.size.candidate == base.candidate;
    table.add_row({describe(m), fixed(m.size.days, 2), fixed(base.days - m.size.days, 2), money(m.size.price),
                   base.price > 0.0 ? quantity(base.price - m.size.price) : "--",
                   worth >= 0.0 ? "+" + percent(worth) : percent(worth),
                   same ? "the same" : cost::to_text(m.size.candidate)},
                  worth > 0.001 ? Tone::good : Tone::faint);
  }
  return table.render(style);
}

}  // namespace

std::string describe(const explain::Marginal& m) {
  return fmt::format("{} x {}", explain::name(m.upgrade), m.factor);
}

std::string sizing_page(const SizingView& view, const Style& style) {
  Page page(style);
  const Sizing& s = *view.sizing;
  const explain::SizingOptions& o = *view.options;
  page.title(fmt::format("{} on {}: {} tokens", view.model, view.cluster, quantity(o.tokens)));
  page.description(assumptions(view));
  page.gap();
  page.block(table_of(view, page.inner()));
  if (!s.too_small.empty()) {
    page.paragraph(fmt::format("Nothing fits into the memory of {}.", listed(s.too_small)), Tone::faint);
  }
  if (!s.hopeless.empty()) {
    page.paragraph(fmt::format("Too late however good the layout: {}.", listed(s.hopeless)), Tone::faint);
  }
  if (!s.undivided.empty()) {
    page.paragraph(
        fmt::format("No layout divides model and batch over {}: another --gbs may.", listed(s.undivided)),
        Tone::faint);
  }
  page.gap();
  if (s.fewest < 0) page.paragraph(nothing_serves(view), Tone::warning);
  for (const std::string& line : answers(s)) page.paragraph(line, Tone::plain);
  if (view.base != nullptr && !view.marginals.empty()) {
    page.section(fmt::format("What a better machine is worth to {} devices", grouped(view.base->devices)));
    page.block(marginal_table(view, page.inner()));
    page.paragraph(
        "Each is planned anew with the change. Worth: by how much dearer a device hour may be before the "
        "change "
        "no longer pays.",
        Tone::faint);
  }
  return page.text();
}

}  // namespace tessera::report
