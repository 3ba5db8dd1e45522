// Text for people: units, nearest words, lists.
#include "base/text.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace tessera {
namespace {

using Words = std::vector<std::string>;

TEST(HumanBytes, ChoosesTheUnitWithTwoDecimals) {
  EXPECT_EQ(human(Bytes(0)), "0 B");
  EXPECT_EQ(human(Bytes(1023)), "1023 B");
  EXPECT_EQ(human(Bytes(1024)), "1.00 KiB");
  EXPECT_EQ(human(Bytes(1'572'864)), "1.50 MiB");
  EXPECT_EQ(human(Bytes(-1'572'864)), "-1.50 MiB");
  EXPECT_EQ(human(Bytes(std::int64_t{5} << 40)), "5.00 TiB");
  EXPECT_EQ(human(Bytes(INT64_MAX)), "8192.00 PiB");
}

TEST(HumanSeconds, GoesFromNanosecondsToHours) {
  EXPECT_EQ(human(Seconds(0)), "0 ns");
  EXPECT_EQ(human(Seconds(250e-9)), "250 ns");
  EXPECT_EQ(human(Seconds(1.5e-6)), "1.5 us");
  EXPECT_EQ(human(Seconds(1.5e-3)), "1.5 ms");
  EXPECT_EQ(human(Seconds(1.5)), "1.5 s");
  EXPECT_EQ(human(Seconds(125)), "2m 05s");
  EXPECT_EQ(human(Seconds(3599.7)), "1h 00m");
  EXPECT_EQ(human(Seconds(7300)), "2h 01m");
}

TEST(HumanCount, ShortensFromTenThousandOn) {
  EXPECT_EQ(human_count(0), "0");
  EXPECT_EQ(human_count(9999), "9999");
  EXPECT_EQ(human_count(12'345), "12.3 k");
  EXPECT_EQ(human_count(12'345'678), "12.35 M");
  EXPECT_EQ(human_count(7e9), "7.00 G");
  EXPECT_EQ(human_count(2.5e12), "2.50 T");
}

TEST(Nearest, FindsTheWordOneTypoAway) {
  const Words known = {"hidden_size", "num_layers", "tp", "pp"};
  EXPECT_EQ(nearest("hiden_size", known), "hidden_size");
  EXPECT_EQ(nearest("num_layer", known), "num_layers");
  EXPECT_EQ(nearest("tp", known), "tp");
  EXPECT_EQ(nearest("tpp", known), "tp");
}

TEST(Nearest, KeepsSilentWhenNothingIsNear) {
  const Words known = {"hidden_size", "num_layers"};
  EXPECT_EQ(nearest("colour", known), "");
  EXPECT_EQ(nearest("", known), "");
  EXPECT_EQ(nearest("anything", {}), "");
}

TEST(Nearest, PrefersTheFirstOfEquals) {
  EXPECT_EQ(nearest("cp", Words{"tp", "dp"}), "tp");
}

TEST(JoinAndSplit, AreInverse) {
  for (const Words& words :
       {Words{"a", "b", "c"}, Words{"a"}, Words{"", "a"}, Words{"a", "", "b"}, Words{"", ""}}) {
    EXPECT_EQ(split(join(words, ","), ','), words) << join(words, ",");
  }
  EXPECT_EQ(join({}, ", "), "");
  EXPECT_EQ(split("", ','), Words{""});
}

TEST(Trim, TakesBlanksOffBothEndsOnly) {
  EXPECT_EQ(trim("  a b\t\r\n"), "a b");
  EXPECT_EQ(trim("a"), "a");
  EXPECT_EQ(trim(" \n"), "");
  EXPECT_EQ(trim(""), "");
}

TEST(Divisors, AreListedInOrder) {
  EXPECT_EQ(divisors_text(1), "{1}");
  EXPECT_EQ(divisors_text(12), "{1, 2, 3, 4, 6, 12}");
  EXPECT_EQ(divisors_text(7), "{1, 7}");
}

}  // namespace
}  // namespace tessera
