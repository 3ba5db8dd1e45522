// Safetensors of inference engines, and TensorRT-LLM's folder of expert statistics.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <map>
#include <optional>

#include "base/file.h"
#include "trace/routing_foreign.h"

namespace tessera::trace {

namespace {

constexpr std::int64_t kMostNumbers = std::int64_t{1} << 28;

std::string numbered(std::int64_t iteration, std::int64_t layer) {
  return fmt::format("{}_{}", iteration, layer);
}

// "12_3": pass 12 of layer 3.
struct Key {
  std::int64_t pass = 0, layer = 0;
  friend auto operator<=>(const Key&, const Key&) = default;
};
std::optional<Key> key_of(std::string_view text) {
  Key key;
  const char* end = text.data() + text.size();
  const auto first = std::from_chars(text.data(), end, key.pass);
  if (first.ec != std::errc{} || first.ptr == end || *first.ptr != '_') return std::nullopt;
  const auto second = std::from_chars(first.ptr + 1, end, key.layer);
  if (second.ec != std::errc{} || second.ptr != end || key.pass < 0 || key.layer < 0 ||
      key.layer > INT32_MAX || numbered(key.pass, key.layer) != text) {
    return std::nullopt;
  }
  return key;
}

Table table_of(const StoredArray& a, std::string_view where) {
  Table t{.shape = a.shape, .values = {}};
  if (a.num_elements() > kMostNumbers) refuse(fmt::format("array {} is too long", a.name), where);
  append_integers(a.type, a.bytes, fmt::format("{}: {}", where, a.name), t.values);
  return t;
}

// Arrays "pass_layer" of one or several files: counts [E] are summed over the files, choices [T, K] follow
// one another.
class PassLayers {
 public:
  void add(const Container& c, std::string_view where) {
    for (const StoredArray& a : c.arrays) {
      const std::optional<Key> key = key_of(a.name);
      if (!key) refuse(fmt::format("array \"{}\" is not named PASS_LAYER", a.name), where);
      Table t = table_of(a, where);
      if (t.shape.empty() || t.shape.size() > 2) {
        refuse(fmt::format("array {} has the shape {}, neither [experts] nor [tokens, top_k]", a.name,
                           shape_text(t.shape)),
               where);
      }
      const std::size_t d = t.shape.size();
      if (!passes_.empty() && d != dims_) refuse("some arrays hold counts, others choices", where);
      dims_ = d;
      merge(passes_[key->pass][key->layer], std::move(t), fmt::format("{}: {}", where, a.name));
    }
  }
  [[nodiscard]] bool choices() const { return dims_ == 2; }

  RoutingStats stats(std::int32_t num_experts, std::int32_t top_k, const RoutingReadOptions& options,
                     std::string_view where) const {
    if (passes_.empty()) refuse("there are no statistics", where);
    std::vector<std::int32_t> layers;
    for (const auto& [layer, table] : passes_.begin()->second) {
      layers.push_back(static_cast<std::int32_t>(layer));
    }
    ChoiceTable choices;
    CountTable counts{.source = "tensorrt-llm statistics", .names = {}, .layers = layers, .top_k = top_k};
    for (const auto& [pass, tables] : passes_) {
      Table all;
      for (const auto& [layer, t] : tables) {
        const std::string place = fmt::format("{}: pass {} layer {}", where, pass, layer);
        if (std::ranges::find(layers, layer) == layers.end() || tables.size() != layers.size()) {
          refuse("not all passes have the same layers", place);
        }
        if (!all.shape.empty() && !std::ranges::equal(t.shape, std::span(all.shape).subspan(1))) {
          refuse(fmt::format("the array has the shape {}, that of another layer {}", shape_text(t.shape),
                             shape_text(std::span(all.shape).subspan(1))),
                 place);
        }
        if (all.shape.empty()) all.shape.push_back(std::ssize(layers));
        if (all.shape.size() == 1) all.shape.insert(all.shape.end(), t.shape.begin(), t.shape.end());
        all.values.insert(all.values.end(), t.values.begin(), t.values.end());
      }
      if (dims_ == 2) {
        choices.add(all, RoutingOrder::layers_first, where);
        continue;
      }
      if (counts.chosen.shape.empty()) {
        counts.chosen.shape = {std::ssize(passes_), all.shape[0], all.shape[1]};
      }
      if (all.shape[1] != counts.chosen.shape[2]) refuse("not all passes have the same experts", where);
      counts.chosen.values.insert(counts.chosen.values.end(), all.values.begin(), all.values.end());
    }
    if (dims_ == 1) return stats_of(std::move(counts), options, where);
    return choices.stats({.source = "tensorrt-llm raw statistics",
                          .layers = layers,
                          .num_experts = num_experts,
                          .sequence_lengths = {}},
                         options, where);
  }

