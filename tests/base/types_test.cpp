// Ids and quantities: what must not compile does not, told by the compiler itself; and the arithmetic that
// exists.
#include <gtest/gtest.h>

#include <concepts>
#include <type_traits>

#include "base/clock.h"
#include "base/ids.h"
#include "base/quantity.h"

namespace tessera {
namespace {

template <class A, class B>
concept Addable = requires(A a, B b) {
  a + b;
};
template <class A, class B>
concept Subtractable = requires(A a, B b) {
  a - b;
};
template <class A, class B>
concept Multipliable = requires(A a, B b) {
  a* b;
};
template <class A, class B>
concept Divisible = requires(A a, B b) {
  a / b;
};
template <class A, class B>
concept Comparable = requires(A a, B b) {
  a < b;
};

// Each line has a twin that does compile, so a misspelt concept cannot make all of them true.
TEST(Ids, OneKindIsNeverTakenForAnother) {
  static_assert(std::convertible_to<Rank, Rank>);
  static_assert(!std::convertible_to<StageId, Rank>);
  static_assert(!std::constructible_from<Rank, StageId>);
  static_assert(!std::constructible_from<LayerId, ExpertId>);
  static_assert(!std::assignable_from<MicrobatchId&, StageId>);
  static_assert(Comparable<Rank, Rank>);
  static_assert(!Comparable<Rank, StageId>);
  EXPECT_LT(Rank(2), Rank(3));
  EXPECT_EQ(StageId(4), StageId(4));
}

TEST(Ids, ABareNumberIsNoId) {
  static_assert(std::constructible_from<Rank, std::int32_t>);
  static_assert(!std::convertible_to<std::int32_t, Rank>);
  static_assert(!std::convertible_to<Rank, std::int32_t>);
  static_assert(!Addable<Rank, Rank>);
  static_assert(!Addable<Rank, std::int32_t>);
  EXPECT_EQ(Rank().value, 0);
}

TEST(Quantities, OnlySumsOfOneKindExist) {
  static_assert(Addable<Bytes, Bytes>);
  static_assert(!Addable<Bytes, Seconds>);
  static_assert(!Addable<Bytes, Flops>);
  static_assert(!Addable<Seconds, double>);
  static_assert(Subtractable<Seconds, Seconds>);
  static_assert(!Subtractable<Seconds, Bytes>);
  static_assert(!Comparable<Bytes, Flops>);
  EXPECT_EQ(Bytes(3) + Bytes(4), Bytes(7));
  EXPECT_EQ(Bytes(3) - Bytes(4), Bytes(-1));
}

TEST(Quantities, OnlyQuotientsWithAMeaningExist) {
  static_assert(std::same_as<decltype(Bytes() / BytesPerSecond()), Seconds>);
  static_assert(std::same_as<decltype(Flops() / FlopsPerSecond()), Seconds>);
  static_assert(std::same_as<decltype(Flops() / Seconds()), FlopsPerSecond>);
  static_assert(std::same_as<decltype(Bytes() / Seconds()), BytesPerSecond>);
  static_assert(!Divisible<Bytes, FlopsPerSecond>);
  static_assert(!Divisible<Flops, BytesPerSecond>);
  static_assert(!Divisible<Seconds, Bytes>);
  static_assert(!Multipliable<Bytes, Bytes>);
  static_assert(!Multipliable<Bytes, Seconds>);
  EXPECT_DOUBLE_EQ((Bytes(1'000'000) / gigabytes_per_second(1)).value, 1e-3);
}

TEST(Quantities, ScaleByPlainNumbers) {
  static_assert(Multipliable<Bytes, std::int64_t>);
  static_assert(!std::convertible_to<std::int64_t, Bytes>);
  static_assert(!std::convertible_to<Bytes, std::int64_t>);
  Bytes total = Bytes(3) * 4;
  total += 2 * Bytes(5);
  EXPECT_EQ(total, Bytes(22));
}

TEST(Clocks, RunForwardsAndTheThreadClockOnlyWhileWorking) {
  const std::int64_t wall = wall_ns();
  const std::int64_t cpu = thread_cpu_ns();
  volatile double sink = 0;
  while (thread_cpu_ns() - cpu < 2'000'000) sink = sink + 1;
  EXPECT_GE(wall_ns() - wall,
            1'900'000);  // 2 ms of work take 2 ms of wall time; the clocks may differ in their grain
}

}  // namespace
}  // namespace tessera
