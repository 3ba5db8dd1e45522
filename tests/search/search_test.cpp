// The search against brute force over every whole number, its determinism, its accounts of what it rejects.
#include "search/search.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>

#include "search/fake_coster.h"

namespace tessera::search {
namespace {

// Written without the search's own code: every number up to the limit in every axis.
class BruteForce {
 public:
  BruteForce(const cost::Setup& setup, Coster& coster) : setup_(setup), coster_(coster) {
    const std::int32_t world = setup_.cluster.num_devices;
    const std::int32_t ep_max = setup_.model.moe ? setup_.model.moe->num_experts : 1;
    const std::int32_t etp_max = setup_.model.moe ? world : 1;
    for (std::int32_t tp = 1; tp <= world; ++tp) {
      for (std::int32_t cp = 1; cp <= world; ++cp) {
        for (std::int32_t pp = 1; pp <= world; ++pp) {
          for (std::int32_t dp = 1; dp <= world; ++dp) {
            if (tp * cp * pp * dp != world) continue;
            for (std::int32_t ep = 1; ep <= ep_max; ++ep) {
              for (std::int32_t etp = 1; etp <= etp_max; ++etp) {
                choices({.tp = tp, .cp = cp, .dp = dp, .pp = pp, .ep = ep, .etp = etp});
              }
            }
          }
        }
      }
    }
    for (const Ranked& r : all_) sorted_.push_back({r.cost.seconds(), &r});
    std::sort(sorted_.begin(), sorted_.end(), [](const auto& a, const auto& b) {
      return a.first != b.first ? a.first < b.first : compare(a.second->candidate, b.second->candidate) < 0;
    });
  }

  [[nodiscard]] std::vector<Ranked> best(std::int32_t top, Distinct distinct) const {
    std::vector<Ranked> list;
    for (const auto& [seconds, r] : sorted_) {
      if (static_cast<std::int32_t>(list.size()) == top) break;
      const bool again = std::any_of(list.begin(), list.end(), [&](const Ranked& o) {
        const cost::Candidate &a = o.candidate, &b = r->candidate;
        return a.tp == b.tp && a.cp == b.cp && a.pp == b.pp && a.ep == b.ep && a.etp == b.etp;
      });
      if (distinct == Distinct::candidates || !again) list.push_back(*r);
    }
    return list;
  }
  std::int64_t visited = 0, too_big = 0;
  double least_excess = std::numeric_limits<double>::infinity();

 private:
  void choices(cost::Candidate c) {
    if (setup_.model.moe) {
      if (setup_.model.moe->num_experts % c.ep != 0 || setup_.model.intermediate_size % c.etp != 0) return;
    }
    if (c.tp * c.cp * c.dp % (c.ep * c.etp) != 0) return;
    c.sequence_parallel = c.tp > 1;
    const auto layers = (setup_.model.num_hidden_layers + c.pp - 1) / c.pp;
    for (std::int32_t mbs = 1; mbs <= setup_.work.global_batch_size; ++mbs) {
      if (setup_.work.global_batch_size % (c.dp * mbs) != 0) continue;
      c.micro_batch_size = mbs;
      for (std::int32_t vpp = 1; vpp <= layers; ++vpp) {
        if (layers % vpp != 0 && vpp != 2) continue;
        for (const auto kind : {schedule::Kind::one_f_one_b, schedule::Kind::interleaved,
                                schedule::Kind::zb_h1, schedule::Kind::zb_v}) {
          const std::int32_t needed = schedule::required_vpp(kind);
          if (needed > 0 ? vpp != needed : (vpp < 2 || layers % vpp != 0)) continue;
          if (c.pp == 1 && kind != schedule::Kind::one_f_one_b) continue;
          c.vpp = vpp;
          c.schedule = kind;
          rest(c);
        }
      }
    }
  }

  void rest(cost::Candidate c) {
    for (const RecomputeChoice& choice : default_recompute(setup_.model, setup_.practice)) {
      for (std::int32_t zero = 0; zero <= 3; ++zero) {
        if (zero > 0 && c.dp * c.cp == 1 && c.edp() == 1) continue;  // nothing to share
        for (const auto order : {cost::AxisOrder::tp_cp_ep_dp_pp, cost::AxisOrder::tp_cp_ep_pp_dp}) {
          if (order != cost::AxisOrder::tp_cp_ep_dp_pp && (c.dp == 1 || c.pp == 1)) continue;
          c.recompute = choice.mode;
          c.recompute_modules = choice.modules;
          c.zero_stage = zero;
          c.order = order;
          leaf(c);
        }
      }
    }
  }

  void leaf(const cost::Candidate& c) {
    if (!coster_.why_invalid(c).empty()) return;
    ++visited;
    const double excess = coster_.memory(c).reserved() - usable_memory(setup_);
    if (excess > 0) {
      ++too_big;
      least_excess = std::min(least_excess, excess);
      return;
    }
    all_.push_back({.candidate = c, .cost = coster_.predict(c)});
  }

