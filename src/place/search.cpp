#include "place/search.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "base/error.h"
#include "base/random.h"
#include "place/index.h"
#include "place/random_steps.h"

namespace tessera::place {
namespace {

// Weight of the spread of the devices below the fullest, so that steps on a plateau of the maximum have a
// direction.
constexpr double kSpread = 0.3;

class Annealer {
 public:
  Annealer(const LayerMap& start, const Machine& machine, const SearchGoal& goal);
  void run(const SearchOptions& options);
  [[nodiscard]] const LayerMap& best() const { return best_; }

 private:
  struct Change {
    double cost = 0.0;  // of F, with the spread
    double off = 0.0;   // share of choices
    std::int32_t moved = 0;
  };
  struct Top {  // the three fullest devices of a window
    std::array<std::int32_t, 3> gpu = {-1, -1, -1};
  };
  [[nodiscard]] double& full(std::int32_t w, std::int32_t g) {
    return full_[size_of(static_cast<std::int64_t>(w) * gpus_ + g)];
  }
  [[nodiscard]] double load(std::int32_t w, std::int32_t e) const {
    return load_[size_of(static_cast<std::int64_t>(w) * experts_ + e)];
  }
  [[nodiscard]] std::uint8_t& has(std::int32_t g, std::int32_t e) {
    return has_[size_of(static_cast<std::int64_t>(g) * experts_ + e)];
  }
  [[nodiscard]] bool kept(std::int32_t g, std::int32_t e) const {
    return kept_.empty() || kept_[size_of(static_cast<std::int64_t>(g) * experts_ + e)] != 0;
  }
  [[nodiscard]] bool at_home(std::int32_t e, std::int32_t g) const {
    return !goal_.home.empty() && at(goal_.home, e) == g / gpus_per_node_;
  }
  void rank_window(std::int32_t w);
  [[nodiscard]] double fullest_beside(std::int32_t w, std::int32_t a, std::int32_t b);
  [[nodiscard]] std::int32_t arrivals(std::int32_t g, std::int32_t gone, std::int32_t come) const {
    return (kept(g, come) ? 0 : 1) - (kept(g, gone) ? 0 : 1);
  }
  bool swap_cost(std::int32_t s, std::int32_t t, Change& change);
  void do_swap(std::int32_t s, std::int32_t t, const Change& change);
  bool give_cost(std::int32_t s, std::int32_t to, Change& change);
  void do_give(std::int32_t s, std::int32_t to, const Change& change);
  void shift(std::int32_t s, std::int32_t to, double sign);
  [[nodiscard]] double spread_cost();
  [[nodiscard]] double off_of(std::int32_t e, std::int32_t home_replicas, std::int32_t replicas) const {
    return goal_.home.empty() ? 0.0 : at(mean_, e) * (1.0 - static_cast<double>(home_replicas) / replicas);
  }
  [[nodiscard]] double value() const;
  bool accept(const Change& change, double heat, RandomSteps& random);
  [[nodiscard]] std::int32_t pick_slot(RandomSteps& random);
  void remember();

