#include "explain/what_if.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "base/text.h"
#include "explain/sizing.h"
#include "search/search.h"
#include "search/space.h"

namespace tessera::explain {

namespace {

using cost::Candidate;
using cost::Setup;

constexpr double kTwice = 2.0, kMoreMemory = 1.5;

// Walks over the levers; each adds its changes.
class Changes {
 public:
  Changes(const Setup& setup, const Candidate& base) : setup_(setup), base_(base) {}

  std::vector<Change> run() {
    degree(Lever::tp, "tp", &Candidate::tp);
    degree(Lever::cp, "cp", &Candidate::cp);
    degree(Lever::pp, "pp", &Candidate::pp);
    if (setup_.model.moe) {
      plain(Lever::ep, "ep", &Candidate::ep);
      plain(Lever::etp, "etp", &Candidate::etp);
    }
    plain(Lever::micro_batch, "micro-batch", &Candidate::micro_batch_size);
    stages();
    schedules();
    recomputations();
    for (std::int32_t zero = 0; zero <= 3; ++zero) {
      Candidate c = base_;
      c.zero_stage = zero;
      add(Lever::zero, fmt::format("ZeRO {} -> {}", base_.zero_stage, zero), c);
    }
    order();
    recipe();
    machine();
    memory();
    return std::move(out_);
  }

 private:
  void add(Lever lever, std::string text, const Candidate& c) { add(lever, std::move(text), setup_, c); }
  void add(Lever lever, std::string text, const Setup& setup, const Candidate& c) {
    if (c == base_ && &setup == &setup_) return;
    Change change{.lever = lever, .text = std::move(text), .setup = setup, .candidate = c, .priced = {}};
    change.priced = price(change.setup, c);
    out_.push_back(std::move(change));
  }

  template <class Use>
  static void halve_and_double(std::int32_t value, const Use& use) {
    if (value % 2 == 0) use(value / 2);
    use(value * 2);
  }

  // dp gives or takes.
  void degree(Lever lever, const char* what, std::int32_t Candidate::*axis) {
    halve_and_double(base_.*axis, [&](std::int32_t value) {
      Candidate c = base_;
      c.*axis = value;
      const std::int64_t all = std::int64_t{base_.*axis} * base_.dp;
      if (all % value != 0) return;
      c.dp = static_cast<std::int32_t>(all / value);
      std::string stages;
      if (axis == &Candidate::pp) stages = keep_stages(c);
      add(lever, fmt::format("{} {} -> {},{} dp {} -> {}", what, base_.*axis, value, stages, base_.dp, c.dp),
          c);
    });
  }

  void plain(Lever lever, const char* what, std::int32_t Candidate::*field) {
    halve_and_double(base_.*field, [&](std::int32_t value) {
      Candidate c = base_;
      c.*field = value;
      add(lever, fmt::format("{} {} -> {}", what, base_.*field, value), c);
    });
  }

  // A pipeline of one rank has no schedule to choose, one stage a rank no interleaving.
  static void to_fitting_schedule(Candidate& c) {
    using schedule::Kind;
    if (c.pp == 1) c.vpp = 1;
    if (c.pp == 1 || (c.vpp == 1 && c.schedule == Kind::interleaved)) c.schedule = Kind::one_f_one_b;
    if (c.vpp > 1 && c.schedule == Kind::one_f_one_b) c.schedule = Kind::interleaved;
  }

  // As many stages over another number of ranks, where they divide; else one a rank.
  std::string keep_stages(Candidate& c) const {
    const std::int32_t all = base_.pp * base_.vpp;
    if (base_.vpp > 1) c.vpp = all % c.pp == 0 && all / c.pp > 1 ? all / c.pp : 1;
    to_fitting_schedule(c);
    return c.vpp == base_.vpp ? "" : fmt::format(" stages a rank {} -> {},", base_.vpp, c.vpp);
  }

  void stages() {
    if (base_.pp == 1) return;
    halve_and_double(base_.vpp, [&](std::int32_t value) {
      Candidate c = base_;
      c.vpp = value;
      to_fitting_schedule(c);
      add(Lever::vpp, fmt::format("stages a rank {} -> {}", base_.vpp, value), c);
    });
  }

  void schedules() {
    using schedule::Kind;
    if (base_.pp == 1) return;
    for (const Kind kind : {Kind::one_f_one_b, Kind::zb_h1, Kind::zb_v}) {
      Candidate c = base_;
      c.schedule = kind;
      c.vpp = kind == Kind::zb_v ? 2 : 1;
      if (kind == base_.schedule) continue;
      add(Lever::schedule,
          fmt::format("schedule {} -> {}", schedule::name(base_.schedule), schedule::name(kind)), c);
    }
  }

