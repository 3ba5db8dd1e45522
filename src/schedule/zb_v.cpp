// ZB-V: the steady pattern of the paper, or a list schedule (whenever a rank is free it starts the best
// action whose inputs are there), whichever is shorter for the costs at hand. The best policy of the list
// scheduler differs with the costs, so a handful are tried; the first among equals wins. Both keep at most
// 2 * pp chunk activations per rank.
//
// Why the list scheduler never hangs at any cost, pp and m: F of the down-going chunk leaves one slot free, F
// of the up-going chunk may take it, each stage runs its micro-batches in ascending order, and I and W need
// no slot. So the oldest unfinished micro-batch can always go on: its next action is I or W, or an F for
// which a slot is free.
#include "schedule/zb_v.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <queue>
#include <tuple>

#include "base/error.h"
#include "schedule/simulate.h"

namespace tessera::schedule::detail {

namespace {

constexpr std::int64_t kUnknown = std::numeric_limits<std::int64_t>::max();

enum class Prefer : std::uint8_t { gradient, forward };
enum class ForwardChunk : std::uint8_t { up_first, earliest };

struct Policy {
  Prefer prefer = Prefer::gradient;             // I before F, or F before I; W fills
  ForwardChunk chunk = ForwardChunk::up_first;  // between the two chunks' F
  double patience = 0;  // W does not start when an I or F is known to be ready within patience x its duration
};

struct IntegerCosts {
  std::array<std::vector<std::int64_t>, 3> of;  // [F, I, W][stage], the longest 2^20
  std::int64_t latency = 0;
};

IntegerCosts integer_costs(const Schedule& shape, const StageCosts& costs) {
  const auto n = static_cast<std::size_t>(shape.num_stages());
  IntegerCosts out;
  if (costs.forward.empty()) {
    for (auto& list : out.of) list.assign(n, 1);
    return out;
  }
  const std::array<const std::vector<Seconds>*, 3> lists = {&costs.forward, &costs.backward_input,
                                                            &costs.backward_weight};
  double longest = 0;
  for (const auto* list : lists) {
    for (const Seconds s : *list) longest = std::max(longest, s.value);
  }
  const auto scaled = [&](Seconds s) {
    return longest > 0 ? std::llround(s.value / longest * 1048576.0) : 1;
  };
  for (std::size_t k = 0; k < lists.size(); ++k) {
    for (const Seconds s : *lists[k]) out.of[k].push_back(scaled(s));
  }
  // A latency of more than a whole action on each stage changes nothing in the order.
  out.latency = longest > 0 ? scaled(std::min(costs.p2p_latency, Seconds(longest))) : 0;
  return out;
}

class ListScheduler {
 public:
  ListScheduler(const Schedule& shape, const IntegerCosts& costs, const Policy& policy)
      : shape_(shape), costs_(costs), policy_(policy), m_(shape.num_microbatches), cap_(2 * shape.pp) {
    const auto stages = static_cast<std::size_t>(shape.num_stages());
    for (auto& table : ready_) table.assign(stages * static_cast<std::size_t>(m_), kUnknown);
    for (auto& next : next_) next.assign(stages, 0);
    free_at_.assign(static_cast<std::size_t>(shape.pp), 0);
    live_.assign(static_cast<std::size_t>(shape.pp), 0);
    ends_in_weight_.assign(static_cast<std::size_t>(shape.pp), false);
    lists_.resize(static_cast<std::size_t>(shape.pp));
    for (std::int32_t k = 0; k < m_; ++k) ready_[kF][cell(0, k)] = 0;
  }

  void run() {
    for (std::int32_t r = 0; r < shape_.pp; ++r) events_.emplace(0, r);
    while (!events_.empty()) {
      const auto [now, rank] = events_.top();
      events_.pop();
      free_finished(rank, now);
      if (free_at_[at(rank)] <= now) start_best(rank, now);
    }
    const auto total = static_cast<std::size_t>(m_) * 6;
    for (const ActionList& list : lists_)
      TESSERA_CHECK_EQ(list.size(), total, "the list scheduler has stalled");
  }

  [[nodiscard]] std::int64_t makespan() const { return *std::max_element(free_at_.begin(), free_at_.end()); }
  [[nodiscard]] std::vector<ActionList> take() { return std::move(lists_); }