  const SearchGoal& goal_;
  std::int32_t gpus_, each_, experts_, num_windows_, gpus_per_node_;
  LayerMap map_, best_;
  std::vector<double> load_;                 // [W, E] of the mean device
  std::vector<double> mean_;                 // [E] share of all choices, mean over windows
  std::vector<double> full_;                 // [W, gpus]
  std::vector<std::uint8_t> has_, kept_;     // [gpus, E]
  std::vector<std::int32_t> counts_, home_;  // [E] replicas, and those on the home node
  std::vector<std::vector<std::int32_t>> gpus_of_;
  std::vector<Top> top_;
  std::int32_t moved_ = 0;
  double off_ = 0.0, best_value_ = 0.0;
};

Annealer::Annealer(const LayerMap& start, const Machine& machine, const SearchGoal& goal)
    : goal_(goal),
      gpus_(machine.gpus),
      each_(machine.slots_per_gpu()),
      experts_(count(goal.windows.front())),
      num_windows_(count(goal.windows)),
      gpus_per_node_(machine.gpus_per_node()),
      map_(start),
      best_(start),
      mean_(size_of(experts_), 0.0),
      full_(size_of(num_windows_ * gpus_), 0.0),
      has_(size_of(static_cast<std::int64_t>(gpus_) * experts_), 0),
      counts_(replica_counts(start, experts_)),
      home_(size_of(experts_), 0),
      gpus_of_(size_of(experts_)),
      top_(size_of(num_windows_)) {
  for (const std::vector<double>& window : goal.windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    const double scale = sum > 0.0 ? gpus_ / sum : 0.0;
    for (std::int32_t e = 0; e < experts_; ++e) {
      load_.push_back(at(window, e) * scale);
      at(mean_, e) += load_.back() / (static_cast<double>(gpus_) * num_windows_);
    }
  }
  if (!goal.before.empty()) {
    kept_.assign(has_.size(), 0);
    for (std::int32_t s = 0; s < count(goal.before); ++s) {
      kept_[size_of(static_cast<std::int64_t>(s / each_) * experts_ + at(goal.before, s))] = 1;
    }
  }
  for (std::int32_t s = 0; s < count(map_); ++s) {
    const std::int32_t e = at(map_, s), g = s / each_;
    TESSERA_CHECK(has(g, e) == 0, "an expert lies twice on one device");
    has(g, e) = 1;
    at(gpus_of_, e).push_back(g);
    at(home_, e) += at_home(e, g) ? 1 : 0;
    moved_ += kept(g, e) ? 0 : 1;
    for (std::int32_t w = 0; w < num_windows_; ++w) full(w, g) += load(w, e) / at(counts_, e);
  }
  for (std::int32_t e = 0; e < experts_; ++e) off_ += off_of(e, at(home_, e), at(counts_, e));
  for (std::int32_t w = 0; w < num_windows_; ++w) rank_window(w);
  best_value_ = value();
}

double Annealer::value() const {
  double sum = 0.0;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    sum += full_[size_of(static_cast<std::int64_t>(w) * gpus_ + at(top_, w).gpu[0])];
  }
  return sum / num_windows_ + goal_.off_home * off_ + goal_.moved * moved_ / static_cast<double>(map_.size());
}

void Annealer::rank_window(std::int32_t w) {
  Top top;
  std::array<double, 3> most = {-1.0, -1.0, -1.0};
  for (std::int32_t g = 0; g < gpus_; ++g) {
    const double x = full(w, g);
    if (x <= most[2]) continue;
    std::size_t i = 2;
    for (; i > 0 && x > most[i - 1]; --i) {
      most[i] = most[i - 1];
      top.gpu[i] = top.gpu[i - 1];
    }
    most[i] = x;
    top.gpu[i] = g;
  }
  at(top_, w) = top;
}

double Annealer::fullest_beside(std::int32_t w, std::int32_t a, std::int32_t b) {
  for (const std::int32_t g : at(top_, w).gpu) {
    if (g >= 0 && g != a && g != b) return full(w, g);
  }
  return 0.0;
}

bool Annealer::swap_cost(std::int32_t s, std::int32_t t, Change& change) {
  const std::int32_t a = at(map_, s), b = at(map_, t), g = s / each_, h = t / each_;
  if (a == b || g == h || has(g, b) != 0 || has(h, a) != 0) return false;
  change = {};
  if (!goal_.home.empty()) {
    const std::int32_t a_home = (at_home(a, h) ? 1 : 0) - (at_home(a, g) ? 1 : 0);
    const std::int32_t b_home = (at_home(b, g) ? 1 : 0) - (at_home(b, h) ? 1 : 0);
    if (at(home_, a) + a_home < 1 || at(home_, b) + b_home < 1) return false;
    change.off = -at(mean_, a) * a_home / at(counts_, a) - at(mean_, b) * b_home / at(counts_, b);
  }
  change.moved = arrivals(g, a, b) + arrivals(h, b, a);
  if (goal_.most_moved >= 0 && moved_ + change.moved > goal_.most_moved) return false;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const double d = load(w, b) / at(counts_, b) - load(w, a) / at(counts_, a);
    const double lg = full(w, g), lh = full(w, h);
    const double peak = std::max({lg + d, lh - d, fullest_beside(w, g, h)});
    change.cost += peak - full(w, at(top_, w).gpu[0]) + kSpread / gpus_ * 2.0 * d * (lg - lh + d);
  }
  change.cost = change.cost / num_windows_ + goal_.off_home * change.off +
                goal_.moved * change.moved / static_cast<double>(map_.size());
  return true;
}