 private:
  void merge(Table& to, Table from, const std::string& where) const {
    if (to.shape.empty()) {
      to = std::move(from);
      return;
    }
    if (to.shape.back() != from.shape.back()) {
      refuse(fmt::format("the array has the shape {}, that of another rank {}", shape_text(from.shape),
                         shape_text(to.shape)),
             where);
    }
    if (dims_ == 2) {
      to.shape[0] += from.shape[0];
      to.values.insert(to.values.end(), from.values.begin(), from.values.end());
      return;
    }
    for (std::size_t e = 0; e < to.values.size(); ++e) {
      if (from.values[e] < 0 || to.values[e] < 0 || from.values[e] > INT64_MAX / 4 - to.values[e]) {
        refuse(fmt::format("expert {} has the counts {} and {}", e, to.values[e], from.values[e]), where,
               "counts are whole numbers of choices, 0 or more");
      }
      to.values[e] += from.values[e];
    }
  }

  std::size_t dims_ = 0;
  std::map<std::int64_t, std::map<std::int64_t, Table>> passes_;
};

bool is_raw(const std::filesystem::path& path) {
  return path.stem().string().ends_with("_raw");
}

// num_experts and num_experts_per_token of meta_info.json; 0 where they are not there.
std::int32_t fact_of(std::string_view text, std::string_view key) {
  const std::string quoted = fmt::format("\"{}\":", key);
  const std::size_t at = text.find(quoted);
  if (at == std::string_view::npos) return 0;
  std::string_view rest = text.substr(at + quoted.size());
  rest.remove_prefix(std::min(rest.find_first_not_of(" \n\t"), rest.size()));
  std::int32_t n = 0;
  const auto [end, code] = std::from_chars(rest.data(), rest.data() + rest.size(), n);
  return code == std::errc{} && n > 0 && n <= kMaxRoutingExperts ? n : 0;
}

}  // namespace

RoutingStats read_engine_container(const Container& c, std::string_view where,
                                   const RoutingReadOptions& options) {
  if (const StoredArray* a = c.find("logical_count")) {
    return stats_of({.source = "sglang stat", .chosen = table_of(*a, where)}, options, where);
  }
  for (const std::string_view name : {"topk_ids_of_layer", "topk_ids", "choices"}) {
    const StoredArray* a = c.find(name);
    if (a == nullptr) continue;
    ChoiceTable choices;
    choices.add(table_of(*a, where), options.order, where);
    if (const StoredArray* map = c.find("last_physical_to_logical_map")) {
      choices.to_logical(table_of(*map, where), where);
    }
    return choices.stats({.source = fmt::format("safetensors {}", name)}, options, where);
  }
  if (!c.arrays.empty() && key_of(c.arrays[0].name)) {
    PassLayers passes;
    passes.add(c, where);
    return passes.stats(0, 0, options, where);
  }
  for (const std::string_view name : {"counts", "chosen"}) {
    if (const StoredArray* a = c.find(name)) {
      return stats_of({.source = "safetensors counts", .chosen = table_of(*a, where)}, options, where);
    }
  }
  refuse(
      "the safetensors file has none of the arrays logical_count, topk_ids_of_layer, topk_ids, choices, "
      "counts, or PASS_LAYER",
      where);
}

RoutingStats read_engine_folder(const std::filesystem::path& folder, const RoutingReadOptions& options) {
  const std::string where = folder.string();
  std::vector<std::filesystem::path> counts;
  std::vector<std::filesystem::path> raw;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string file = entry.path().filename().string();
    if (!file.starts_with("rank") || !file.ends_with(".safetensors")) continue;
    (is_raw(entry.path()) ? raw : counts).push_back(entry.path());
  }
  const std::filesystem::path meta = folder / "meta_info.json";
  if (!std::filesystem::is_regular_file(meta) || (counts.empty() && raw.empty())) {
    refuse("the folder holds no meta_info.json beside rank*.safetensors", where,
           "give a file, or the folder of expert statistics that TensorRT-LLM wrote");
  }
  const std::string facts = read_text(meta);
  std::vector<std::filesystem::path>& files = raw.empty() ? counts : raw;  // raw says more
  std::ranges::sort(files);
  PassLayers passes;
  for (const std::filesystem::path& path : files) {
    const MappedFile file(path);
    passes.add(parse_container(file.bytes(), path.string()), path.string());
  }
  return passes.stats(fact_of(facts, "num_experts"), fact_of(facts, "num_experts_per_token"), options, where);
}

}  // namespace tessera::trace