  void recomputations() {
    const auto now = search::to_text({.mode = base_.recompute, .modules = base_.recompute_modules});
    for (const search::RecomputeChoice& choice : search::default_recompute(setup_.model, setup_.practice)) {
      Candidate c = base_;
      c.recompute = choice.mode;
      c.recompute_modules = choice.modules;
      const std::string then = search::to_text(choice);
      if (then != now) add(Lever::recompute, fmt::format("recompute {} -> {}", now, then), c);
    }
  }

  void order() {
    if (base_.pp == 1 || base_.dp == 1) return;
    using cost::AxisOrder;
    Candidate c = base_;
    c.order =
        base_.order == AxisOrder::tp_cp_ep_dp_pp ? AxisOrder::tp_cp_ep_pp_dp : AxisOrder::tp_cp_ep_dp_pp;
    add(Lever::order, fmt::format("order {}", cost::name(c.order)), c);
  }

  void recipe() {
    if (setup_.model.moe) {
      for (const double factor : {1.0, 1.25, 0.0}) {
        Setup s = setup_;
        s.work.capacity_factor = factor;
        if (factor == setup_.work.capacity_factor) continue;
        add(Lever::capacity,
            factor > 0.0 ? fmt::format("capacity factor {}: tokens above it are dropped", factor)
                         : std::string("dropless experts"),
            s, base_);
      }
    }
    Setup s = setup_;
    s.work.global_batch_size *= 2;
    add(Lever::batch,
        fmt::format("global batch {} -> {}", setup_.work.global_batch_size, s.work.global_batch_size), s,
        base_);
  }

  void scale_links(Lever lever, const char* text, std::size_t first, std::size_t last, double factor) {
    Setup s = setup_;
    for (std::size_t t = first; t < std::min(last, s.cluster.tiers.size()); ++t) {
      s.cluster.tiers[t].bandwidth = BytesPerSecond(s.cluster.tiers[t].bandwidth.value * factor);
    }
    add(lever, text, s, base_);
  }

  void machine() {
    const std::string inner = "twice the " + setup_.cluster.tiers.front().name + " bandwidth";
    scale_links(Lever::links, inner.c_str(), 0, 1, kTwice);
    if (setup_.cluster.tiers.size() < 2 || base_.world_size() <= setup_.cluster.tiers.front().size) return;
    const std::size_t all = setup_.cluster.tiers.size();
    scale_links(Lever::network, "twice the NICs", 1, all, kTwice);
    scale_links(Lever::network, "half the NICs", 1, all, 1.0 / kTwice);
  }

  // What does not fit today and is fastest with half as much memory again.
  void memory() {
    const Change* best = nullptr;
    for (const Change& c : out_) {
      const bool layout = c.lever < Lever::capacity;
      const double needs = c.priced.cost.memory.reserved();
      if (!layout || !c.priced.valid() || c.priced.fits ||
          needs > kMoreMemory * search::usable_memory(setup_))
        continue;
      if (best == nullptr || c.priced.seconds() < best->priced.seconds()) best = &c;
    }
    if (best == nullptr) return;
    Change change = *best;
    change.lever = Lever::memory;
    change.text = fmt::format("memory x {}: {}", kMoreMemory, best->text);
    change.setup = upgraded(change.setup, Upgrade::memory, kMoreMemory);
    change.priced = price(change.setup, change.candidate);
    out_.push_back(std::move(change));
  }

  const Setup& setup_;
  const Candidate& base_;
  std::vector<Change> out_;
};

}  // namespace

std::string_view name(Lever lever) {
  constexpr std::array<std::string_view, kNumLevers> kNames = {
      "tp",        "cp",   "pp",    "ep",       "etp",   "micro_batch", "vpp",     "schedule",
      "recompute", "zero", "order", "capacity", "batch", "links",       "network", "memory"};
  return kNames[static_cast<std::size_t>(lever)];
}

double Change::gain(const Setup& base_setup, const Priced& base) const {
  const auto tokens = [](const Setup& s) { return static_cast<double>(s.work.global_batch_size); };
  return tokens(setup) / priced.seconds() / (tokens(base_setup) / base.seconds()) - 1.0;
}

std::vector<Change> what_if(const Setup& setup, const Candidate& base) {
  return Changes(setup, base).run();
}

}  // namespace tessera::explain
