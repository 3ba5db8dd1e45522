// Whatever the step: nothing is lost, the same input gives the same bytes, makespan() agrees with simulate().
#include <gtest/gtest.h>

#include <filesystem>

#include "base/file.h"
#include "sim/support.h"
#include "trace/chrome.h"
#include "trace/figures.h"

namespace tessera::sim {
namespace {

using cost::Part;

TEST(Conservation, HoldsOnRandomSteps) {
  Dice dice(5);
  for (std::int32_t n = 0; n < 400; ++n) {
    SCOPED_TRACE(n);
    const Schedule s = random_schedule(dice);
    const cost::StepWork work = random_work(s, dice);
    const Options options = random_options(s, dice);
    const Result r = simulate(s, work, options);
    double sent = 0, received = 0;
    std::int64_t busy_and_idle = 0;
    for (const RankResult& rank : r.ranks) {
      SimTime sum{};
      for (const SimTime t : rank.parts) {
        EXPECT_GE(t.value, 0);
        sum += t;
      }
      EXPECT_EQ(sum, r.makespan);
      busy_and_idle += (rank.busy + rank.idle).value;
      sent += rank.bytes_sent[static_cast<std::size_t>(graph::Axis::pp)];
      received += rank.bytes_received[static_cast<std::size_t>(graph::Axis::pp)];
      EXPECT_EQ(rank.memory.front().time.value, 0);
      EXPECT_EQ(rank.memory.back().bytes, work.static_bytes[&rank - r.ranks.data()]);
      EXPECT_LE(rank.end, r.makespan);
    }
    EXPECT_EQ(busy_and_idle, s.pp * r.makespan.value);
    EXPECT_EQ(sent, received);
    double waterfall = 0;
    for (const double part : r.waterfall()) waterfall += part;
    EXPECT_NEAR(waterfall, r.seconds(), 1e-9);
    EXPECT_EQ(makespan(s, work, options), r.seconds());
    EXPECT_EQ(makespan(compute_only(s), work, options), r.seconds());
  }
}

TEST(Conservation, MessagesAreCountedOncePerBorderAndMicrobatch) {
  const Schedule s = make(Kind::interleaved, 4, 8, 2);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  for (std::size_t i = 0; i < work.stages.size(); ++i) work.stages[i].p2p_bytes = 1 << i;
  const Result r = simulate(s, work);
  double sent = 0;
  for (const RankResult& rank : r.ranks) sent += rank.bytes_sent[static_cast<std::size_t>(graph::Axis::pp)];
  EXPECT_EQ(sent, 2 * 8 * ((1 << 7) - 1));  // both ways over borders 0 .. 6
}

TEST(Determinism, TheSameStepGivesTheSameBytes) {
  Dice dice(8);
  const auto folder = std::filesystem::temp_directory_path() / "tessera_sim_bytes";
  std::filesystem::create_directories(folder);
  for (std::int32_t n = 0; n < 10; ++n) {
    const Schedule s = random_schedule(dice);
    const cost::StepWork work = random_work(s, dice);
    const Options options = random_options(s, dice);
    write_chrome(folder / "a.json", simulate(s, work, options).trace);
    write_chrome(folder / "b.json", simulate(s, work, options).trace);
    EXPECT_EQ(read_text(folder / "a.json"), read_text(folder / "b.json"));
    EXPECT_EQ(trace::read_chrome(folder / "a.json"), simulate(s, work, options).trace);
  }
  std::filesystem::remove_all(folder);
}

TEST(Traces, TellTheSameStoryAsTheFigures) {
  Dice dice(21);
  for (std::int32_t n = 0; n < 100; ++n) {
    SCOPED_TRACE(n);
    const Schedule s = random_schedule(dice);
    const cost::StepWork work = random_work(s, dice);
    Options options = random_options(s, dice);
    options.detail = Detail::segments;
    const Result r = simulate(s, work, options);
    const trace::Figures f = trace::figures(r.trace);
    for (std::size_t i = 0; i < f.ranks.size(); ++i) {
      const RankResult& rank = r.ranks[f.ranks[i].rank.value];
      // Compute that gathers and reductions beside it slow down is busy in the trace, exposed in the account.
      const double slack = 2e-9 * static_cast<double>(r.trace.spans.size());
      const double busy = schedule::to_seconds(rank.busy).value;
      EXPECT_GE(f.ranks[i].busy.value, busy - slack);
      const double most = busy + schedule::to_seconds(rank[Part::dp]).value + slack;
      EXPECT_LE(f.ranks[i].busy.value, most);
      double flops = 0;
      for (const trace::Span& span : r.trace.spans) {
        if (span.rank == f.ranks[i].rank) flops += static_cast<double>(span.flops.value);
      }
      // Spans of no length are not drawn.
      EXPECT_LE(flops, rank.flops);
    }
  }
}

TEST(Traces, OfActionsHaveOneSpanEach) {
  const Schedule s = make(Kind::zb_h1, 3, 5);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.stages[0].p2p_seconds = work.stages[1].p2p_seconds = 0.1;
  work.stages[0].p2p_bytes = 100;
  work.p2p_overlapped = true;
  const Result r = simulate(s, work, {.detail = Detail::actions});
  std::int32_t computes = 0, messages = 0;
  for (const trace::Span& span : r.trace.spans) {
    computes += is_compute(span.category) ? 1 : 0;
    messages += span.category == trace::Category::communication ? 1 : 0;
    if (span.axis == trace::Axis::pp && span.stage == 0) {
      EXPECT_EQ(span.bytes.value, 100);
    }
  }
  EXPECT_EQ(computes, 3 * 5 * 3);
  EXPECT_EQ(messages, 2 * 2 * 5);
  EXPECT_TRUE(simulate(s, work, {.detail = Detail::none}).trace.spans.empty());
}

}  // namespace
}  // namespace tessera::sim
