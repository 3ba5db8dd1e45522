// The example of docs/howto/add-a-schedule.md: a schedule written down as text, proven and timed.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "schedule/check.h"
#include "schedule/simulate.h"
#include "schedule/text.h"

namespace tessera::schedule {
namespace {

// [text]
// Two ranks, three micro-batches; rank 0 postpones its last two W to the end.
constexpr const char* kByHand = R"(
tessera-schedule 1: kind=zb-h1 pp=2 vpp=1 m=3 placement=loop
rank 0: 0F0 0F1 0I0 0F2 0W0 0I1 0W1 0I2 0W2
rank 1: 1F0 1I0 1F1 1W0 1I1 1F2 1W1 1I2 1W2
)";

TEST(ScheduleByHand, IsProvenAndIdlesLessThan1F1B) {
  const Schedule mine = from_text(kByHand);
  const CheckReport report = check(lower(mine));
  ASSERT_TRUE(report.ok()) << report.grid;
  EXPECT_EQ(report.stages[0].peak_live, 3);  // slots of rank 0; 1F1B needs 2: what W waits for is kept longer

  const StageCosts costs = StageCosts::uniform(2, Seconds(1), Seconds(1), Seconds(1));
  const Schedule known = generate({.kind = Kind::one_f_one_b, .pp = 2, .num_microbatches = 3});
  EXPECT_LT(simulate(mine, costs).makespan, simulate(known, costs).makespan);
}

TEST(ScheduleByHand, IsRefusedWithThePlaceWhenItWouldHang) {
  const Schedule hangs = from_text(
      "tessera-schedule 1: kind=1f1b pp=2 vpp=1 m=1 placement=loop\n"
      "rank 0: 0B0 0F0\n"  // backward before its forward
      "rank 1: 1F0 1B0\n");
  const CheckReport report = check(hangs);
  EXPECT_FALSE(report.ok());
  EXPECT_THAT(report.grid, testing::HasSubstr(">0B0<"));
}
// [/text]

}  // namespace
}  // namespace tessera::schedule
