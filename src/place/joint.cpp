#include "place/joint.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "base/error.h"
#include "base/random.h"
#include "place/index.h"
#include "place/random_steps.h"
#include "place/token_sets.h"

namespace tessera::place {
namespace {

// Weight of what lies below a maximum, so that steps on its plateau have a direction.
constexpr double kSpread = 0.2;

class Search {
 public:
  Search(const LayerMap& start, const Machine& machine, const JointGoal& goal, const JointOptions& options);
  void run(const JointOptions& options);
  [[nodiscard]] const LayerMap& best() const { return best_; }
  [[nodiscard]] double seconds() const;

 private:
  struct Old {  // of away_
    std::int64_t index = 0;
    double value = 0.0;
  };
  [[nodiscard]] double& full(std::int32_t w, std::int32_t g) {
    return full_[size_of(static_cast<std::int64_t>(w) * machine_.gpus + g)];
  }
  [[nodiscard]] double load(std::int32_t w, std::int32_t e) const {
    return load_[size_of(static_cast<std::int64_t>(w) * experts_ + e)];
  }
  [[nodiscard]] std::uint8_t& has(std::int32_t g, std::int32_t e) {
    return has_[size_of(static_cast<std::int64_t>(g) * experts_ + e)];
  }
  [[nodiscard]] std::int32_t arrives(std::int32_t g, std::int32_t e) const {
    return kept_.empty() || kept_[size_of(static_cast<std::int64_t>(g) * experts_ + e)] != 0 ? 0 : 1;
  }
  [[nodiscard]] std::int64_t cell(std::int64_t row, std::int32_t n) const { return row * machine_.nodes + n; }
  [[nodiscard]] double copies() const;  // of the busiest node
  [[nodiscard]] double value() const;   // with the spread

  void put(std::int32_t s, std::int32_t e);
  void spread_load(std::int32_t e, double sign);
  void refresh(std::int32_t e);
  void refresh_token(std::int32_t t, std::int32_t n);
  bool change(std::int32_t s, std::int32_t t, std::int32_t to);
  bool swap(std::int32_t s, std::int32_t t);
  bool give(std::int32_t s, std::int32_t to);
  void undo();
  [[nodiscard]] std::int32_t pick_slot(RandomSteps& random);