void Annealer::do_swap(std::int32_t s, std::int32_t t, const Change& change) {
  const std::int32_t a = at(map_, s), b = at(map_, t), g = s / each_, h = t / each_;
  std::swap(at(map_, s), at(map_, t));
  has(g, a) = has(h, b) = 0;
  has(g, b) = has(h, a) = 1;
  std::replace(at(gpus_of_, a).begin(), at(gpus_of_, a).end(), g, h);
  std::replace(at(gpus_of_, b).begin(), at(gpus_of_, b).end(), h, g);
  at(home_, a) += (at_home(a, h) ? 1 : 0) - (at_home(a, g) ? 1 : 0);
  at(home_, b) += (at_home(b, g) ? 1 : 0) - (at_home(b, h) ? 1 : 0);
  moved_ += change.moved;
  off_ += change.off;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const double d = load(w, b) / at(counts_, b) - load(w, a) / at(counts_, a);
    full(w, g) += d;
    full(w, h) -= d;
    rank_window(w);
  }
}

// Loads when slot s goes from its expert to `to` (sign 1), or back (-1); the map is not touched.
void Annealer::shift(std::int32_t s, std::int32_t to, double sign) {
  const std::int32_t from = at(map_, s), g = s / each_;
  const std::int32_t x = at(counts_, from), y = at(counts_, to);
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const double rise = sign * load(w, from) / (static_cast<double>(x) * (x - 1));
    const double fall = sign * load(w, to) / (static_cast<double>(y) * (y + 1));
    for (const std::int32_t i : at(gpus_of_, from)) full(w, i) += rise;
    for (const std::int32_t i : at(gpus_of_, to)) full(w, i) -= fall;
    full(w, g) += sign * (load(w, to) / (y + 1) - load(w, from) / (x - 1));
  }
}

double Annealer::spread_cost() {
  double sum = 0.0;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    double most = 0.0, squares = 0.0;
    for (std::int32_t g = 0; g < gpus_; ++g) {
      const double x = full(w, g);
      most = std::max(most, x);
      squares += x * x;
    }
    sum += most + kSpread / gpus_ * squares;
  }
  return sum / num_windows_;
}

bool Annealer::give_cost(std::int32_t s, std::int32_t to, Change& change) {
  const std::int32_t from = at(map_, s), g = s / each_;
  if (from == to || at(counts_, from) < 2 || has(g, to) != 0) return false;
  const std::int32_t lost = at_home(from, g) ? 1 : 0, won = at_home(to, g) ? 1 : 0;
  if (!goal_.home.empty() && at(home_, from) - lost < 1) return false;
  change = {.moved = arrivals(g, from, to)};
  if (goal_.most_moved >= 0 && moved_ + change.moved > goal_.most_moved) return false;
  change.off = off_of(from, at(home_, from) - lost, at(counts_, from) - 1) -
               off_of(from, at(home_, from), at(counts_, from)) +
               off_of(to, at(home_, to) + won, at(counts_, to) + 1) -
               off_of(to, at(home_, to), at(counts_, to));
  const double before = spread_cost();
  shift(s, to, 1.0);
  change.cost = spread_cost() - before + goal_.off_home * change.off +
                goal_.moved * change.moved / static_cast<double>(map_.size());
  shift(s, to, -1.0);
  return true;
}

void Annealer::do_give(std::int32_t s, std::int32_t to, const Change& change) {
  const std::int32_t from = at(map_, s), g = s / each_;
  shift(s, to, 1.0);
  at(map_, s) = to;
  has(g, from) = 0;
  has(g, to) = 1;
  std::vector<std::int32_t>& gone = at(gpus_of_, from);
  gone.erase(std::find(gone.begin(), gone.end(), g));
  at(gpus_of_, to).push_back(g);
  --at(counts_, from);
  ++at(counts_, to);
  at(home_, from) -= at_home(from, g) ? 1 : 0;
  at(home_, to) += at_home(to, g) ? 1 : 0;
  moved_ += change.moved;
  off_ += change.off;
  for (std::int32_t w = 0; w < num_windows_; ++w) rank_window(w);
}

bool Annealer::accept(const Change& change, double heat, RandomSteps& random) {
  return change.cost <= 0.0 || random.uniform() < std::exp(-change.cost / heat);
}

