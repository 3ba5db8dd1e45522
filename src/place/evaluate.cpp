#include "place/evaluate.h"

#include <algorithm>
#include <numeric>

#include "place/index.h"

namespace tessera::place {
namespace {

struct Replica {
  std::int32_t gpu = 0, node = 0;
};

// Walks tokens and says where each choice goes.
class Router {
 public:
  Router(const LayerMap& map, const Machine& machine, std::int32_t num_experts)
      : replicas_(size_of(num_experts)), turn_(size_of(num_experts), 0), nodes_(machine.nodes) {
    for (std::int32_t s = 0; s < count(map); ++s) {
      at(replicas_, at(map, s)).push_back({machine.gpu_of(s), machine.node_of(s)});
    }
  }

  // `goes` gets one replica for each choice of the token that is there; source -1: none known.
  void route(std::span<const std::int16_t> token, ReplicaChoice choice, std::int32_t source,
             std::vector<Replica>& goes) {
    goes.clear();
    open_.clear();
    reached_.assign(size_of(nodes_), false);
    if (source >= 0 && choice == ReplicaChoice::cover) reached_[size_of(source)] = true;
    for (const std::int16_t e : token) {
      if (e < 0) continue;
      const std::vector<Replica>& all = at(replicas_, e);
      if (choice == ReplicaChoice::even || all.size() == 1) {
        take(all[size_of(at(turn_, e)++ % count(all))], goes);
      } else {
        open_.push_back(e);
      }
    }
    while (!open_.empty()) cover(goes);
  }

 private:
  void take(const Replica& replica, std::vector<Replica>& goes) {
    goes.push_back(replica);
    reached_[size_of(replica.node)] = true;
  }
  // Serves what the reached nodes hold; then the node that holds most of the rest is reached, the first of
  // equals.
  void cover(std::vector<Replica>& goes) {
    std::vector<std::int32_t> serves(size_of(nodes_), 0);
    std::vector<std::int32_t> rest;
    for (const std::int32_t e : open_) {
      const std::vector<Replica>& all = at(replicas_, e);
      const std::int32_t first = at(turn_, e)++ % count(all);
      const Replica* found = nullptr;
      for (std::int32_t i = 0; i < count(all) && found == nullptr; ++i) {
        const Replica& r = at(all, (first + i) % count(all));
        if (reached_[size_of(r.node)]) found = &r;
      }
      if (found != nullptr) {
        take(*found, goes);
        continue;
      }
      rest.push_back(e);
      std::int32_t last = -1;
      for (const Replica& r : all) {
        if (r.node != last) ++at(serves, r.node);
        last = r.node;
      }
    }
    open_ = rest;
    if (!open_.empty()) {
      const auto best = std::max_element(serves.begin(), serves.end());
      reached_[static_cast<std::size_t>(best - serves.begin())] = true;
    }
  }

