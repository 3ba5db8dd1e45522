#include "search/walk.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <map>

#include "base/math.h"

namespace tessera::search {

namespace {

bool allowed(const std::vector<std::int32_t>& values, std::int32_t v) {
  return values.empty() || std::find(values.begin(), values.end(), v) != values.end();
}

std::vector<std::int32_t> divisors(std::int64_t n) {
  std::vector<std::int32_t> low, high;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d != 0) continue;
    low.push_back(static_cast<std::int32_t>(d));
    if (d * d != n) high.push_back(static_cast<std::int32_t>(n / d));
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

std::vector<std::int32_t> allowed_divisors(std::int64_t n, const std::vector<std::int32_t>& values) {
  std::vector<std::int32_t> all = divisors(n);
  std::erase_if(all, [&](std::int32_t d) { return !allowed(values, d); });
  return all;
}

class Walker {
 public:
  Walker(const cost::Setup& setup, const Space& space, Coster& coster)
      : setup_(setup), space_(space), coster_(coster) {
    if (setup.model.moe) {
      experts_ = allowed_divisors(setup.model.moe->num_experts, space.ep);
      widths_ = allowed_divisors(spec::expert_intermediate_size(setup.model), space.etp);
      const auto& tiers = setup.cluster.tiers;
      const bool bounded = space.etp.empty() && !tiers.empty();
      std::erase_if(widths_, [&](std::int32_t w) { return bounded && w > tiers.front().size; });
    } else {
      experts_ = widths_ = {1};
    }
  }

  Walk run() {
    const std::int64_t world = setup_.cluster.num_devices;
    for (const std::int32_t tp : allowed_divisors(world, space_.tp)) {
      for (const std::int32_t cp : allowed_divisors(world / tp, space_.cp)) {
        if (cp > 1 && space_.cp.empty() && setup_.work.sequence_length / cp < kMinRankTokens) break;
        for (const std::int32_t pp : allowed_divisors(world / tp / cp, space_.pp)) {
          const auto dp = static_cast<std::int32_t>(world / tp / cp / pp);
          if (!allowed(space_.dp, dp)) continue;
          cost::Candidate c{.tp = tp, .cp = cp, .dp = dp, .pp = pp};
          c.sequence_parallel = tp > 1;
          dense_layout(c);
        }
      }
    }
    for (auto& [key, task] : tasks_) walk_.tasks.push_back(std::move(task));
    return std::move(walk_);
  }

 private:
  // Small degrees tend to be fast: they make the bound sharp early.
  using Key = std::array<std::int64_t, 5>;
  static Key key(const cost::Candidate& c) {
    return {std::int64_t{c.tp} * c.cp * c.etp, c.ep, c.tp, c.cp, c.etp};
  }

  void dense_layout(cost::Candidate c) {
    const std::int64_t replica = std::int64_t{c.tp} * c.cp * c.dp;
    for (const std::int32_t ep : experts_) {
      for (const std::int32_t etp : widths_) {
        if (replica % (std::int64_t{ep} * etp) != 0) continue;
        c.ep = ep;
        c.etp = etp;
        layout(c);
      }
    }
  }

  void layout(cost::Candidate c) {
    ++walk_.layouts;
    const std::int64_t batch = setup_.work.global_batch_size;
    if (batch % c.dp != 0) {
      walk_.tally.add(Reason::batch, c,
                      fmt::format("dp={} does not divide global_batch_size={}", c.dp, batch));
      return;
    }
    const std::vector<std::int32_t> sizes = micro_batch_sizes(setup_, space_, c);
    if (sizes.empty()) {
      walk_.tally.add(
          Reason::batch, c,
          fmt::format("no allowed micro-batch size divides the {} sequences of a replica", batch / c.dp));
      return;
    }
    c.micro_batch_size = sizes.front();
    const std::string wrong = coster_.why_invalid(c);
    if (!wrong.empty()) {
      walk_.tally.add(Reason::shape, c, wrong);
      return;
    }
    Task& task = tasks_[key(c)];
    task.base = c;
    task.base.pp = task.base.dp = 1;
    task.pp.push_back(c.pp);
  }

  const cost::Setup& setup_;
  const Space& space_;
  Coster& coster_;
  std::vector<std::int32_t> experts_, widths_;
  std::map<Key, Task> tasks_;
  Walk walk_;
};

}  // namespace

Walk make_walk(const cost::Setup& setup, const Space& space, Coster& coster) {
  return Walker(setup, space, coster).run();
}

std::vector<std::int32_t> micro_batch_sizes(const cost::Setup& setup, const Space& space,
                                            const cost::Candidate& layout) {
  const std::int64_t batch = setup.work.global_batch_size;
  if (batch % layout.dp != 0) return {};
  std::vector<std::int32_t> sizes = allowed_divisors(batch / layout.dp, space.micro_batch_size);
  if (!space.micro_batch_size.empty()) return sizes;
  const std::int64_t tokens = setup.work.sequence_length / layout.cp;
  std::erase_if(sizes, [&](std::int32_t n) { return n > 1 && n * tokens > kMaxRankTokens; });
  return sizes;
}

std::vector<Pipeline> pipelines(const cost::Setup& setup, const Space& space, std::int32_t pp) {
  using schedule::Kind;
  std::vector<Kind> kinds = space.schedules;
  if (kinds.empty()) kinds = {Kind::one_f_one_b, Kind::interleaved, Kind::zb_h1, Kind::zb_v};
  std::sort(kinds.begin(), kinds.end());
  kinds.erase(std::unique(kinds.begin(), kinds.end()), kinds.end());
  std::vector<Pipeline> result;
  if (pp == 1) {  // every schedule is the same
    const auto plain = [](Kind k) { return schedule::required_vpp(k) == 1; };
    if (!allowed(space.vpp, 1) || std::none_of(kinds.begin(), kinds.end(), plain)) return {};
    const bool usual = std::find(kinds.begin(), kinds.end(), Kind::one_f_one_b) != kinds.end();
    return {{.kind = usual ? Kind::one_f_one_b : *std::find_if(kinds.begin(), kinds.end(), plain)}};
  }
  const std::int64_t layers = div_ceil(setup.model.num_hidden_layers, pp);
  for (const Kind kind : kinds) {
    const std::int32_t needed = schedule::required_vpp(kind);
    if (needed > 0) {
      if (allowed(space.vpp, needed)) result.push_back({.kind = kind, .vpp = needed});
      continue;
    }
    for (const std::int32_t vpp : space.vpp.empty() ? divisors(layers) : space.vpp) {
      if (vpp > 1) result.push_back({.kind = kind, .vpp = vpp});
    }
  }
  return result;
}

std::vector<std::int32_t> zero_stages(const Space& space, const cost::Candidate& c) {
  std::vector<std::int32_t> stages = space.zero_stages;
  if (stages.empty()) stages = {0, 1, 2, 3};
  if (c.dp * c.cp == 1 && c.edp() <= 1) stages.resize(1);
  return stages;
}

std::vector<cost::AxisOrder> orders(const Space& space, const cost::Candidate& c) {
  std::vector<cost::AxisOrder> all = space.orders;
  if (all.empty()) all = {cost::AxisOrder::tp_cp_ep_dp_pp, cost::AxisOrder::tp_cp_ep_pp_dp};
  if (c.dp == 1 || c.pp == 1) all.resize(1);
  return all;
}

std::vector<RecomputeChoice> recompute_choices(const cost::Setup& setup, const Space& space) {
  return space.recompute.empty() ? default_recompute(setup.model, setup.practice) : space.recompute;
}

}  // namespace tessera::search
