#include "report/profile_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace tessera::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

ProfileView view() {
  ProfileView v;
  v.peak = FlopsPerSecond(1e12);
  v.peak_source = "published f32 peak of a machine";
  v.bandwidth = BytesPerSecond(1e11);
  v.step = Seconds(0.02);
  v.rows = {
      {.name = "linear", .width = "8 to 16", .calls = 4, .time = Seconds(0.01), .bytes = 1e8, .flops = 5e9},
      {.name = "add", .width = "8", .calls = 2, .time = Seconds(0.005), .bytes = 4e8},
      {.name = "fill", .width = "", .calls = 1, .time = Seconds(0.001), .bytes = 1e7}};
  return v;
}

TEST(ProfileView, TheTighterLimitCounts) {
  const ProfileView v = view();
  EXPECT_EQ(share_of(v.rows[0], v).limit, Limit::compute) << "5 ms of compute, 1 ms of memory";
  EXPECT_DOUBLE_EQ(share_of(v.rows[0], v).reached, 0.5);
  EXPECT_EQ(share_of(v.rows[1], v).limit, Limit::memory);
  EXPECT_DOUBLE_EQ(share_of(v.rows[1], v).reached, 0.8);
  ProfileView unknown = v;
  unknown.peak = FlopsPerSecond(0.0);
  EXPECT_EQ(share_of(v.rows[0], unknown).limit, Limit::memory);
  EXPECT_DOUBLE_EQ(share_of(v.rows[0], unknown).reached, 0.1);
}

TEST(ProfileView, ShowsRatesSharesAndTheRestInOneLine) {
  const std::string all = render(view(), 0, {.width = 120});
  for (const char* text :
       {"linear", "8 to 16", "10.0 ms", "62.5%", "500.0", "50.0%", "80.0", "compute", "memory",
        "a step takes 20.0 ms", "1000.0 GFLOP/s, published f32 peak", "100.0 GB/s"})
    EXPECT_THAT(all, HasSubstr(text));
  const std::string two = render(view(), 2, {.width = 120});
  EXPECT_THAT(two, HasSubstr("1 other"));
  EXPECT_THAT(two, Not(HasSubstr("fill")));
}

}  // namespace
}  // namespace tessera::report
