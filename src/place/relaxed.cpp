#include "place/relaxed.h"

#include <algorithm>
#include <bit>
#include <functional>
#include <numeric>

#include "place/balance.h"
#include "place/index.h"
#include "place/published.h"

namespace tessera::place {
namespace {

std::vector<double> group_loads(std::span<const double> load, std::int32_t num_groups) {
  std::vector<double> groups(size_of(num_groups), 0.0);
  const std::int32_t size = count(load) / num_groups;
  for (std::int32_t e = 0; e < count(load); ++e) at(groups, e / size) += at(load, e);
  return groups;
}

std::vector<double> mean_of(const std::vector<std::vector<double>>& windows) {
  std::vector<double> mean(windows.front().size(), 0.0);
  for (const std::vector<double>& window : windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    for (std::int32_t e = 0; e < count(mean); ++e) at(mean, e) += sum > 0.0 ? at(window, e) / sum : 0.0;
  }
  return mean;
}

}  // namespace

RelaxedMap relaxed(const std::vector<std::vector<double>>& windows, const Machine& machine,
                   std::int32_t num_groups, const RelaxedOptions& options) {
  const std::vector<double> mean = mean_of(windows);
  const std::int32_t experts = count(mean);
  RelaxedMap out;
  // The published balancer's map gives the homes: whole groups on nodes, balanced greedily.
  out.map = without_waste(published_map(mean, machine, num_groups), machine, experts);
  out.home.assign(size_of(experts), -1);
  for (std::int32_t s = machine.slots - 1; s >= 0; --s) at(out.home, at(out.map, s)) = machine.node_of(s);
  const LayerMap pure = published_map(mean, machine, num_groups);
  for (std::int32_t s = 0; s < machine.slots; ++s) at(out.home, at(pure, s)) = machine.node_of(s);
  SearchGoal goal;
  goal.windows = windows;
  goal.home = out.home;
  goal.off_home = options.off_home;
  out.map = anneal(out.map, machine, goal, options.search);
  out.off_home = terms_of(out.map, machine, goal).off_home;
  return out;
}

double intact_groups_bound(std::span<const double> load, const Machine& machine, std::int32_t num_groups) {
  const std::vector<double> groups = group_loads(load, num_groups);
  const double total = std::accumulate(groups.begin(), groups.end(), 0.0);
  if (!(total > 0.0)) return 1.0;
  const std::int32_t each = num_groups / machine.nodes;
  const double mean = total / machine.nodes;
  if (num_groups > 16) return std::max(1.0, *std::max_element(groups.begin(), groups.end()) / mean);
  // best[set] = lightest heaviest node when the groups of `set` fill |set| / each nodes.
  const std::uint32_t all = (1U << static_cast<std::uint32_t>(num_groups)) - 1U;
  std::vector<double> sum(all + 1U, 0.0), best(all + 1U, total);
  best[0] = 0.0;
  for (std::uint32_t set = 1; set <= all; ++set) {
    sum[set] = sum[set & (set - 1U)] + groups[static_cast<std::size_t>(std::countr_zero(set))];
    if (std::popcount(set) % each != 0) continue;
    const std::uint32_t first = set & (~set + 1U), rest = set ^ first;
    for (std::uint32_t part = rest;; part = (part - 1U) & rest) {  // the node of the first group
      if (std::popcount(part) == each - 1) {
        const std::uint32_t node = part | first;
        best[set] = std::min(best[set], std::max(sum[node], best[set ^ node]));
      }
      if (part == 0U) break;
    }
  }
  return best[all] / mean;
}

double relaxed_bound(std::span<const double> load, const Machine& machine,
                     std::span<const std::int32_t> home) {
  const double mean = std::accumulate(load.begin(), load.end(), 0.0) / machine.nodes;
  if (!(mean > 0.0)) return 1.0;
  std::vector<double> node(size_of(machine.nodes), 0.0);
  std::vector<std::int32_t> spare(size_of(machine.nodes), machine.slots_per_node());
  for (std::int32_t e = 0; e < count(load); ++e) {
    at(node, at(home, e)) += at(load, e) / mean;
    --at(spare, at(home, e));
  }
  std::vector<std::int32_t> order(node.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return at(node, a) > at(node, b); });
  // Of the heaviest nodes together: c replicas elsewhere leave an expert at least 1 / (c + 1) of its load
  // here, and elsewhere there are only so many spare slots. The largest gain first is optimal.
  double bound = 1.0, here = 0.0;
  std::int32_t elsewhere = machine.slots - count(load);
  std::vector<double> gains;
  for (std::int32_t i = 0; i + 1 < machine.nodes; ++i) {
    here += at(node, at(order, i));
    elsewhere -= at(spare, at(order, i));
    for (std::int32_t e = 0; e < count(load); ++e) {
      if (at(home, e) != at(order, i)) continue;
      for (std::int32_t c = 1; c <= std::min(machine.slots - count(load), machine.gpus - 1); ++c) {
        gains.push_back(at(load, e) / mean / (static_cast<double>(c) * (c + 1)));
      }
    }
    const auto taken = std::min<std::int64_t>(elsewhere, std::ssize(gains));
    std::partial_sort(gains.begin(), gains.begin() + taken, gains.end(), std::greater<>());
    bound = std::max(bound, (here - std::accumulate(gains.begin(), gains.begin() + taken, 0.0)) / (i + 1));
  }
  return bound;
}

}  // namespace tessera::place