std::int32_t Annealer::pick_slot(RandomSteps& random) {
  if (random.below(2) == 0) return random.below(gpus_ * each_);
  const std::int32_t w = num_windows_ == 1 ? 0 : random.below(num_windows_);
  return at(top_, w).gpu[0] * each_ + random.below(each_);
}

void Annealer::remember() {
  const double now = value();
  if (!(now < best_value_ - 1e-12)) return;
  best_value_ = now;
  best_ = map_;
}

void Annealer::run(const SearchOptions& options) {
  RandomSteps random(options.seed, stream_of("place.anneal"));
  const bool spare = count(map_) > experts_;
  double heat = options.hot;
  constexpr std::int64_t kEach = 256;  // steps of one temperature
  const double cool =
      std::pow(options.cold / options.hot, kEach / static_cast<double>(std::max(options.steps, kEach)));
  for (std::int64_t step = 0; step < options.steps; ++step) {
    if (step % kEach == kEach - 1) heat *= cool;
    const std::int32_t s = pick_slot(random);
    Change change;
    if (spare && random.below(2) == 0) {
      const std::int32_t slot = random.below(count(map_)), to = at(map_, s);
      if (!give_cost(slot, to, change) || !accept(change, heat, random)) continue;
      do_give(slot, to, change);
    } else {
      const std::int32_t t = random.below(count(map_));
      if (!swap_cost(s, t, change) || !accept(change, heat, random)) continue;
      do_swap(s, t, change);
    }
    remember();
  }
}

}  // namespace

LayerMap anneal(const LayerMap& start, const Machine& machine, const SearchGoal& goal,
                const SearchOptions& options) {
  TESSERA_CHECK(!goal.windows.empty(), "a search needs a load");
  if (machine.gpus < 2) return start;
  Annealer annealer(start, machine, goal);
  annealer.run(options);
  return annealer.best();
}

GoalTerms terms_of(const LayerMap& map, const Machine& machine, const SearchGoal& goal) {
  GoalTerms terms;
  const std::int32_t experts = count(goal.windows.front());
  const std::vector<std::int32_t> counts = replica_counts(map, experts);
  for (const std::vector<double>& window : goal.windows) {
    terms.fullest += 1.0 / balancedness(gpu_loads(map, window, machine)) / count(goal.windows);
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    if (goal.home.empty() || !(sum > 0.0)) continue;
    for (std::int32_t s = 0; s < count(map); ++s) {
      const std::int32_t e = at(map, s);
      if (machine.node_of(s) == at(goal.home, e)) continue;
      terms.off_home += at(window, e) / at(counts, e) / sum / count(goal.windows);
    }
  }
  if (!goal.before.empty()) {
    terms.moved = moved_slots(goal.before, map, machine) / static_cast<double>(machine.slots);
  }
  return terms;
}

double value_of(const GoalTerms& terms, const SearchGoal& goal) {
  return terms.fullest + goal.off_home * terms.off_home + goal.moved * terms.moved;
}

LayerMap without_waste(LayerMap map, const Machine& machine, std::int32_t num_experts) {
  const std::int32_t each = machine.slots_per_gpu();
  std::vector<std::int32_t> counts(size_of(static_cast<std::int64_t>(machine.gpus) * num_experts), 0);
  const auto held = [&](std::int32_t g, std::int32_t e) -> std::int32_t& {
    return counts[size_of(static_cast<std::int64_t>(g) * num_experts + e)];
  };
  for (std::int32_t s = 0; s < machine.slots; ++s) ++held(s / each, at(map, s));
  std::vector<std::int32_t> total = replica_counts(map, num_experts);
  for (std::int32_t s = 0; s < machine.slots; ++s) {
    const std::int32_t g = s / each, e = at(map, s);
    if (held(g, e) < 2) continue;
    // The expert with the fewest replicas that this device lacks: no other slot changes.
    std::int32_t next = -1;
    for (std::int32_t other = 0; other < num_experts; ++other) {
      if (held(g, other) == 0 && (next < 0 || at(total, other) < at(total, next))) next = other;
    }
    if (next < 0) continue;
    --held(g, e);
    --at(total, e);
    at(map, s) = next;
    ++held(g, next);
    ++at(total, next);
  }
  return map;
}

}  // namespace tessera::place
