// CSV: a header names the columns, in any order; or numbers alone, a line of counts a layer.
//   layer,expert,count[,window]            counts
//   token,layer,expert0,expert1,...        choices, a line for each token and layer
//   layer,count,expert0,expert1,...        sets of experts and how many tokens chose them, in no order
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "base/text.h"
#include "trace/routing_foreign.h"

namespace tessera::trace {

namespace {

constexpr std::int64_t kMostTokens = std::int64_t{1} << 26;
constexpr std::int64_t kMostCells = std::int64_t{1} << 28;

struct Lines {
  std::vector<std::string> columns;               // empty: no header
  std::vector<std::vector<std::int64_t>> values;  // a row a line
  std::vector<std::int64_t> numbers;              // line in the file, from 1
};

std::string place(std::string_view where, std::int64_t line) {
  return fmt::format("{}:{}", where, line);
}

std::optional<std::int64_t> whole(std::string_view word) {
  std::int64_t n = 0;
  const auto [end, code] = std::from_chars(word.data(), word.data() + word.size(), n);
  if (code != std::errc{} || end != word.data() + word.size()) return std::nullopt;
  return n;
}

std::vector<std::string_view> cells_of(std::string_view line) {
  const bool commas = line.find_first_of(",;") != std::string_view::npos;
  const std::string_view between = commas ? ",;" : " \t";
  std::vector<std::string_view> cells;
  std::size_t at = 0;
  while (true) {
    const std::size_t end = std::min(line.find_first_of(between, at), line.size());
    const std::string_view cell = trim(line.substr(at, end - at));
    if (commas || !cell.empty()) cells.push_back(cell);
    if (end == line.size()) return cells;
    at = end + 1;
  }
}

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out) {
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  }
  return out;
}

// Every fault of a line; the first kMostFaults of a file are told.
constexpr std::size_t kMostFaults = 20;

std::vector<std::int64_t> parse_row(const std::vector<std::string_view>& cells, const Lines& lines,
                                    const std::string& where, Problems& faults) {
  std::vector<std::int64_t> row;
  const auto fault = [&](std::string what) {
    if (faults.list().size() < kMostFaults) faults.add(std::move(what), where, kMendForeign);
  };
  const std::vector<std::string>& names = lines.columns;
  if (!names.empty() && cells.size() != names.size())
    fault(fmt::format("the line has {} cells, the header {}", cells.size(), names.size()));
  for (std::size_t c = 0; c < cells.size(); ++c) {
    const std::optional<std::int64_t> n = whole(cells[c]);
    row.push_back(n.value_or(0));
    if (!n) fault(fmt::format("\"{}\" is not a whole number", cells[c].substr(0, 40)));
    // Of choices, -1 is none.
    const bool choice = c < names.size() && names[c].starts_with("expert") && names[c] != "expert";
    if (n && *n < 0 && !choice) {
      fault(fmt::format("{} {} is below 0", c < names.size() ? std::string_view(names[c]) : "count", *n));
    }
  }
  return row;
}

Lines parse_lines(std::string_view text, std::string_view where) {
  Lines out;
  Problems faults;
  std::int64_t number = 0;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view line = trim(text.substr(at, end - at));
    at = end + 1;
    ++number;
    if (line.empty() || line.starts_with('#')) continue;
    const std::vector<std::string_view> cells = cells_of(line);
    if (out.columns.empty() && out.values.empty() && !whole(cells[0])) {
      for (const std::string_view cell : cells) out.columns.push_back(lower(cell));
      continue;
    }
    out.values.push_back(parse_row(cells, out, place(where, number), faults));
    out.numbers.push_back(number);
  }
  faults.throw_if_any();
  if (out.values.empty()) refuse("the text has no lines of numbers", where);
  return out;
}

std::optional<std::size_t> column(const Lines& lines, std::string_view name) {
  const auto found = std::ranges::find(lines.columns, name);
  if (found == lines.columns.end()) return std::nullopt;
  return static_cast<std::size_t>(found - lines.columns.begin());
}

std::int64_t in_range(std::int64_t n, const char* what, std::int64_t most, const std::string& where) {
  if (n >= 0 && n < most) return n;
  refuse(fmt::format("{} {} is not between 0 and {}", what, n, most - 1), where);
}

// expert0, expert1, ... in the order of their numbers.
std::vector<std::size_t> expert_columns(const Lines& lines) {
  std::vector<std::size_t> out;
  while (const auto at = column(lines, fmt::format("expert{}", out.size()))) out.push_back(*at);
  return out;
}

