#include "place/traffic.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "place/index.h"
#include "place/random_steps.h"
#include "place/token_sets.h"

namespace tessera::place {
namespace {

// Weight of load above the cap, of a mean node, against one node per token.
constexpr double kOverload = 4.0;

class Cutter {
 public:
  Cutter(const CutProblem& problem, const TokenSets& sets);
  void run(const CutOptions& options);
  [[nodiscard]] const std::vector<std::int32_t>& best() const { return best_; }

 private:
  void start();
  void fill_tables();
  [[nodiscard]] double& join(std::int32_t e, std::int32_t n) { return join_[size_of(e * nodes_ + n)]; }
  [[nodiscard]] std::uint8_t& held(std::int32_t t, std::int32_t n) {
    return held_[size_of(static_cast<std::int64_t>(t) * nodes_ + n)];
  }
  [[nodiscard]] double& node_load(std::int32_t w, std::int32_t n) {
    return node_load_[size_of(w * nodes_ + n)];
  }
  [[nodiscard]] double load(std::int32_t w, std::int32_t e) const { return load_[size_of(w * experts_ + e)]; }
  [[nodiscard]] double over(double x) const { return x > limit_ ? kOverload * (x - limit_) : 0.0; }
  [[nodiscard]] double overload_change(std::int32_t a, std::int32_t b);
  [[nodiscard]] double both(std::int32_t a, std::int32_t b);
  void take_out(std::int32_t e);
  void put_in(std::int32_t e, std::int32_t n);
  [[nodiscard]] double overload() const;
  [[nodiscard]] double value() const;
  void remember();

  const TokenSets& sets_;
  std::int32_t experts_, nodes_, num_windows_;
  double limit_ = 0.0, total_ = 0.0;
  std::vector<double> load_, node_load_;  // [W, E], [W, N] of the mean node
  std::vector<std::int32_t> node_, best_;
  std::vector<std::uint8_t> held_;  // [T, N] experts of the token on the node
  std::vector<double> leave_;       // [E] weight of the tokens whose only expert of that node it is
  std::vector<double> join_;        // [E, N] weight of its tokens that do not reach the node
  double cut_ = 0.0, best_value_ = 0.0;
  std::int64_t visits_ = 0;
};

Cutter::Cutter(const CutProblem& problem, const TokenSets& sets)
    : sets_(sets),
      experts_(problem.num_experts),
      nodes_(problem.num_nodes),
      num_windows_(count(problem.windows)),
      limit_(problem.cap < 0.0 ? 1e300 : 1.0 + problem.cap),
      node_load_(size_of(num_windows_ * nodes_), 0.0),
      node_(size_of(experts_), -1),
      held_(size_of(static_cast<std::int64_t>(sets.size()) * nodes_), 0),
      leave_(size_of(experts_), 0.0),
      join_(size_of(experts_ * nodes_), 0.0) {
  for (const std::vector<double>& window : problem.windows) {
    const double sum = std::accumulate(window.begin(), window.end(), 0.0);
    for (const double x : window) load_.push_back(sum > 0.0 ? x / sum * nodes_ : 0.0);
  }
  total_ = std::max(1e-300, std::accumulate(sets.weight.begin(), sets.weight.end(), 0.0));
  start();
  fill_tables();
  best_ = node_;
  best_value_ = value();
}

// Heaviest expert first to the lightest node with room, as the published balancer packs.
void Cutter::start() {
  std::vector<double> weight(size_of(experts_), 0.0), full(size_of(nodes_), 0.0);
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    for (std::int32_t e = 0; e < experts_; ++e) at(weight, e) += load(w, e);
  }
  std::vector<std::int32_t> order(size_of(experts_)), room(size_of(nodes_), experts_ / nodes_);
  for (std::int32_t n = 0; n < experts_ % nodes_; ++n) ++at(room, n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](std::int32_t a, std::int32_t b) { return at(weight, a) > at(weight, b); });
  for (const std::int32_t e : order) {
    std::int32_t to = -1;
    for (std::int32_t n = 0; n < nodes_; ++n) {
      if (at(room, n) > 0 && (to < 0 || at(full, n) < at(full, to))) to = n;
    }
    at(node_, e) = to;
    --at(room, to);
    at(full, to) += at(weight, e);
    for (std::int32_t w = 0; w < num_windows_; ++w) node_load(w, to) += load(w, e);
  }
}

void Cutter::fill_tables() {
  for (std::int32_t t = 0; t < sets_.size(); ++t) {
    for (const std::int16_t e : sets_.experts(t)) ++held(t, at(node_, e));
    for (std::int32_t n = 0; n < nodes_; ++n) {
      if (held(t, n) > 0) cut_ += at(sets_.weight, t);
      for (const std::int16_t e : sets_.experts(t)) {
        if (held(t, n) == 0) join(e, n) += at(sets_.weight, t);
        if (held(t, n) == 1 && at(node_, e) == n) at(leave_, e) += at(sets_.weight, t);
      }
    }
  }
}

double Cutter::overload() const {
  double sum = 0.0;
  for (const double x : node_load_) sum += std::max(0.0, x - limit_ - 1e-10);
  return sum;
}