  const cost::Setup& setup_;
  Coster& coster_;
  std::vector<Ranked> all_;
  std::vector<std::pair<double, const Ranked*>> sorted_;
};

void expect_equal(const std::vector<Ranked>& a, const std::vector<Ranked>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].candidate, b[i].candidate)
        << i << ": " << cost::to_text(a[i].candidate) << " against " << cost::to_text(b[i].candidate);
    EXPECT_EQ(a[i].cost.seconds(), b[i].cost.seconds()) << i;
  }
}

const Rejection* find(const Result& r, Reason reason) {
  const auto at = std::find_if(r.rejections.begin(), r.rejections.end(),
                               [&](const Rejection& x) { return x.reason == reason; });
  return at == r.rejections.end() ? nullptr : &*at;
}

void expect_brute_force(const cost::Setup& setup, const CosterFactory& make) {
  const std::unique_ptr<Coster> coster = make();
  const BruteForce brute(setup, *coster);
  for (const Distinct distinct : {Distinct::layouts, Distinct::candidates}) {
    for (const std::int32_t top : {1, 7, 300}) {
      SCOPED_TRACE(testing::Message() << setup.cluster.num_devices << " devices, top " << top);
      const std::vector<Ranked> truth = brute.best(top, distinct);
      expect_equal(search(setup, {}, {.top = top, .threads = 2, .distinct = distinct}, make).best, truth);
      const Result r = search(setup, {}, {.top = top, .distinct = distinct, .prune = false}, make);
      expect_equal(r.best, truth);
      EXPECT_EQ(r.costed + brute.too_big, brute.visited);
      const Rejection* big = find(r, Reason::does_not_fit);
      ASSERT_EQ(big != nullptr, brute.too_big > 0);
      if (big != nullptr) {
        EXPECT_DOUBLE_EQ(big->needs - big->limit, brute.least_excess);
      }
    }
  }
}

TEST(Search, FindsTheListOfBruteForceExactly) {
  for (const std::int32_t experts : {0, 8}) {
    for (const std::int32_t devices : {1, 6, 8, 24}) {
      const cost::Setup setup = small_setup(devices, experts);
      expect_brute_force(setup, factory(setup));
    }
  }
}

TEST(Search, PruningSavesWorkAndChangesNoList) {
  const cost::Setup setup = small_setup(24, 8);
  const Result all = search(setup, {}, {.top = 5, .prune = false}, factory(setup));
  const Result pruned = search(setup, {}, {.top = 5}, factory(setup));
  expect_equal(pruned.best, all.best);
  EXPECT_EQ(all.pruned, 0);
  EXPECT_EQ(all.enumerated, pruned.enumerated);
  EXPECT_GT(pruned.pruned, 0);
  EXPECT_LT(pruned.costed, all.costed * 3 / 4);
}

TEST(Search, GivesTheSameResultOnAnyNumberOfThreads) {
  const cost::Setup setup = small_setup(24, 8);
  const Result one = search(setup, {}, {.top = 10, .threads = 1}, factory(setup));
  for (const std::int32_t threads : {2, 3, 8}) {
    const Result many = search(setup, {}, {.top = 10, .threads = threads}, factory(setup));
    expect_equal(one.best, many.best);
    EXPECT_EQ(one.layouts, many.layouts);
    EXPECT_EQ(one.enumerated, many.enumerated);
    EXPECT_EQ(one.costed, many.costed);
    EXPECT_EQ(one.pruned, many.pruned);
    ASSERT_EQ(one.rejections.size(), many.rejections.size());
    for (std::size_t i = 0; i < one.rejections.size(); ++i) {
      const Rejection &a = one.rejections[i], &b = many.rejections[i];
      EXPECT_EQ(a.reason, b.reason);
      EXPECT_EQ(a.lost_to, b.lost_to);
      EXPECT_EQ(a.count, b.count);
      EXPECT_EQ(a.nearest, b.nearest);
      EXPECT_EQ(a.why, b.why);
      EXPECT_EQ(a.needs, b.needs);
    }
  }
}

TEST(Search, CountsEveryCandidateOnce) {
  for (const bool prune : {false, true}) {
    const cost::Setup setup = small_setup(16, 8);
    const Result r = search(setup, {}, {.top = 10, .prune = prune}, factory(setup));
    std::int64_t accounted = static_cast<std::int64_t>(r.best.size());
    for (const Rejection& x : r.rejections) {
      if (x.reason != Reason::batch && x.reason != Reason::shape) accounted += x.count;
    }
    EXPECT_EQ(accounted, r.enumerated);
  }
}

