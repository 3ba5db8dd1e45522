#include "exec/expert_moves.h"

#include <cstring>
#include <map>
#include <vector>

#include "base/error.h"
#include "tensor/arena.h"

namespace tessera::exec {

namespace {

// Where one parameter of a slot lies in its bucket.
struct Part {
  std::int64_t offset = 0, size = 0;
};
struct SlotParts {
  std::int32_t expert = -1;
  std::vector<Part> parts;
  [[nodiscard]] std::int64_t elements() const {
    std::int64_t n = 0;
    for (const Part& p : parts) n += p.size;
    return n;
  }
};
// [layer] the rank's slots in their order.
using LayerSlots = std::map<std::int32_t, std::vector<SlotParts>>;

LayerSlots slots_in(const ParamStore& store, std::int32_t bucket) {
  LayerSlots layers;
  for (const StoredParam& p : store.params()) {
    if (p.bucket != bucket || p.spec.expert < 0) continue;
    std::vector<SlotParts>& slots = layers[p.spec.layer];
    if (slots.empty() || slots.back().expert != p.spec.expert) slots.push_back({.expert = p.spec.expert});
    slots.back().parts.push_back({p.offset, p.spec.num_elements()});
  }
  return layers;
}

// Which rows of a layer go where: those for rank r before those for r + 1, for one rank in the order of its
// slots.
struct Route {
  std::vector<std::int64_t> sent, received;  // [ep]
  std::vector<std::int32_t> sent_slots;      // own, in the order of rows
  std::vector<std::int32_t> received_slots;
};

Route route_of(const layout::Layout& from, const layout::Layout& to, std::int32_t layer, std::int32_t slots,
               const Communicator& ep) {
  const auto at = static_cast<std::size_t>(layer);
  const auto ranks = static_cast<std::size_t>(ep.size());
  Route route{.sent = std::vector<std::int64_t>(ranks), .received = std::vector<std::int64_t>(ranks)};
  for (std::int32_t s = 0; s < ep.size() * slots; ++s) {
    const std::int32_t before = from.slot_of_expert[at][static_cast<std::size_t>(to.expert_at(layer, s))];
    if (before / slots != ep.rank()) continue;
    ++route.sent[static_cast<std::size_t>(s / slots)];
    route.sent_slots.push_back(before % slots);
  }
  for (std::int32_t source = 0; source < ep.size(); ++source) {
    for (std::int32_t s = ep.rank() * slots; s < (ep.rank() + 1) * slots; ++s) {
      const std::int32_t before = from.slot_of_expert[at][static_cast<std::size_t>(to.expert_at(layer, s))];
      if (before / slots != source) continue;
      ++route.received[static_cast<std::size_t>(source)];
      route.received_slots.push_back(s % slots);
    }
  }
  return route;
}

// Elements [offset, offset + size) of `bucket` to or from a row.
template <class Copy>
void visit_rows(const std::vector<SlotParts>& slots, const std::vector<std::int32_t>& rows,
                const Copy& copy) {
  std::int64_t at = 0;
  for (const std::int32_t slot : rows) {
    for (const Part& p : slots[static_cast<std::size_t>(slot)].parts) {
      copy(at, p);
      at += p.size;
    }
  }
}

// A tensor with memory of its own.
struct Held {
  Held(const std::shared_ptr<tensor::Memory>& memory, DType dtype, const tensor::Shape& shape)
      : buffer(memory, Tensor(nullptr, dtype, shape).bytes(), tensor::Reach::own),
        tensor(buffer.data(), dtype, shape, memory->device()) {}
  tensor::Buffer buffer;
  Tensor tensor;
};
using MemoryPtr = std::shared_ptr<tensor::Memory>;

// The experts of one layer inside the flat tensor of a bucket.
void exchange(const MemoryPtr& memory, const Tensor& flat, const std::vector<SlotParts>& slots,
              const Route& route, Communicator& ep) {
  const std::int64_t row = slots.front().elements();
  const auto n = std::ssize(slots);
  const Held both(memory, flat.dtype(), {2, n, row});
  const Tensor sent = both.tensor.narrow_rows(0, 1).reshaped({n, row});
  const Tensor received = both.tensor.narrow_rows(1, 1).reshaped({n, row});
  const Tensor out = sent.reshaped({n * row}), in = received.reshaped({n * row});
  visit_rows(slots, route.sent_slots, [&](std::int64_t at, const Part& p) {
    memory->copy(out.narrow_rows(at, p.size), flat.narrow_rows(p.offset, p.size));
  });
  ep.all_to_all_v(received, route.received, sent, route.sent);
  visit_rows(slots, route.received_slots, [&](std::int64_t at, const Part& p) {
    memory->copy(flat.narrow_rows(p.offset, p.size), in.narrow_rows(at, p.size));
  });
  memory->synchronise();  // before `both` goes
}

// `owned` is this rank's part of a tensor of the bucket; whole: where all of it lies, empty where nowhere.
template <class Exchange>
void with_whole(const MemoryPtr& memory, const optim::Bucket& bucket, const Tensor& owned,
                const Tensor& whole, const Exchange& exchange_all) {
  if (!bucket.sharded) return exchange_all(whole);
  const Held held(memory, owned.dtype(), {bucket.grad.num_elements()});
  const Tensor gathered = held.tensor;
  bucket.group->all_gather(gathered, owned);
  exchange_all(gathered);
  memory->copy(owned, bucket.owned_part(gathered));
  if (!whole.empty()) memory->copy(whole, gathered);
  memory->synchronise();
}

}  // namespace

void move_experts(ParamStore& store, const Communicators& comms, kernels::Kernels& kernels,
                  const layout::Layout& from, const layout::Layout& to) {
  Communicator& ep = *comms.ep;
  const MemoryPtr& memory = kernels.memory();
  for (std::size_t b = 0; b < store.buckets().size(); ++b) {
    optim::Bucket& bucket = store.buckets()[b];
    LayerSlots layers = slots_in(store, static_cast<std::int32_t>(b));
    std::erase_if(layers, [&](const auto& l) {
      const auto at = static_cast<std::size_t>(l.first);
      return from.expert_of_slot[at] == to.expert_of_slot[at];
    });
    if (layers.empty()) continue;
    const auto exchange_all = [&](const Tensor& flat) {
      for (const auto& [layer, slots] : layers) {
        const Route route = route_of(from, to, layer, static_cast<std::int32_t>(slots.size()), ep);
        exchange(memory, flat, slots, route, ep);
      }
    };
    with_whole(memory, bucket, bucket.owned_value(), bucket.keeps_value ? bucket.value : Tensor{},
               exchange_all);
    with_whole(memory, bucket, bucket.m, bucket.sharded ? Tensor{} : bucket.m, exchange_all);
    with_whole(memory, bucket, bucket.v, bucket.sharded ? Tensor{} : bucket.v, exchange_all);
    store.pack_bucket(kernels, b);
  }
}

std::int64_t count_moves(const layout::Layout& from, const layout::Layout& to, std::int32_t layer,
                         std::int32_t ep) {
  const auto at = static_cast<std::size_t>(layer);
  const auto slots = std::ssize(to.expert_of_slot[at]) / ep;
  std::int64_t moves = 0;
  for (std::int32_t s = 0; s < std::ssize(to.expert_of_slot[at]); ++s) {
    const std::int32_t before = from.slot_of_expert[at][static_cast<std::size_t>(to.expert_at(layer, s))];
    moves += before / slots != s / slots ? 1 : 0;
  }
  return moves;
}

}  // namespace tessera::exec
