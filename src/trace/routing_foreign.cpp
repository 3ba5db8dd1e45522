#include "trace/routing_foreign.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

namespace tessera::trace {

namespace {

std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

void check_layer(std::int64_t first, std::int64_t layers, std::string_view where) {
  if (first < 0 || first > INT32_MAX - kMaxRoutingLayers) {
    refuse(fmt::format("the first layer is {}", first), where, "give a layer of the model, from 0");
  }
  if (layers > kMaxRoutingLayers) {
    refuse(fmt::format("{} layers are more than {}", layers, kMaxRoutingLayers), where);
  }
}

// Keeps the rows of [L, E] numbers that `keep` names.
std::vector<std::int64_t> rows_of(std::span<const std::int64_t> values, const std::vector<std::int64_t>& keep,
                                  std::int64_t width) {
  std::vector<std::int64_t> out;
  for (const std::int64_t l : keep) {
    const auto row = values.subspan(at(l * width), at(width));
    out.insert(out.end(), row.begin(), row.end());
  }
  return out;
}

std::vector<std::int32_t> layer_ids(const std::vector<std::int32_t>& given, std::int32_t first,
                                    const std::vector<std::int64_t>& keep) {
  std::vector<std::int32_t> out;
  for (const std::int64_t l : keep) {
    out.push_back(given.empty() ? first + static_cast<std::int32_t>(l) : given[at(l)]);
  }
  return out;
}

RoutingStats checked(RoutingStats stats, std::string_view where) {
  Problems problems;
  check_routing(stats, where, problems);
  problems.throw_if_any();
  return stats;
}

}  // namespace

void refuse(std::string what, std::string_view where, std::string mend) {
  throw Error(ErrorKind::config, std::move(what), std::string(where), std::move(mend));
}

RoutingStats stats_of(CountTable table, const RoutingReadOptions& options, std::string_view where) {
  std::vector<std::int64_t>& shape = table.chosen.shape;
  if (shape.empty() || shape.size() > 3) {
    refuse(fmt::format("counts have the shape {}, not [layers, experts] or [windows, layers, experts]",
                       shape_text(shape)),
           where);
  }
  while (shape.size() < 3) shape.insert(shape.begin(), 1);
  const std::int64_t windows = shape[0];
  const std::int64_t layers = shape[1];
  const std::int64_t experts = shape[2];
  check_layer(options.first_layer, layers, where);
  if (experts < 1 || experts > kMaxRoutingExperts) {
    refuse(fmt::format("a layer has {} counts: experts are 1 to {}", experts, kMaxRoutingExperts), where);
  }
  std::vector<std::int64_t> sum(at(layers * experts), 0);
  for (std::int64_t i = 0; i < std::ssize(table.chosen.values); ++i) {
    const std::int64_t n = table.chosen.values[at(i)];
    std::int64_t& to = sum[at(i % (layers * experts))];
    if (n < 0 || n > INT64_MAX / 4 - to) {
      refuse(fmt::format("expert {} of layer {} has the count {}", i % experts, i / experts % layers, n),
             where, "counts are whole numbers of choices, 0 or more");
    }
    to += n;
  }
  std::vector<std::int64_t> keep;
  for (std::int64_t l = 0; l < layers; ++l) {
    const auto row = std::span(sum).subspan(at(l * experts), at(experts));
    if (std::ranges::any_of(row, [](std::int64_t n) { return n > 0; })) keep.push_back(l);
  }
  if (keep.empty()) refuse("all counts are 0", where, "record while tokens are routed");
  RoutingStats s;
  s.source = std::move(table.source);
  s.num_experts = static_cast<std::int32_t>(experts);
  s.top_k = table.top_k;
  s.layers = layer_ids(table.layers, options.first_layer, keep);
  s.chosen = rows_of(sum, keep, experts);
  if (windows > 1 || !table.names.empty()) {
    for (std::int64_t w = 0; w < windows; ++w) {
      const auto part = std::span(table.chosen.values).subspan(at(w) * sum.size(), sum.size());
      if (std::ranges::all_of(part, [](std::int64_t n) { return n == 0; })) continue;
      RoutingWindow window;
      if (!table.names.empty()) window.name = table.names[at(w)];
      window.chosen = rows_of(part, keep, experts);
      s.windows.push_back(std::move(window));
    }
  }
  return checked(std::move(s), where);
}

void ChoiceTable::add(const Table& ids, RoutingOrder order, std::string_view where) {
  const std::size_t dims = ids.shape.size();
  if (dims != 2 && dims != 3) {
    refuse(fmt::format("choices have the shape {}, not [layers, tokens, top_k]", shape_text(ids.shape)),
           where);
  }
  if (order == RoutingOrder::by_shape) {
    order = dims == 3 ? RoutingOrder::layers_first : RoutingOrder::tokens_first;
  }
  const bool layers_first = order == RoutingOrder::layers_first;
  const std::int64_t layers = ids.shape[layers_first ? 0 : 1];
  const std::int64_t tokens = ids.shape[layers_first ? 1 : 0];
  const std::int64_t top_k = dims == 3 ? ids.shape[2] : 1;
  check_layer(0, layers, where);
  if (layers < 1 || top_k < 1 || top_k > kMaxRoutingTopK) {
    refuse(fmt::format("there are {} layers with {} choices of a token, which are 1 to {}", layers, top_k,
                       kMaxRoutingTopK),
           where);
  }
  if (layers_.empty()) {
    layers_.resize(at(layers));
    top_k_ = top_k;
  }
  if (layers != num_layers() || top_k != top_k_) {
    refuse(fmt::format("a record has {} layers and {} choices a token, the one before {} and {}", layers,
                       top_k, num_layers(), top_k_),
           where);
  }
  for (std::int64_t l = 0; l < layers; ++l) {
    std::vector<std::int32_t>& to = layers_[at(l)];
    for (std::int64_t t = 0; t < tokens; ++t) {
      const std::int64_t* from = &ids.values[at((layers_first ? l * tokens + t : t * layers + l) * top_k)];
      for (std::int64_t k = 0; k < top_k; ++k) {
        if (from[k] >= kMaxRoutingExperts) {
          refuse(fmt::format("token {} of layer {} chooses expert {}; ids are below {}", t, l, from[k],
                             kMaxRoutingExperts),
                 where);
        }
        to.push_back(from[k] < 0 ? -1 : static_cast<std::int32_t>(from[k]));
      }
    }
  }
}

void ChoiceTable::to_logical(const Table& map, std::string_view where) {
  if (map.shape.size() != 2 || map.shape[0] != num_layers()) {
    refuse(fmt::format("the map of physical experts has the shape {}, the choices {} layers",
                       shape_text(map.shape), num_layers()),
           where);
  }
  const std::int64_t physical = map.shape[1];
  for (std::int64_t l = 0; l < num_layers(); ++l) {
    for (std::int32_t& id : layers_[at(l)]) {
      if (id < 0) continue;
      if (id >= physical) {
        refuse(fmt::format("layer {} chooses physical expert {} of {}", l, id, physical), where);
      }
      const std::int64_t logical = map.values[at(l * physical + id)];
      if (logical < 0 || logical >= kMaxRoutingExperts) {
        refuse(fmt::format("layer {}: physical expert {} is expert {} of the model", l, id, logical), where);
      }
      id = static_cast<std::int32_t>(logical);
    }
  }
}

RoutingStats ChoiceTable::stats(Facts facts, const RoutingReadOptions& options,
                                std::string_view where) const {
  check_layer(options.first_layer, num_layers(), where);
  std::vector<std::int64_t> keep;
  std::vector<bool> used(at(top_k_), false);
  std::int32_t largest = -1;
  for (std::int64_t l = 0; l < num_layers(); ++l) {
    bool any = false;
    for (std::int64_t i = 0; i < std::ssize(layers_[at(l)]); ++i) {
      const std::int32_t id = layers_[at(l)][at(i)];
      if (id < 0) continue;
      any = used[at(i % top_k_)] = true;
      largest = std::max(largest, id);
    }
    if (any) keep.push_back(l);
  }
  if (keep.empty()) refuse("no token chose an expert", where, "record while tokens are routed");
  RoutingStats s;
  s.source = std::move(facts.source);
  s.num_experts = facts.num_experts > 0 ? facts.num_experts : options.num_experts;
  if (s.num_experts <= 0) s.num_experts = largest + 1;
  if (largest >= s.num_experts) {
    refuse(fmt::format("a token chooses expert {} of {}", largest, s.num_experts), where,
           fmt::format("give the number of experts, at least {}", largest + 1));
  }
  s.top_k = static_cast<std::int32_t>(std::ranges::count(used, true));
  s.layers = layer_ids(facts.layers, options.first_layer, keep);
  s.sequence_lengths = std::move(facts.sequence_lengths);
  for (const std::int64_t l : keep) {
    const std::vector<std::int32_t>& from = layers_[at(l)];
    for (std::size_t i = 0; i < from.size(); ++i) {
      if (used[i % used.size()]) s.choices.push_back(static_cast<std::int16_t>(from[i]));
    }
  }
  // Choices are checked before they are counted: a wrong id would count outside of the tables.
  Problems problems;
  s.chosen.assign(at(std::int64_t{s.num_layers()} * s.num_experts), 0);
  check_routing(s, where, problems);
  problems.throw_if_any();
  count_choices(s);
  return s;
}

Table logical_counts(const Table& physical, const Table& map, std::string_view where) {
  if (map.shape != physical.shape || map.values.empty()) {
    refuse(fmt::format("the map of physical experts has the shape {}, the counts {}", shape_text(map.shape),
                       shape_text(physical.shape)),
           where);
  }
  const auto [least, most] = std::ranges::minmax(map.values);
  if (least < 0 || most >= kMaxRoutingExperts) {
    refuse(fmt::format("the map of physical experts names experts {} to {}", least, most), where);
  }
  Table out{.shape = {map.shape[0], most + 1}, .values = {}};
  const std::int64_t each = std::ssize(map.values);
  const std::int64_t records = std::ssize(physical.values) / each;
  out.values.assign(at(records * out.shape[0] * out.shape[1]), 0);
  for (std::int64_t i = 0; i < records * each; ++i) {
    const std::int64_t row = i / map.shape[1];  // record and layer
    std::int64_t& to = out.values[at(row * out.shape[1] + map.values[at(i % each)])];
    const std::int64_t n = physical.values[at(i)];
    if (n < 0 || n > INT64_MAX / 4 - to) {
      refuse(fmt::format("physical expert {} of layer {} has the count {}", i % map.shape[1],
                         row % map.shape[0], n),
             where, "counts are whole numbers of choices, 0 or more");
    }
    to += n;
  }
  return out;
}

RoutingStats stats_of_table(const Table& table, std::string source, RoutingContent content_of_3,
                            const RoutingReadOptions& options, std::string_view where) {
  RoutingContent content = options.content;
  if (content == RoutingContent::by_shape) {
    content = table.shape.size() >= 3 ? content_of_3 : RoutingContent::counts;
  }
  if (content == RoutingContent::counts) {
    return stats_of({.source = std::move(source), .chosen = table}, options, where);
  }
  ChoiceTable choices;
  choices.add(table, options.order, where);
  return choices.stats({.source = std::move(source)}, options, where);
}

}  // namespace tessera::trace
