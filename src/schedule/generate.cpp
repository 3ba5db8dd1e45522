#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "base/math.h"
#include "schedule/schedule.h"
#include "schedule/zb_v.h"

namespace tessera::schedule {

namespace {

void check_degree(Problems& problems, std::string_view what, std::int32_t value) {
  if (value >= 1) return;
  problems.add(fmt::format("{}={} is below 1", what, value), fmt::format("schedule: {}", what),
               fmt::format("use {} of 1 or more", what));
}

void check_vpp(Problems& problems, Kind kind, std::int32_t vpp) {
  const std::int32_t required = required_vpp(kind);
  if (kind == Kind::interleaved) {
    if (vpp < 2) {
      problems.add(fmt::format("interleaved needs 2 or more stages per rank, got vpp={}", vpp),
                   "schedule: vpp", "use vpp of 2 or more, or the schedule 1f1b");
    }
  } else if (vpp != required) {
    problems.add(fmt::format("{} has {} stage{} per rank, got vpp={}", name(kind), required,
                             required == 1 ? "" : "s", vpp),
                 "schedule: vpp",
                 kind == Kind::zb_v ? "use vpp=2" : "use vpp=1, or the schedule interleaved");
  }
}

void check_costs(Problems& problems, const StageCosts& costs, std::int64_t num_stages) {
  const auto check_one = [&](std::string_view what, const std::vector<Seconds>& values) {
    if (static_cast<std::int64_t>(values.size()) != num_stages) {
      problems.add(fmt::format("costs.{} has {} entries for {} stages", what, values.size(), num_stages),
                   fmt::format("schedule: costs.{}", what), "give one cost per stage, or none at all");
    }
    for (std::size_t s = 0; s < values.size(); ++s) {
      if (values[s].value >= 0 && std::isfinite(values[s].value)) continue;
      problems.add(fmt::format("cost {} s is not a time", values[s].value),
                   fmt::format("schedule: costs.{}[{}]", what, s), "use seconds of 0 or more");
      return;
    }
  };
  check_one("forward", costs.forward);
  check_one("backward_input", costs.backward_input);
  check_one("backward_weight", costs.backward_weight);
  if (!(costs.p2p_latency.value >= 0 && std::isfinite(costs.p2p_latency.value))) {
    problems.add(fmt::format("latency {} s is not a time", costs.p2p_latency.value),
                 "schedule: costs.p2p_latency", "use seconds of 0 or more");
  }
}

void validate(const GenerateOptions& o) {
  Problems problems;
  check_degree(problems, "pp", o.pp);
  check_degree(problems, "num_microbatches", o.num_microbatches);
  check_degree(problems, "vpp", o.vpp);
  if (o.vpp >= 1) check_vpp(problems, o.kind, o.vpp);
  if (o.pp >= 1 && o.vpp >= 1 && o.num_microbatches >= 1) {
    const std::int64_t stages = std::int64_t{o.pp} * o.vpp;
    if (stages > kMaxCells || stages * o.num_microbatches > kMaxCells) {
      problems.add(fmt::format("pp={} x vpp={} x num_microbatches={} is more than {} cells", o.pp, o.vpp,
                               o.num_microbatches, kMaxCells),
                   "schedule", "use fewer micro-batches or stages");
    }
    const bool has_costs =
        !o.costs.forward.empty() || !o.costs.backward_input.empty() || !o.costs.backward_weight.empty();
    if (has_costs) check_costs(problems, o.costs, stages);
  }
  problems.throw_if_any();
}

// One rank's list under construction.
struct Builder {
  ActionList& list;
  void add(ActionKind kind, std::int32_t stage, std::int32_t microbatch) const {
    list.push_back({kind, StageId(stage), MicrobatchId(microbatch)});
  }
};

void naive(const Builder& out, std::int32_t rank, std::int32_t m) {
  for (std::int32_t k = 0; k < m; ++k) {
    out.add(ActionKind::forward, rank, k);
    out.add(ActionKind::backward, rank, k);
  }
}

void gpipe(const Builder& out, std::int32_t rank, std::int32_t m) {
  for (std::int32_t k = 0; k < m; ++k) out.add(ActionKind::forward, rank, k);
  for (std::int32_t k = 0; k < m; ++k) out.add(ActionKind::backward, rank, k);
}

void one_f_one_b(const Builder& out, std::int32_t rank, std::int32_t m, std::int32_t warm_up_forwards) {
  const std::int32_t warm_up = std::min(m, warm_up_forwards);
  for (std::int32_t k = 0; k < warm_up; ++k) out.add(ActionKind::forward, rank, k);
  for (std::int32_t k = 0; k < m; ++k) {
    if (k + warm_up < m) out.add(ActionKind::forward, rank, k + warm_up);
    out.add(ActionKind::backward, rank, k);
  }
}

// The order of 1F1B; W of micro-batch k runs after I of micro-batch k + rank, so every rank keeps pp
// micro-batches (1F1B: pp - rank) and W's fill what would be idle at the end: (pp-1)(F+I-W) idle.
void zb_h1(const Builder& out, std::int32_t rank, std::int32_t pp, std::int32_t m) {
  const std::int32_t warm_up = std::min(m, pp - 1 - rank);
  for (std::int32_t k = 0; k < warm_up; ++k) out.add(ActionKind::forward, rank, k);
  for (std::int32_t k = 0; k < m; ++k) {
    if (k + warm_up < m) out.add(ActionKind::forward, rank, k + warm_up);
    out.add(ActionKind::backward_input, rank, k);
    if (k >= rank) out.add(ActionKind::backward_weight, rank, k - rank);
  }
  for (std::int32_t k = std::max(0, m - rank); k < m; ++k) out.add(ActionKind::backward_weight, rank, k);
}

// Forwards run in groups of pp micro-batches, each group through all chunks in turn; backwards take the same
// order with the chunks reversed. A last incomplete group is written as if it were whole and its surplus
// dropped: dropping all of a micro-batch's actions keeps every order, while shorter groups would hang.
void interleaved(const Builder& out, std::int32_t rank, const GenerateOptions& o) {
  const std::int32_t pp = o.pp, vpp = o.vpp, m = o.num_microbatches;
  const std::int64_t units = round_up(m, pp) * vpp;
  const auto add = [&](ActionKind kind, std::int64_t unit) {
    const std::int64_t group = unit / (std::int64_t{pp} * vpp), in_group = unit % (std::int64_t{pp} * vpp);
    const auto turn = static_cast<std::int32_t>(in_group / pp);
    const auto k = static_cast<std::int32_t>(group * pp + in_group % pp);
    const std::int32_t chunk = kind == ActionKind::forward ? turn : vpp - 1 - turn;
    if (k < m) out.add(kind, chunk * pp + rank, k);
  };
  const std::int64_t warm_up = std::min<std::int64_t>(units, (pp - 1 - rank) * 2 + (vpp - 1) * pp);
  for (std::int64_t n = 0; n < warm_up; ++n) add(ActionKind::forward, n);
  for (std::int64_t n = 0; n < units; ++n) {
    if (n + warm_up < units) add(ActionKind::forward, n + warm_up);
    add(ActionKind::backward, n);
  }
}

}  // namespace

Schedule generate(const GenerateOptions& options) {
  validate(options);
  Schedule s{options.kind, options.pp, options.vpp, options.num_microbatches, placement_of(options.kind), {}};
  const std::int32_t m = options.num_microbatches;
  s.ranks.resize(static_cast<std::size_t>(options.pp));
  if (options.kind == Kind::zb_v) {
    s.ranks = detail::zb_v_lists(s, options.costs);
    return s;
  }
  for (std::int32_t r = 0; r < options.pp; ++r) {
    const Builder out{s.ranks[static_cast<std::size_t>(r)]};
    switch (options.kind) {
      case Kind::naive:
        naive(out, r, m);
        break;
      case Kind::gpipe:
        gpipe(out, r, m);
        break;
      case Kind::one_f_one_b:
        one_f_one_b(out, r, m, options.pp - 1 - r);
        break;
      case Kind::combined:
        one_f_one_b(out, r, m, combined_warm_up(options.pp, r));
        break;
      case Kind::interleaved:
        interleaved(out, r, options);
        break;
      case Kind::zb_h1:
        zb_h1(out, r, options.pp, m);
        break;
      case Kind::zb_v:
        break;
    }
  }
  return s;
}

}  // namespace tessera::schedule
