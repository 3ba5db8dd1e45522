#include "cli/routing_command.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "report/routing_view.h"
#include "report/table.h"
#include "trace/routing_file.h"

namespace tessera::cli {

namespace {

using Json = nlohmann::ordered_json;
using trace::ExpertPair;
using trace::RoutingStats;

trace::RoutingReadOptions options_of(const RoutingFlags& flags) {
  trace::RoutingReadOptions o{.num_experts = flags.experts, .first_layer = flags.first_layer};
  if (flags.content == "counts") o.content = trace::RoutingContent::counts;
  if (flags.content == "choices") o.content = trace::RoutingContent::choices;
  if (flags.order == "layers") o.order = trace::RoutingOrder::layers_first;
  if (flags.order == "tokens") o.order = trace::RoutingOrder::tokens_first;
  return o;
}

double drop_rate(const RoutingStats& s, std::int32_t l) {
  const trace::LoadSpread spread = trace::spread_of(s.chosen_of(l));
  const trace::LoadSpread dropped = trace::spread_of(s.dropped_of(l));
  return spread.total > 0 ? static_cast<double>(dropped.total) / static_cast<double>(spread.total) : 0.0;
}

std::vector<report::RoutingRow> rows_of(const RoutingStats& s) {
  std::vector<report::RoutingRow> rows;
  for (std::int32_t l = 0; l < s.num_layers(); ++l) {
    const auto chosen = s.chosen_of(l);
    const trace::LoadSpread spread = trace::spread_of(chosen);
    report::RoutingRow row{.layer = s.layers[static_cast<std::size_t>(l)],
                           .load = {chosen.begin(), chosen.end()},
                           .max_over_mean = spread.max_over_mean,
                           .cv = spread.cv,
                           .effective = spread.effective_experts,
                           .dead = spread.dead};
    if (!s.dropped.empty()) row.drop_rate = drop_rate(s, l);
    rows.push_back(std::move(row));
  }
  return rows;
}

std::string pairs_text(const std::vector<ExpertPair>& pairs, std::string_view between) {
  std::string text;
  for (const ExpertPair& p : pairs) {
    text += fmt::format("{}{}{}{}", text.empty() ? "" : ", ", p.a, between, p.b);
    if (p.lift > 0.0) text += fmt::format(" ({:.1f}x)", p.lift);
  }
  return text;
}

std::string pair_table(const RoutingStats& s, std::int32_t most, const report::Style& style) {
  report::Table table({{.header = "layer"},
                       {.header = "most chosen together", .align = report::Align::left},
                       {.header = "then in the next layer", .align = report::Align::left, .drop = 1}});
  for (std::int32_t l = 0; l < s.num_layers(); ++l) {
    const bool next = !s.across.empty() && l + 1 < s.num_layers();
    table.add_row({fmt::format("{}", s.layers[static_cast<std::size_t>(l)]),
                   pairs_text(trace::top_pairs(s, l, most), "+"),
                   next ? pairs_text(trace::top_followers(s, l, most), ">") : ""});
  }
  return table.render(style);
}

std::string count_text(std::int64_t count, std::string_view unknown) {
  return count > 0 ? fmt::format("{}", count) : std::string(unknown);
}

void print_text(const RoutingStats& s, const RoutingFlags& flags, const report::Style& style) {
  std::string head =
      fmt::format("{}: {} MoE layers, {} experts, top-{}, {} tokens", flags.file, s.num_layers(),
                  s.num_experts, count_text(s.top_k, "?"), count_text(s.num_tokens, "?"));
  head += fmt::format("\n{}{}{}\n", s.source, s.model.empty() ? "" : ", model " + s.model,
                      s.windows.empty() ? "" : fmt::format(", {} windows", s.windows.size()));
  if (!s.choices.empty()) {
    head += fmt::format("every choice of {} tokens", s.choice_tokens());
    if (!s.sequence_lengths.empty()) head += fmt::format(" of {} sequences", s.sequence_lengths.size());
    head += "\n";
  }
  const std::vector<report::RoutingRow> rows = rows_of(s);
  std::printf("%s\n%s", head.c_str(), report::routing_map(rows, style).c_str());
  for (const std::string& line : report::wrap(report::routing_note(rows, style), report::columns(style))) {
    std::printf("%s\n", report::paint(line, report::Tone::faint, style).c_str());
  }
  if (s.within.empty() || flags.pairs == 0 || s.top_k == 1) return;
  std::printf("\n%s", pair_table(s, flags.pairs, style).c_str());
  const std::string note = "(2.0x): twice as often as independent choices would";
  std::printf("%s\n", report::paint(note, report::Tone::faint, style).c_str());
}

Json pairs_json(const std::vector<ExpertPair>& pairs) {
  Json out = Json::array();
  for (const ExpertPair& p : pairs) {
    out.push_back({{"a", p.a}, {"b", p.b}, {"tokens", p.count}, {"lift", p.lift}});
  }
  return out;
}

void print_json(const RoutingStats& s, const RoutingFlags& flags) {
  Json j = {{"model", s.model},           {"source", s.source},         {"num_experts", s.num_experts},
            {"top_k", s.top_k},           {"num_tokens", s.num_tokens}, {"choice_tokens", s.choice_tokens()},
            {"windows", s.windows.size()}};
  for (std::int32_t l = 0; l < s.num_layers(); ++l) {
    const trace::LoadSpread spread = trace::spread_of(s.chosen_of(l));
    Json layer = {{"layer", s.layers[static_cast<std::size_t>(l)]},
                  {"load", std::vector<std::int64_t>(s.chosen_of(l).begin(), s.chosen_of(l).end())},
                  {"load_max_over_mean", spread.max_over_mean},
                  {"load_cv", spread.cv},
                  {"load_entropy_nats", spread.entropy},
                  {"effective_experts", spread.effective_experts},
                  {"dead_experts", spread.dead}};
    if (!s.dropped.empty()) layer["drop_rate"] = drop_rate(s, l);
    if (!s.within.empty()) layer["pairs"] = pairs_json(trace::top_pairs(s, l, flags.pairs));
    if (!s.across.empty() && l + 1 < s.num_layers()) {
      layer["followers"] = pairs_json(trace::top_followers(s, l, flags.pairs));
    }
    j["layers"].push_back(std::move(layer));
  }
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

int routing(const RoutingFlags& flags, const Terminal& terminal) {
  const RoutingStats stats = trace::read_routing(flags.file, options_of(flags));
  if (flags.json) {
    print_json(stats, flags);
  } else {
    print_text(stats, flags, terminal.style);
  }
  if (flags.convert.empty()) return 0;
  trace::write_routing(flags.convert, stats);
  if (!flags.json) std::printf("written: %s\n", flags.convert.c_str());
  return 0;
}

}  // namespace tessera::cli
