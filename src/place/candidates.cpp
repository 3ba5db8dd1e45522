#include "place/candidates.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "place/balance.h"
#include "place/index.h"
#include "place/joint.h"
#include "place/published.h"
#include "place/search.h"
#include "place/traffic.h"

namespace tessera::place {
namespace {

constexpr double kAnyLoad = 1e6;  // a cap that never binds
// A choice served off home weighs nearly as much as one on the fullest device: above, balance is lost; below,
// nothing is won.
constexpr double kOffHome = 0.7;

SearchOptions steps_of(const Wish& wish, std::int64_t steps) {
  SearchOptions options;
  options.steps = static_cast<std::int64_t>(static_cast<double>(steps) * wish.effort);
  options.seed = wish.seed;
  return options;
}

std::vector<std::vector<double>> loads_of(const LayerInput& layer, const Wish& wish) {
  if (wish.robust) return windows_of(layer);
  return {layer.load};
}

// Each window counts the same.
std::vector<double> mean_load(const std::vector<std::vector<double>>& windows) {
  if (windows.size() == 1) return windows.front();
  std::vector<double> mean(windows.front().size(), 0.0);
  for (const std::vector<double>& window : windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    for (std::int32_t e = 0; e < count(mean); ++e) at(mean, e) += sum > 0.0 ? at(window, e) / sum : 0.0;
  }
  return mean;
}

BalanceOptions balance_options(const Wish& wish) {
  BalanceOptions options;
  options.visits = static_cast<std::int64_t>(static_cast<double>(options.visits) * wish.effort);
  options.seed = wish.seed;
  return options;
}

std::int32_t slots_to_move(const Wish& wish) {
  return static_cast<std::int32_t>(std::floor(wish.most_moved * wish.machine.slots + 1e-9));
}

// The limit holds even where the current map wastes slots: mending those counts.
LayerMap search_from(const LayerMap& current, SearchGoal goal, const Wish& wish, std::int32_t experts) {
  const LayerMap start = without_waste(current, wish.machine, experts);
  goal.before = current;
  goal.most_moved = std::max(slots_to_move(wish), moved_slots(current, start, wish.machine));
  SearchOptions options = steps_of(wish, 1'000'000);
  options.hot = 0.003;  // the start is good: do not wander off
  return keep_positions(current, anneal(start, wish.machine, goal, options), wish.machine);
}

bool limited(const Wish& wish, const LayerMap* current) {
  return current != nullptr && slots_to_move(wish) < wish.machine.slots;
}

std::vector<std::int32_t> partition_of(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                       double cap) {
  const CutProblem problem{.num_experts = count(layer.load),
                           .top_k = top_k,
                           .num_nodes = wish.machine.nodes,
                           .tokens = layer.tokens,
                           .windows = loads_of(layer, wish),
                           .cap = cap};
  if (problem.num_experts <= kExactExperts && problem.num_experts % problem.num_nodes == 0) {
    return fewest_nodes_exact(problem);
  }
  CutOptions options;
  options.visits = static_cast<std::int64_t>(static_cast<double>(options.visits) * wish.effort);
  options.seed = wish.seed;
  return fewest_nodes(problem, options);
}

// Every node's slots with its own experts, evenly.
LayerMap fill_nodes(const std::vector<std::int32_t>& node_of, const std::vector<std::vector<double>>& windows,
                    const Wish& wish) {
  const Machine& m = wish.machine;
  const Machine one{.nodes = 1, .gpus = m.gpus_per_node(), .slots = m.slots_per_node()};
  LayerMap map;
  for (std::int32_t n = 0; n < m.nodes; ++n) {
    std::vector<std::int32_t> experts;
    for (std::int32_t e = 0; e < count(node_of); ++e) {
      if (at(node_of, e) == n) experts.push_back(e);
    }
    SearchGoal goal;
    for (const std::vector<double>& window : windows) {
      std::vector<double> part;
      for (const std::int32_t e : experts) part.push_back(at(window, e));
      goal.windows.push_back(std::move(part));
    }
    LayerMap inside = balance(mean_load(goal.windows), one, balance_options(wish));
    if (windows.size() > 1) inside = anneal(inside, one, goal, steps_of(wish, 400'000 / m.nodes));
    for (const std::int32_t e : inside) map.push_back(at(experts, e));
  }
  return map;
}

// What a second of the objective weighs.
JointGoal joint_goal(const LayerInput& layer, std::int32_t top_k, const Wish& wish, const LayerMap* current) {
  const Rates& r = wish.rates;
  JointGoal goal{.windows = windows_of(layer), .tokens = layer.tokens, .top_k = std::max(top_k, 1)};
  goal.compute = r.tokens * goal.top_k / wish.machine.gpus * r.seconds_per_choice;
  if (r.node_bandwidth > 0.0) goal.network = r.tokens * r.bytes_per_copy / r.node_bandwidth;
  if (current == nullptr) return goal;
  goal.before = *current;
  goal.most_moved = slots_to_move(wish);
  if (r.gpu_bandwidth > 0.0)
    goal.migration = r.expert_bytes / r.gpu_bandwidth / std::max(r.steps_between, 1.0);
  return goal;
}

LayerMap named_after(const LayerMap* current, LayerMap map, const Machine& machine) {
  return current == nullptr ? map : rename_devices(*current, map, machine);
}

}  // namespace

LayerMap balanced_layer(const LayerInput& layer, const Wish& wish, const LayerMap* current) {
  SearchGoal goal;
  goal.windows = loads_of(layer, wish);
  if (limited(wish, current)) return search_from(*current, goal, wish, count(layer.load));
  LayerMap map = balance(mean_load(goal.windows), wish.machine, balance_options(wish));
  if (goal.windows.size() > 1) map = anneal(map, wish.machine, goal, steps_of(wish, 2'000'000));
  return named_after(current, std::move(map), wish.machine);
}

RelaxedMap relaxed_layer(const LayerInput& layer, const Wish& wish, const LayerMap* current) {
  RelaxedOptions options;
  options.off_home = kOffHome;
  options.search = steps_of(wish, 2'000'000);
  const std::vector<std::vector<double>> windows = loads_of(layer, wish);
  if (!limited(wish, current)) {
    RelaxedMap out = relaxed(windows, wish.machine, groups_of(wish, count(layer.load)), options);
    return out;
  }
  RelaxedMap out;
  out.home.assign(layer.load.size(), -1);
  for (std::int32_t s = wish.machine.slots - 1; s >= 0; --s) {
    at(out.home, at(*current, s)) = wish.machine.node_of(s);
  }
  SearchGoal goal;
  goal.windows = windows;
  goal.home = out.home;
  goal.off_home = options.off_home;
  out.map = search_from(*current, goal, wish, count(layer.load));
  out.off_home = terms_of(out.map, wish.machine, goal).off_home;
  return out;
}

bool traffic_fits(const Machine& machine, std::int32_t num_experts) {
  const std::int32_t fewest = num_experts / machine.nodes;
  const std::int32_t most = (num_experts + machine.nodes - 1) / machine.nodes;
  return machine.slots_per_gpu() <= fewest && machine.slots_per_node() >= most;
}

LayerMap traffic_layer(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                       const LayerMap* current) {
  const std::vector<std::int32_t> node_of = partition_of(layer, top_k, wish, wish.cap);
  return named_after(current, fill_nodes(node_of, loads_of(layer, wish), wish), wish.machine);
}

namespace {

Candidate candidate(std::string name, LayerMap map, const LayerInput& layer, std::int32_t top_k,
                    const Wish& wish, const LayerMap* current) {
  Candidate c{.name = std::move(name), .map = std::move(map)};
  c.cost = cost_of(c.map, wish.machine, layer, top_k,
                   {.rates = wish.rates, .choice = wish.choice, .before = current});
  c.allowed = current == nullptr || c.cost.moved <= slots_to_move(wish);
  return c;
}

// What the methods give, each for its own objective; `traffic` under several caps on the load of a node.
std::vector<Candidate> separate_candidates(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                           const LayerMap* current, std::span<const double> caps) {
  std::vector<Candidate> all;
  const std::int32_t experts = count(layer.load);
  const auto add = [&](std::string what, LayerMap map) {
    all.push_back(candidate(std::move(what), std::move(map), layer, top_k, wish, current));
  };
  if (current != nullptr) add("as it is", *current);
  Wish free = wish;
  free.most_moved = 1.0;
  add("balance", balanced_layer(layer, free, current));
  const std::int32_t groups = groups_of(wish, experts);
  if (groups > 1 && groups % wish.machine.nodes == 0 && wish.machine.nodes > 1 &&
      wish.machine.slots > experts) {
    add("relaxed", named_after(current, relaxed_layer(layer, free, nullptr).map, wish.machine));
  }
  for (const double share : {0.05, 0.1, 0.2, 0.4}) {
    if (current == nullptr) break;
    Wish few = wish;
    few.most_moved = std::min(share, wish.most_moved);
    add(fmt::format("balance, {:.0f}% moved", 100.0 * few.most_moved), balanced_layer(layer, few, current));
    if (share >= wish.most_moved) break;
  }
  if (layer.tokens.empty() || wish.machine.nodes < 2 || !traffic_fits(wish.machine, experts)) return all;
  for (const double cap : caps) {
    if (cap < wish.cap) continue;
    const std::string text = cap == kAnyLoad ? "no cap" : fmt::format("cap {:.0f}%", 100.0 * cap);
    SearchGoal goal;
    goal.windows = loads_of(layer, wish);
    goal.home = partition_of(layer, top_k, wish, cap);
    const LayerMap inside = fill_nodes(goal.home, goal.windows, wish);
    add("traffic, " + text, named_after(current, inside, wish.machine));
    if (wish.machine.slots == experts) continue;
    goal.off_home = 0.3;
    const LayerMap across = anneal(inside, wish.machine, goal, steps_of(wish, 1'000'000));
    add("traffic, " + text + ", spare slots anywhere", named_after(current, across, wish.machine));
  }
  return all;
}

Candidate annealed(const Candidate& start, std::string name, const JointGoal& goal, const LayerInput& layer,
                   std::int32_t top_k, const Wish& wish, const LayerMap* current) {
  JointOptions options;
  options.visits = static_cast<std::int64_t>(static_cast<double>(options.visits) * wish.effort);
  options.seed = wish.seed;
  LayerMap map = anneal_seconds(start.map, wish.machine, goal, options);
  if (current != nullptr) map = keep_positions(*current, map, wish.machine);
  return candidate(std::move(name), std::move(map), layer, top_k, wish, current);
}

}  // namespace

std::vector<Candidate> candidates(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                  const LayerMap* current) {
  const std::array<double, 2> caps = {wish.cap, 0.1};
  std::vector<Candidate> all = separate_candidates(layer, top_k, wish, current, caps);
  JointGoal goal = joint_goal(layer, top_k, wish, current);
  all.push_back(annealed(Candidate(best_of(all)), "annealed on seconds", goal, layer, top_k, wish, current));
  // The fullest device is easily evened out afterwards, copies are not: with them first it is often better.
  if (wish.machine.nodes > 1 && goal.network > 0.0) {
    goal.network *= 3.0;
    all.push_back(
        annealed(Candidate(best_of(all)), "annealed, network x 3", goal, layer, top_k, wish, current));
  }
  return all;
}

namespace {

// With one of the three terms weighed otherwise: points between the methods.
std::vector<Candidate> front_candidates(const LayerInput& layer, std::int32_t top_k, const Wish& wish,
                                        const LayerMap* current) {
  const std::array<double, 4> caps = {wish.cap, 0.1, 0.3, kAnyLoad};
  std::vector<Candidate> all = separate_candidates(layer, top_k, wish, current, caps);
  const std::size_t separate = all.size();
  const auto add = [&](std::string name, double network, double migration) {
    JointGoal goal = joint_goal(layer, top_k, wish, current);
    const auto value = [&](const Seconds3& s) {
      return s.compute + network * s.network + migration * s.migration;
    };
    const Candidate* start = &best_of(all);
    for (std::size_t i = 0; i < separate; ++i) {
      if (all[i].allowed && value(all[i].cost.seconds) < value(start->cost.seconds)) start = &all[i];
    }
    goal.network *= network;
    goal.migration *= migration;
    all.push_back(annealed(Candidate(*start), std::move(name), goal, layer, top_k, wish, current));
  };
  add("annealed on seconds", 1.0, 1.0);
  for (const double x : {0.1, 0.3, 3.0, 10.0}) {
    if (wish.machine.nodes > 1) add(fmt::format("annealed, network x {:g}", x), x, 1.0);
  }
  for (const double x : {10.0, 100.0}) {
    if (current != nullptr) add(fmt::format("annealed, moves x {:g}", x), 1.0, x);
  }
  return all;
}

}  // namespace

const Candidate& best_of(const std::vector<Candidate>& all) {
  const Candidate* best = nullptr;
  for (const Candidate& c : all) {
    if (!c.allowed) continue;
    if (best == nullptr || c.cost.seconds.total() < best->cost.seconds.total()) best = &c;
  }
  return best != nullptr ? *best : all.front();
}

std::vector<FrontPoint> pareto_front(const PlaceInput& input, const Wish& wish) {
  std::vector<FrontPoint> points;
  const double layers = input.num_layers();
  for (std::int32_t l = 0; l < input.num_layers(); ++l) {
    const LayerMap* current = wish.current == nullptr ? nullptr : &at(wish.current->maps, l);
    for (const Candidate& c : front_candidates(at(input.data, l), input.top_k, wish, current)) {
      auto found =
          std::find_if(points.begin(), points.end(), [&](const FrontPoint& p) { return p.name == c.name; });
      if (found == points.end()) found = points.insert(points.end(), FrontPoint{.name = c.name});
      found->seconds.compute += c.cost.seconds.compute;
      found->seconds.network += c.cost.seconds.network;
      found->seconds.migration += c.cost.seconds.migration;
      found->balance += c.cost.balance / layers;
      found->nodes += c.cost.traffic.nodes / layers;
      found->moved += c.cost.moved / (layers * wish.machine.slots);
    }
  }
  std::vector<FrontPoint> front;
  for (const FrontPoint& p : points) {
    const bool beaten = std::any_of(points.begin(), points.end(), [&](const FrontPoint& q) {
      return q.seconds.compute <= p.seconds.compute && q.seconds.network <= p.seconds.network &&
             q.moved <= p.moved &&
             (q.seconds.compute < p.seconds.compute || q.seconds.network < p.seconds.network ||
              q.moved < p.moved);
    });
    if (!beaten) front.push_back(p);
  }
  std::stable_sort(front.begin(), front.end(), [](const FrontPoint& a, const FrontPoint& b) {
    return a.seconds.compute < b.seconds.compute;
  });
  return front;
}

}  // namespace tessera::place