void only_columns(const Lines& lines, std::string_view where, std::vector<std::string> known) {
  for (const std::string& name : lines.columns) {
    if (std::ranges::find(known, name) != known.end()) continue;
    const std::string near = nearest(name, known);
    refuse(fmt::format("unknown column \"{}\"", name.substr(0, 40)), where,
           near.empty() ? fmt::format("name the columns {}", join(known, ", "))
                        : fmt::format("did you mean {}?", near));
  }
}

// Positions of values in ascending order, for layers that a file names in any order.
std::vector<std::int32_t> layers_in(const Lines& lines, std::size_t layer, std::string_view where) {
  std::map<std::int64_t, bool> seen;
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::string here = place(where, lines.numbers[i]);
    seen[in_range(lines.values[i][layer], "layer", INT32_MAX, here)] = true;
    if (std::ssize(seen) > kMaxRoutingLayers) refuse("there are too many layers", here);
  }
  std::vector<std::int32_t> out;
  for (const auto& [l, _] : seen) out.push_back(static_cast<std::int32_t>(l));
  return out;
}

std::int64_t index_of(const std::vector<std::int32_t>& layers, std::int64_t layer) {
  return std::ranges::lower_bound(layers, layer) - layers.begin();
}

RoutingStats read_counts(const Lines& lines, std::string_view where, const RoutingReadOptions& options) {
  only_columns(lines, where, {"layer", "expert", "count", "window"});
  const std::size_t layer = *column(lines, "layer");
  const std::size_t expert = *column(lines, "expert");
  const std::size_t count = *column(lines, "count");
  const std::optional<std::size_t> window = column(lines, "window");
  CountTable t{.source = "csv counts", .names = {}, .layers = layers_in(lines, layer, where)};
  std::int64_t experts = options.num_experts;
  std::int64_t windows = 1;
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::string here = place(where, lines.numbers[i]);
    experts = std::max(experts, 1 + in_range(lines.values[i][expert], "expert", kMaxRoutingExperts, here));
    if (window) windows = std::max(windows, 1 + in_range(lines.values[i][*window], "window", 1 << 20, here));
  }
  const auto layers = std::ssize(t.layers);
  if (windows > kMostCells / (layers * experts)) {
    refuse(fmt::format("{} windows of {} layers and {} experts are too many", windows, layers, experts),
           where);
  }
  t.chosen.shape = {windows, layers, experts};
  t.chosen.values.assign(static_cast<std::size_t>(windows * layers * experts), -1);
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::vector<std::int64_t>& row = lines.values[i];
    const std::int64_t at =
        ((window ? row[*window] : 0) * layers + index_of(t.layers, row[layer])) * experts + row[expert];
    std::int64_t& to = t.chosen.values[static_cast<std::size_t>(at)];
    if (to >= 0) {
      refuse(fmt::format("expert {} of layer {} has a second count", row[expert], row[layer]),
             place(where, lines.numbers[i]));
    }
    to = in_range(row[count], "count", INT64_MAX / 4, place(where, lines.numbers[i]));
  }
  std::ranges::replace(t.chosen.values, -1, 0);
  return stats_of(std::move(t), options, where);
}

RoutingStats read_choices(const Lines& lines, std::string_view where, const RoutingReadOptions& options) {
  const std::vector<std::size_t> experts = expert_columns(lines);
  std::vector<std::string> known = {"token", "layer"};
  for (std::size_t k = 0; k <= experts.size(); ++k) known.push_back(fmt::format("expert{}", k));
  only_columns(lines, where, known);
  const std::size_t token = *column(lines, "token");
  const std::size_t layer = *column(lines, "layer");
  const std::vector<std::int32_t> layers = layers_in(lines, layer, where);
  std::int64_t tokens = 0;
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::string here = place(where, lines.numbers[i]);
    tokens = std::max(tokens, 1 + in_range(lines.values[i][token], "token", kMostTokens, here));
  }
  const auto top_k = std::ssize(experts);
  if (tokens > kMostCells / (std::ssize(layers) * top_k)) {
    refuse(fmt::format("{} tokens of {} layers are too many", tokens, layers.size()), where);
  }
  Table ids{.shape = {std::ssize(layers), tokens, top_k}, .values = {}};
  ids.values.assign(static_cast<std::size_t>(std::ssize(layers) * tokens * top_k), -1);
  std::vector<bool> seen(static_cast<std::size_t>(std::ssize(layers) * tokens), false);
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::vector<std::int64_t>& row = lines.values[i];
    const auto at = static_cast<std::size_t>(index_of(layers, row[layer]) * tokens + row[token]);
    if (seen[at]) {
      refuse(fmt::format("token {} of layer {} is there twice", row[token], row[layer]),
             place(where, lines.numbers[i]));
    }
    seen[at] = true;
    for (std::size_t k = 0; k < experts.size(); ++k) ids.values[at * experts.size() + k] = row[experts[k]];
  }
  ChoiceTable choices;
  choices.add(ids, RoutingOrder::layers_first, where);
  return choices.stats({.source = "csv choices", .layers = layers, .num_experts = 0, .sequence_lengths = {}},
                       options, where);
}

