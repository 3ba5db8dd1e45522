// JSON: SGLang's recorder (logical_count; records of per_token and per_pass) and tables of counts.
#include <fmt/format.h>
#include <simdjson.h>

#include <cmath>
#include <optional>

#include "trace/routing_foreign.h"

namespace tessera::trace {

namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

constexpr std::size_t kMostDims = 4;
constexpr std::int64_t kMostNumbers = std::int64_t{1} << 28;

// Nested arrays of numbers, all rows alike.
class TableReader {
 public:
  TableReader(std::string name, std::string_view where) : name_(std::move(name)), where_(where) {}

  Table read(const element& value) {
    put(value, 0);
    std::int64_t numbers = table_.shape.empty() ? 0 : 1;
    for (const std::int64_t dim : table_.shape) numbers *= dim;
    if (numbers != std::ssize(table_.values)) {
      refuse(fmt::format("{} of the shape {} has {} numbers", name_, shape_text(table_.shape),
                         table_.values.size()),
             where_);
    }
    return std::move(table_);
  }

 private:
  void put(const element& value, std::size_t depth) {
    array items;
    if (value.get(items) != simdjson::SUCCESS) {
      put_number(value, depth);
      return;
    }
    const auto size = static_cast<std::int64_t>(items.size());
    if (depth == kMostDims)
      refuse(fmt::format("{} is nested deeper than {} arrays", name_, kMostDims), where_);
    if (leaf_ && depth >= *leaf_) uneven(depth);
    if (table_.shape.size() == depth) table_.shape.push_back(size);
    if (table_.shape[depth] != size) {
      refuse(fmt::format("{}: an array has {} members, the one before {}", name_, size, table_.shape[depth]),
             where_);
    }
    for (const element item : items) put(item, depth + 1);
  }

  void put_number(const element& value, std::size_t depth) {
    if (!leaf_) leaf_ = depth;
    if (depth == 0 || depth != *leaf_) uneven(depth);
    std::int64_t n = 0;
    double x = 0.0;
    if (value.get(n) != simdjson::SUCCESS) {
      if (value.get(x) != simdjson::SUCCESS || std::trunc(x) != x || !(std::abs(x) <= 9e15)) {
        refuse(fmt::format("{}: member {} is not a whole number", name_, table_.values.size()), where_);
      }
      n = static_cast<std::int64_t>(x);
    }
    if (std::ssize(table_.values) == kMostNumbers) refuse(fmt::format("{} is too long", name_), where_);
    table_.values.push_back(n);
  }

  [[noreturn]] void uneven(std::size_t depth) {
    refuse(
        fmt::format("{} is not a table: numbers stand at depth {} and {}", name_, leaf_.value_or(0), depth),
        where_);
  }

