#include "report/routing_view.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "report/numbers.h"
#include "report/strip.h"
#include "report/table.h"

namespace tessera::report {

namespace {

std::int32_t strip_width(const Style& style) {
  return std::clamp(columns(style) / 3, 8, 64);
}

struct Known {
  bool drops = false, entropy = false, logits = false, bias = false;
};

Known known_in(std::span<const RoutingRow> rows) {
  Known k;
  for (const RoutingRow& row : rows) {
    k.drops = k.drops || row.drop_rate;
    k.entropy = k.entropy || row.entropy;
    k.logits = k.logits || row.logit_rms;
    k.bias = k.bias || row.bias_least;
  }
  return k;
}

std::string cell(const std::optional<double>& value, std::int32_t decimals) {
  return value ? fixed(*value, decimals) : "--";
}

}  // namespace

std::int32_t most_experts(std::span<const RoutingRow> rows) {
  std::int32_t experts = 0;
  for (const RoutingRow& row : rows) {
    experts = std::max(experts, static_cast<std::int32_t>(row.load.size()));
  }
  return experts;
}

std::string routing_map(std::span<const RoutingRow> rows, const Style& style) {
  if (rows.empty()) return "";
  const Known known = known_in(rows);
  std::vector<Column> columns = {{.header = "layer"},          {.header = "load", .align = Align::left},
                                 {.header = "max/mean"},       {.header = "cv", .drop = 3},
                                 {.header = "eff", .drop = 2}, {.header = "dead", .drop = 1}};
  if (known.drops) columns.push_back({.header = "dropped"});
  if (known.entropy) columns.push_back({.header = "entropy", .drop = 4});
  if (known.logits) columns.push_back({.header = "logits", .drop = 5});
  if (known.bias) columns.push_back({.header = "bias", .drop = 6});
  Table table(std::move(columns));
  for (const RoutingRow& row : rows) {
    std::vector<std::string> cells = {
        fmt::format("{}", row.layer), heat_strip(row.load, style, strip_width(style)),
        fixed(row.max_over_mean, 2),  fixed(row.cv, 2),
        fixed(row.effective, 1),      fmt::format("{}", row.dead)};
    if (known.drops) cells.push_back(row.drop_rate ? percent(*row.drop_rate) : "--");
    if (known.entropy) cells.push_back(cell(row.entropy, 2));
    if (known.logits) cells.push_back(cell(row.logit_rms, 2) + " / " + cell(row.logit_max, 1));
    if (known.bias) cells.push_back(cell(row.bias_least, 3) + " .. " + cell(row.bias_most, 3));
    table.add_row(std::move(cells));
  }
  return table.render(style);
}

std::string routing_note(std::span<const RoutingRow> rows, const Style& style) {
  const Known known = known_in(rows);
  const std::int32_t experts = most_experts(rows);
  const std::int32_t shared = experts_per_glyph(experts, strip_width(style));
  std::string note =
      shared == 1 ? "load: a bar an expert" : fmt::format("load: a bar for {} experts", shared);
  note +=
      ", half a bar is the mean, a full one twice the mean or more, \u00d7 is dead. Perfect balance has "
      "max/mean 1 and cv 0. ";
  note += fmt::format("eff: as many experts, used alike, would be as even; {} at best. ", experts);
  if (known.drops) note += "dropped: choices that found their expert full. ";
  if (known.entropy) {
    note += fmt::format("entropy: how undecided the router is, at most {} nats. ",
                        fixed(std::log(std::max(experts, 1)), 2));
  }
  if (known.logits) note += "logits: root mean square and largest of the router's. ";
  if (known.bias) note += "bias: least and most that is added to the scores for the choice. ";
  note.pop_back();
  return note;
}

}  // namespace tessera::report
