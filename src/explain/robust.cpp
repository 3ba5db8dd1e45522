#include "explain/robust.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <limits>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>
#include <utility>

#include "base/error.h"
#include "base/math.h"
#include "base/random.h"
#include "explain/routing_draw.h"
#include "search/refine.h"
#include "search/search.h"
#include "sim/simulate.h"

namespace tessera::explain {

namespace {

constexpr double kForEver = std::numeric_limits<double>::infinity();
constexpr std::uint64_t kNodes = stream_of("robust.nodes"), kNetwork = stream_of("robust.network"),
                        kSeverity = stream_of("robust.severity");

bool on(const RobustOptions& o, Disturbance d) {
  return o.on[static_cast<std::size_t>(d)];
}

std::int32_t num_nodes(const cost::Setup& s) {
  return static_cast<std::int32_t>(div_ceil(s.cluster.num_devices, s.cluster.devices_per_node));
}

double node_draw(const RobustOptions& o, std::int32_t scenario, std::int32_t node) {
  return normal(o.seed, kNodes,
                (static_cast<std::uint64_t>(scenario) << 32U) + static_cast<std::uint64_t>(node));
}

// Of one node: so that the mean of the scenarios' slowest ones is what the calibration says.
double node_spread(const cost::Setup& s, const RobustOptions& o) {
  const std::int32_t nodes = num_nodes(s);
  if (nodes < 2 || s.calibration.straggler <= 0.0) return 0.0;
  double sum = 0.0;
  for (std::int32_t i = 0; i < o.scenarios; ++i) {
    double slowest = node_draw(o, i, 0);
    for (std::int32_t n = 1; n < nodes; ++n) slowest = std::max(slowest, node_draw(o, i, n));
    sum += slowest;
  }
  const double mean = sum / o.scenarios;
  return mean > 0.0 ? s.calibration.straggler * std::log2(static_cast<double>(nodes)) / mean : 0.0;
}

std::vector<double> draw_nodes(const cost::Setup& s, const RobustOptions& o, std::int32_t index,
                               double spread) {
  constexpr double kFastest = 0.5;  // however wide the spread
  std::vector<double> out;
  if (spread <= 0.0) return out;
  for (std::int32_t n = 0; n < num_nodes(s); ++n)
    out.push_back(std::max(kFastest, 1.0 + spread * node_draw(o, index, n)));
  return out;
}

cost::RoutingLoad routing_of(const cost::Setup& s, const RobustOptions& o, std::int32_t index) {
  using cost::LoadKind;
  if (!s.model.moe || s.routing.kind == LoadKind::histogram) return s.routing;
  const bool given = s.routing.kind == LoadKind::power_law;
  const auto at = static_cast<std::uint64_t>(index);
  return draw_routing(
      s.model, {.alpha = given ? s.routing.alpha : o.alpha,
                .excess = given ? kForEver : o.routing_excess * std::abs(normal(o.seed, kSeverity, at)),
                .seed = o.seed,
                .index = at});
}

Scenario draw(const cost::Setup& s, const RobustOptions& o, std::int32_t index, double spread) {
  Scenario out{.routing = s.routing};
  if (on(o, Disturbance::nodes)) out.node_slowdown = draw_nodes(s, o, index, spread);
  if (on(o, Disturbance::network))
    out.network =
        1.0 + o.network_spread * std::abs(normal(o.seed, kNetwork, static_cast<std::uint64_t>(index)));
  if (on(o, Disturbance::routing)) out.routing = routing_of(s, o, index);
  return out;
}

// Replicas that go in lockstep.
std::int32_t span_of(const cost::Candidate& c) {
  if (c.zero_stage == 3) return c.dp;
  const std::int64_t ranks = std::int64_t{c.ep} * c.etp;
  const auto span = static_cast<std::int32_t>(div_ceil(ranks, std::int64_t{c.tp} * c.cp));
  return std::clamp(span, 1, c.dp);
}

// [pp] of the replicas whose slowest rank is slowest.
std::vector<double> rank_slowdown(const cost::Candidate& c, const std::vector<double>& nodes,
                                  std::int32_t devices_per_node) {
  const std::int64_t inside = std::int64_t{c.tp} * c.cp;
  const auto slowest_of = [&](std::int32_t r, std::int32_t replica) {
    const std::int64_t place = c.order == cost::AxisOrder::tp_cp_ep_dp_pp ? std::int64_t{r} * c.dp + replica
                                                                          : std::int64_t{replica} * c.pp + r;
    const std::int64_t first = place * inside / devices_per_node;
    const std::int64_t last = (place * inside + inside - 1) / devices_per_node;
    return *std::max_element(nodes.begin() + first, nodes.begin() + last + 1);
  };
  const std::int32_t span = span_of(c);
  std::vector<double> worst;
  std::pair<double, double> worst_by(-1.0, 0.0);
  for (std::int32_t begin = 0; begin < c.dp; begin += span) {
    std::vector<double> ranks(static_cast<std::size_t>(c.pp), 0.0);
    for (std::int32_t r = 0; r < c.pp; ++r) {
      double& slow = ranks[static_cast<std::size_t>(r)];
      for (std::int32_t d = begin; d < std::min(begin + span, c.dp); ++d)
        slow = std::max(slow, slowest_of(r, d));
    }
    const std::pair by(*std::ranges::max_element(ranks), std::accumulate(ranks.begin(), ranks.end(), 0.0));
    if (by <= worst_by) continue;
    worst_by = by;
    worst = std::move(ranks);
  }
  return worst;
}

// What stays of a candidate in every scenario: the order of its actions.
struct Played {
  cost::Candidate candidate;
  std::optional<schedule::Schedule> schedule;  // none: too long to simulate
};

Played played(const cost::Setup& setup, const cost::Candidate& c) {
  Played out{.candidate = c, .schedule = {}};
  const std::int64_t m = cost::num_microbatches(setup.work, c);
  if (m * c.pp * c.vpp > search::kMaxRefinedCells) return out;
  cost::StepModel model(setup);
  out.schedule = schedule::generate({.kind = c.schedule,
                                     .pp = c.pp,
                                     .vpp = c.vpp,
                                     .num_microbatches = static_cast<std::int32_t>(m),
                                     .costs = cost::stage_costs(model.work(c))});
  return out;
}

cost::Setup disturbed(const cost::Setup& setup, const Scenario& s) {
  cost::Setup out = setup;
  out.routing = s.routing;
  std::vector<spec::TierSpec>& tiers = out.cluster.tiers;
  for (std::size_t t = 1; t < tiers.size(); ++t)
    tiers[t].bandwidth = BytesPerSecond(tiers[t].bandwidth.value / s.network);
  // The slow nodes stand for themselves.
  if (!s.node_slowdown.empty()) out.calibration.straggler = 0.0;
  return out;
}

// `model`: of the disturbed setup.
double seconds_of(cost::StepModel& model, const Played& p, const Scenario& s, const RobustOptions& o) {
  const cost::Setup& setup = model.setup();
  const cost::Candidate& c = p.candidate;
  if (!(model.memory(c).reserved() <= search::usable_memory(setup) * o.memory_fraction)) return kForEver;
  std::vector<double> slow;
  if (!s.node_slowdown.empty()) slow = rank_slowdown(c, s.node_slowdown, setup.cluster.devices_per_node);
  if (!p.schedule) {
    const double slowest = slow.empty() ? 1.0 : *std::ranges::max_element(slow);
    return model.predict(c).seconds() * slowest;
  }
  sim::Options options;
  options.rank_slowdown = std::move(slow);
  return sim::makespan(*p.schedule, model.work(c), options);
}

void check(const RobustOptions& o) {
  Problems problems;
  if (!(o.quantile > 0.0 && o.quantile <= 1.0)) {
    problems.add(fmt::format("the quantile is {}", o.quantile), "--robust",
                 "use a number above 0 and up to 1: 0.9 is the step that nine of ten scenarios keep");
  }
  if (o.scenarios < 1 || o.scenarios > 100'000) {
    problems.add(fmt::format("{} scenarios", o.scenarios), "--robust", "use 1 to 100000 of them");
  }
  problems.throw_if_any();
}

// work(i) for i below n, on so many threads; the first failure is thrown.
template <class Work>
void on_threads(std::int32_t wanted, std::int32_t n, const Work& work) {
  const auto cores = static_cast<std::int32_t>(std::thread::hardware_concurrency());
  const std::int32_t threads = std::min(n, std::max(1, wanted > 0 ? wanted : cores));
  std::atomic<std::int32_t> next{0};
  std::mutex mutex;
  std::exception_ptr failure;
  const auto loop = [&] {
    for (std::int32_t i = next++; i < n; i = next++) {
      try {
        work(i);
      } catch (...) {
        const std::lock_guard lock(mutex);
        if (!failure) failure = std::current_exception();
        return;
      }
    }
  };
  {
    std::vector<std::jthread> others;
    for (std::int32_t t = 1; t < threads; ++t) others.emplace_back(loop);
    loop();
  }
  if (failure) std::rethrow_exception(failure);
}

Robust summary(const std::vector<double>& seconds, const RobustOptions& o) {
  std::vector<std::int32_t> order(seconds.size());
  std::iota(order.begin(), order.end(), 0);
  const auto of = [&](std::int32_t i) { return seconds[static_cast<std::size_t>(i)]; };
  std::ranges::stable_sort(order, {}, of);
  const auto position = static_cast<std::int64_t>(std::ceil(o.quantile * o.scenarios - 1e-9));
  Robust r;
  r.at = order[static_cast<std::size_t>(std::max<std::int64_t>(1, position) - 1)];
  r.quantile_seconds = of(r.at);
  std::int32_t kept = 0;
  for (const std::int32_t i : order) {
    if (!std::isfinite(of(i))) continue;
    r.mean_seconds += of(i);
    r.worst_seconds = of(i);
    ++kept;
  }
  r.overflows = o.scenarios - kept;
  r.mean_seconds = kept > 0 ? r.mean_seconds / kept : kForEver;
  return r;
}

}  // namespace

Scenario scenario(const cost::Setup& setup, const RobustOptions& options, std::int32_t index) {
  return draw(setup, options, index, node_spread(setup, options));
}

double scenario_seconds(const cost::Setup& setup, const cost::Candidate& c, const Scenario& scenario,
                        const RobustOptions& options) {
  cost::StepModel model(disturbed(setup, scenario));
  return seconds_of(model, played(setup, c), scenario, options);
}

std::vector<Robust> robust_times(const cost::Setup& setup, std::span<const cost::Candidate> candidates,
                                 const RobustOptions& options) {
  check(options);
  const auto n = static_cast<std::int32_t>(candidates.size());
  std::vector<Played> all(candidates.size());
  std::vector<double> nominal(candidates.size());
  on_threads(options.threads, n, [&](std::int32_t i) {
    const auto at = static_cast<std::size_t>(i);
    all[at] = played(setup, candidates[at]);
    cost::StepModel model(setup);
    RobustOptions any = options;
    any.memory_fraction = kForEver;
    nominal[at] = seconds_of(model, all[at], {}, any);
  });
  const double spread = on(options, Disturbance::nodes) ? node_spread(setup, options) : 0.0;
  std::vector<std::vector<double>> seconds(candidates.size(),
                                           std::vector<double>(static_cast<std::size_t>(options.scenarios)));
  on_threads(options.threads, options.scenarios, [&](std::int32_t index) {
    const Scenario s = draw(setup, options, index, spread);
    cost::StepModel model(disturbed(setup, s));
    for (std::size_t i = 0; i < all.size(); ++i)
      seconds[i][static_cast<std::size_t>(index)] = seconds_of(model, all[i], s, options);
  });
  std::vector<Robust> out;
  for (std::size_t i = 0; i < all.size(); ++i) {
    out.push_back(summary(seconds[i], options));
    out.back().nominal_seconds = nominal[i];
  }
  return out;
}

std::int32_t robust_choice(std::span<const Robust> times) {
  const auto best = std::ranges::min_element(
      times, {}, [](const Robust& r) { return std::pair(r.quantile_seconds, r.overflows); });
  return static_cast<std::int32_t>(best - times.begin());
}

std::array<double, kNumDisturbances> price_of_each(const cost::Setup& setup, const cost::Candidate& c,
                                                   const RobustOptions& options) {
  std::array<double, kNumDisturbances> out{};
  for (std::size_t d = 0; d < out.size(); ++d) {
    RobustOptions alone = options;
    alone.on.fill(false);
    alone.on[d] = true;
    const Robust r = robust_times(setup, std::span(&c, 1), alone).front();
    out[d] = r.quantile_seconds - r.nominal_seconds;
  }
  return out;
}

}  // namespace tessera::explain