  std::string name_;
  std::string_view where_;
  std::optional<std::size_t> leaf_;  // depth of the numbers
  Table table_;
};

std::optional<Table> table_at(const object& from, const char* key, std::string_view where) {
  element value;
  if (from[key].get(value) != simdjson::SUCCESS) return std::nullopt;
  return TableReader(key, where).read(value);
}

// SGLang's detail recorder: a record a forward pass. Ids and counts are of physical experts.
RoutingStats read_records(const object& root, const array& records, const RoutingReadOptions& options,
                          std::string_view where) {
  const std::optional<Table> map = table_at(root, "last_physical_to_logical_map", where);
  ChoiceTable choices;
  CountTable counts{.source = "sglang per_pass"};
  std::vector<std::int64_t> lengths;
  std::int64_t i = 0;
  for (const element item : records) {
    const std::string place = fmt::format("{}: records[{}]", where, i++);
    object record;
    if (item.get(record) != simdjson::SUCCESS) refuse("the record is no object", place);
    if (const auto ids = table_at(record, "topk_ids_of_layer", place)) {
      if (ids->shape.size() == 3 && ids->shape[1] == 0) continue;
      choices.add(*ids, RoutingOrder::layers_first, place);
    } else if (const auto count = table_at(record, "global_physical_count", place)) {
      if (!counts.chosen.shape.empty() && counts.chosen.shape != count->shape) {
        refuse(fmt::format("the counts have the shape {}, those before {}", shape_text(count->shape),
                           shape_text(counts.chosen.shape)),
               place);
      }
      counts.chosen.shape = count->shape;
      counts.chosen.values.insert(counts.chosen.values.end(), count->values.begin(), count->values.end());
    } else {
      refuse("the record has neither topk_ids_of_layer nor global_physical_count", place);
    }
  }
  if (!choices.empty()) {
    if (map) choices.to_logical(*map, where);
    return choices.stats({.source = "sglang per_token"}, options, where);
  }
  if (counts.chosen.values.empty()) refuse("there are no records with tokens", where);
  if (counts.chosen.shape.size() != 2) refuse("global_physical_count is not [layers, experts]", where);
  if (map) counts.chosen = logical_counts(counts.chosen, *map, where);
  const std::int64_t each = counts.chosen.shape[0] * counts.chosen.shape[1];
  counts.chosen.shape.insert(counts.chosen.shape.begin(),
                             each > 0 ? std::ssize(counts.chosen.values) / each : 0);
  return stats_of(std::move(counts), options, where);
}

// {"arxiv": [[...]], "book": [[...]]}: a table of counts for each name.
RoutingStats read_named(const object& root, const RoutingReadOptions& options, std::string_view where) {
  CountTable counts{.source = "table of counts"};
  for (const auto field : root) {
    const std::string place = fmt::format("{}: {}", where, field.key);
    if (!field.value.is_array()) {
      refuse(fmt::format("\"{}\" is no table, and no key of a known dump", field.key), where);
    }
    const Table t = TableReader(std::string(field.key), where).read(field.value);
    if (t.shape.size() != 2) {
      refuse(fmt::format("the table has the shape {}, not [layers, experts]", shape_text(t.shape)), place);
    }
    if (!counts.chosen.shape.empty() && counts.chosen.shape != t.shape) {
      refuse(fmt::format("the table has the shape {}, those before {}", shape_text(t.shape),
                         shape_text(counts.chosen.shape)),
             place);
    }
    counts.chosen.shape = t.shape;
    counts.chosen.values.insert(counts.chosen.values.end(), t.values.begin(), t.values.end());
    counts.names.emplace_back(field.key);
  }
  if (counts.names.empty()) refuse("the object is empty", where);
  counts.chosen.shape.insert(counts.chosen.shape.begin(), std::ssize(counts.names));
  return stats_of(std::move(counts), options, where);
}

RoutingStats read_object(const object& root, const RoutingReadOptions& options, std::string_view where) {
  if (const auto counts = table_at(root, "logical_count", where)) {
    return stats_of({.source = "sglang stat", .chosen = *counts}, options, where);
  }
  array records;
  if (root["records"].get(records) == simdjson::SUCCESS) return read_records(root, records, options, where);
  if (const auto ids = table_at(root, "topk_ids_of_layer", where)) {
    ChoiceTable choices;
    choices.add(*ids, options.order, where);
    if (const auto map = table_at(root, "last_physical_to_logical_map", where))
      choices.to_logical(*map, where);
    return choices.stats({.source = "sglang per_token"}, options, where);
  }
  element other;
  for (const char* key : {"physical_to_logical_map", "moe_layer_count", "initial_global_assignments"}) {
    if (root[key].get(other) == simdjson::SUCCESS) {
      refuse(fmt::format("\"{}\" says where experts are, not which tokens chose them", key), where,
             "give the statistics that the placement was made from");
    }
  }
  return read_named(root, options, where);
}

}  // namespace

RoutingStats read_json(std::string_view text, std::string_view where, const RoutingReadOptions& options) {
  simdjson::dom::parser parser;
  element root;
  const auto code = parser.parse(text.data(), text.size()).get(root);
  if (code != simdjson::SUCCESS) {
    throw Error(ErrorKind::io, fmt::format("the text is not JSON: {}", simdjson::error_message(code)),
                std::string(where), "it is cut off or damaged: write it again");
  }
  object fields;
  if (root.get(fields) == simdjson::SUCCESS) return read_object(fields, options, where);
  const Table table = TableReader("the table", where).read(root);
  return stats_of_table(table, "table", RoutingContent::counts, options, where);
}

}  // namespace tessera::trace
