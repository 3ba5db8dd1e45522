// The recorder: no allocation while recording, drops are counted, names and streams survive collection, and
// the order of recorders does not matter. Allocations are counted by replacing operator new in this program.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "base/clock.h"
#include "base/error.h"
#include "support.h"
#include "trace/trace.h"

namespace {
std::atomic<std::int64_t> allocations{0};
}
// Not inlined: g++ 12 would warn of free() on what operator new returned.
[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

namespace tessera::trace {
namespace {

using testing::AllOf;
using testing::HasSubstr;

TEST(Recorder, NeverAllocatesWhileRecording) {
  Recorder recorder({.rank = Rank(1), .capacity = 100, .max_names = 4});
  const StreamId stream = recorder.stream("compute");
  const char* literals[] = {"a", "b", "c", "d", "e", "f"};
  const std::int64_t before = allocations;
  for (std::int32_t i = 0; i < 200; ++i) {
    const Scope scope(&recorder, {.name = recorder.literal(literals[i % 6]), .stream = stream});
  }
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(recorder.spans().size(), 100U);
  EXPECT_EQ(recorder.dropped(), 100);
  EXPECT_EQ(recorder.text(recorder.spans()[3].name), "d");
  EXPECT_EQ(recorder.text(recorder.spans()[4].name), "other");  // the table is full
}

TEST(Recorder, FindsALiteralAgainByItsAddress) {
  Recorder recorder({});
  const char* name = "attention";
  EXPECT_EQ(recorder.literal(name), recorder.literal(name));
  EXPECT_NE(recorder.literal(name), recorder.literal("mlp"));
  EXPECT_EQ(recorder.name(std::string("layer 3")), recorder.name("layer 3"));
  EXPECT_EQ(recorder.stream("tp"), recorder.stream("tp"));
  EXPECT_NE(recorder.stream("tp"), recorder.stream("dp"));
  EXPECT_THROW(static_cast<void>(recorder.text(NameId(99))), Error);
}

TEST(Recorder, KeepsRoomForLiteralsAfterOwnNames) {
  Recorder recorder({.capacity = 1, .max_names = 3});
  for (std::int32_t i = 0; i < 100; ++i) static_cast<void>(recorder.name("layer " + std::to_string(i)));
  const std::int64_t before = allocations;
  const NameId ids[] = {recorder.literal("x"), recorder.literal("y"), recorder.literal("z")};
  EXPECT_EQ(allocations - before, 0);
  EXPECT_EQ(recorder.text(ids[2]), "z");
  EXPECT_EQ(recorder.text(recorder.name("layer 7")), "layer 7");
}

TEST(Recorder, FillsInRankRunnerAndStep) {
  Recorder recorder({.rank = Rank(3), .runner = Runner::helper});
  const StreamId stream = recorder.stream("dp");
  recorder.set_step(7);
  recorder.record({.stream = stream, .start_ns = 1, .end_ns = 2});
  recorder.record({.rank = Rank(9), .stream = stream, .start_ns = 1, .end_ns = 2, .step = 5});
  EXPECT_EQ(recorder.spans()[0].step, 7);
  EXPECT_EQ(recorder.spans()[1].step, 5);
  EXPECT_EQ(recorder.spans()[1].rank, Rank(3));
  EXPECT_EQ(recorder.spans()[1].runner, Runner::helper);
  recorder.clear();
  EXPECT_TRUE(recorder.spans().empty());
}

TEST(Recorder, RejectsSizesBelowOne) {
  try {
    Recorder recorder({.capacity = 0, .max_names = -1});
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), AllOf(HasSubstr("capacity=0 is below 1"), HasSubstr("max_names=-1"),
                                HasSubstr("mend: use 1 or more spans")));
  }
}

TEST(Scope, MeasuresWallAndCpuTime) {
  Recorder recorder({});
  const StreamId stream = recorder.stream("compute");
  const std::int64_t begin = wall_ns();
  {
    Scope scope(&recorder, {.name = recorder.literal("sleep"), .category = Category::wait, .stream = stream});
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    scope.span().bytes = Bytes(12);
  }
  ASSERT_EQ(recorder.spans().size(), 1U);
  const Span& s = recorder.spans()[0];
  EXPECT_GE(s.start_ns, begin);
  EXPECT_GE(s.end_ns - s.start_ns, 20'000'000);
  EXPECT_GE(s.cpu_ns, 0);
  EXPECT_LT(s.cpu_ns, 15'000'000);  // asleep
  EXPECT_EQ(s.bytes, Bytes(12));
  EXPECT_EQ(s.category, Category::wait);
}

TEST(Scope, DoesNothingWithoutARecorder) {
  EXPECT_NO_THROW(Scope(nullptr, {}).span().bytes = Bytes(1));
}

TEST(Collect, DoesNotDependOnTheOrderOfRecordersAndNames) {
  Recorder a({.rank = Rank(0), .capacity = 2}), b({.rank = Rank(1)}),
      helper({.rank = Rank(0), .runner = Runner::helper});
  const StreamId dp_first = b.stream("dp"), compute_second = b.stream("compute");
  const StreamId compute = a.stream("compute"), dp = helper.stream("dp");
  b.record({.name = b.literal("zeta"), .stream = compute_second, .start_ns = 5, .end_ns = 6});
  b.record({.name = b.literal("alpha"), .stream = dp_first, .start_ns = 1, .end_ns = 2});
  for (std::int64_t t = 3; t > 0; --t) {
    a.record({.name = a.literal("alpha"), .stream = compute, .start_ns = t, .end_ns = t + 1});
  }
  helper.record({.name = helper.name("zeta"), .stream = dp, .start_ns = 0, .end_ns = 1});
  const Trace one = collect({&a, &b, &helper}, {{"k", "v"}}), two = collect({&helper, &b, &a}, {{"k", "v"}});
  EXPECT_EQ(one, two);
  EXPECT_EQ(one.names, (std::vector<std::string>{"alpha", "zeta"}));
  EXPECT_EQ(one.streams, (std::vector<std::string>{"compute", "dp"}));
  EXPECT_EQ(one.dropped, 1);
  ASSERT_EQ(one.spans.size(), 5U);
  EXPECT_EQ(one.spans[0].start_ns, 2);  // rank 0, compute, by time
  EXPECT_EQ(one.spans[2].runner, Runner::helper);
  EXPECT_EQ(one.spans[4].name, NameId(0));
}

TEST(Canonical, IsIdempotentAndRejectsForeignIds) {
  const Trace t = random_trace(1, 200);
  EXPECT_EQ(canonical(canonical(t)), canonical(t));
  Trace wrong = t;
  wrong.spans[17].stream = StreamId(4);
  try {
    static_cast<void>(canonical(wrong));
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(),
                AllOf(HasSubstr("stream 4 of 4"), HasSubstr("where: trace: span 17"), HasSubstr("mend: ")));
  }
}

}  // namespace
}  // namespace tessera::trace
