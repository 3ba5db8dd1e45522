#include "place/balance.h"

#include <algorithm>
#include <numeric>

#include "base/random.h"
#include "place/index.h"

namespace tessera::place {
namespace {

struct Entry {  // of a heap: top is the largest value, the first index of equals
  double value = 0.0;
  std::int32_t index = 0;
  bool operator<(const Entry& o) const { return value < o.value || (value == o.value && index > o.index); }
};

// The slots of every device, each device's by descending share. Copied as the trials' backup.
struct State {
  std::vector<std::int32_t> held;    // [gpus, slots of one] experts
  std::vector<double> share;         // [E] load of one replica
  std::vector<std::int32_t> counts;  // [E]
  std::vector<double> full;          // [gpus] load
};

class Packer {
 public:
  Packer(std::span<const double> load, const Machine& machine)
      : load_(load), gpus_(machine.gpus), each_(machine.slots_per_gpu()) {
    s_.counts = apportion(load, machine.slots, machine.gpus);
    s_.share.resize(load.size());
    for (std::int32_t e = 0; e < count(load); ++e) at(s_.share, e) = at(load, e) / at(s_.counts, e);
    s_.held.resize(size_of(machine.slots));
    s_.full.assign(size_of(gpus_), 0.0);
    pack();
  }

  [[nodiscard]] double fullest() const { return *std::max_element(s_.full.begin(), s_.full.end()); }
  [[nodiscard]] const State& state() const { return s_; }
  void restore(const State& state) { s_ = state; }
  [[nodiscard]] std::int64_t visits() const { return visits_; }

  void descend();
  bool trial(std::uint64_t seed, std::uint64_t number);

 private:
  struct Swap {
    double peak = 0.0;  // of the two devices afterwards
    std::int32_t gpu = -1, mine = 0, theirs = 0;
  };
  [[nodiscard]] std::int32_t* held(std::int32_t gpu) {
    return s_.held.data() + static_cast<std::ptrdiff_t>(gpu) * each_;
  }
  [[nodiscard]] bool holds(std::int32_t gpu, std::int32_t expert) {
    return std::find(held(gpu), held(gpu) + each_, expert) != held(gpu) + each_;
  }
  void pack();
  void make_room(std::int32_t expert, std::vector<std::int32_t>& filled);
  void consider(std::int32_t top, std::int32_t gpu, Swap& best);
  void settle(std::int32_t gpu, std::int32_t index);
  void sort_gpu(std::int32_t gpu);
  void set_count(std::int32_t expert, std::int32_t n);

