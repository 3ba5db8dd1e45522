#include "data/statistics.h"

#include <cmath>
#include <numbers>

#include "data/support.h"
#include "data/utf8.h"

namespace tessera::data {
namespace {
using test::expect_error;

TEST(UnigramEntropy, MatchesHandComputedValues) {
  EXPECT_NEAR(unigram_entropy(MemoryTokens({0, 1, 2, 3}), 4), std::log(4.0), 1e-15);
  // 1/2, 1/4, 1/4: 1.5 bits.
  EXPECT_NEAR(unigram_entropy(MemoryTokens({0, 0, 5, 9}), 10), 1.5 * std::numbers::ln2, 1e-15);
  EXPECT_EQ(unigram_entropy(MemoryTokens({7, 7, 7}), 8), 0.0);
  EXPECT_EQ(unigram_entropy(MemoryTokens(std::vector<std::int32_t>{}), 8), 0.0);
}

TEST(UnigramEntropy, ReadsMoreThanOneBlock) {
  std::vector<std::int32_t> ids(200'001);
  for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i % 3);
  const auto counts = count_tokens(MemoryTokens(ids), 3);
  EXPECT_THAT(counts, testing::ElementsAre(66'667, 66'667, 66'667));
}

TEST(UnigramEntropy, AnIdOutsideTheVocabularyIsNamedWithItsPosition) {
  std::vector<std::int32_t> ids(100'000, 1);
  ids[70'000] = 8;
  expect_error(ErrorKind::config,
               {"token 70000 is 8, outside the vocabulary of 8", "memory", "mend: use the tokenizer"},
               [&] { return count_tokens(MemoryTokens(ids), 8); });
}

TEST(TextStatistics, AnEmptyTextHasNoBytesPerToken) {
  EXPECT_EQ(TextStatistics{}.bytes_per_token(), 0.0);
  EXPECT_EQ((TextStatistics{.num_bytes = 10, .num_tokens = 4}).bytes_per_token(), 2.5);
}

std::string encode(char32_t c) {
  const auto byte = [](char32_t v) { return static_cast<char>(static_cast<unsigned char>(v)); };
  if (c < 0x80) return {byte(c)};
  if (c < 0x800) return {byte(0xC0 | c >> 6), byte(0x80 | (c & 63))};
  if (c < 0x10000) return {byte(0xE0 | c >> 12), byte(0x80 | (c >> 6 & 63)), byte(0x80 | (c & 63))};
  return {byte(0xF0 | c >> 18), byte(0x80 | (c >> 12 & 63)), byte(0x80 | (c >> 6 & 63)),
          byte(0x80 | (c & 63))};
}

TEST(Utf8, TakesEveryCodePointButTheSurrogates) {
  for (char32_t c = 0; c < 0x110000; ++c) {
    const bool surrogate = c >= 0xD800 && c <= 0xDFFF;
    ASSERT_EQ(first_invalid_utf8(encode(c)).has_value(), surrogate) << static_cast<std::uint32_t>(c);
  }
  EXPECT_TRUE(first_invalid_utf8(encode(0x110000)).has_value());
}

TEST(Utf8, TellsTheOffsetOfTheFirstBadByte) {
  const std::string bad[] = {"\x80",
                             "\xBF",
                             "\xC0\x80",
                             "\xC1\xBF",
                             "\xE0\x9F\xBF",
                             "\xED\xA0\x80",
                             "\xF0\x8F\xBF\xBF",
                             "\xF4\x90\x80\x80",
                             "\xF5\x80\x80\x80",
                             "\xFF",
                             "\xC3",
                             "\xE2\x82",
                             "\xF0\x9F\x99",
                             "\xC3x"};
  for (const std::string& b : bad) {
    for (std::size_t before = 0; before < 40; ++before) {
      const std::string text = std::string(before, 'a') + "\xC3\xA9" + b;
      EXPECT_EQ(first_invalid_utf8(text), static_cast<std::int64_t>(before + 2));
      EXPECT_EQ(first_invalid_utf8(text + " and more text behind it"), static_cast<std::int64_t>(before + 2));
    }
  }
  EXPECT_EQ(first_invalid_utf8(""), std::nullopt);
}

TEST(Utf8, CountsCharacters) {
  EXPECT_EQ(count_characters("caf\xC3\xA9 \xF0\x9F\x99\x82"), 6);
  EXPECT_EQ(count_characters(""), 0);
}

}  // namespace
}  // namespace tessera::data
