#include "cli/place_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/text.h"
#include "report/table.h"

namespace tessera::cli {

namespace {

using Json = nlohmann::ordered_json;
using place::LayerCost;
using place::Traffic;

void add_traffic(Traffic& sum, const Traffic& t, double share) {
  sum.nodes += share * t.nodes;
  sum.gpus += share * t.gpus;
  sum.across += share * t.across;
  sum.across_all += share * t.across_all;
  sum.within += share * t.within;
  sum.within_all += share * t.within_all;
  sum.ingress.resize(t.ingress.size(), 0.0);
  sum.egress.resize(t.egress.size(), 0.0);
  for (std::size_t n = 0; n < t.ingress.size(); ++n) {
    sum.ingress[n] += share * t.ingress[n];
    sum.egress[n] += share * t.egress[n];
  }
}

std::string bytes_text(double copies, const place::Wish& wish) {
  return human(Bytes(static_cast<std::int64_t>(copies * wish.rates.bytes_per_copy)));
}

void print_lines(const std::string& text, const report::Style& style,
                 report::Tone tone = report::Tone::faint) {
  for (const std::string& line : report::wrap(text, report::columns(style))) {
    std::printf("%s\n", report::paint(line, tone, style).c_str());
  }
}

void print_head(const PlaceReport& r, const PlaceFlags& flags) {
  const place::Machine& m = r.wish.machine;
  std::printf("%s: %d MoE layers, %d experts, top-%s\n", flags.stats.c_str(), r.input.num_layers(),
              r.input.num_experts, r.input.top_k > 0 ? std::to_string(r.input.top_k).c_str() : "?");
  std::printf(
      "%d nodes x %d GPUs (%s), %d slots a GPU: %d slots, %d of them spare; %.0f tokens a step and GPU of "
      "%s\n\n",
      m.nodes, m.gpus_per_node(), r.cluster.c_str(), m.slots_per_gpu(), m.slots,
      m.slots - r.input.num_experts, flags.tokens_per_gpu, r.model.c_str());
}

void print_rows(const std::vector<PlaceRow>& rows, const PlaceReport& r, const report::Style& style) {
  const bool tokens = rows.back().traffic.nodes > 0.0, nodes = r.wish.machine.nodes > 1;
  const bool moves = r.wish.current != nullptr;
  std::vector<report::Column> columns = {{.header = "placement", .align = report::Align::left},
                                         {.header = "GPU balance"},
                                         {.header = "worst layer", .drop = 1}};
  if (nodes) columns.push_back({.header = "node balance", .drop = 2});
  if (nodes && tokens) columns.push_back({.header = "nodes/token"});
  if (nodes) columns.push_back({.header = "across/token"});
  if (nodes) columns.push_back({.header = "no dedup", .drop = 3});
  columns.push_back({.header = "inside", .drop = 4});
  if (moves) columns.push_back({.header = "moved"});
  columns.push_back({.header = "slowest rank"});
  report::Table table(columns);
  for (const PlaceRow& row : rows) {
    std::vector<std::string> cells = {row.name, fmt::format("{:.4f}", row.balance),
                                      fmt::format("{:.4f}", row.worst)};
    if (nodes) cells.push_back(fmt::format("{:.3f}", row.node_balance));
    if (nodes && tokens) cells.push_back(fmt::format("{:.3f}", row.traffic.nodes));
    if (nodes) cells.push_back(bytes_text(row.traffic.across, r.wish));
    if (nodes) cells.push_back(bytes_text(row.traffic.across_all, r.wish));
    cells.push_back(bytes_text(row.traffic.within, r.wish));
    if (moves) {
      const double all = static_cast<double>(r.wish.machine.slots) * r.input.num_layers();
      cells.push_back(fmt::format("{:.0f} ({:.1f}%)", row.moved, 100.0 * row.moved / all));
    }
    cells.push_back(human(Seconds(row.seconds.total())));
    table.add_row(cells, &row == &rows.back() ? report::Tone::strong : report::Tone::plain);
  }
  std::printf("%s", table.render(style).c_str());
}

std::string list_text(const std::vector<double>& copies, const place::Wish& wish) {
  std::vector<std::string> words;
  for (const double c : copies) words.push_back(bytes_text(c, wish));
  return join(words, ", ");
}

void print_notes(const PlaceReport& r, const report::Style& style) {
  const PlaceRow& row = r.rows.back();
  double best = 0.0, nodes = 0.0;
  const double layers = r.input.num_layers();
  for (const place::Bounds& b : r.bounds) {
    best += b.balance / layers;
    nodes += b.nodes / layers;
  }
  std::string bound = fmt::format("Bounds: no placement is above {:.4f} GPU balance ({:.2f}% away)", best,
                                  100.0 * (best / row.balance - 1.0));
  if (nodes > 0.0) {
    bound += fmt::format("; none without replicas on other nodes below {:.3f} nodes a token ({:.0f}% away)",
                         nodes, 100.0 * (row.traffic.nodes / nodes - 1.0));
  }
  std::printf("\n");
  print_lines(bound + ".", style, report::Tone::plain);
  const place::Seconds3& s = row.seconds;
  std::string slowest = fmt::format("Slowest rank, all layers: {} computing", human(Seconds(s.compute)));
  if (r.wish.machine.nodes > 1)
    slowest += fmt::format(", {} network of the fullest node", human(Seconds(s.network)));
  if (r.wish.current != nullptr) slowest += fmt::format(", {} moving experts", human(Seconds(s.migration)));
  print_lines(slowest + ".", style, report::Tone::plain);
  const Traffic& t = row.traffic;
  if (r.wish.machine.nodes > 1) {
    print_lines(
        fmt::format(
            "Per token and layer: {} across nodes ({} without de-duplication), {} inside of them ({}).",
            bytes_text(t.across, r.wish), bytes_text(t.across_all, r.wish), bytes_text(t.within, r.wish),
            bytes_text(t.within_all, r.wish)),
        style, report::Tone::plain);
    print_lines("Into each node: " + list_text(t.ingress, r.wish) +
                    "; out of each: " + list_text(t.egress, r.wish) + ".",
                style, report::Tone::plain);
  }
  std::string note = "GPU balance: mean over max of the load, mean over the layers.";
  if (r.wish.machine.nodes > 1) {
    note += " Bytes: dispatch and combine, sources of tokens spread evenly over the nodes.";
    if (!r.input.has_tokens()) {
      note +=
          " Counts do not say which choices are of one token: each is a copy of its own, and no placement "
          "without replicas changes what crosses.";
    } else if (r.wish.machine.slots == r.input.num_experts) {
      note += " Without de-duplication every placement sends the same.";
    }
  }
  print_lines(note, style);
  if (r.wish.method == place::Method::relaxed) {
    print_lines(fmt::format("{:.1f}% of the choices are served off the home node of their group.",
                            100.0 * r.off_home),
                style, report::Tone::plain);
  }
  if (row.wasted > 0.0) {
    print_lines(fmt::format("{:.0f} slots hold an expert that their GPU already has.", row.wasted), style,
                report::Tone::warning);
  }
  std::printf("placed in %s of CPU time (%s a layer)\n", human(Seconds(r.seconds)).c_str(),
              human(Seconds(r.seconds / layers)).c_str());
}

void print_layers(const PlaceReport& r, const report::Style& style) {
  report::Table table({{.header = "layer"},
                       {.header = r.rows.front().name},
                       {.header = "result"},
                       {.header = "bound"},
                       {.header = "nodes/token", .drop = 1},
                       {.header = "moved", .drop = 2}});
  for (std::int32_t l = 0; l < r.input.num_layers(); ++l) {
    const auto i = static_cast<std::size_t>(l);
    const LayerCost& cost = r.rows.back().layers[i];
    table.add_row({fmt::format("{}", r.input.layers[i]),
                   fmt::format("{:.4f}", r.rows.front().layers[i].balance),
                   fmt::format("{:.4f}", cost.balance), fmt::format("{:.4f}", r.bounds[i].balance),
                   fmt::format("{:.3f}", cost.traffic.nodes), fmt::format("{}", cost.moved)});
  }
  std::printf("\n%s", table.render(style).c_str());
}

void print_front(const PlaceReport& r, const report::Style& style) {
  report::Table table({{.header = "on the Pareto front", .align = report::Align::left},
                       {.header = "computing"},
                       {.header = "network"},
                       {.header = "moving"},
                       {.header = "together"},
                       {.header = "GPU balance", .drop = 1},
                       {.header = "nodes/token", .drop = 2},
                       {.header = "moved slots"}});
  for (const place::FrontPoint& p : r.front) {
    table.add_row({p.name, human(Seconds(p.seconds.compute)), human(Seconds(p.seconds.network)),
                   human(Seconds(p.seconds.migration)), human(Seconds(p.seconds.total())),
                   fmt::format("{:.4f}", p.balance), fmt::format("{:.3f}", p.nodes),
                   fmt::format("{:.1f}%", 100.0 * p.moved)});
  }
  std::printf("\n%s", table.render(style).c_str());
  print_lines("One choice for all layers in each line; the method seconds chooses for each layer.", style);
}

Json row_json(const PlaceRow& row, const place::Wish& wish) {
  Json layers = Json::array();
  for (const LayerCost& c : row.layers) {
    layers.push_back({{"balance", c.balance},
                      {"gpu_load", c.loads},
                      {"nodes_per_token", c.traffic.nodes},
                      {"moved_slots", c.moved},
                      {"wasted_slots", c.wasted},
                      {"seconds", c.seconds.total()}});
  }
  const double b = wish.rates.bytes_per_copy;
  const auto bytes = [&](const std::vector<double>& copies) {
    Json list = Json::array();
    for (const double c : copies) list.push_back(c * b);
    return list;
  };
  const Traffic& t = row.traffic;
  return {{"name", row.name},
          {"gpu_balance", row.balance},
          {"worst_gpu_balance", row.worst},
          {"node_balance", row.node_balance},
          {"nodes_per_token", t.nodes},
          {"gpus_per_token", t.gpus},
          {"across_bytes_per_token", t.across * b},
          {"across_bytes_per_token_no_dedup", t.across_all * b},
          {"inside_bytes_per_token", t.within * b},
          {"inside_bytes_per_token_no_dedup", t.within_all * b},
          {"ingress_bytes_per_token", bytes(t.ingress)},
          {"egress_bytes_per_token", bytes(t.egress)},
          {"moved_slots", row.moved},
          {"wasted_slots", row.wasted},
          {"seconds",
           {{"compute", row.seconds.compute},
            {"network", row.seconds.network},
            {"migration", row.seconds.migration},
            {"total", row.seconds.total()}}},
          {"layers", layers}};
}

}  // namespace

PlaceRow row_of(const place::Placement& placement, const std::string& name, const place::PlaceInput& input,
                const place::Wish& wish) {
  PlaceRow row{.name = name};
  row.worst = 1.0;
  const double share = 1.0 / input.num_layers();
  for (std::size_t l = 0; l < placement.maps.size(); ++l) {
    const place::LayerMap* before = wish.current == nullptr ? nullptr : &wish.current->maps[l];
    LayerCost cost = place::cost_of(placement.maps[l], wish.machine, input.data[l], input.top_k,
                                    {.rates = wish.rates, .choice = wish.choice, .before = before});
    row.balance += share * cost.balance;
    row.worst = std::min(row.worst, cost.balance);
    row.node_balance += share * cost.node_balance;
    add_traffic(row.traffic, cost.traffic, share);
    row.moved += cost.moved;
    row.wasted += cost.wasted;
    row.seconds.compute += cost.seconds.compute;
    row.seconds.network += cost.seconds.network;
    row.seconds.migration += cost.seconds.migration;
    row.layers.push_back(std::move(cost));
  }
  return row;
}

void print_place(const PlaceReport& r, const PlaceFlags& flags, const report::Style& style) {
  print_head(r, flags);
  print_rows(r.rows, r, style);
  if (!r.held_rows.empty()) {
    std::printf("\nOn what was held out:\n");
    print_rows(r.held_rows, r, style);
  }
  print_notes(r, style);
  if (flags.by_layer) print_layers(r, style);
  if (!r.front.empty()) print_front(r, style);
}

void print_place_json(const PlaceReport& r) {
  const place::Machine& m = r.wish.machine;
  Json j = {{"num_experts", r.input.num_experts},
            {"top_k", r.input.top_k},
            {"layers", r.input.layers},
            {"nodes", m.nodes},
            {"gpus", m.gpus},
            {"slots", m.slots},
            {"model", r.model},
            {"cluster", r.cluster},
            {"off_home_share", r.off_home},
            {"cpu_seconds", r.seconds}};
  for (const PlaceRow& row : r.rows) j["placements"].push_back(row_json(row, r.wish));
  for (const PlaceRow& row : r.held_rows) j["held_out"].push_back(row_json(row, r.wish));
  for (const place::Bounds& b : r.bounds) {
    j["bounds"].push_back(
        {{"gpu_balance", b.balance}, {"mean_fullest", b.fullest}, {"nodes_per_token", b.nodes}});
  }
  for (const place::FrontPoint& p : r.front) {
    j["front"].push_back({{"name", p.name},
                          {"compute_s", p.seconds.compute},
                          {"network_s", p.seconds.network},
                          {"migration_s", p.seconds.migration},
                          {"gpu_balance", p.balance},
                          {"nodes_per_token", p.nodes},
                          {"moved_share", p.moved}});
  }
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace tessera::cli
