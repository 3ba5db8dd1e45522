#include "explain/sizing.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>

#include "base/clock.h"
#include "base/error.h"
#include "explain/pricing.h"
#include "search/refine.h"
#include "search/search.h"

namespace tessera::explain {

namespace {

constexpr double kDay = 86'400.0;
constexpr std::int32_t kParts = 8;  // of the way between two sizes
constexpr double kForAll = 1e300;   // every size is planned
constexpr double kBetter = 1.05;    // MFU of a size beside the best of the others

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

std::int32_t most_of(const cost::Setup& setup, const SizingOptions& o) {
  return o.most_devices > 0 ? o.most_devices : setup.cluster.num_devices;
}

// 1, 2, 4, ... up to a domain, its doublings, the most.
std::vector<std::int32_t> doublings(const cost::Setup& setup, const SizingOptions& o) {
  if (!o.devices.empty()) {
    std::vector<std::int32_t> out = o.devices;
    std::ranges::sort(out);
    out.erase(std::ranges::unique(out).begin(), out.end());
    return out;
  }
  const std::int64_t most = most_of(setup, o);
  const std::int64_t domain = setup.cluster.tiers.front().size;
  std::vector<std::int32_t> out;
  for (std::int64_t n = 1; n < std::min(most, domain); n *= 2) out.push_back(static_cast<std::int32_t>(n));
  for (std::int64_t n = domain; n < most; n *= 2) out.push_back(static_cast<std::int32_t>(n));
  // The most itself may divide nothing (100,000): its round eighths do.
  const std::int32_t eighth = std::max(1, out.empty() ? 1 : out.back() / kParts);
  const auto round = static_cast<std::int32_t>(most / eighth * eighth);
  if (!out.empty() && round > out.back() && round < most) out.push_back(round);
  out.push_back(static_cast<std::int32_t>(most));
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

namespace {

// To meet the deadline.
double needed_mfu(const cost::Setup& sized, const SizingOptions& o) {
  const double flops =
      spec::train_flops_per_token(sized.model, sized.work.sequence_length, spec::AttentionFlops::causal) *
      o.tokens;
  const double peak = cost::gemm_model(sized.calibration, sized.work.precision).peak;
  const std::int32_t devices = sized.cluster.num_devices;
  return flops / (peak * devices * goodput(o.reliability, devices).share) / (o.deadline_days * kDay);
}

// One size after another into `out`.
class Trials {
 public:
  Trials(const cost::Setup& setup, const search::Space& space, const SizingOptions& o, Sizing& out)
      : setup_(setup), space_(space), o_(o), out_(out) {}

  // Whether there is a layout that meets the deadline. Not planned is what would have to be faster than that
  // share of the peak.
  bool serves(std::int32_t devices, double highest_mfu) {
    cost::Setup sized = setup_;
    sized.cluster = spec::with_devices(setup_.cluster, devices);
    if (o_.deadline_days > 0.0 && needed_mfu(sized, o_) > highest_mfu) {
      out_.hopeless.push_back(devices);
      return false;
    }
    bool too_small = static_cast<double>(spec::num_parameters(sized.model)) >
                     search::usable_memory(sized) * devices;  // a byte a weight
    if (!too_small) {
      if (const auto best = planned(sized, space_, o_, too_small)) {
        out_.sizes.push_back(*best);
        return best->meets_deadline;
      }
    }
    (too_small ? out_.too_small : out_.undivided).push_back(devices);
    return false;
  }

  // None: no layout; then whether memory is why.
  static std::optional<Size> planned(const cost::Setup& sized, const search::Space& space,
                                     const SizingOptions& o, bool& too_small) {
    Problems pins;  // that do not divide this size
    search::check_space(sized, space, pins);
    if (!pins.empty()) return std::nullopt;
    const search::Options options{.top = 1,
                                  .threads = o.threads,
                                  .memory_fraction = o.memory_fraction,
                                  .refine = search::simulated(sized),
                                  .refined = kRefined};
    search::Space narrow = space;
    const bool narrowed = sized.model.moe && space.etp.empty();
    if (narrowed) narrow.etp = {1};
    search::Result r = search::search(sized, narrow, options);
    if (r.best.empty() && narrowed) r = search::search(sized, space, options);
    if (!r.best.empty()) return measured(sized, r.best.front().candidate, o);
    too_small = std::ranges::any_of(
        r.rejections, [](const search::Rejection& x) { return x.reason == search::Reason::does_not_fit; });
    return std::nullopt;
  }

 private:
  static constexpr std::int32_t kRefined = 8;
  const cost::Setup& setup_;
  const search::Space& space_;
  const SizingOptions& o_;
  Sizing& out_;
};

}  // namespace

Sizing size_training(const cost::Setup& setup, const search::Space& space, const SizingOptions& options) {
  check(options);
  const std::int64_t start = wall_ns();
  Sizing out;
  Trials trials(setup, space, options, out);
  std::int32_t below = 0, first = 0;  // the fewest that serve, and those tried before
  const std::vector<std::int32_t> listed = doublings(setup, options);
  const bool mine = options.devices.empty();
  for (const std::int32_t devices : listed) {
    const bool last = devices == listed.back();
    const bool serves = trials.serves(devices, mine && !last ? 1.0 : kForAll);
    if (first == 0 && !serves) below = devices;
    if (first == 0 && serves) first = devices;
  }
  if (mine && first > 0) {
    double best_mfu = 0.0;
    for (const Size& s : out.sizes) best_mfu = std::max(best_mfu, s.cost.mfu());
    const std::int32_t step = std::max(1, (first - below) / kParts);
    for (std::int32_t n = below + step; n < first && !trials.serves(n, kBetter * best_mfu); n += step) {
    }
  }
  std::ranges::sort(out.sizes, {}, &Size::devices);
  std::ranges::sort(out.hopeless);
  std::ranges::sort(out.too_small);
  std::ranges::sort(out.undivided);
  out.fewest = best_of(out.sizes, [](const Size& a, const Size& b) { return a.devices < b.devices; });
  out.cheapest = best_of(out.sizes, [](const Size& a, const Size& b) {
    return a.days * a.devices < b.days * b.devices;  // device days: the same at any price
  });
  out.fastest = best_of(out.sizes, [](const Size& a, const Size& b) { return a.days < b.days; });
  if (out.fastest < 0 && !out.sizes.empty()) {
    const auto at = std::ranges::min_element(out.sizes, {}, &Size::days);
    out.nearest = static_cast<std::int32_t>(at - out.sizes.begin());
  }
  out.seconds = static_cast<double>(wall_ns() - start) * 1e-9;
  return out;
}

std::string_view name(Upgrade upgrade) {
  constexpr std::array<std::string_view, kNumUpgrades> kNames = {
      "memory of a device",       "bandwidth of the network",      "bandwidth of the innermost links",
      "devices in a link domain", "hours between device failures", "speed of checkpoints"};
  return kNames[static_cast<std::size_t>(upgrade)];
}

cost::Setup upgraded(const cost::Setup& setup, Upgrade upgrade, double factor) {
  cost::Setup s = setup;
  std::vector<spec::TierSpec>& tiers = s.cluster.tiers;
  const auto scale = [&](spec::TierSpec& t) { t.bandwidth = BytesPerSecond(t.bandwidth.value * factor); };
  switch (upgrade) {
    case Upgrade::memory: {
      // Usable memory follows that of the cluster, where it has one of its own.
      Bytes& bytes = s.cluster.memory.value > 0 ? s.cluster.memory : s.calibration.usable_memory;
      bytes = Bytes(std::llround(static_cast<double>(bytes.value) * factor));
      return s;
    }
    case Upgrade::network:
      std::for_each(tiers.begin() + 1, tiers.end(), scale);
      return s;
    case Upgrade::links:
      scale(tiers.front());
      return s;
    case Upgrade::domain: {
      const auto times = static_cast<std::int32_t>(factor);
      tiers.front().size *= times;
      if (tiers.size() > 1 && tiers[1].nics > 0) tiers[1].nics *= times;  // one share a device as before
      for (std::size_t t = 1; t < tiers.size(); ++t) {
        const std::int32_t below = tiers[t - 1].size;
        tiers[t].size = (std::max(tiers[t].size, below) + below - 1) / below * below;
      }
      return s;
    }
    case Upgrade::reliability:
    case Upgrade::checkpoint:
      return s;
  }
  return s;
}

std::vector<Marginal> marginal_values(const cost::Setup& setup, const search::Space& space,
                                      const SizingOptions& options, const Size& base) {
  check(options);
  TESSERA_CHECK_EQ(setup.cluster.num_devices, base.devices, "the setup is that of the size");
  std::vector<Marginal> out;
  const auto add = [&](Upgrade upgrade, double factor) {
    const cost::Setup s = upgraded(setup, upgrade, factor);
    SizingOptions o = options;
    if (upgrade == Upgrade::reliability) o.reliability.device_mtbf_hours *= factor;
    if (upgrade == Upgrade::checkpoint) o.reliability.checkpoint_seconds /= factor;
    Marginal m{.upgrade = upgrade, .factor = factor, .size = measured(s, base.candidate, o)};
    if (upgrade <= Upgrade::domain) {
      bool too_small = false;
      const auto planned = Trials::planned(s, space, o, too_small);
      if (planned && planned->days < m.size.days) m.size = *planned;
    }
    out.push_back(m);
  };
  const std::int32_t domain = setup.cluster.tiers.front().size;
  const bool has_network = setup.cluster.tiers.size() > 1 && base.devices > domain;
  const bool fails = options.reliability.device_mtbf_hours > 0.0;
  constexpr double kTenth = 1.1, kTwice = 2.0;
  for (const double factor : {kTenth, kTwice}) add(Upgrade::memory, factor);
  if (has_network) {
    for (const double factor : {kTenth, kTwice}) add(Upgrade::network, factor);
  }
  if (base.devices > 1) {
    for (const double factor : {kTenth, kTwice}) add(Upgrade::links, factor);
  }
  for (const double factor : {kTwice, 2 * kTwice}) {
    if (has_network && domain < base.devices && factor * domain <= setup.cluster.tiers.back().size)
      add(Upgrade::domain, factor);
  }
  if (fails) {
    add(Upgrade::reliability, kTwice);
    if (options.reliability.checkpoint_seconds > 0.0) add(Upgrade::checkpoint, kTwice);
  }
  return out;
}

}  // namespace tessera::explain