  std::span<const double> load_;
  std::int32_t gpus_, each_;
  State s_;
  std::int64_t visits_ = 0;
};

// Largest replica first to the lightest device with room that does not hold the expert.
void Packer::pack() {
  std::vector<std::int32_t> order(s_.share.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return at(s_.share, a) > at(s_.share, b); });
  std::vector<Entry> heap, aside;
  for (std::int32_t g = 0; g < gpus_; ++g) heap.push_back({-0.0, g});
  std::make_heap(heap.begin(), heap.end());
  std::vector<std::int32_t> filled(size_of(gpus_), 0);
  std::vector<std::int32_t> homeless;
  for (const std::int32_t e : order) {
    aside.clear();  // devices that took e: nobody of them takes it again
    for (std::int32_t r = 0; r < at(s_.counts, e); ++r) {
      if (heap.empty()) {
        homeless.push_back(e);
        continue;
      }
      std::pop_heap(heap.begin(), heap.end());
      Entry top = heap.back();
      heap.pop_back();
      held(top.index)[at(filled, top.index)++] = e;
      at(s_.full, top.index) += at(s_.share, e);
      top.value = -at(s_.full, top.index);
      if (at(filled, top.index) < each_) aside.push_back(top);
    }
    for (const Entry& back : aside) {
      heap.push_back(back);
      std::push_heap(heap.begin(), heap.end());
    }
  }
  for (const std::int32_t e : homeless) make_room(e, filled);
}

// Every device with a free slot already holds `expert`: one of them takes something else from a device that
// does not, and that one takes the expert.
void Packer::make_room(std::int32_t expert, std::vector<std::int32_t>& filled) {
  std::int32_t open = 0;
  while (at(filled, open) == each_) ++open;
  const auto has = [&](std::int32_t g, std::int32_t e) {
    return std::find(held(g), held(g) + at(filled, g), e) != held(g) + at(filled, g);
  };
  for (std::int32_t g = 0; g < gpus_; ++g) {
    if (has(g, expert)) continue;
    for (std::int32_t i = at(filled, g) - 1; i >= 0; --i) {
      const std::int32_t other = held(g)[i];
      if (has(open, other)) continue;
      held(g)[i] = expert;
      held(open)[at(filled, open)++] = other;
      at(s_.full, g) += at(s_.share, expert) - at(s_.share, other);
      at(s_.full, open) += at(s_.share, other);
      return;
    }
  }
  held(open)[at(filled, open)++] = expert;
  at(s_.full, open) += at(s_.share, expert);
}

void Packer::sort_gpu(std::int32_t gpu) {
  std::sort(held(gpu), held(gpu) + each_, [&](std::int32_t a, std::int32_t b) {
    return at(s_.share, a) > at(s_.share, b) || (at(s_.share, a) == at(s_.share, b) && a < b);
  });
}

// Moves one entry to its place in the order of its device.
void Packer::settle(std::int32_t gpu, std::int32_t index) {
  std::int32_t* h = held(gpu);
  while (index > 0 && at(s_.share, h[index - 1]) < at(s_.share, h[index])) {
    std::swap(h[index - 1], h[index]);
    --index;
  }
  while (index + 1 < each_ && at(s_.share, h[index + 1]) > at(s_.share, h[index])) {
    std::swap(h[index + 1], h[index]);
    ++index;
  }
}

// The best swap of a slot of the fullest device with one of `gpu`: both lists are sorted, so the partner of
// each slot is found by walking on.
void Packer::consider(std::int32_t top, std::int32_t gpu, Swap& best) {
  const double high = at(s_.full, top), low = at(s_.full, gpu), half = (high - low) / 2.0;
  if (!(low + half < best.peak)) return;
  const std::int32_t* mine = held(top);
  const std::int32_t* theirs = held(gpu);
  std::int32_t j = 0;
  visits_ += 2 * each_;
  for (std::int32_t i = 0; i < each_; ++i) {
    const double a = at(s_.share, mine[i]);
    while (j + 1 < each_ && at(s_.share, theirs[j]) > a - half) ++j;
    for (std::int32_t k = std::max(0, j - 1); k <= j; ++k) {
      const double shift = a - at(s_.share, theirs[k]);
      const double peak = std::max(high - shift, low + shift);
      if (!(peak < best.peak) || holds(top, theirs[k]) || holds(gpu, mine[i])) continue;
      best = {peak, gpu, i, k};
    }
  }
}

void Packer::descend() {
  for (std::int32_t g = 0; g < gpus_; ++g) sort_gpu(g);
  while (true) {
    const auto top =
        static_cast<std::int32_t>(std::max_element(s_.full.begin(), s_.full.end()) - s_.full.begin());
    const double high = at(s_.full, top);
    visits_ += gpus_;
    Swap best{high * (1.0 - 1e-7)};
    for (std::int32_t g = 0; g < gpus_; ++g) {
      if (g != top) consider(top, g, best);
    }
    if (best.gpu < 0) return;
    std::int32_t& a = held(top)[best.mine];
    std::int32_t& b = held(best.gpu)[best.theirs];
    const double shift = at(s_.share, a) - at(s_.share, b);
    at(s_.full, top) -= shift;
    at(s_.full, best.gpu) += shift;
    std::swap(a, b);
    settle(top, best.mine);
    settle(best.gpu, best.theirs);
  }
}

void Packer::set_count(std::int32_t expert, std::int32_t n) {
  const double share = at(load_, expert) / n, change = share - at(s_.share, expert);
  at(s_.counts, expert) = n;
  at(s_.share, expert) = share;
  for (std::int32_t g = 0; g < gpus_; ++g) {
    if (holds(g, expert)) at(s_.full, g) += change;
  }
  visits_ += static_cast<std::int64_t>(gpus_) * each_ / 4;
}

// Gives one slot of an expert with replicas to another expert: of the fullest device, every fourth time of
// any. False: not possible.
bool Packer::trial(std::uint64_t seed, std::uint64_t number) {
  const auto words = philox(seed, stream_of("place.balance"), number);
  ++visits_;
  const auto top =
      static_cast<std::int32_t>(std::max_element(s_.full.begin(), s_.full.end()) - s_.full.begin());
  const auto from =
      words[2] % 4U == 0U ? static_cast<std::int32_t>(words[3] % static_cast<std::uint32_t>(gpus_)) : top;
  const std::int32_t wanted = held(from)[words[0] % static_cast<std::uint32_t>(each_)];
  const auto slots = static_cast<std::uint32_t>(s_.held.size());
  for (std::uint32_t step = 0; step < slots; ++step) {
    const std::uint32_t slot = (words[1] + step) % slots;
    const std::int32_t given = s_.held[slot];
    const auto gpu = static_cast<std::int32_t>(slot) / each_;
    ++visits_;
    if (given == wanted || at(s_.counts, given) < 2 || holds(gpu, wanted)) continue;
    // The rest of `given` must still fit below the fullest device.
    if (!(at(load_, given) / (at(s_.counts, given) - 1) < at(s_.full, top))) continue;
    at(s_.full, gpu) -= at(s_.share, given);
    s_.held[slot] = -1;
    set_count(given, at(s_.counts, given) - 1);
    set_count(wanted, at(s_.counts, wanted) + 1);
    s_.held[slot] = wanted;
    at(s_.full, gpu) += at(s_.share, wanted);
    return true;
  }
  return false;
}

}  // namespace

