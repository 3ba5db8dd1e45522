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
  v.product = FlopsPerSecond(8e11);
  v.side = 512;
  v.launch = Seconds(2e-6);
  v.step = Seconds(0.02);
  v.fastest = Seconds(0.019);
  v.tokens = 1000.0;
  v.model_flops = 8e6;
  v.model_flops_full = 9e6;
  v.units = 2;
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
  for (const char* text : {"linear", "8 to 16", "10.0 ms", "62.5%", "500.0", "50.0%", "80.0", "compute",
                           "memory", "a step takes 20.0 ms", "50000 tokens/s", "MFU 20.0% (22.5%",
                           "sides 512 reaches 800.0", "1000.0 GFLOP/s, published f32 peak", "100.0 GB/s"})
    EXPECT_THAT(all, HasSubstr(text));
  const std::string two = render(view(), 2, {.width = 120});
  EXPECT_THAT(two, HasSubstr("1 other"));
  EXPECT_THAT(two, Not(HasSubstr("fill")));
}

TEST(ProfileView, NoShareOfAPeakThatIsNotKnown) {
  ProfileView v = view();
  EXPECT_DOUBLE_EQ(mfu(v).value(), 8e6 * 1000 / (0.02 * 2 * 1e12));
  v.peak = FlopsPerSecond(0.0);
  EXPECT_FALSE(mfu(v).has_value());
  EXPECT_THAT(render(v, 0, {.width = 120}), Not(HasSubstr("MFU")));
}

}  // namespace
}  // namespace tessera::report
