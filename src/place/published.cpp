#include "place/published.h"

#include <algorithm>
#include <numeric>

#include "base/math.h"
#include "place/index.h"

namespace tessera::place {
namespace {

struct Packing {
  std::vector<std::int32_t> pack, rank;  // of each item
};

struct Packed {  // order of a heap whose top is the lightest pack, the first of equals
  float load = 0.0F;
  std::int32_t pack = 0;
  bool operator<(const Packed& o) const { return load > o.load || (load == o.load && pack > o.pack); }
};

// balanced_packing: equal numbers of items in each pack.
Packing pack_evenly(std::span<const float> weight, std::int32_t num_packs) {
  const std::int32_t items = count(weight);
  const std::int32_t room = items / num_packs;
  Packing p{std::vector<std::int32_t>(size_of(items)), std::vector<std::int32_t>(size_of(items), 0)};
  if (room == 1) {
    std::iota(p.pack.begin(), p.pack.end(), 0);
    return p;
  }
  std::vector<std::int32_t> order(size_of(items));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return at(weight, a) > at(weight, b); });
  std::vector<Packed> heap;
  for (std::int32_t i = 0; i < num_packs; ++i) heap.push_back({0.0F, i});
  std::make_heap(heap.begin(), heap.end());
  std::vector<std::int32_t> filled(size_of(num_packs), 0);
  for (const std::int32_t item : order) {
    std::pop_heap(heap.begin(), heap.end());
    Packed& lightest = heap.back();
    at(p.pack, item) = lightest.pack;
    at(p.rank, item) = at(filled, lightest.pack)++;
    lightest.load += at(weight, item);
    if (at(filled, lightest.pack) == room) {
      heap.pop_back();
    } else {
      std::push_heap(heap.begin(), heap.end());
    }
  }
  return p;
}

struct Replicas {
  std::vector<std::int32_t> item, rank, counts;
};

struct Share {  // top: the largest load of a replica, the first of equals
  float load = 0.0F;
  std::int32_t item = 0;
  bool operator<(const Share& o) const { return load < o.load || (load == o.load && item > o.item); }
};

// replicate_experts: every further slot to the expert with the largest load of a replica.
Replicas replicate(std::span<const float> weight, std::int32_t slots) {
  const std::int32_t items = count(weight);
  Replicas r{std::vector<std::int32_t>(size_of(slots)), std::vector<std::int32_t>(size_of(slots), 0),
             std::vector<std::int32_t>(size_of(items), 1)};
  std::vector<Share> heap;
  for (std::int32_t i = 0; i < items; ++i) {
    at(r.item, i) = i;
    heap.push_back({at(weight, i), i});
  }
  std::make_heap(heap.begin(), heap.end());
  for (std::int32_t s = items; s < slots; ++s) {
    std::pop_heap(heap.begin(), heap.end());
    Share& top = heap.back();
    at(r.item, s) = top.item;
    at(r.rank, s) = at(r.counts, top.item)++;
    top.load = at(weight, top.item) / static_cast<float>(at(r.counts, top.item));
    std::push_heap(heap.begin(), heap.end());
  }
  return r;
}

struct Node {                               // step 2 and 3 write here
  std::span<const float> weight;            // of its experts
  std::span<const std::int32_t> expert_of;  // of its items
  std::int32_t first_slot = 0, gpus = 0, slots = 0;
};

void fill_node(const Node& node, PublishedMap& out) {
  const Replicas r = replicate(node.weight, node.slots);
  std::vector<float> load(size_of(node.slots));
  for (std::int32_t s = 0; s < node.slots; ++s) {
    const std::int32_t item = at(r.item, s);
    at(load, s) = at(node.weight, item) / static_cast<float>(at(r.counts, item));
  }
  const Packing p = pack_evenly(load, node.gpus);
  const std::int32_t per_gpu = node.slots / node.gpus;
  for (std::int32_t s = 0; s < node.slots; ++s) {
    const std::int32_t slot = node.first_slot + at(p.pack, s) * per_gpu + at(p.rank, s);
    at(out.expert_of_slot, slot) = at(node.expert_of, at(r.item, s));
    at(out.replica, slot) = at(r.rank, s);
  }
  for (std::int32_t i = 0; i < count(node.weight); ++i) {
    at(out.counts, at(node.expert_of, i)) = at(r.counts, i);
  }
}

}  // namespace

PublishedMap published(std::span<const double> load, const Machine& machine, std::int32_t num_groups) {
  const std::int32_t experts = count(load);
  const std::int32_t nodes = num_groups % machine.nodes == 0 ? machine.nodes : 1;
  const std::int32_t groups = nodes == 1 && num_groups % machine.nodes != 0 ? 1 : num_groups;
  const auto group_size = static_cast<std::int32_t>(div_exact(experts, groups));
  std::vector<float> group_load(size_of(groups), 0.0F);
  for (std::int32_t g = 0; g < groups; ++g) {
    const auto first = load.begin() + static_cast<std::ptrdiff_t>(g) * group_size;
    at(group_load, g) = static_cast<float>(std::accumulate(first, first + group_size, 0.0));
  }
  const Packing to_nodes = pack_evenly(group_load, nodes);
  const std::int32_t groups_per_node = groups / nodes;
  std::vector<std::int32_t> expert_of(size_of(experts));
  for (std::int32_t e = 0; e < experts; ++e) {
    const std::int32_t g = e / group_size;
    const std::int32_t place = at(to_nodes.pack, g) * groups_per_node + at(to_nodes.rank, g);
    at(expert_of, place * group_size + e % group_size) = e;
  }
  PublishedMap out{LayerMap(size_of(machine.slots)), std::vector<std::int32_t>(size_of(machine.slots)),
                   std::vector<std::int32_t>(size_of(experts))};
  const std::int32_t each = experts / nodes;
  std::vector<float> weight(size_of(each));
  for (std::int32_t n = 0; n < nodes; ++n) {
    const std::span<const std::int32_t> items(expert_of.data() + static_cast<std::ptrdiff_t>(n) * each,
                                              size_of(each));
    for (std::int32_t i = 0; i < each; ++i) at(weight, i) = static_cast<float>(at(load, at(items, i)));
    fill_node({.weight = weight,
               .expert_of = items,
               .first_slot = n * (machine.slots / nodes),
               .gpus = machine.gpus / nodes,
               .slots = machine.slots / nodes},
              out);
  }
  return out;
}

LayerMap published_map(std::span<const double> load, const Machine& machine, std::int32_t num_groups) {
  return published(load, machine, num_groups).expert_of_slot;
}

}  // namespace tessera::place