// Sets of experts: counts and pairs inside a layer.
RoutingStats read_sets(const Lines& lines, std::string_view where, const RoutingReadOptions& options) {
  const std::vector<std::size_t> columns = expert_columns(lines);
  std::vector<std::string> known = {"layer", "count"};
  for (std::size_t k = 0; k <= columns.size(); ++k) known.push_back(fmt::format("expert{}", k));
  only_columns(lines, where, known);
  const std::size_t layer = *column(lines, "layer");
  const std::size_t count = *column(lines, "count");
  RoutingStats s;
  s.source = "csv sets";
  s.top_k = static_cast<std::int32_t>(columns.size());
  s.layers = layers_in(lines, layer, where);
  std::int64_t experts = options.num_experts;
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    for (const std::size_t c : columns) {
      experts = std::max(experts, 1 + in_range(lines.values[i][c], "expert", kMaxRoutingExperts,
                                               place(where, lines.numbers[i])));
    }
  }
  const std::int64_t pairs = experts * experts;
  if (std::ssize(s.layers) * pairs > kMaxRoutingPairs) {
    refuse(fmt::format("{} layers of {} experts are too many", s.layers.size(), experts), where);
  }
  s.num_experts = static_cast<std::int32_t>(experts);
  s.chosen.assign(static_cast<std::size_t>(std::ssize(s.layers) * experts), 0);
  s.within.assign(static_cast<std::size_t>(std::ssize(s.layers) * pairs), 0);
  std::int64_t all = 0;
  std::vector<std::int64_t> tokens(s.layers.size(), 0);
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    const std::vector<std::int64_t>& row = lines.values[i];
    const std::string here = place(where, lines.numbers[i]);
    const std::int64_t n = in_range(row[count], "count", INT64_MAX / 4 - all, here);
    const std::int64_t l = index_of(s.layers, row[layer]);
    all += n;
    tokens[static_cast<std::size_t>(l)] += n;
    for (std::size_t a = 0; a < columns.size(); ++a) {
      s.chosen[static_cast<std::size_t>(l * experts + row[columns[a]])] += n;
      for (std::size_t b = 0; b < columns.size(); ++b) {
        if (a != b && row[columns[a]] == row[columns[b]]) {
          refuse(fmt::format("expert {} is in the set twice", row[columns[a]]), here);
        }
        s.within[static_cast<std::size_t>(l * pairs + row[columns[a]] * experts + row[columns[b]])] += n;
      }
    }
  }
  s.num_tokens = *std::ranges::max_element(tokens);
  Problems problems;
  check_routing(s, where, problems);
  problems.throw_if_any();
  return s;
}

// Lines of counts without names: a layer each; one number a line is one layer.
RoutingStats read_matrix(const Lines& lines, std::string_view where, const RoutingReadOptions& options) {
  Table t;
  const std::size_t width = lines.values[0].size();
  for (std::size_t i = 0; i < lines.values.size(); ++i) {
    if (lines.values[i].size() != width) {
      refuse(fmt::format("the line has {} numbers, the one before {}", lines.values[i].size(), width),
             place(where, lines.numbers[i]));
    }
    t.values.insert(t.values.end(), lines.values[i].begin(), lines.values[i].end());
  }
  t.shape = {std::ssize(lines.values), static_cast<std::int64_t>(width)};
  if (width == 1) t.shape = {std::ssize(lines.values)};
  return stats_of_table(t, "table", RoutingContent::counts, options, where);
}

}  // namespace

RoutingStats read_csv(std::string_view text, std::string_view where, const RoutingReadOptions& options) {
  const Lines lines = parse_lines(text, where);
  if (lines.columns.empty()) return read_matrix(lines, where, options);
  const bool layer = column(lines, "layer").has_value();
  const bool count = column(lines, "count").has_value();
  if (layer && count && column(lines, "expert")) return read_counts(lines, where, options);
  if (layer && column(lines, "token") && column(lines, "expert0")) return read_choices(lines, where, options);
  if (layer && count && column(lines, "expert0")) return read_sets(lines, where, options);
  refuse(fmt::format("the columns are {}", join(lines.columns, ", ").substr(0, 200)), where,
         "write layer,expert,count or token,layer,expert0,... or layer,count,expert0,...");
}

}  // namespace tessera::trace
