#include "place/formats.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "place/index.h"

namespace tessera::place {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kFormat = "tessera-placement";
constexpr const char* kMend = "docs/formats/placement.md lists the files that can be read";

// [[0, 1], [1, 0]]: a line a layer, so that people and diffs can read it.
std::string rows(const std::vector<LayerMap>& maps, std::string_view indent) {
  std::string text = "[";
  for (std::size_t l = 0; l < maps.size(); ++l) {
    text += fmt::format("{}\n{}[{}]", l == 0 ? "" : ",", indent, fmt::join(maps[l], ", "));
  }
  return text + "\n]";
}

[[noreturn]] void refuse(std::string what, std::string_view where, std::string mend = kMend) {
  throw Error(ErrorKind::config, std::move(what), std::string(where), std::move(mend));
}

LayerMap ids_of(const Json& list, std::string_view where) {
  if (!list.is_array()) refuse("a layer is no list of expert ids", where);
  LayerMap map;
  for (const Json& id : list) {
    if (!id.is_number_integer()) refuse(fmt::format("{} is no expert id", id.dump()), where);
    const auto value = id.get<std::int64_t>();
    if (value < 0 || value >= kMostSlots) refuse(fmt::format("{} is no expert id", value), where);
    map.push_back(static_cast<std::int32_t>(value));
  }
  return map;
}

std::int32_t number_of(const Json& object, const char* key, std::string_view where) {
  if (!object.contains(key) || !object[key].is_number_integer()) {
    refuse(fmt::format("\"{}\" is missing or no whole number", key), where);
  }
  const auto value = object[key].get<std::int64_t>();
  if (value < 0 || value > kMostSlots) refuse(fmt::format("{}={} is out of range", key, value), where);
  return static_cast<std::int32_t>(value);
}

Placement read_own(const Json& j, std::string_view where) {
  if (const std::int32_t version = number_of(j, "version", where); version != 1) {
    throw Error(ErrorKind::unsupported, fmt::format("version {} is newer than 1", version),
                std::string(where), "use a newer Tessera");
  }
  Placement p{.source = j.value("source", ""), .num_experts = number_of(j, "num_experts", where)};
  p.machine = {.nodes = number_of(j, "nodes", where),
               .gpus = number_of(j, "gpus", where),
               .slots = number_of(j, "slots", where)};
  if (!j.contains("layers") || !j["layers"].is_array()) refuse("\"layers\" is missing or no list", where);
  for (const Json& layer : j["layers"]) {
    const std::string place = fmt::format("{}: layers[{}]", where, p.maps.size());
    if (!layer.is_object() || !layer.contains("physical_to_logical")) {
      refuse("a layer has no physical_to_logical", place);
    }
    p.layers.push_back(number_of(layer, "layer", place));
    p.maps.push_back(ids_of(layer["physical_to_logical"], place));
  }
  return p;
}

// Rows of MoE layers, or of all layers of the model.
Placement of_rows(const Json& list, const ReadHints& hints, std::string_view where) {
  Placement p{.source = std::string(where),
              .machine = hints.machine,
              .num_experts = hints.num_experts,
              .layers = hints.layers};
  const bool moe_only = list.size() == hints.layers.size();
  for (std::size_t i = 0; i < hints.layers.size(); ++i) {
    const std::size_t row = moe_only ? i : static_cast<std::size_t>(hints.layers[i]);
    if (row >= list.size()) {
      refuse(fmt::format("there are {} layers, the statistics have layer {}", list.size(), row), where,
             "give the placement of the same model");
    }
    p.maps.push_back(ids_of(list[row], fmt::format("{}: row {}", where, row)));
  }
  p.machine.nodes = std::max(p.machine.nodes, 1);
  if (p.machine.slots == 0 && !p.maps.empty()) p.machine.slots = count(p.maps.front());
  if (p.machine.gpus == 0) p.machine.gpus = p.machine.slots;
  return p;
}

Placement of_ascend(const Json& j, const ReadHints& hints, std::string_view where) {
  Json list = Json::array();
  if (!j["layer_list"].is_array()) refuse("\"layer_list\" is no list", where);
  for (const Json& layer : j["layer_list"]) {
    Json row = Json::array();
    if (!layer.is_object() || !layer.contains("device_list") || !layer["device_list"].is_array()) {
      refuse("a layer has no device_list", where);
    }
    for (const Json& device : layer["device_list"]) {
      if (!device.is_object() || !device.contains("device_expert") || !device["device_expert"].is_array()) {
        refuse("a device has no device_expert", where);
      }
      for (const Json& id : device["device_expert"]) row.push_back(id);
    }
    list.push_back(std::move(row));
  }
  return of_rows(list, hints, where);
}

// Ours may hold more layers than the statistics.
Placement pick_layers(const Placement& all, const ReadHints& hints, std::string_view where) {
  Problems problems;
  Machine asked = hints.machine;
  if (asked.nodes == 0) asked.nodes = all.machine.nodes;
  if (asked.gpus == 0) asked.gpus = all.machine.gpus;
  if (asked.slots == 0) asked.slots = all.machine.slots;
  if (!(all.machine == asked)) {
    problems.add(fmt::format("the file is of {} nodes, {} GPUs and {} slots, asked are {}, {} and {}",
                             all.machine.nodes, all.machine.gpus, all.machine.slots, asked.nodes, asked.gpus,
                             asked.slots),
                 std::string(where), "give the machine of the placement");
  }
  if (all.num_experts != hints.num_experts) {
    problems.add(fmt::format("the file is of {} experts, asked are {}", all.num_experts, hints.num_experts),
                 std::string(where), "give the placement of the same model");
  }
  Placement p = all;
  p.layers = hints.layers;
  p.maps.clear();
  for (const std::int32_t layer : hints.layers) {
    const auto found = std::find(all.layers.begin(), all.layers.end(), layer);
    if (found == all.layers.end()) {
      problems.add(fmt::format("layer {} is not in the file", layer), std::string(where),
                   "give the placement of the same model");
      continue;
    }
    p.maps.push_back(at(all.maps, found - all.layers.begin()));
  }
  problems.throw_if_any();
  return p;
}

}  // namespace

