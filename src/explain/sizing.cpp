#include "explain/sizing.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "explain/pricing.h"
#include "search/search.h"

namespace tessera::explain {

namespace {

constexpr double kDay = 86'400.0;

void check(const SizingOptions& o) {
  Problems problems;
  const auto positive = [&](double v, const char* what, const char* mend) {
    if (!(v > 0.0) || !std::isfinite(v)) problems.add(fmt::format("{} is {}", what, v), what, mend);
  };
  const auto not_negative = [&](double v, const char* what) {
    if (!(v >= 0.0) || !std::isfinite(v))
      problems.add(fmt::format("{} is {}", what, v), what, "use a number of 0 or more");
  };
  positive(o.tokens, "tokens", "name how many tokens are to be trained on, 15e12");
  not_negative(o.deadline_days, "deadline");
  not_negative(o.price_per_device_hour, "price");
  not_negative(o.reliability.device_mtbf_hours, "mtbf");
  not_negative(o.reliability.checkpoint_seconds, "checkpoint seconds");
  not_negative(o.reliability.restart_seconds, "restart seconds");
  not_negative(o.reliability.interval_seconds, "checkpoint interval");
  problems.throw_if_any();
}

// Doublings of the innermost domain's size up to the most.
std::vector<std::int32_t> doublings(const cost::Setup& setup, const SizingOptions& o) {
  if (!o.devices.empty()) return o.devices;
  const std::int32_t most = o.most_devices > 0 ? o.most_devices : setup.cluster.num_devices;
  std::vector<std::int32_t> out;
  for (std::int64_t n = 1; n < most; n *= 2) out.push_back(static_cast<std::int32_t>(n));
  out.push_back(most);
  return out;
}

Size measured(const cost::Setup& setup, const cost::Candidate& c, const SizingOptions& o) {
  Size s{.devices = setup.cluster.num_devices, .candidate = c, .cost = price(setup, c).cost};
  s.goodput = goodput(o.reliability, s.devices);
  const double step_tokens =
      static_cast<double>(setup.work.global_batch_size) * static_cast<double>(setup.work.sequence_length);
  s.days = std::ceil(o.tokens / step_tokens) * s.cost.seconds() / s.goodput.share / kDay;
  const double hourly =
      o.price_per_device_hour > 0.0 ? o.price_per_device_hour : setup.cluster.price_per_device_hour;
  s.price = s.days * 24.0 * s.devices * hourly;
  s.meets_deadline = o.deadline_days <= 0.0 || s.days <= o.deadline_days;
  return s;
}

template <class Better>
std::int32_t best_of(const std::vector<Size>& sizes, const Better& better) {
  std::int32_t best = -1;
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(sizes.size()); ++i) {
    const Size& s = sizes[static_cast<std::size_t>(i)];
    if (!s.meets_deadline) continue;
    if (best < 0 || better(s, sizes[static_cast<std::size_t>(best)])) best = i;
  }
  return best;
}

}  // namespace

Goodput goodput(const Reliability& r, std::int32_t devices) {
  if (r.device_mtbf_hours <= 0.0) {
    Goodput g{.interval_seconds = r.interval_seconds};
    if (r.interval_seconds > 0.0) g.share = 1.0 / (1.0 + r.checkpoint_seconds / r.interval_seconds);
    return g;
  }
  const double between = r.device_mtbf_hours * 3600.0 / devices;
  // A checkpoint that costs nothing may be taken after every step: as good as a second.
  const double best = std::max(1.0, std::sqrt(2.0 * r.checkpoint_seconds * between));
  const double t = r.interval_seconds > 0.0 ? r.interval_seconds : best;
  return {.share = 1.0 / (1.0 + r.checkpoint_seconds / t) / (1.0 + (t / 2.0 + r.restart_seconds) / between),
          .interval_seconds = t,
          .failures_per_day = kDay / between};
}

Sizing size_training(const cost::Setup& setup, const search::Space& space, const SizingOptions& options) {
  check(options);
  Sizing out;
  search::Options quick{.top = 1, .threads = options.threads, .memory_fraction = options.memory_fraction};
  for (const std::int32_t devices : doublings(setup, options)) {
    cost::Setup sized = setup;
    sized.cluster = spec::with_devices(setup.cluster, devices);
    const search::Result r = search::search(sized, space, quick);
    if (r.best.empty()) {
      out.too_small.push_back(devices);
      continue;
    }
    out.sizes.push_back(measured(sized, r.best.front().candidate, options));
  }
  out.fewest = best_of(out.sizes, [](const Size& a, const Size& b) { return a.devices < b.devices; });
  out.cheapest = best_of(out.sizes, [](const Size& a, const Size& b) {
    return a.days * a.devices < b.days * b.devices;  // device days: the same at any price
  });
  out.fastest = best_of(out.sizes, [](const Size& a, const Size& b) { return a.days < b.days; });
  return out;
}

}  // namespace tessera::explain