 private:
  static constexpr std::size_t kF = 0, kI = 1, kW = 2;
  static constexpr std::array<ActionKind, 3> kKinds = {ActionKind::forward, ActionKind::backward_input,
                                                       ActionKind::backward_weight};
  struct Candidate {
    std::size_t kind;
    std::int32_t stage;
    std::int64_t ready;
  };

  static std::size_t at(std::int32_t i) { return static_cast<std::size_t>(i); }
  [[nodiscard]] std::size_t cell(std::int32_t stage, std::int32_t k) const {
    return at(stage) * at(m_) + at(k);
  }

  // A slot is free from the end of W on.
  void free_finished(std::int32_t rank, std::int64_t now) {
    if (free_at_[at(rank)] > now || !ends_in_weight_[at(rank)]) return;
    --live_[at(rank)];
    ends_in_weight_[at(rank)] = false;
  }

  // The next action of a kind on a stage with the time its input is ready, kUnknown when it is not known or
  // not allowed.
  [[nodiscard]] Candidate candidate(std::size_t kind, std::int32_t stage, std::int32_t rank) const {
    const std::int32_t k = next_[kind][at(stage)];
    if (k >= m_) return {kind, stage, kUnknown};
    const std::int32_t limit = stage < shape_.pp ? cap_ - 1 : cap_;
    if (kind == kF && live_[at(rank)] + 1 > limit) return {kind, stage, kUnknown};
    return {kind, stage, ready_[kind][cell(stage, k)]};
  }

  // Smaller is better.
  [[nodiscard]] std::tuple<int, std::int64_t, std::int32_t> order(const Candidate& c) const {
    const bool gradient_first = policy_.prefer == Prefer::gradient;
    if (c.kind == kW) return {2, 0, -c.stage};
    if (c.kind == kI) return {gradient_first ? 0 : 1, 0, -c.stage};
    return {gradient_first ? 1 : 0, policy_.chunk == ForwardChunk::earliest ? c.ready : 0, -c.stage};
  }

  void start_best(std::int32_t rank, std::int64_t now) {
    const std::array<std::int32_t, 2> stages = {rank, 2 * shape_.pp - 1 - rank};
    Candidate best{kW, 0, kUnknown};
    std::int64_t soonest = kUnknown;  // of the I and F that are not ready yet
    for (std::size_t kind = 0; kind < 3; ++kind) {
      for (const std::int32_t stage : stages) {
        const Candidate c = candidate(kind, stage, rank);
        if (c.ready > now) {
          if (kind != kW) soonest = std::min(soonest, c.ready);
        } else if (best.ready == kUnknown || order(c) < order(best)) {
          best = c;
        }
      }
    }
    if (best.ready == kUnknown) return;
    if (best.kind == kW && soonest != kUnknown) {
      const double wait = static_cast<double>(soonest - now);
      if (wait < policy_.patience * static_cast<double>(costs_.of[kW][at(best.stage)])) {
        events_.emplace(soonest, rank);
        return;
      }
    }
    start(best, rank, now);
  }

  void start(const Candidate& c, std::int32_t rank, std::int64_t now) {
    const std::int32_t k = next_[c.kind][at(c.stage)]++;
    const std::int64_t end = now + costs_.of[c.kind][at(c.stage)];
    lists_[at(rank)].push_back({kKinds[c.kind], StageId(c.stage), MicrobatchId(k)});
    free_at_[at(rank)] = end;
    events_.emplace(end, rank);
    const std::int32_t last = shape_.num_stages() - 1;
    if (c.kind == kF) {
      ++live_[at(rank)];
      if (c.stage < last) publish(kF, c.stage + 1, k, end, rank);
      if (c.stage == last) publish(kI, c.stage, k, end, rank);
    } else if (c.kind == kI) {
      publish(kW, c.stage, k, end, rank);
      if (c.stage > 0) publish(kI, c.stage - 1, k, end, rank);
    } else {
      ends_in_weight_[at(rank)] = true;
    }
  }

  void publish(std::size_t kind, std::int32_t stage, std::int32_t k, std::int64_t end,
               std::int32_t from_rank) {
    const std::int32_t rank = shape_.rank_of(StageId(stage));
    const std::int64_t when = rank == from_rank ? end : end + costs_.latency;
    ready_[kind][cell(stage, k)] = when;
    events_.emplace(when, rank);
  }