std::string to_json(const Placement& p) {
  std::string text = fmt::format(
      "{{\n\"format\": \"{}\",\n\"version\": 1,\n\"source\": {},\n\"num_experts\": {},\n\"nodes\": {},\n"
      "\"gpus\": {},\n\"slots\": {},\n\"layers\": [",
      kFormat, Json(p.source).dump(-1, ' ', true, Json::error_handler_t::replace), p.num_experts,
      p.machine.nodes, p.machine.gpus, p.machine.slots);
  for (std::int32_t l = 0; l < count(p.maps); ++l) {
    const LayerMap& map = at(p.maps, l);
    text += fmt::format("{}\n{{\"layer\": {},\n \"physical_to_logical\": [{}],\n \"counts\": [{}]}}",
                        l == 0 ? "" : ",", at(p.layers, l), fmt::join(map, ", "),
                        fmt::join(replica_counts(map, p.num_experts), ", "));
  }
  return text + "\n]\n}\n";
}

std::string to_sglang(const Placement& p, std::int32_t model_layers) {
  const std::int32_t last = p.layers.empty() ? 0 : p.layers.back() + 1;
  std::vector<LayerMap> all(size_of(std::max(model_layers, last)), contiguous(p.machine, p.num_experts));
  for (std::int32_t l = 0; l < count(p.maps); ++l) at(all, at(p.layers, l)) = at(p.maps, l);
  return "{\"physical_to_logical_map\": " + rows(all, " ") + "}\n";
}

std::string to_vllm(const Placement& p) {
  return rows(p.maps, " ") + "\n";
}

std::string to_vllm_ranks(const Placement& p) {
  const bool same =
      std::all_of(p.maps.begin(), p.maps.end(), [&](const LayerMap& m) { return m == p.maps[0]; });
  if (p.machine.slots != p.num_experts || !same || p.maps.empty()) {
    refuse(p.machine.slots != p.num_experts
               ? fmt::format("{} slots hold replicas of {} experts, the file has one rank an expert",
                             p.machine.slots, p.num_experts)
               : "the layers have different maps, the file has one for all",
           "--vllm-ranks", "use --one-map and as many slots as experts, or write --vllm");
  }
  std::vector<std::int32_t> rank(size_of(p.num_experts), 0);
  for (std::int32_t s = 0; s < p.machine.slots; ++s) at(rank, at(p.maps[0], s)) = p.machine.gpu_of(s);
  return fmt::format("{{\"expert_to_ep_rank\": [{}]}}\n", fmt::join(rank, ", "));
}

std::string to_vllm_ascend(const Placement& p) {
  std::string text = fmt::format("{{\"moe_layer_count\": {}, \"layer_list\": [", p.maps.size());
  const std::int32_t each = p.machine.slots_per_gpu();
  for (std::int32_t l = 0; l < count(p.maps); ++l) {
    text += fmt::format("{}\n{{\"layer_id\": {}, \"device_count\": {}, \"device_list\": [", l == 0 ? "" : ",",
                        l, p.machine.gpus);
    for (std::int32_t g = 0; g < p.machine.gpus; ++g) {
      const auto first = at(p.maps, l).begin() + static_cast<std::ptrdiff_t>(g) * each;
      text += fmt::format("{}\n {{\"device_id\": {}, \"device_expert\": [{}]}}", g == 0 ? "" : ",", g,
                          fmt::join(first, first + each, ", "));
    }
    text += "]}";
  }
  return text + "\n]}\n";
}

std::string to_tensorrt_llm(const Placement& p) {
  std::string text =
      fmt::format("num_slots: {}\nlayer_updates_per_iter: 0\ninitial_global_assignments:\n", p.machine.slots);
  for (std::int32_t l = 0; l < count(p.maps); ++l) {
    text += fmt::format("  {}: [{}]\n", at(p.layers, l), fmt::join(at(p.maps, l), ", "));
  }
  return text;
}

Placement parse_placement(std::string_view json, std::string_view where, const ReadHints& hints) {
  Json j;
  try {
    j = Json::parse(json);
  } catch (const Json::exception& e) {
    refuse(fmt::format("the file is no JSON: {}", e.what()), where);
  }
  Placement p;
  if (j.is_object() && j.value("format", Json()) == kFormat) {
    p = read_own(j, where);
    p = pick_layers(p, hints, where);
  } else if (j.is_object() && j.contains("physical_to_logical_map") &&
             j["physical_to_logical_map"].is_array()) {
    p = of_rows(j["physical_to_logical_map"], hints, where);
  } else if (j.is_object() && j.contains("layer_list")) {
    p = of_ascend(j, hints, where);
  } else if (j.is_array() && !j.empty()) {
    const bool one = !j[0].is_array();
    p = of_rows(one ? Json::array({j}) : j, hints, where);
  } else {
    refuse("the file is no placement", where);
  }
  Problems problems;
  check_placement(p, where, problems);
  problems.throw_if_any();
  return p;
}

Placement read_placement(const std::filesystem::path& path, const ReadHints& hints) {
  return parse_placement(read_text(path), path.string(), hints);
}

}  // namespace tessera::place
