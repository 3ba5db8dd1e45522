// Counts as people write them, and what is none.
#include "base/count.h"

#include <gtest/gtest.h>

namespace tessera::testing {
namespace {

TEST(Count, ReadsSuffixesPowersAndUnderscores) {
  EXPECT_EQ(parse_count("15T"), 15e12);
  EXPECT_EQ(parse_count("1.4e12"), 1.4e12);
  EXPECT_EQ(parse_count("300B"), 300e9);
  EXPECT_EQ(parse_count(" 300 g "), 300e9);
  EXPECT_EQ(parse_count("2_000"), 2000.0);
  EXPECT_EQ(parse_count("1.5k"), 1500.0);
  EXPECT_EQ(parse_count("7m"), 7e6);
  EXPECT_EQ(parse_count("1P"), 1e15);
  EXPECT_EQ(parse_count("-3"), -3.0);
}

TEST(Count, RefusesWhatIsNone) {
  for (const char* text : {"", "T", "15TB", "x", "1..2", "1e400", "inf", "nan", "15 T T", "0x10"})
    EXPECT_EQ(parse_count(text), std::nullopt) << text;
}

}  // namespace
}  // namespace tessera::testing
