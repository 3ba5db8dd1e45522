#include "place/methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <exception>
#include <mutex>
#include <numeric>
#include <thread>

#include "base/clock.h"
#include "base/text.h"
#include "place/balance.h"
#include "place/candidates.h"
#include "place/index.h"
#include "place/published.h"
#include "place/relaxed.h"
#include "place/traffic.h"

namespace tessera::place {
namespace {

constexpr std::array<std::string_view, 8> kNames = {"contiguous", "random",  "published", "published-global",
                                                    "balance",    "relaxed", "traffic",   "seconds"};

// Runs job(0) .. job(n - 1) on some threads; the first exception by number is thrown.
template <class Job>
void run_all(std::int32_t n, std::int32_t threads, const Job& job) {
  std::atomic<std::int32_t> next = 0;
  std::vector<std::exception_ptr> failed(size_of(n));
  const auto work = [&] {
    for (std::int32_t i = next++; i < n; i = next++) {
      try {
        job(i);
      } catch (...) {
        at(failed, i) = std::current_exception();
      }
    }
  };
  {
    std::vector<std::jthread> pool;
    for (std::int32_t t = 1; t < std::min(threads, n); ++t) pool.emplace_back(work);
    work();
  }
  for (const std::exception_ptr& e : failed) {
    if (e) std::rethrow_exception(e);
  }
}

// All layers as one: for the same map in each.
PlaceInput sum_of_layers(const PlaceInput& input) {
  PlaceInput one = input;
  one.layers.resize(1);
  one.data.resize(1);
  for (std::int32_t l = 1; l < input.num_layers(); ++l) {
    const LayerInput& layer = at(input.data, l);
    for (std::int32_t e = 0; e < input.num_experts; ++e) at(one.data[0].load, e) += at(layer.load, e);
    for (std::int32_t w = 0; w < count(layer.windows); ++w) {
      for (std::int32_t e = 0; e < input.num_experts; ++e) {
        at(at(one.data[0].windows, w), e) += at(at(layer.windows, w), e);
      }
    }
    one.data[0].tokens.insert(one.data[0].tokens.end(), layer.tokens.begin(), layer.tokens.end());
  }
  return one;
}

void check_current(const PlaceInput& input, const Wish& wish, Problems& problems) {
  const Placement& p = *wish.current;
  if (p.machine == wish.machine && p.num_experts == input.num_experts && p.layers == input.layers) return;
  problems.add(
      fmt::format("the current placement has {} slots, {} experts and {} layers; asked are {}, {} and {}",
                  p.machine.slots, p.num_experts, p.layers.size(), wish.machine.slots, input.num_experts,
                  input.layers.size()),
      "current placement", "give the placement of this model on this machine");
}

}  // namespace

std::string_view name(Method method) {
  return kNames[static_cast<std::size_t>(method)];
}

std::vector<std::string> method_names() {
  return {kNames.begin(), kNames.end()};
}

Method method_of(std::string_view word) {
  const auto found = std::find(kNames.begin(), kNames.end(), word);
  if (found != kNames.end()) return static_cast<Method>(found - kNames.begin());
  const std::string near = nearest(word, method_names());
  throw Error(
      ErrorKind::config, fmt::format("there is no method \"{}\"", word), "method",
      (near.empty() ? "" : "did you mean " + near + "? ") + "use one of " + join(method_names(), ", "));
}

std::int32_t groups_of(const Wish& wish, std::int32_t num_experts) {
  if (wish.num_groups > 0) return wish.num_groups;
  return wish.machine.nodes > 0 && num_experts % wish.machine.nodes == 0 ? wish.machine.nodes : 1;
}

void check_wish(const PlaceInput& input, const Wish& wish, Problems& problems) {
  check_machine(wish.machine, input.num_experts, "machine", problems);
  const bool sound = problems.empty();
  const Machine& m = wish.machine;
  const std::int32_t groups = groups_of(wish, input.num_experts);
  if (groups < 1 || input.num_experts % groups != 0) {
    problems.add(fmt::format("{} groups do not divide {} experts", groups, input.num_experts), "groups",
                 fmt::format("use a number in {}", divisors_text(input.num_experts)));
  } else if (sound && wish.method == Method::relaxed && groups % m.nodes != 0) {
    problems.add(fmt::format("{} nodes do not divide {} groups", m.nodes, groups), "groups",
                 "use a number of groups that is a multiple of the nodes, or the method balance");
  }
  if (!(wish.cap >= 0.0)) {
    problems.add(fmt::format("the cap {} on a node's load is below 0", wish.cap), "cap",
                 "use 0.03 for 3% above the mean");
  }
  if (!(wish.most_moved >= 0.0 && wish.most_moved <= 1.0)) {
    problems.add(fmt::format("the share of moved slots {} is not within 0 and 1", wish.most_moved),
                 "most moved", "use 0.1 for a tenth of the slots");
  }
  if (wish.method == Method::traffic && !input.has_tokens()) {
    problems.add("counts alone do not say which experts a token chose together", "method traffic",
                 "give statistics with every token's choices, or use balance or relaxed");
  }
  if (sound && wish.method == Method::traffic && !traffic_fits(wish.machine, input.num_experts)) {
    problems.add(fmt::format("a GPU has {} slots, a node only {} experts", m.slots_per_gpu(),
                             input.num_experts / m.nodes),
                 "method traffic", "use fewer slots, or the method balance");
  }
  if (wish.current != nullptr) check_current(input, wish, problems);
}

Bounds bounds_of(const LayerInput& layer, const Wish& wish, std::int32_t top_k) {
  Bounds bounds;
  const Machine& m = wish.machine;
  const auto relative = [&](const std::vector<double>& load) {
    const double mean = std::accumulate(load.begin(), load.end(), 0.0) / m.gpus;
    return mean > 0.0 ? load_bound(load, m) / mean : 1.0;
  };
  bounds.balance = 1.0 / relative(layer.load);
  const std::vector<std::vector<double>> windows = windows_of(layer);
  bounds.fullest = 0.0;
  for (const std::vector<double>& window : windows) bounds.fullest += relative(window) / count(windows);
  if (layer.tokens.empty() || m.nodes < 2) return bounds;
  const CutProblem problem{.num_experts = count(layer.load),
                           .top_k = top_k,
                           .num_nodes = m.nodes,
                           .tokens = layer.tokens,
                           .windows = windows,
                           .cap = wish.cap};
  bounds.nodes = nodes_bound(problem, m.slots_per_node());
  return bounds;
}

LayerMap place_layer(const PlaceInput& input, std::int32_t layer, const Wish& wish, const LayerMap* current) {
  const LayerInput& data = at(input.data, layer);
  const std::int32_t groups = groups_of(wish, input.num_experts);
  switch (wish.method) {
    case Method::contiguous:
      return contiguous(wish.machine, input.num_experts);
    case Method::random:
      return shuffled(wish.machine, input.num_experts, wish.seed, at(input.layers, layer));
    case Method::published:
      return published_map(data.load, wish.machine, groups);
    case Method::published_global: {
      return published_map(data.load, {.nodes = 1, .gpus = wish.machine.gpus, .slots = wish.machine.slots},
                           1);
    }
    case Method::balance:
      return balanced_layer(data, wish, current);
    case Method::relaxed:
      return relaxed_layer(data, wish, current).map;
    case Method::traffic:
      return traffic_layer(data, input.top_k, wish, current);
    case Method::seconds:
      break;
  }
  const std::vector<Candidate> all = candidates(data, input.top_k, wish, current);
  return best_of(all).map;
}

PlaceResult place_experts(const PlaceInput& input, const Wish& wish) {
  const PlaceInput summed = wish.one_map ? sum_of_layers(input) : PlaceInput{};
  const PlaceInput& used = wish.one_map ? summed : input;
  const std::int32_t layers = used.num_layers();
  std::vector<LayerMap> maps(size_of(layers));
  std::vector<double> seconds(size_of(layers), 0.0), off_home(size_of(layers), 0.0);
  PlaceResult result;
  result.bounds.resize(size_of(input.num_layers()));
  run_all(layers, wish.threads, [&](std::int32_t l) {
    const std::int64_t start = thread_cpu_ns();
    const LayerMap* current = wish.current == nullptr ? nullptr : &at(wish.current->maps, l);
    if (wish.method == Method::relaxed) {
      RelaxedMap found = relaxed_layer(at(used.data, l), wish, current);
      at(off_home, l) = found.off_home;
      const bool free = current != nullptr && wish.most_moved >= 1.0;
      at(maps, l) = free ? rename_devices(*current, found.map, wish.machine) : std::move(found.map);
    } else {
      at(maps, l) = place_layer(used, l, wish, current);
    }
    at(seconds, l) = static_cast<double>(thread_cpu_ns() - start) * 1e-9;
  });
  run_all(input.num_layers(), wish.threads,
          [&](std::int32_t l) { at(result.bounds, l) = bounds_of(at(input.data, l), wish, input.top_k); });
  if (wish.one_map) maps.assign(size_of(input.num_layers()), maps.front());
  result.placement = {.source = std::string(name(wish.method)),
                      .machine = wish.machine,
                      .num_experts = input.num_experts,
                      .layers = input.layers,
                      .maps = std::move(maps)};
  result.off_home = std::accumulate(off_home.begin(), off_home.end(), 0.0) / std::max(layers, 1);
  result.seconds = std::accumulate(seconds.begin(), seconds.end(), 0.0);
  return result;
}

}  // namespace tessera::place