// What the best is judged by: whatever is over the cap comes behind all that is not.
double Cutter::value() const {
  const double over = overload();
  return over > 0.0 ? 1e6 * (1.0 + over) : cut_ / total_;
}

double Cutter::overload_change(std::int32_t a, std::int32_t b) {
  const std::int32_t m = at(node_, a), n = at(node_, b);
  double change = 0.0;
  for (std::int32_t w = 0; w < num_windows_; ++w) {
    const double d = load(w, b) - load(w, a), x = node_load(w, m), y = node_load(w, n);
    change += over(x + d) - over(x) + over(y - d) - over(y);
  }
  return change;
}

// What the tables count wrongly for tokens that chose both: their nodes stay the same.
double Cutter::both(std::int32_t a, std::int32_t b) {
  const std::int32_t m = at(node_, a), n = at(node_, b);
  double sum = 0.0;
  for (const std::int32_t t : sets_.pair(a, b)) {
    sum += at(sets_.weight, t) * ((held(t, m) == 1 ? 1.0 : 0.0) + (held(t, n) == 1 ? 1.0 : 0.0));
  }
  return sum;
}

void Cutter::take_out(std::int32_t e) {
  const std::int32_t n = at(node_, e);
  at(node_, e) = -1;
  at(leave_, e) = 0.0;
  for (const std::int32_t t : sets_.tokens(e)) {
    const std::uint8_t left = --held(t, n);
    if (left > 1) continue;
    const double w = at(sets_.weight, t);
    if (left == 0) cut_ -= w;
    for (const std::int16_t x : sets_.experts(t)) {
      if (left == 0) {
        join(x, n) += w;
      } else if (at(node_, x) == n) {
        at(leave_, x) += w;
      }
    }
  }
  for (std::int32_t w = 0; w < num_windows_; ++w) node_load(w, n) -= load(w, e);
}

void Cutter::put_in(std::int32_t e, std::int32_t n) {
  for (const std::int32_t t : sets_.tokens(e)) {
    const std::uint8_t now = ++held(t, n);
    if (now > 2) continue;
    const double w = at(sets_.weight, t);
    if (now == 1) {
      cut_ += w;
      at(leave_, e) += w;
    }
    for (const std::int16_t x : sets_.experts(t)) {
      if (now == 1) {
        join(x, n) -= w;
      } else if (at(node_, x) == n) {
        at(leave_, x) -= w;
      }
    }
  }
  at(node_, e) = n;
  for (std::int32_t w = 0; w < num_windows_; ++w) node_load(w, n) += load(w, e);
  visits_ += 2 * static_cast<std::int64_t>(sets_.tokens(e).size());
}

void Cutter::remember() {
  const double now = value();
  if (!(now < best_value_ - 1e-12)) return;
  best_value_ = now;
  best_ = node_;
}

void Cutter::run(const CutOptions& options) {
  RandomSteps random(options.seed, 0x706c6163652e6375ULL);
  const double slope = std::log(options.cold / options.hot), unit = sets_.mean_size() / experts_;
  double heat = options.hot * unit;
  for (std::int64_t step = 0; visits_ < options.visits; ++step) {
    visits_ += 4;  // of the tables
    if (step % 64 == 0) {
      const double done = static_cast<double>(visits_) / static_cast<double>(options.visits);
      heat = options.hot * unit * std::exp(slope * done);
    }
    const std::int32_t a = random.below(experts_), b = random.below(experts_);
    const std::int32_t m = at(node_, a), n = at(node_, b);
    if (m == n) continue;
    // The step is taken when it costs at most this; drawn first, so that most steps end at the tables.
    const double allowed = -heat * std::log(random.uniform() + 0x1p-33);
    double cost = (join(a, n) - at(leave_, a) + join(b, m) - at(leave_, b)) / total_ + overload_change(a, b);
    if (cost > allowed) continue;
    visits_ += static_cast<std::int64_t>(sets_.pair(a, b).size()) / 4;
    cost += both(a, b) / total_;
    if (cost > allowed) continue;
    take_out(a);
    take_out(b);
    put_in(a, n);
    put_in(b, m);
    remember();
  }
}

}  // namespace

std::vector<std::int32_t> fewest_nodes(const CutProblem& problem, const CutOptions& options) {
  const TokenSets sets(problem.tokens, problem.num_experts, problem.top_k, options.most_tokens);
  Cutter cutter(problem, sets);
  if (problem.num_nodes > 1 && sets.size() > 0) cutter.run(options);
  return cutter.best();
}

double mean_nodes(std::span<const std::int32_t> node_of, const CutProblem& problem) {
  std::vector<std::int64_t> seen(size_of(problem.num_nodes), -1);
  const std::int64_t tokens = std::ssize(problem.tokens) / std::max(problem.top_k, 1);
  std::int64_t sum = 0;
  for (std::int64_t t = 0; t < tokens; ++t) {
    for (std::int64_t i = t * problem.top_k; i < (t + 1) * problem.top_k; ++i) {
      const std::int16_t e = at(problem.tokens, i);
      if (e < 0 || at(seen, at(node_of, e)) == t) continue;
      at(seen, at(node_of, e)) = t;
      ++sum;
    }
  }
  return tokens > 0 ? static_cast<double>(sum) / static_cast<double>(tokens) : 0.0;
}

}  // namespace tessera::place