struct Flat : FakeCoster {
  using FakeCoster::FakeCoster;
  double lower_bound(const cost::Candidate&) override { return 1.0; }
  double lowest_bound(const cost::Candidate&) override { return 1.0; }
  cost::StepCost predict(const cost::Candidate&) override {
    cost::StepCost s;
    s.parts[0] = 1.0;
    return s;
  }
};

TEST(Search, BreaksTiesByTheFixedOrder) {
  const cost::Setup setup = small_setup(12);
  Flat coster(setup);
  BruteForce brute(setup, coster);
  const std::vector<Ranked> truth = brute.best(40, Distinct::candidates);
  for (const std::int32_t threads : {1, 4}) {
    const Result r = search(setup, {}, {.top = 40, .threads = threads, .distinct = Distinct::candidates},
                            factory<Flat>(setup));
    expect_equal(r.best, truth);
    EXPECT_EQ(r.pruned, 0);  // a tie is no proof
  }
}

TEST(Search, NamesTheNearestMissOfModelsThatFitNowhere) {
  cost::Setup setup = small_setup(8);
  setup.calibration.usable_memory = Bytes(20);
  const Result r = search(setup, {}, {}, factory(setup));
  EXPECT_TRUE(r.best.empty());
  EXPECT_EQ(r.costed, 0);
  const Rejection* big = find(r, Reason::does_not_fit);
  ASSERT_NE(big, nullptr);
  EXPECT_GT(big->needs, 20.0);
  EXPECT_EQ(big->limit, 20.0);
  EXPECT_EQ(big->nearest.recompute, spec::Recompute::full);
  EXPECT_DOUBLE_EQ(big->excess(), big->needs / 20.0 - 1.0);
}

TEST(Search, LeavesMemoryFreeWhenAskedTo) {
  const cost::Setup setup = small_setup(8);
  const Result r = search(setup, {}, {.top = 1000, .memory_fraction = 0.5}, factory(setup));
  ASSERT_FALSE(r.best.empty());
  for (const Ranked& x : r.best) EXPECT_LE(x.cost.memory.reserved(), 450.0);
}

TEST(Search, StaysInsideOfPins) {
  const cost::Setup setup = small_setup(24, 8);
  Space space;
  space.tp = {2, 4};
  space.ep = {4};
  space.zero_stages = {1};
  space.schedules = {schedule::Kind::zb_h1};
  space.recompute = {{.mode = spec::Recompute::full}};
  space.orders = {cost::AxisOrder::tp_cp_ep_pp_dp};
  space.micro_batch_size = {2};
  const Result r = search(setup, space, {.top = 1000, .distinct = Distinct::candidates}, factory(setup));
  ASSERT_FALSE(r.best.empty());
  for (const Ranked& x : r.best) {
    const cost::Candidate& c = x.candidate;
    EXPECT_TRUE(c.tp == 2 || c.tp == 4);
    EXPECT_EQ(c.ep, 4);
    EXPECT_EQ(c.zero_stage, 1);
    EXPECT_EQ(c.schedule, schedule::Kind::zb_h1);
    EXPECT_EQ(c.recompute, spec::Recompute::full);
    EXPECT_EQ(c.order, cost::AxisOrder::tp_cp_ep_pp_dp);
    EXPECT_EQ(c.micro_batch_size, 2);
    EXPECT_EQ(c.world_size(), 24);
  }
}

TEST(Search, TakesTheOrderOfTheFinerModel) {
  const cost::Setup setup = small_setup(16);
  const Result coarse = search(setup, {}, {.top = 20}, factory(setup));
  // Turns the list round.
  const Refine refine = [](const cost::Candidate&, const cost::StepCost& c) {
    cost::StepCost finer = c;
    finer.parts[0] += 1000.0 - 2.0 * c.seconds();
    return finer;
  };
  const Result fine = search(setup, {}, {.top = 5, .refine = refine, .refined = 20}, factory(setup));
  ASSERT_EQ(fine.best.size(), 5U);
  EXPECT_EQ(fine.best[0].candidate, coarse.best[19].candidate);
  EXPECT_NEAR(fine.best[0].cost.seconds(), 1000.0 - coarse.best[19].cost.seconds(), 1e-9);
}

struct Broken : FakeCoster {
  using FakeCoster::FakeCoster;
  cost::MemoryCost memory(const cost::Candidate& c) override {
    if (c.tp == 4) throw Error(ErrorKind::internal, "tp 4 is broken", "memory", "mend it");
    return FakeCoster::memory(c);
  }
};

TEST(Search, PassesOnTheErrorsOfTheCostModel) {
  const cost::Setup setup = small_setup(16);
  for (const std::int32_t threads : {1, 4}) {
    try {
      (void)search(setup, {}, {.threads = threads}, factory<Broken>(setup));
      FAIL() << "no error";
    } catch (const Error& e) {
      EXPECT_EQ(e.problems().front().what, "tp 4 is broken");
    }
  }
}

}  // namespace
}  // namespace tessera::search
