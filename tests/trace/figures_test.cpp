// Derived figures, against cases made by hand and against a count of single nanoseconds.
#include "trace/figures.h"

#include <gtest/gtest.h>

#include "base/random.h"

namespace tessera::trace {
namespace {

struct Maker {
  Trace t{.names = {"x"}, .streams = {"compute", "dp"}, .spans = {}, .metadata = {}};
  Maker& add(Category category, std::int64_t start, std::int64_t end, Span more = {}) {
    more.category = category;
    more.start_ns = start;
    more.end_ns = end;
    t.spans.push_back(more);
    return *this;
  }
};

constexpr double kNs = 1e-9;

TEST(Figures, BackgroundCommunicationIsExposedOnlyBesideCompute) {
  const Span helper{.axis = Axis::dp, .runner = Runner::helper, .stream = StreamId(1), .bytes = Bytes(100)};
  const Figures f = figures(Maker()
                                .add(Category::forward, 0, 100)
                                .add(Category::backward_input, 150, 200)
                                .add(Category::communication, 80, 160, helper)   // 50 beside compute
                                .add(Category::communication, 190, 230, helper)  // 30
                                .t);
  EXPECT_EQ(f.of(Axis::dp).count, 2);
  EXPECT_EQ(f.of(Axis::dp).bytes, Bytes(200));
  EXPECT_NEAR(f.of(Axis::dp).total.value, 120 * kNs, 1e-15);
  EXPECT_NEAR(f.of(Axis::dp).exposed.value, 80 * kNs, 1e-15);
  ASSERT_EQ(f.ranks.size(), 1U);
  EXPECT_NEAR(f.ranks[0].busy.value, 150 * kNs, 1e-15);
  EXPECT_NEAR(f.ranks[0].exposed.value, 80 * kNs, 1e-15);
  EXPECT_NEAR(f.window.value, 230 * kNs, 1e-15);
}

TEST(Figures, CommunicationOfTheRankItselfIsExposedEvenInsideCompute) {
  const Figures f =
      figures(Maker()
                  .add(Category::forward, 0, 100, {.cpu_ns = 90})
                  .add(Category::forward, 10, 60, {.cpu_ns = 40})  // a layer inside of the stage
                  .add(Category::communication, 20, 30, {.axis = Axis::tp, .bytes = Bytes(8)})
                  .t);
  EXPECT_NEAR(f.of(Axis::tp).exposed.value, 10 * kNs, 1e-15);
  EXPECT_NEAR(f.ranks[0].busy.value, 90 * kNs, 1e-15);
  EXPECT_NEAR(f.ranks[0].cpu.value, 90 * kNs, 1e-15);  // the inner span is part of the outer one
  EXPECT_NEAR(f.of(Category::forward).value, 150 * kNs, 1e-15);
}

TEST(Figures, WaitingIsNotBusyAndHidesNothing) {
  const Figures f =
      figures(Maker()
                  .add(Category::backward_weight, 0, 100)
                  .add(Category::wait, 40, 70)
                  .add(Category::wait, 60, 80)
                  .add(Category::communication, 50, 90, {.axis = Axis::ep, .runner = Runner::helper})
                  .t);
  EXPECT_NEAR(f.ranks[0].busy.value, 60 * kNs, 1e-15);
  EXPECT_NEAR(f.ranks[0].waiting.value, 40 * kNs, 1e-15);
  EXPECT_NEAR(f.of(Axis::ep).exposed.value, 30 * kNs, 1e-15);
}

TEST(Figures, ComputeOfAnotherRankHidesNothing) {
  const Figures f = figures(
      Maker()
          .add(Category::forward, 0, 100, {.rank = Rank(1)})
          .add(Category::communication, 0, 50, {.axis = Axis::pp, .runner = Runner::helper, .rank = Rank(0)})
          .t);
  EXPECT_NEAR(f.of(Axis::pp).exposed.value, 50 * kNs, 1e-15);
  ASSERT_EQ(f.ranks.size(), 2U);
  EXPECT_EQ(f.ranks[1].rank, Rank(1));
  EXPECT_EQ(f.ranks[0].busy.value, 0);
}

TEST(Figures, OfOneStepLeaveTheOthersOut) {
  Maker m;
  m.add(Category::forward, 0, 10, {.flops = Flops(5), .step = 1})
      .add(Category::forward, 20, 60, {.flops = Flops(7), .step = 2});
  EXPECT_NEAR(figures(m.t, 2).window.value, 40 * kNs, 1e-15);
  EXPECT_EQ(figures(m.t, 2).ranks[0].flops, 7);
  EXPECT_EQ(figures(m.t).ranks[0].flops, 12);
  EXPECT_TRUE(figures(m.t, 3).ranks.empty());
  EXPECT_EQ(figures(m.t, 3), figures(Trace{}));
}

TEST(Figures, AgreeWithACountOfSingleNanoseconds) {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    std::uint64_t next = 0;
    const auto below = [&](std::uint64_t n) {
      return static_cast<std::int64_t>(uniform_below(n, seed, 2, next++));
    };
    Maker m;
    for (std::int32_t i = 0; i < 40; ++i) {
      const std::int64_t start = below(500);
      m.add(static_cast<Category>(below(kNumCategories)), start, start + below(40),
            {.axis = static_cast<Axis>(below(3)),
             .runner = static_cast<Runner>(below(2)),
             .stream = StreamId(1)});
    }
    std::int64_t busy = 0, exposed = 0, waiting = 0, axis_exposed = 0;
    for (std::int64_t ns = 0; ns < 600; ++ns) {
      bool compute = false, blocked = false, waits = false;
      std::int64_t communication = 0, of_axis = 0;
      for (const Span& s : m.t.spans) {
        if (ns < s.start_ns || ns >= s.end_ns) continue;
        compute = compute || is_compute(s.category);
        waits = waits || s.category == Category::wait;
        if (s.category != Category::communication) continue;
        ++communication;
        of_axis += s.axis == Axis::tp ? 1 : 0;
        blocked = blocked || s.runner == Runner::rank;
      }
      const bool is_busy = compute && !blocked && !waits;
      busy += is_busy ? 1 : 0;
      waiting += waits ? 1 : 0;
      exposed += communication > 0 && !is_busy ? 1 : 0;
      axis_exposed += is_busy ? 0 : of_axis;
    }
    const Figures f = figures(m.t);
    EXPECT_NEAR(f.ranks[0].busy.value, static_cast<double>(busy) * kNs, 1e-14);
    EXPECT_NEAR(f.ranks[0].waiting.value, static_cast<double>(waiting) * kNs, 1e-14);
    EXPECT_NEAR(f.ranks[0].exposed.value, static_cast<double>(exposed) * kNs, 1e-14);
    EXPECT_NEAR(f.of(Axis::tp).exposed.value, static_cast<double>(axis_exposed) * kNs, 1e-14);
  }
}

}  // namespace
}  // namespace tessera::trace