  const JointGoal& goal_;
  Machine machine_;
  std::int32_t each_, experts_, num_windows_;
  TokenSets sets_;
  double total_ = 0.0;  // weight of the sets
  LayerMap map_, best_;
  std::vector<double> load_;              // [W, E] of the mean device
  std::vector<double> choices_;           // [E] of a token, mean over windows
  std::vector<double> full_;              // [W, gpus]
  std::vector<std::uint8_t> has_, kept_;  // [gpus, E]
  std::vector<std::int32_t> counts_;      // [E]
  std::vector<std::vector<std::int32_t>> slots_of_;
  std::vector<double> misses_;  // [E, N] share of an expert's replicas elsewhere
  std::vector<double> away_;    // [sets, N] chance that a token does not reach the node
  std::vector<double> reach_;   // [N] tokens that reach a node, of all
  std::vector<std::int32_t> arrived_;
  std::int32_t moved_ = 0;
  std::int64_t visits_ = 0;
  // Of the last change:
  std::vector<Old> old_away_;
  std::vector<double> old_reach_;
  std::vector<std::pair<std::int32_t, std::int32_t>> old_slots_;  // slot, expert
  bool crossed_ = false;
};

Search::Search(const LayerMap& start, const Machine& machine, const JointGoal& goal,
               const JointOptions& options)
    : goal_(goal),
      machine_(machine),
      each_(machine.slots_per_gpu()),
      experts_(count(goal.windows.front())),
      num_windows_(count(goal.windows)),
      sets_(goal.network > 0.0 && machine.nodes > 1 ? goal.tokens : std::span<const std::int16_t>{}, experts_,
            goal.top_k, options.most_tokens),
      total_(std::accumulate(sets_.weight.begin(), sets_.weight.end(), 0.0)),
      map_(start.size(), -1),
      best_(start),
      choices_(size_of(experts_), 0.0),
      full_(size_of(num_windows_ * machine.gpus), 0.0),
      has_(size_of(static_cast<std::int64_t>(machine.gpus) * experts_), 0),
      counts_(size_of(experts_), 0),
      slots_of_(size_of(experts_)),
      misses_(size_of(static_cast<std::int64_t>(experts_) * machine.nodes), 1.0),
      away_(size_of(static_cast<std::int64_t>(sets_.size()) * machine.nodes), 1.0),
      reach_(size_of(machine.nodes), 0.0),
      arrived_(size_of(machine.gpus), 0) {
  for (const std::vector<double>& window : goal.windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    const double scale = sum > 0.0 ? machine.gpus / sum : 0.0;
    for (std::int32_t e = 0; e < experts_; ++e) {
      load_.push_back(at(window, e) * scale);
      at(choices_, e) += load_.back() * goal.top_k / (static_cast<double>(machine.gpus) * num_windows_);
    }
  }
  if (!goal.before.empty()) {
    kept_.assign(has_.size(), 0);
    for (std::int32_t s = 0; s < count(goal.before); ++s) {
      kept_[size_of(static_cast<std::int64_t>(s / each_) * experts_ + at(goal.before, s))] = 1;
    }
  }
  for (std::int32_t s = 0; s < count(start); ++s) {
    ++at(counts_, at(start, s));
    at(slots_of_, at(start, s)).push_back(s);
    put(s, at(start, s));
  }
  for (std::int32_t e = 0; e < experts_; ++e) {
    spread_load(e, 1.0);
    refresh(e);
  }
}

// Of the slot's device; loads and nodes follow apart.
void Search::put(std::int32_t s, std::int32_t e) {
  const std::int32_t g = s / each_, old = at(map_, s);
  if (old >= 0) {
    --has(g, old);
    at(arrived_, g) -= arrives(g, old);
    moved_ -= arrives(g, old);
  }
  at(map_, s) = e;
  ++has(g, e);
  at(arrived_, g) += arrives(g, e);
  moved_ += arrives(g, e);
}

void Search::spread_load(std::int32_t e, double sign) {
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const double share = sign * load(w, e) / at(counts_, e);
    for (const std::int32_t s : at(slots_of_, e)) full(w, s / each_) += share;
  }
  if (total_ > 0.0) return;
  const double share = sign * at(choices_, e) / at(counts_, e);  // without tokens: a copy a choice
  for (const std::int32_t s : at(slots_of_, e)) at(reach_, machine_.node_of(s)) += share;
}

// The nodes of an expert's replicas, and what its tokens reach.
void Search::refresh(std::int32_t e) {
  if (!(total_ > 0.0)) return;
  for (std::int32_t n = 0; n < machine_.nodes; ++n) {
    std::int32_t here = 0;
    for (const std::int32_t s : at(slots_of_, e)) here += machine_.node_of(s) == n ? 1 : 0;
    const double misses = 1.0 - static_cast<double>(here) / at(counts_, e);
    double& now = at(misses_, cell(e, n));
    if (now == misses) continue;
    now = misses;
    for (const std::int32_t t : sets_.tokens(e)) refresh_token(t, n);
  }
}

void Search::refresh_token(std::int32_t t, std::int32_t n) {
  double away = 1.0;
  for (const std::int16_t e : sets_.experts(t)) away *= at(misses_, cell(e, n));
  double& now = at(away_, cell(t, n));
  old_away_.push_back({cell(t, n), now});
  at(reach_, n) += at(sets_.weight, t) / total_ * (now - away);
  now = away;
  ++visits_;
}

double Search::copies() const {
  const double n = machine_.nodes;
  const double sum = std::accumulate(reach_.begin(), reach_.end(), 0.0);
  double most = 0.0;
  for (const double r : reach_) most = std::max({most, r * (1.0 - 1.0 / n), (sum - r) / n});
  return most;
}

double Search::seconds() const {
  double fullest = 0.0;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const auto first = full_.begin() + static_cast<std::ptrdiff_t>(w) * machine_.gpus;
    fullest += *std::max_element(first, first + machine_.gpus);
  }
  double f = goal_.compute * fullest / num_windows_;
  if (machine_.nodes > 1) f += goal_.network * copies();
  if (goal_.migration > 0.0) f += goal_.migration * *std::max_element(arrived_.begin(), arrived_.end());
  return f;
}

double Search::value() const {
  const double squares = std::inner_product(full_.begin(), full_.end(), full_.begin(), 0.0);
  double spread = goal_.compute * squares / static_cast<double>(full_.size());
  if (machine_.nodes > 1) {
    const double n = machine_.nodes;
    spread += goal_.network * std::accumulate(reach_.begin(), reach_.end(), 0.0) / n * (1.0 - 1.0 / n);
  }
  spread += goal_.migration * moved_ / machine_.gpus;
  return seconds() + kSpread * spread;
}

