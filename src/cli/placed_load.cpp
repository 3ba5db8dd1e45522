#include "cli/placed_load.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <utility>

#include "place/formats.h"

namespace tessera::cli {

cost::RoutingLoad placed_load(const cost::RoutingLoad& load, const spec::ModelSpec& model,
                              const std::string& placement) {
  const std::string where = "--placement " + placement;
  if (!model.moe) {
    throw Error(ErrorKind::config, "the model has no experts to place", where, "leave the flag out");
  }
  spec::ModelSpec main = model;
  main.num_nextn_predict_layers = 0;
  const place::Placement p = place::read_placement(
      placement, {.machine = {.nodes = 0, .gpus = 0, .slots = 0},
                  .num_experts = model.moe->num_experts,
                  .layers = load.layers.empty() ? spec::moe_layers(main) : load.layers});
  std::map<std::int32_t, std::vector<std::int32_t>> maps;
  for (std::size_t l = 0; l < p.layers.size(); ++l) maps[p.layers[l]] = p.maps[l];
  return cost::placed(load, model.moe->num_experts, maps);
}

namespace {

cost::LoadFigures figures_of(const cost::Setup& s, std::int32_t ep) {
  return cost::load_figures(s.routing, s.model.moe->num_experts, s.model.moe->num_experts_per_tok, ep,
                            s.work.capacity_factor);
}

bool says_something(const cost::Setup& s) {
  return s.model.moe && s.routing.kind != cost::LoadKind::balanced;
}

// Nodes that the ep ranks lie on where they stand in a row, and those that a token reaches; 0: not known.
std::pair<std::int32_t, double> nodes_of(const cost::Setup& s, const cost::LoadFigures& f, std::int32_t ep) {
  const std::int32_t nodes = ep / std::min(ep, s.cluster.devices_per_node);
  const auto found = f.parts.find(nodes);
  return {nodes, nodes > 1 && found != f.parts.end() ? found->second : 0.0};
}

}  // namespace

std::string load_note(const cost::Setup& setup, std::int32_t ep) {
  if (!says_something(setup)) return "";
  const cost::LoadFigures f = figures_of(setup, ep);
  std::string note = fmt::format("experts: {}: the fullest of {} expert rank{} takes {:.3f} times the mean",
                                 cost::to_text(setup.routing), ep, ep == 1 ? "" : "s", f.slowest_rank);
  const auto [nodes, reached] = nodes_of(setup, f, ep);
  if (reached > 0.0) note += fmt::format("; a token's choices lie on {:.2f} of {} nodes", reached, nodes);
  return note;
}

std::string load_json(const cost::Setup& setup, std::int32_t ep) {
  if (!says_something(setup)) return "";
  const cost::LoadFigures f = figures_of(setup, ep);
  nlohmann::ordered_json j = {{"routing", cost::to_text(setup.routing)},
                              {"ep", ep},
                              {"slowest_rank_over_mean", f.slowest_rank},
                              {"busiest_expert_over_mean", f.busiest_expert}};
  const auto [nodes, reached] = nodes_of(setup, f, ep);
  if (reached > 0.0) j["nodes_per_token"] = reached;
  return j.dump();
}

}  // namespace tessera::cli