  std::vector<std::vector<Replica>> replicas_;
  std::vector<std::int32_t> turn_;
  std::int32_t nodes_;
  std::vector<bool> reached_;
  std::vector<std::int32_t> open_;
};

// Adds one token to the sums.
void add_token(const std::vector<Replica>& goes, const Machine& machine, std::int32_t source, Traffic& sums) {
  const double n = machine.nodes, each = machine.gpus_per_node();
  std::vector<std::int32_t> nodes, gpus;
  for (const Replica& r : goes) {
    nodes.push_back(r.node);
    gpus.push_back(r.gpu);
    const bool away = source >= 0 && r.node != source;
    sums.across_all += source < 0 ? 1.0 - 1.0 / n : (away ? 1.0 : 0.0);
    sums.within_all += (source < 0 ? 1.0 / n : (away ? 0.0 : 1.0)) * (1.0 - 1.0 / each);
  }
  for (std::vector<std::int32_t>* list : {&nodes, &gpus}) {
    std::sort(list->begin(), list->end());
    list->erase(std::unique(list->begin(), list->end()), list->end());
  }
  sums.nodes += static_cast<double>(nodes.size());
  sums.gpus += static_cast<double>(gpus.size());
  sums.within += static_cast<double>(gpus.size()) * (1.0 - 1.0 / each);
  for (const std::int32_t node : nodes) {
    const double comes = source < 0 ? 1.0 - 1.0 / n : (node == source ? 0.0 : 1.0);
    sums.across += comes;
    at(sums.ingress, node) += comes;
    if (source >= 0) {
      at(sums.egress, source) += comes;
      continue;
    }
    for (std::int32_t from = 0; from < machine.nodes; ++from) {
      if (from != node) at(sums.egress, from) += 1.0 / n;
    }
  }
}

}  // namespace

double Traffic::bottleneck() const {
  return std::max(largest(ingress), largest(egress));
}

Traffic traffic_of(const LayerMap& map, const Machine& machine, std::span<const std::int16_t> tokens,
                   std::int32_t num_experts, std::int32_t top_k, const TrafficOptions& options) {
  Traffic sums;
  sums.ingress.assign(size_of(machine.nodes), 0.0);
  sums.egress.assign(size_of(machine.nodes), 0.0);
  const auto num_tokens = static_cast<std::int64_t>(tokens.size()) / std::max(top_k, 1);
  if (num_tokens == 0) return sums;
  Router router(map, machine, num_experts);
  std::vector<Replica> goes;
  for (std::int64_t t = 0; t < num_tokens; ++t) {
    const std::int32_t source = options.sources.empty() ? -1 : at(options.sources, t);
    router.route(tokens.subspan(size_of(t * top_k), size_of(top_k)), options.choice, source, goes);
    add_token(goes, machine, source, sums);
  }
  const auto scale = 1.0 / static_cast<double>(num_tokens);
  for (double* sum :
       {&sums.nodes, &sums.gpus, &sums.across, &sums.across_all, &sums.within, &sums.within_all}) {
    *sum *= scale;
  }
  for (std::vector<double>* list : {&sums.ingress, &sums.egress}) {
    for (double& x : *list) x *= scale;
  }
  return sums;
}

Traffic traffic_of_loads(const LayerMap& map, const Machine& machine, std::span<const double> load,
                         std::int32_t top_k) {
  const double n = machine.nodes, k = std::max(top_k, 1);
  const double sum = std::accumulate(load.begin(), load.end(), 0.0);
  Traffic t;
  t.across = t.across_all = k * (1.0 - 1.0 / n);
  t.within = t.within_all = k / n * (1.0 - 1.0 / machine.gpus_per_node());
  t.ingress.assign(size_of(machine.nodes), 0.0);
  t.egress.assign(size_of(machine.nodes), t.across / n);
  if (!(sum > 0.0)) return t;
  const std::vector<double> gpus = gpu_loads(map, load, machine);
  for (std::int32_t g = 0; g < machine.gpus; ++g) {
    const std::int32_t node = g / machine.gpus_per_node();
    at(t.ingress, node) += k * at(gpus, g) / sum * (1.0 - 1.0 / n);
  }
  for (std::int32_t i = 0; i < machine.nodes; ++i) {  // a node's own tokens for its own experts stay
    at(t.egress, i) = k / n - at(t.ingress, i) / std::max(n - 1.0, 1.0);
  }
  return t;
}

LayerCost cost_of(const LayerMap& map, const Machine& machine, const LayerInput& layer, std::int32_t top_k,
                  const CostOptions& options) {
  const auto experts = count(layer.load);
  LayerCost cost{.loads = gpu_loads(map, layer.load, machine)};
  cost.balance = balancedness(cost.loads);
  std::vector<double> nodes(size_of(machine.nodes), 0.0);
  for (std::int32_t g = 0; g < machine.gpus; ++g) at(nodes, g / machine.gpus_per_node()) += at(cost.loads, g);
  cost.node_balance = balancedness(nodes);
  const std::vector<std::vector<double>> windows = windows_of(layer);
  for (const std::vector<double>& window : windows) {
    cost.mean_fullest += 1.0 / balancedness(gpu_loads(map, window, machine)) / count(windows);
  }
  cost.traffic = layer.tokens.empty()
                     ? traffic_of_loads(map, machine, layer.load, top_k)
                     : traffic_of(map, machine, layer.tokens, experts, top_k, {.choice = options.choice});
  cost.wasted = wasted_slots(map, machine);
  if (options.before != nullptr) {
    cost.moved = moved_slots(*options.before, map, machine);
    const std::int32_t each = machine.slots_per_gpu();
    for (std::int32_t g = 0; g < machine.gpus; ++g) {
      const auto part = [&](const LayerMap& m) {
        return LayerMap(m.begin() + static_cast<std::ptrdiff_t>(g) * each,
                        m.begin() + static_cast<std::ptrdiff_t>(g + 1) * each);
      };
      const Machine one{.nodes = 1, .gpus = 1, .slots = each};
      cost.most_moved = std::max(cost.most_moved, moved_slots(part(*options.before), part(map), one));
    }
  }
  const Rates& r = options.rates;
  const double choices = r.tokens * std::max(top_k, 1);
  cost.seconds.compute = cost.mean_fullest * choices / machine.gpus * r.seconds_per_choice;
  if (r.node_bandwidth > 0.0) {
    cost.seconds.network = cost.traffic.bottleneck() * r.tokens * r.bytes_per_copy / r.node_bandwidth;
  }
  if (r.gpu_bandwidth > 0.0) {
    cost.seconds.migration =
        cost.most_moved * r.expert_bytes / r.gpu_bandwidth / std::max(r.steps_between, 1.0);
  }
  return cost;
}

}  // namespace tessera::place
