#include "place/placement.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <tuple>

#include "base/random.h"
#include "base/text.h"
#include "place/index.h"

namespace tessera::place {
namespace {

// held[g] = how many of the slots of device (or node) g hold each expert.
std::int32_t overlap(std::span<const std::int32_t> a, std::span<const std::int32_t> b,
                     std::vector<std::int32_t>& held) {
  for (const std::int32_t e : a) ++at(held, e);
  std::int32_t same = 0;
  for (const std::int32_t e : b) same += at(held, e)-- > 0 ? 1 : 0;
  for (const std::int32_t e : b) ++at(held, e);
  for (const std::int32_t e : a) --at(held, e);
  return same;
}

std::span<const std::int32_t> part(const LayerMap& map, std::int32_t index, std::int32_t size) {
  return {map.data() + static_cast<std::ptrdiff_t>(index) * size, size_of(size)};
}

std::int32_t num_experts_of(const LayerMap& a, const LayerMap& b) {
  std::int32_t most = 0;
  for (const std::int32_t e : a) most = std::max(most, e);
  for (const std::int32_t e : b) most = std::max(most, e);
  return most + 1;
}

// to[i]: which block of `after` (of `size` slots, among `many`) takes the place of block i of `before`.
std::vector<std::int32_t> match_blocks(std::span<const std::int32_t> before,
                                       std::span<const std::int32_t> after, std::int32_t size,
                                       std::vector<std::int32_t>& held) {
  const auto many = static_cast<std::int32_t>(before.size()) / size;
  std::vector<std::tuple<std::int32_t, std::int32_t, std::int32_t>> pairs;
  for (std::int32_t i = 0; i < many; ++i) {
    for (std::int32_t j = 0; j < many; ++j) {
      const std::int32_t same = overlap(before.subspan(size_of(i) * size_of(size), size_of(size)),
                                        after.subspan(size_of(j) * size_of(size), size_of(size)), held);
      pairs.emplace_back(-same, i, j);
    }
  }
  std::sort(pairs.begin(), pairs.end());
  std::vector<std::int32_t> to(size_of(many), -1);
  std::vector<bool> taken(size_of(many), false);
  for (const auto& [same, i, j] : pairs) {
    if (at(to, i) >= 0 || taken[size_of(j)]) continue;
    at(to, i) = j;
    taken[size_of(j)] = true;
  }
  return to;
}

}  // namespace

void check_machine(const Machine& m, std::int32_t num_experts, std::string_view where, Problems& problems) {
  const auto add = [&](std::string what, std::string mend) {
    problems.add(std::move(what), std::string(where), std::move(mend));
  };
  if (m.nodes < 1) add(fmt::format("nodes={} is below 1", m.nodes), "give the number of nodes");
  if (m.gpus < 1) add(fmt::format("gpus={} is below 1", m.gpus), "give the number of GPUs of all nodes");
  if (m.slots < 1 || m.slots > kMostSlots) {
    add(fmt::format("slots={} is not within 1 and {}", m.slots, kMostSlots),
        "give the expert slots of all GPUs together, for one layer");
  }
  if (m.nodes < 1 || m.gpus < 1 || m.slots < 1) return;
  if (m.gpus % m.nodes != 0) {
    add(fmt::format("{} GPUs do not divide over {} nodes", m.gpus, m.nodes),
        fmt::format("use a number of nodes in {}", divisors_text(m.gpus)));
  }
  if (m.slots % m.gpus != 0) {
    add(fmt::format("{} slots do not divide over {} GPUs", m.slots, m.gpus),
        fmt::format("use {} or {} slots", m.slots / m.gpus * m.gpus, (m.slots / m.gpus + 1) * m.gpus));
  }
  if (m.slots < num_experts) {
    const std::int32_t each = (num_experts + m.gpus - 1) / m.gpus;
    add(fmt::format("{} slots are fewer than {} experts", m.slots, num_experts),
        fmt::format("use at least {} slots, {} for each GPU", each * m.gpus, each));
  }
  if (m.slots / m.gpus > num_experts && num_experts > 0) {
    add(fmt::format("{} slots of one GPU are more than {} experts", m.slots / m.gpus, num_experts),
        fmt::format("use at most {} slots for each GPU", num_experts));
  }
}

void check_placement(const Placement& p, std::string_view where, Problems& problems) {
  check_machine(p.machine, p.num_experts, where, problems);
  if (p.layers.size() != p.maps.size()) {
    problems.add(fmt::format("{} layers have {} maps", p.layers.size(), p.maps.size()), std::string(where),
                 "give one map a layer");
    return;
  }
  for (std::int32_t l = 0; l < count(p.maps); ++l) {
    const std::string place = fmt::format("{}: layer {}", where, at(p.layers, l));
    if (l > 0 && at(p.layers, l) <= at(p.layers, l - 1)) {
      problems.add(fmt::format("layer {} comes behind layer {}", at(p.layers, l), at(p.layers, l - 1)), place,
                   "list the layers in ascending order, each once");
    }
    const LayerMap& map = at(p.maps, l);
    if (count(map) != p.machine.slots) {
      problems.add(fmt::format("{} slots are listed, the machine has {}", map.size(), p.machine.slots), place,
                   "list the expert of every slot");
      continue;
    }
    std::vector<bool> held(size_of(std::max(p.num_experts, 0)), false);
    const auto wrong =
        std::find_if(map.begin(), map.end(), [&](std::int32_t e) { return e < 0 || e >= p.num_experts; });
    if (wrong != map.end()) {
      problems.add(
          fmt::format("slot {} holds expert {}, there are {}", wrong - map.begin(), *wrong, p.num_experts),
          place, fmt::format("use experts 0 to {}", p.num_experts - 1));
      continue;
    }
    for (const std::int32_t e : map) held[size_of(e)] = true;
    const auto missing = std::find(held.begin(), held.end(), false);
    if (missing != held.end()) {
      problems.add(fmt::format("expert {} is in no slot", missing - held.begin()), place,
                   "every expert needs a slot");
    }
  }
}

std::vector<std::int32_t> replica_counts(std::span<const std::int32_t> map, std::int32_t num_experts) {
  std::vector<std::int32_t> counts(size_of(num_experts), 0);
  for (const std::int32_t e : map) ++at(counts, e);
  return counts;
}

std::int32_t wasted_slots(const LayerMap& map, const Machine& machine) {
  std::int32_t wasted = 0;
  LayerMap here;
  for (std::int32_t g = 0; g < machine.gpus; ++g) {
    const auto slots = part(map, g, machine.slots_per_gpu());
    here.assign(slots.begin(), slots.end());
    std::sort(here.begin(), here.end());
    wasted += static_cast<std::int32_t>(here.end() - std::unique(here.begin(), here.end()));
  }
  return wasted;
}

std::vector<double> gpu_loads(const LayerMap& map, std::span<const double> load, const Machine& machine) {
  const std::vector<std::int32_t> counts = replica_counts(map, count(load));
  std::vector<double> loads(size_of(machine.gpus), 0.0);
  for (std::int32_t s = 0; s < count(map); ++s) {
    const std::int32_t e = at(map, s);
    at(loads, machine.gpu_of(s)) += at(load, e) / at(counts, e);
  }
  return loads;
}

double largest(std::span<const double> loads) {
  return loads.empty() ? 0.0 : *std::max_element(loads.begin(), loads.end());
}

double balancedness(std::span<const double> loads) {
  const double most = largest(loads);
  if (!(most > 0.0)) return 1.0;
  return std::accumulate(loads.begin(), loads.end(), 0.0) / static_cast<double>(loads.size()) / most;
}

std::int32_t moved_slots(const LayerMap& before, const LayerMap& after, const Machine& machine) {
  std::vector<std::int32_t> held(size_of(num_experts_of(before, after)), 0);
  std::int32_t stay = 0;
  const std::int32_t size = machine.slots_per_gpu();
  for (std::int32_t g = 0; g < machine.gpus; ++g) {
    stay += overlap(part(before, g, size), part(after, g, size), held);
  }
  return machine.slots - stay;
}

LayerMap keep_positions(const LayerMap& before, const LayerMap& after, const Machine& machine) {
  LayerMap kept(after.size(), -1);
  const std::int32_t size = machine.slots_per_gpu();
  for (std::int32_t first = 0; first < machine.slots; first += size) {
    LayerMap rest(after.begin() + first, after.begin() + first + size);
    for (std::int32_t s = first; s < first + size; ++s) {
      const auto found = std::find(rest.begin(), rest.end(), at(before, s));
      if (found == rest.end()) continue;
      at(kept, s) = *found;
      rest.erase(found);
    }
    auto next = rest.begin();
    for (std::int32_t s = first; s < first + size; ++s) {
      if (at(kept, s) < 0) at(kept, s) = *next++;
    }
  }
  return kept;
}

LayerMap rename_devices(const LayerMap& before, const LayerMap& after, const Machine& machine) {
  std::vector<std::int32_t> held(size_of(num_experts_of(before, after)), 0);
  const std::int32_t node = machine.slots_per_node(), gpu = machine.slots_per_gpu();
  const std::vector<std::int32_t> nodes = match_blocks(before, after, node, held);
  LayerMap renamed(after.size());
  for (std::int32_t n = 0; n < machine.nodes; ++n) {
    const auto from = part(after, at(nodes, n), node);
    const std::vector<std::int32_t> gpus = match_blocks(part(before, n, node), from, gpu, held);
    for (std::int32_t g = 0; g < count(gpus); ++g) {
      std::copy_n(
          from.begin() + static_cast<std::ptrdiff_t>(at(gpus, g)) * gpu, gpu,
          renamed.begin() + static_cast<std::ptrdiff_t>(n) * node + static_cast<std::ptrdiff_t>(g) * gpu);
    }
  }
  return keep_positions(before, renamed, machine);
}

LayerMap contiguous(const Machine& machine, std::int32_t num_experts) {
  LayerMap map(size_of(machine.slots));
  for (std::int32_t s = 0; s < machine.slots; ++s) at(map, s) = s % num_experts;
  return map;
}

LayerMap shuffled(const Machine& machine, std::int32_t num_experts, std::uint64_t seed, std::int32_t layer) {
  LayerMap map = contiguous(machine, num_experts);
  const std::uint64_t stream = stream_of("place.shuffled") + static_cast<std::uint64_t>(layer);
  for (std::int32_t s = machine.slots - 1; s > 0; --s) {
    const auto other =
        uniform_below(static_cast<std::uint64_t>(s) + 1, seed, stream, static_cast<std::uint64_t>(s));
    std::swap(at(map, s), at(map, static_cast<std::int64_t>(other)));
  }
  return map;
}

}  // namespace tessera::place