// Slot s gets `to`, and slot t (if any) what s had. False: not allowed; nothing has changed then.
bool Search::change(std::int32_t s, std::int32_t t, std::int32_t to) {
  const std::int32_t from = at(map_, s);
  old_slots_ = {{s, from}};
  if (t >= 0) old_slots_.emplace_back(t, to);
  old_away_.clear();
  old_reach_ = reach_;
  crossed_ = t < 0 || machine_.node_of(s) != machine_.node_of(t);
  for (const std::int32_t e : {from, to}) spread_load(e, -1.0);
  const auto move = [&](std::int32_t e, std::int32_t gone, std::int32_t come) {
    std::vector<std::int32_t>& list = at(slots_of_, e);
    if (gone >= 0) list.erase(std::find(list.begin(), list.end(), gone));
    if (come >= 0) list.push_back(come);
    at(counts_, e) = count(list);
  };
  move(from, s, t);
  move(to, t, s);
  put(s, to);
  if (t >= 0) put(t, from);
  for (const std::int32_t e : {from, to}) {
    spread_load(e, 1.0);
    if (crossed_) refresh(e);
  }
  visits_ += 4 + machine_.gpus * num_windows_ / 16;
  return goal_.most_moved < 0 || moved_ <= goal_.most_moved;
}

void Search::undo() {
  const auto [s, from] = old_slots_.front();
  const std::int32_t to = at(map_, s), t = old_slots_.size() > 1 ? old_slots_.back().first : -1;
  for (const std::int32_t e : {from, to}) spread_load(e, -1.0);
  const auto move = [&](std::int32_t e, std::int32_t gone, std::int32_t come) {
    std::vector<std::int32_t>& list = at(slots_of_, e);
    if (gone >= 0) list.erase(std::find(list.begin(), list.end(), gone));
    if (come >= 0) list.push_back(come);
    at(counts_, e) = count(list);
  };
  move(from, t, s);
  move(to, s, t);
  put(s, from);
  if (t >= 0) put(t, to);
  for (const std::int32_t e : {from, to}) spread_load(e, 1.0);
  for (auto old = old_away_.rbegin(); old != old_away_.rend(); ++old) at(away_, old->index) = old->value;
  if (crossed_ && total_ > 0.0) {
    for (const std::int32_t e : {from, to}) {
      for (std::int32_t n = 0; n < machine_.nodes; ++n) {
        std::int32_t here = 0;
        for (const std::int32_t slot : at(slots_of_, e)) here += machine_.node_of(slot) == n ? 1 : 0;
        at(misses_, cell(e, n)) = 1.0 - static_cast<double>(here) / at(counts_, e);
      }
    }
  }
  reach_ = old_reach_;
}

bool Search::swap(std::int32_t s, std::int32_t t) {
  const std::int32_t a = at(map_, s), b = at(map_, t), g = s / each_, h = t / each_;
  if (a == b || g == h || has(g, b) != 0 || has(h, a) != 0) return false;
  if (change(s, t, b)) return true;
  undo();
  return false;
}

bool Search::give(std::int32_t s, std::int32_t to) {
  const std::int32_t from = at(map_, s);
  if (from == to || at(counts_, from) < 2 || has(s / each_, to) != 0) return false;
  if (change(s, -1, to)) return true;
  undo();
  return false;
}

std::int32_t Search::pick_slot(RandomSteps& random) {
  if (random.below(2) == 0) return random.below(count(map_));
  const std::int32_t w = num_windows_ == 1 ? 0 : random.below(num_windows_);
  const auto first = full_.begin() + static_cast<std::ptrdiff_t>(w) * machine_.gpus;
  const auto top = static_cast<std::int32_t>(std::max_element(first, first + machine_.gpus) - first);
  return top * each_ + random.below(each_);
}

void Search::run(const JointOptions& options) {
  RandomSteps random(options.seed, stream_of("place.joint"));
  const bool spare = count(map_) > experts_;
  double now = value(), best = seconds();
  const double scale = best, slope = std::log(options.cold / options.hot);
  best_ = map_;
  visits_ = 0;
  double heat = options.hot * scale;
  for (std::int64_t step = 0; visits_ < options.visits; ++step) {
    ++visits_;
    if (step % 64 == 0) {
      const double done = static_cast<double>(visits_) / static_cast<double>(options.visits);
      heat = options.hot * scale * std::exp(slope * done);
    }
    const std::int32_t s = pick_slot(random), t = random.below(count(map_));
    const bool gives = spare && random.below(3) == 0;
    if (!(gives ? give(t, at(map_, s)) : swap(s, t))) continue;
    const double next = value();
    if (next > now - heat * std::log(random.uniform() + 0x1p-33)) {
      undo();
      continue;
    }
    now = next;
    if (const double f = seconds(); f < best * (1.0 - 1e-12)) {
      best = f;
      best_ = map_;
    }
  }
}

}  // namespace

LayerMap anneal_seconds(const LayerMap& start, const Machine& machine, const JointGoal& goal,
                        const JointOptions& options) {
  TESSERA_CHECK(!goal.windows.empty(), "a search needs a load");
  if (machine.gpus < 2) return start;
  Search search(start, machine, goal, options);
  search.run(options);
  return search.best();
}

double joint_seconds(const LayerMap& map, const Machine& machine, const JointGoal& goal,
                     const JointOptions& options) {
  return Search(map, machine, goal, options).seconds();
}

}  // namespace tessera::place