std::vector<std::int32_t> apportion(std::span<const double> load, std::int32_t slots, std::int32_t most) {
  std::vector<std::int32_t> counts(load.size(), 1);
  std::vector<Entry> heap;
  for (std::int32_t e = 0; most > 1 && e < count(load); ++e) heap.push_back({at(load, e), e});
  std::make_heap(heap.begin(), heap.end());
  for (std::int32_t s = count(load); s < slots && !heap.empty(); ++s) {
    std::pop_heap(heap.begin(), heap.end());
    Entry& top = heap.back();
    top.value = at(load, top.index) / ++at(counts, top.index);
    if (at(counts, top.index) < most) {
      std::push_heap(heap.begin(), heap.end());
    } else {  // everywhere already
      heap.pop_back();
    }
  }
  return counts;
}

double load_bound(std::span<const double> load, const Machine& machine) {
  const double mean = std::accumulate(load.begin(), load.end(), 0.0) / machine.gpus;
  const std::vector<std::int32_t> counts = apportion(load, machine.slots, machine.gpus);
  double share = 0.0;
  for (std::int32_t e = 0; e < count(load); ++e) share = std::max(share, at(load, e) / at(counts, e));
  return std::max(mean, share);
}

LayerMap balance(std::span<const double> load, const Machine& machine, const BalanceOptions& options) {
  Packer packer(load, machine);
  packer.descend();
  const double enough = load_bound(load, machine) * (1.0 + options.enough);
  double best = packer.fullest();
  State kept = packer.state();
  if (machine.slots == count(load)) return kept.held;  // no slot to give away
  const std::int64_t end = packer.visits() + options.visits;
  std::uint64_t failed = 0;  // trials in a row: after many, more slots change at once
  for (std::uint64_t n = 0; best > enough && packer.visits() < end; ++n) {
    bool changed = false;
    for (std::uint64_t i = 0; i <= std::min<std::uint64_t>(failed / 16, 3); ++i) {
      changed = packer.trial(options.seed, 4 * n + i) || changed;
    }
    if (!changed) continue;
    packer.descend();
    ++failed;
    const double now = packer.fullest();
    if (now < best) {
      best = now;
      kept = packer.state();
      failed = 0;
    } else {
      packer.restore(kept);
    }
  }
  return kept.held;
}

}  // namespace tessera::place
