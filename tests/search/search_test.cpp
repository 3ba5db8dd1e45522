// The search against brute force over every whole number, its determinism, its accounts of what it rejects.
#include "search/search.h"

#include <gtest/gtest.h>

#include "search/brute_force.h"
#include "search/fake_coster.h"

namespace tessera::search {
namespace {

TEST(Search, FindsTheListOfBruteForceExactly) {
  for (const std::int32_t experts : {0, 8}) {
    for (const std::int32_t devices : {1, 6, 12}) {
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
  const Result coarse = search(setup, {}, {.top = 10}, factory(setup));
  ASSERT_EQ(coarse.best.size(), 10U);
  // Turns the list round.
  const Refine refine = [](const cost::Candidate&, const cost::StepCost& c) {
    cost::StepCost finer = c;
    finer.parts[0] += 1000.0 - 2.0 * c.seconds();
    return finer;
  };
  const Result fine = search(setup, {}, {.top = 5, .refine = refine, .refined = 10}, factory(setup));
  ASSERT_EQ(fine.best.size(), 5U);
  EXPECT_EQ(fine.best[0].candidate, coarse.best[9].candidate);
  EXPECT_NEAR(fine.best[0].cost.seconds(), 1000.0 - coarse.best[9].cost.seconds(), 1e-9);
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
