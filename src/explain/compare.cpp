#include "explain/compare.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "explain/pricing.h"
#include "explain/routing_draw.h"
#include "explain/sizing.h"
#include "search/refine.h"
#include "search/search.h"

namespace tessera::explain {

namespace {

constexpr double kDay = 86'400.0;
constexpr std::int32_t kRefined = 32;  // as tessera plan
constexpr double kEqual = 0.02;

search::Options options_of(const cost::Setup& setup, const CompareOptions& o) {
  return {.top = 1,
          .threads = o.threads,
          .memory_fraction = o.memory_fraction,
          .refine = search::simulated(setup),
          .refined = kRefined};
}

double under_routing(const Side& side, const cost::RoutingLoad& load) {
  cost::Setup s = side.setup;
  s.routing = load;
  return price(s, side.candidate).seconds();
}

// On twice the network, whatever layout is best there; not slower than the layout of today.
double on_network(const Side& side, const search::Space* space, const CompareOptions& o) {
  const spec::ClusterSpec& c = side.setup.cluster;
  if (c.tiers.size() < 2 || c.num_devices <= c.tiers.front().size) return 0.0;
  const cost::Setup more = upgraded(side.setup, Upgrade::network, 2.0);
  double seconds = price(more, side.candidate).seconds();
  if (space != nullptr) {
    const search::Result r = search::search(more, *space, options_of(more, o));
    if (!r.best.empty()) seconds = std::min(seconds, r.best.front().cost.seconds());
  }
  return seconds;
}

std::int32_t fewest(const cost::Setup& setup, const CompareOptions& o) {
  for (std::int32_t n = 1; n <= setup.cluster.num_devices; n *= 2) {
    cost::Setup sized = setup;
    sized.cluster = spec::with_devices(setup.cluster, n);
    const double weights = 2.0 * static_cast<double>(spec::num_parameters(setup.model));
    if (weights > search::usable_memory(sized) * n) continue;
    const search::Options quick{.top = 1, .threads = o.threads, .memory_fraction = o.memory_fraction};
    if (!search::search(sized, {}, quick).best.empty()) return n;
  }
  return 0;
}

void complete(Side& side, const search::Space* space, const CompareOptions& o) {
  const cost::Setup& s = side.setup;
  side.serving = serving(s.model, s.calibration, search::usable_memory(s), o.serving);
  if (!side.found) return;
  side.cost = price(s, side.candidate).cost;
  side.even_seconds = side.uneven_seconds = side.power_seconds = side.cost.seconds();
  if (side.has_experts()) {
    using cost::LoadKind;
    side.even_seconds = under_routing(side, {});
    if (s.routing.kind == LoadKind::balanced)
      side.uneven_seconds =
          under_routing(side, draw_routing(s.model, {.alpha = o.alpha, .excess = o.routing_excess}));
    side.power_seconds = under_routing(side, {.kind = LoadKind::power_law, .alpha = o.alpha});
  }
  side.network_seconds = on_network(side, space, o);
  if (space != nullptr) side.fewest_devices = fewest(s, o);
  side.days = std::ceil(o.tokens / side.step_tokens()) * side.cost.seconds() / kDay;
  const double hourly =
      o.price_per_device_hour > 0.0 ? o.price_per_device_hour : s.cluster.price_per_device_hour;
  side.price = side.days * 24.0 * side.candidate.world_size() * hourly;
}

// Waiting for messages of every axis that may leave the innermost domain.
double waiting(const Side& s) {
  using cost::Part;
  double sum = 0.0;
  for (const Part p : {Part::tp, Part::cp, Part::ep, Part::pp, Part::dp}) sum += s.cost[p];
  return sum / s.cost.seconds();
}

double unevenness(const Side& s) {
  return s.uneven_seconds / s.even_seconds - 1.0;
}

// Price a token where both have one.
double paid(const Side& s, bool prices) {
  return prices ? s.price : s.token_cost();
}

}  // namespace

double Side::step_tokens() const {
  return static_cast<double>(setup.work.global_batch_size) * static_cast<double>(setup.work.sequence_length);
}
double Side::token_cost() const {
  return cost.seconds() * candidate.world_size() / step_tokens();
}
double Side::token_cost_on_network() const {
  return network_seconds * candidate.world_size() / step_tokens();
}

Side planned_side(std::string name, const cost::Setup& setup, const search::Space& space,
                  const CompareOptions& options) {
  Side side{.name = std::move(name), .setup = setup};
  const search::Result r = search::search(setup, space, options_of(setup, options));
  side.found = !r.best.empty();
  if (side.found) {
    side.candidate = r.best.front().candidate;
  } else {
    const bool memory = std::ranges::any_of(
        r.rejections, [](const search::Rejection& x) { return x.reason == search::Reason::does_not_fit; });
    side.why = memory ? "no layout fits into the memory" : "no layout divides model, batch and devices";
  }
  complete(side, &space, options);
  return side;
}

Side fixed_side(std::string name, const cost::Setup& setup, const cost::Candidate& candidate,
                const CompareOptions& options) {
  Side side{.name = std::move(name), .setup = setup, .found = true, .candidate = candidate};
  complete(side, nullptr, options);
  return side;
}

std::string_view name(Point point) {
  constexpr std::array<std::string_view, kNumPoints> kNames = {
      "fits",  "time",         "cost",          "network",      "imbalance",
      "scale", "serving_hold", "serving_alone", "serving_batch"};
  return kNames[static_cast<std::size_t>(point)];
}

std::int32_t Finding::better() const {
  if (std::abs(first - second) <= kEqual * std::max(first, second)) return -1;
  return first < second ? 0 : 1;
}

std::vector<Finding> findings(const Side& a, const Side& b, const CompareOptions& options) {
  (void)options;
  std::vector<Finding> out;
  if (a.found != b.found) out.push_back({Point::fits, a.found ? 0.0 : 1.0, b.found ? 0.0 : 1.0});
  if (a.found && b.found) {
    const bool prices = a.price > 0.0 && b.price > 0.0;
    out.push_back({Point::time, a.days, b.days});
    out.push_back({Point::cost, paid(a, prices), paid(b, prices)});
    out.push_back({Point::network, waiting(a), waiting(b)});
    if (a.has_experts() || b.has_experts()) out.push_back({Point::imbalance, unevenness(a), unevenness(b)});
    if (a.fewest_devices > 0 && b.fewest_devices > 0) {
      out.push_back(
          {Point::scale, static_cast<double>(a.fewest_devices), static_cast<double>(b.fewest_devices)});
    }
  }
  const auto devices = [](const Side& s) { return static_cast<double>(s.serving.devices); };
  // Seconds of as many devices, so that two kinds of them compare.
  const auto alone = [](const Side& s) {
    return s.serving.read_alone / s.setup.calibration.memory_bandwidth;
  };
  const auto batch = [](const Side& s) {
    return s.serving.read_batch / s.setup.calibration.memory_bandwidth;
  };
  out.push_back({Point::serving_hold, devices(a), devices(b)});
  out.push_back({Point::serving_alone, alone(a), alone(b)});
  out.push_back({Point::serving_batch, batch(a), batch(b)});
  return out;
}

MixtureVerdict mixture_verdict(const Side& a, const Side& b, const CompareOptions& options) {
  constexpr double kStarved = 0.1, kUneven = 0.05, kMore = 1.25;
  MixtureVerdict v;
  if (a.has_experts() == b.has_experts()) return v;
  v.mixture = a.has_experts() ? 0 : 1;
  const Side& mixture = a.has_experts() ? a : b;
  const Side& dense = a.has_experts() ? b : a;
  const auto add = [&](bool holds, Against what) {
    if (holds) v.against.push_back(what);
  };
  add(!mixture.found && dense.found, Against::no_layout);
  if (mixture.found && dense.found) {
    const bool prices = a.price > 0.0 && b.price > 0.0;
    v.cost_ratio = paid(mixture, prices) / paid(dense, prices);
    v.uneven_cost_ratio = v.cost_ratio * mixture.uneven_seconds / mixture.cost.seconds();
    if (mixture.network_seconds > 0.0 && dense.network_seconds > 0.0) {
      v.network_cost_ratio = v.cost_ratio * (mixture.network_seconds / mixture.cost.seconds()) /
                             (dense.network_seconds / dense.cost.seconds());
    }
    v.waiting = waiting(mixture);
    v.dense_waiting = waiting(dense);
    v.pays = options.gain > v.cost_ratio;
    add(options.gain > 0.0 && !v.pays, Against::cost);
    add(v.waiting >= kStarved &&
            v.waiting * mixture.token_cost() > kMore * v.dense_waiting * dense.token_cost(),
        Against::network);
    add(unevenness(mixture) >= kUneven, Against::imbalance);
    add(dense.fewest_devices > 0 && mixture.fewest_devices > dense.fewest_devices, Against::small_scale);
  }
  add(mixture.serving.devices > dense.serving.devices, Against::serving_memory);
  add(mixture.serving.read_batch > kMore * dense.serving.read_batch, Against::latency);
  return v;
}

}  // namespace tessera::explain