  const Schedule& shape_;
  const IntegerCosts& costs_;
  const Policy& policy_;
  std::int32_t m_;
  std::int32_t cap_;  // live chunk activations per rank
  std::array<std::vector<std::int64_t>, 3> ready_;
  std::array<std::vector<std::int32_t>, 3> next_;
  std::vector<std::int64_t> free_at_;
  std::vector<std::int32_t> live_;
  std::vector<bool> ends_in_weight_;  // the rank's running action is a W
  std::vector<ActionList> lists_;
  using Event = std::pair<std::int64_t, std::int32_t>;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
};

// The steady pattern of the paper's figure, which is the best for F = I = W: fill both chunks of the V, then
// F I W of each chunk in turn, then drain with the W's last. Written for at least 2 * pp - 1 micro-batches;
// of fewer, the surplus is dropped, which keeps every order.
std::vector<ActionList> steady_pattern(const Schedule& shape) {
  std::vector<ActionList> lists;
  const std::int32_t pp = shape.pp;
  const std::int32_t m = std::max(shape.num_microbatches, 2 * pp - 1);
  for (std::int32_t r = 0; r < pp; ++r) {
    ActionList list;
    std::array<std::array<std::int32_t, 3>, 2> done{};  // [down, up][F, I, W]
    constexpr std::size_t kDown = 0, kUp = 1, kF = 0, kI = 1, kW = 2;
    const auto add = [&](std::size_t chunk, std::size_t kind) {
      constexpr std::array kinds = {ActionKind::forward, ActionKind::backward_input,
                                    ActionKind::backward_weight};
      const std::int32_t k = done[chunk][kind]++;
      const StageId stage(chunk == kDown ? r : 2 * pp - 1 - r);
      if (k < shape.num_microbatches) list.push_back({kinds[kind], stage, MicrobatchId(k)});
    };
    for (std::int32_t n = 0; n < 2 * (pp - r) - 1; ++n) add(kDown, kF);
    for (std::int32_t n = 0; n < r; ++n) add(kUp, kF), add(kDown, kF);
    for (std::int32_t n = 0; n < pp - r; ++n) add(kUp, kF), add(kUp, kI), add(kUp, kW);
    while (done[kUp][kF] < m) {
      if (done[kDown][kF] < m) add(kDown, kF);
      add(kDown, kI), add(kDown, kW), add(kUp, kF), add(kUp, kI), add(kUp, kW);
    }
    for (std::int32_t n = 0; n < r; ++n) add(kDown, kI), add(kUp, kI);
    for (std::int32_t n = 0; n < pp - r; ++n) add(kDown, kI), add(kDown, kW);
    while (done[kUp][kW] < m) add(kUp, kW);
    while (done[kDown][kW] < m) add(kDown, kW);
    lists.push_back(std::move(list));
  }
  return lists;
}

std::int64_t makespan_of(Schedule shape, const std::vector<ActionList>& lists, const IntegerCosts& costs) {
  const auto picoseconds = [](const std::vector<std::int64_t>& units) {
    std::vector<Seconds> out;
    for (const std::int64_t u : units) out.push_back(to_seconds(SimTime(u)));
    return out;
  };
  shape.ranks = lists;
  return simulate(shape, StageCosts{picoseconds(costs.of[0]), picoseconds(costs.of[1]),
                                    picoseconds(costs.of[2]), to_seconds(SimTime(costs.latency))})
      .makespan.value;
}

}  // namespace

std::vector<ActionList> zb_v_lists(const Schedule& shape, const StageCosts& costs) {
  const IntegerCosts exact = integer_costs(shape, costs);
  std::vector<ActionList> best = steady_pattern(shape);
  std::int64_t shortest = makespan_of(shape, best, exact);
  for (const Prefer prefer : {Prefer::gradient, Prefer::forward}) {
    for (const ForwardChunk chunk : {ForwardChunk::up_first, ForwardChunk::earliest}) {
      for (const double patience : {0.0, 0.5, 1.0}) {
        const Policy policy{prefer, chunk, patience};
        ListScheduler scheduler(shape, exact, policy);
        scheduler.run();
        if (scheduler.makespan() >= shortest) continue;
        shortest = scheduler.makespan();
        best = scheduler.take();
      }
    }
  }
  return best;
}

}  // namespace tessera::schedule::detail
