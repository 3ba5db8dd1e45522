// The parts of byte-level tokenizers that cut text: the byte alphabet, patterns, pre-tokenizer steps, added
// tokens, byte pairs, and what becomes of bytes that form no character.
#include <set>

#include "data/added_tokens.h"
#include "data/byte_alphabet.h"
#include "data/byte_pairs.h"
#include "data/normalize.h"
#include "data/pretokenizer.h"
#include "data/split_pattern.h"
#include "data/support.h"
#include "data/utf8.h"

namespace tessera::data {
namespace {
using test::expect_error;
using Strings = std::vector<std::string>;

Strings words_of(const std::vector<PreStep>& steps, std::string_view text) {
  const Pretokenizer words(steps);
  Pretokenizer::Scratch scratch;
  Strings out;
  words.split(text, scratch, [&](std::string_view w) { out.emplace_back(w); });
  return out;
}
Strings matches(const std::string& pattern, std::string_view text) {
  const SplitPattern p = SplitPattern::regex(pattern, "here");
  SplitPattern::Scratch scratch;
  Strings out;
  std::size_t at = 0;
  while (const auto m = p.find(text, at, scratch)) {
    out.emplace_back(text.substr(m->begin, m->end - m->begin));
    at = m->end;
  }
  return out;
}

TEST(ByteAlphabet, EveryByteHasALetterOfItsOwn) {
  const ByteAlphabet a;
  std::set<std::string> letters;
  for (int byte = 0; byte < 256; ++byte) {
    const std::string bytes(1, static_cast<char>(byte));
    letters.insert(a.spell(bytes));
    EXPECT_EQ(a.read(a.spell(bytes)), bytes);
  }
  EXPECT_EQ(letters.size(), 256U);
  EXPECT_EQ(a.spell(" \n\xAD"), "\xC4\xA0\xC4\x8A\xC5\x83");  // U+0120, U+010A, U+0143
  EXPECT_EQ(a.spell("Az!~\xC3\xA9"), "Az!~\xC3\x83\xC2\xA9");
  for (const char* foreign : {" ", "\n", "a b", "\xC5\x84", "\xE2\x96\x81", "\xC4", "\x80"}) {
    EXPECT_EQ(a.read(foreign), std::nullopt) << foreign;
  }
}

TEST(SplitPattern, WhiteSpaceIsUnicodesAndScriptsAreNotExtended) {
  EXPECT_EQ(matches(R"(\s+)", "a\xC2\x85\xE2\x80\xA8 b\xE1\xA0\x8E\x63"), Strings{"\xC2\x85\xE2\x80\xA8 "});
  EXPECT_EQ(matches(R"([^\s]+)", "a \xE1\xA0\x8E"), (Strings{"a", "\xE1\xA0\x8E"}));
  EXPECT_EQ(matches(R"(\S+)", " ab\tc"), (Strings{"ab", "c"}));
  EXPECT_EQ(matches(R"(\p{Han})", "\xE4\xB8\x96\xE3\x80\x81"), Strings{"\xE4\xB8\x96"});  // not U+3001
  EXPECT_EQ(matches(R"(\p{^Lu}\pN\P{L})", "A1-b2-"), Strings{"b2-"});
  EXPECT_EQ(matches(R"(\d\u0061[\u0062-c])",
                    "1ab\xD9\xA1"
                    "ac"),
            (Strings{"1ab",
                     "\xD9\xA1"
                     "ac"}));
  EXPECT_EQ(matches(R"((?i:'S)|\.\[)", "'s'\xC5\xBF.["), (Strings{"'s", "'\xC5\xBF", ".["}));
}

TEST(SplitPattern, WhatEnginesReadDifferentlyIsRefusedByName) {
  const std::vector<std::pair<std::string, std::string>> bad = {{R"(\w+)", R"(\w)"},
                                                                {R"(a\b)", R"(\b)"},
                                                                {"^a", "'^'"},
                                                                {"a$", "'$'"},
                                                                {"a{2,3}+", "{2,3}+"},
                                                                {"(?i)a", "(?i)"},
                                                                {"(?<n>a)", "(?<n"},
                                                                {"[a&&b]", "&&"},
                                                                {"[a[b]]", "'[' inside a class"},
                                                                {"[]a]", "[]"},
                                                                {R"([\Sa])", R"(\S inside)"},
                                                                {R"((a)\1)", R"(\1)"},
                                                                {R"(\x41)", R"(\x)"},
                                                                {R"(\p{L)", R"(\p)"},
                                                                {R"(\p{sc=L})", R"(\p{sc=L})"},
                                                                {R"(\u00zz)", R"(\u00zz)"},
                                                                {"(*UTF)a", "(*"},
                                                                {"a\\", "lone backslash"}};
  for (const auto& [pattern, part] : bad) {
    expect_error(ErrorKind::config, {"the pattern has ", part, "where: here", "mend: use a tokenizer"},
                 [&] { return SplitPattern::regex(pattern, "here"); });
  }
}

TEST(SplitPattern, WrongAndEmptyPatternsAreRefused) {
  for (const char* pattern :
       {"(a", "a)", "[a", "a**", R"(\p{Qq})", R"(\p{Nowhere})", "(?<=a+)b", "a{9999999}"}) {
    expect_error(ErrorKind::config, {"the pattern is wrong at byte", "where: here", "mend: "},
                 [&] { return SplitPattern::regex(pattern, "here"); });
  }
  for (const char* pattern : {"", "a*", "a|", "(?=b)"}) {
    expect_error(ErrorKind::config, {"can match the empty text"},
                 [&] { return SplitPattern::regex(pattern, "here"); });
  }
  expect_error(ErrorKind::config, {"can match the empty text"},
               [&] { return SplitPattern::literal("", "x"); });
  expect_error(ErrorKind::config, {"not UTF-8"}, [&] { return SplitPattern::regex("\xFF", "x"); });
  expect_error(ErrorKind::config, {"70000 bytes"},
               [&] { return SplitPattern::regex(std::string(70'000, 'a'), "x"); });
}

TEST(SplitPattern, AMatchThatExplodesIsAnErrorAndALongOneIsFound) {
  expect_error(ErrorKind::config, {"gave up at byte 0 of a text of 60", "match limit"},
               [&] { return matches("(?:a|aa|aaa)+[bd]", std::string(60, 'a')); });
  std::string text;
  while (text.size() < 3'000'000) text += "abcd";
  ASSERT_EQ(matches("(?:ab|cd)+", text).size(), 1U);
  EXPECT_EQ(matches("(?:ab|cd)+", text)[0].size(), text.size());
}

// The example of the format's own documentation.
TEST(Pretokenizer, MatchesAreKeptDroppedOrMerged) {
  const std::vector<std::pair<SplitBehavior, Strings>> cases = {
      {SplitBehavior::removed, {"the", "final", "countdown"}},
      {SplitBehavior::isolated, {"the", "-", "final", "-", "-", "countdown"}},
      {SplitBehavior::merged_with_previous, {"the-", "final-", "-", "countdown"}},
      {SplitBehavior::merged_with_next, {"the", "-final", "-", "-countdown"}},
      {SplitBehavior::contiguous, {"the", "-", "final", "--", "countdown"}}};
  for (const auto& [behavior, expected] : cases) {
    for (const auto kind : {PreStep::Kind::regex, PreStep::Kind::literal}) {
      EXPECT_EQ(words_of({{.kind = kind, .pattern = "-", .behavior = behavior}}, "the-final--countdown"),
                expected);
    }
  }
  EXPECT_EQ(words_of({{.pattern = "[a-z]+", .behavior = SplitBehavior::removed, .invert = true}}, "ab-cd--"),
            (Strings{"ab", "cd"}));
  EXPECT_EQ(words_of({{.kind = PreStep::Kind::literal, .pattern = ".*"}}, "a.*b"), (Strings{"a", ".*", "b"}));
}

TEST(Pretokenizer, EachStepSeesThePiecesOfTheOneBefore) {
  const PreStep digits{.pattern = R"(\p{N})"};
  const PreStep spaces{.pattern = R"(\s+(?!\S)|\s+)"};
  EXPECT_EQ(words_of({spaces}, "a  b"), (Strings{"a", " ", " ", "b"}));
  EXPECT_EQ(words_of({digits, spaces}, "a  7b"), (Strings{"a", "  ", "7", "b"}));  // no \S after them here
  const PreStep prefix{.kind = PreStep::Kind::prefix_space};
  EXPECT_EQ(words_of({prefix}, "ab"), Strings{" ab"});
  EXPECT_EQ(words_of({prefix}, " ab"), Strings{" ab"});
  EXPECT_EQ(words_of({digits, prefix}, "a7"), (Strings{" a", " 7"}));
  EXPECT_EQ(words_of({prefix, digits}, ""), Strings{});
  EXPECT_EQ(words_of({}, "ab c"), Strings{"ab c"});
}

Strings parts_of(const std::vector<AddedToken>& tokens, std::string_view text) {
  const AddedTokens added(tokens);
  SplitPattern::Scratch scratch;
  Strings out;
  added.split(text, scratch, [&](std::string_view part, std::int32_t id) {
    out.push_back((id < 0 ? "" : std::to_string(id) + ":") + std::string(part));
  });
  return out;
}

TEST(AddedTokens, TheLongestAtTheFirstPlaceIsTaken) {
  const std::vector<AddedToken> tokens = {{.id = 1, .content = "<a"},
                                          {.id = 2, .content = "<a>b"},
                                          {.id = 3, .content = "a>bc"},
                                          {.id = 4, .content = "\xE2\x96\x81"}};
  EXPECT_EQ(parts_of(tokens, "x<a>bc<a>"), (Strings{"x", "2:<a>b", "c", "1:<a", ">"}));
  EXPECT_EQ(parts_of(tokens, "\xE2\x96\x81\xE2\x96\x82"), (Strings{"4:\xE2\x96\x81", "\xE2\x96\x82"}));
  EXPECT_EQ(parts_of(tokens, "<"), Strings{"<"});
  EXPECT_EQ(parts_of(tokens, ""), Strings{});
  EXPECT_EQ(parts_of({}, "<a"), Strings{"<a"});
}

TEST(AddedTokens, TakeWhiteSpaceAlongAndMindWordBounds) {
  AddedToken t{.id = 1, .content = "[x]", .lstrip = true};
  EXPECT_EQ(parts_of({t}, "a \xE3\x80\x80\n[x] b"), (Strings{"a", "1: \xE3\x80\x80\n[x]", " b"}));
  t = {.id = 1, .content = "[x]", .rstrip = true};
  EXPECT_EQ(parts_of({t}, "a [x] \t[x]"), (Strings{"a ", "1:[x] \t", "1:[x]"}));
  t = {.id = 1, .content = "[x]", .lstrip = true, .rstrip = true};
  EXPECT_EQ(parts_of({t}, "[x] [x]"), (Strings{"1:[x] ", "1:[x]"}));
  t = {.id = 1, .content = "on", .single_word = true};
  EXPECT_EQ(parts_of({t}, "on one son on. \xC3\xA9on on\xF0\x9F\x85\xB0"),
            (Strings{"1:on", " one son ", "1:on", ". \xC3\xA9on on\xF0\x9F\x85\xB0"}));
}

TEST(Nfc, ComposesMarksAndLeavesComposedTextAlone) {
  EXPECT_EQ(to_nfc("plain \xC3\xA9 text"), std::nullopt);
  EXPECT_EQ(to_nfc("e\xCC\x81"), "\xC3\xA9");
  EXPECT_EQ(to_nfc("\xE1\x84\x92\xE1\x85\xA1\xE1\x86\xAB"), "\xED\x95\x9C");  // Hangul
  EXPECT_EQ(to_nfc("\xE2\x84\xAB"), "\xC3\x85");                              // Angstrom sign
  EXPECT_EQ(to_nfc("q\xCC\x87\xCC\xA3"), "q\xCC\xA3\xCC\x87");                // marks in their order
  EXPECT_EQ(to_nfc(std::string("e\xCC\x81\0x", 5)), std::string("\xC3\xA9\0x", 4));
}

TEST(Utf8, OneReplacementForTheLongestBeginOfACharacter) {
  const std::string r = "\xEF\xBF\xBD";
  EXPECT_EQ(replace_invalid_utf8("a\xC3\xA9"), "a\xC3\xA9");
  EXPECT_EQ(replace_invalid_utf8("\xE4\xB8"), r);
  EXPECT_EQ(replace_invalid_utf8("\xE4\xB8z\xFF\xFE"), r + "z" + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF0\x9F\x99\xE4\xB8\x96"), r + "\xE4\xB8\x96");
  EXPECT_EQ(replace_invalid_utf8("\xE0\x80\x80\xED\xA0\x80\xC0\xAF"), r + r + r + r + r + r + r + r);
  EXPECT_EQ(replace_invalid_utf8("\xF4\x90\x80\x80 \xF0\x80"), r + r + r + r + " " + r + r);
  EXPECT_EQ(invalid_utf8_prefix("\xFF\xE4\xB8"
                                "a\xFF"),
            3);
  EXPECT_EQ(invalid_utf8_prefix("a\xFF"), 0);
  EXPECT_EQ(invalid_utf8_prefix("\xE4\xB8\x96"), 0);
  EXPECT_EQ(invalid_utf8_prefix(""), 0);
}

// Merges by the definition: all pairs are looked at for each.
std::vector<std::int32_t> by_definition(std::vector<std::int32_t> ids, const std::vector<Merge>& merges) {
  for (;;) {
    std::size_t best = merges.size(), at = 0;
    for (std::size_t i = 0; i + 1 < ids.size(); ++i) {
      for (std::size_t k = 0; k < best; ++k) {
        if (merges[k].left == ids[i] && merges[k].right == ids[i + 1]) best = k, at = i;
      }
    }
    if (best == merges.size()) return ids;
    ids[at] = merges[best].result;
    ids.erase(ids.begin() + at + 1);
  }
}

TEST(BytePairs, WordsOfAnyLengthAreMergedByTheDefinition) {
  std::vector<std::string> bytes;
  for (int b = 0; b < 256; ++b) bytes.emplace_back(1, static_cast<char>(b));
  BpeSpec spec;
  std::uint32_t state = 7;
  const auto below = [&](std::size_t n) {
    state = state * 1664525 + 1013904223;
    return static_cast<std::int32_t>((state >> 8) % n);
  };
  // Two letters and random merges of what there is: many ties, and tokens that several merges make.
  std::set<std::pair<std::int32_t, std::int32_t>> taken;
  std::vector<std::int32_t> alive = {'a', 'b'};
  while (spec.merges.size() < 60) {
    const std::int32_t left = alive[below(alive.size())], right = alive[below(alive.size())];
    if (!taken.emplace(left, right).second) continue;
    const std::string joined = bytes[left] + bytes[right];
    auto known = std::find(bytes.begin(), bytes.end(), joined);
    spec.merges.push_back({left, right, static_cast<std::int32_t>(known - bytes.begin())});
    if (known != bytes.end()) continue;
    alive.push_back(static_cast<std::int32_t>(bytes.size()));
    bytes.push_back(joined);
  }
  const BytePairs pairs(spec, bytes);
  BytePairs::Scratch scratch;
  for (int round = 0; round < 400; ++round) {
    std::string word;
    for (int n = 1 + round / 4; n > 0; --n) word += static_cast<char>('a' + below(2));
    std::vector<std::int32_t> ids;
    pairs.encode(word, scratch, ids);
    ASSERT_EQ(ids, by_definition({word.begin(), word.end()}, spec.merges)) << word;
  }
}

TEST(BytePairs, AMillionBytesAreOneWordAndNotOneTooMany) {
  std::vector<std::string> bytes;
  for (int b = 0; b < 256; ++b) bytes.emplace_back(1, static_cast<char>(b));
  BpeSpec spec;
  std::string token = " ";
  std::int32_t last = ' ';
  while (token.size() < 1024) {
    const auto next = static_cast<std::int32_t>(bytes.size());
    spec.merges.push_back({last, last, next});
    bytes.push_back(token += token);
    last = next;
  }
  const BytePairs pairs(spec, bytes);
  BytePairs::Scratch scratch;
  std::vector<std::int32_t> ids;
  pairs.encode(std::string(1'000'001, ' '), scratch, ids);
  std::size_t size = 0;
  for (const std::int32_t id : ids) size += bytes[id].size();
  EXPECT_EQ(size, 1'000'001U);
  EXPECT_EQ(ids.size(), 976U + 3U);  // 1,000,001 = 976 * 1024 + 512 + 64 + 1
}

}  // namespace
}  // namespace tessera::data
