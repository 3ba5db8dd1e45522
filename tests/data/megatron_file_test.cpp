#include "data/megatron_file.h"

#include <random>

#include "data/support.h"

namespace tessera::data {
namespace {
using test::all_tokens;
using test::expect_error;
using test::put;
using test::TempFolder;
using test::write_plain;
using testing::ElementsAre;

// An index by hand, as the format table says; sequences of one document each unless `boundaries` are given.
struct Index {
  std::uint64_t version = 1;
  std::uint8_t code = 8;
  std::int64_t token_bytes = 2;
  std::vector<std::int32_t> lengths;
  std::vector<std::int64_t> boundaries;
  std::string tail;

  std::string bytes() const {
    std::string out("MMIDIDX\0\0", 9);
    put(out, version);
    put(out, code);
    put(out, std::uint64_t{lengths.size()});
    put(out, std::uint64_t{boundaries.size()});
    for (const std::int32_t n : lengths) put(out, n);
    std::int64_t offset = 0;
    for (const std::int32_t n : lengths) {
      put(out, offset);
      offset += n * token_bytes;
    }
    for (const std::int64_t b : boundaries) put(out, b);
    return out + tail;
  }
};

template <class T>
std::string raw(const std::vector<double>& values) {
  std::string out;
  for (const double v : values) put(out, static_cast<T>(v));
  return out;
}

// The pair in a folder, opened.
struct Pair {
  TempFolder folder;
  std::shared_ptr<const TokenSource> open(const std::string& index, const std::string& tokens) {
    write_plain(folder / "x.idx", index);
    write_plain(folder / "x.bin", tokens);
    return open_token_file(folder / "x.bin");
  }
};

const Index kThree{.lengths = {3, 0, 2},
                   .boundaries = {0, 1, 1, 3}};  // 62 bytes into the file, i64 are unaligned
const std::string kThreeTokens = raw<std::uint16_t>({7, 8, 65535, 9, 10});

TEST(MegatronFile, ReadsTheBytesOfTheFormatTable) {
  const std::string index(
      "MMIDIDX\0\0"
      "\1\0\0\0\0\0\0\0"
      "\x08"
      "\1\0\0\0\0\0\0\0"
      "\2\0\0\0\0\0\0\0"
      "\3\0\0\0"
      "\0\0\0\0\0\0\0\0"
      "\0\0\0\0\0\0\0\0"
      "\1\0\0\0\0\0\0\0",
      34 + 12 + 16);
  Pair pair;
  const auto source = pair.open(index, std::string("\x01\x00\x00\x01\xFF\xFF", 6));
  EXPECT_THAT(all_tokens(*source), ElementsAre(1, 256, 65535));
  EXPECT_EQ(source->num_documents(), 1);
  EXPECT_EQ(source->vocab_bound(), 65536);
}

TEST(MegatronFile, ReadsOffsetsThatAreNotAligned) {
  for (std::int32_t sequences = 0; sequences < 9; ++sequences) {
    Index index{.lengths = {}, .boundaries = {0}};
    std::vector<double> values;
    std::vector<std::int32_t> expected;
    for (std::int32_t s = 0; s < sequences; ++s) {
      index.lengths.push_back(s + 1);
      index.boundaries.push_back(s + 1);
      for (std::int32_t k = 0; k <= s; ++k) {
        expected.push_back(100 * s + k);
        values.push_back(100 * s + k);
      }
    }
    Pair pair;
    const auto source = pair.open(index.bytes(), raw<std::uint16_t>(values));
    EXPECT_EQ(all_tokens(*source), expected);
    EXPECT_EQ(source->num_documents(), sequences);
  }
}

TEST(MegatronFile, ReadsEveryTokenType) {
  const std::vector<double> values = {0, 1, 100, 127};
  const auto check = [&](std::uint8_t code, std::int64_t bytes, const std::string& tokens,
                         std::optional<std::int64_t> bound) {
    Pair pair;
    const auto source = pair.open(
        Index{.code = code, .token_bytes = bytes, .lengths = {1, 3}, .boundaries = {0, 2}}.bytes(), tokens);
    EXPECT_THAT(all_tokens(*source), ElementsAre(0, 1, 100, 127)) << int{code};
    EXPECT_EQ(source->vocab_bound(), bound) << int{code};
    std::vector<std::int32_t> part(2);
    source->copy(1, part);
    EXPECT_THAT(part, ElementsAre(1, 100));
  };
  check(1, 1, raw<std::uint8_t>(values), 256);
  check(2, 1, raw<std::int8_t>(values), 128);
  check(3, 2, raw<std::int16_t>(values), 32768);
  check(4, 4, raw<std::int32_t>(values), std::nullopt);
  check(5, 8, raw<std::int64_t>(values), std::nullopt);
  check(6, 8, raw<double>(values), std::nullopt);
  check(7, 4, raw<float>(values), std::nullopt);
  check(8, 2, raw<std::uint16_t>(values), 65536);
}

TEST(MegatronFile, RefusesAValueThatIsNoTokenIdWithItsPosition) {
  const auto check = [&](std::uint8_t code, std::int64_t bytes, const std::string& tokens,
                         const std::string& word) {
    Pair pair;
    const auto source = pair.open(
        Index{.code = code, .token_bytes = bytes, .lengths = {2}, .boundaries = {0, 1}}.bytes(), tokens);
    expect_error(ErrorKind::io, {"token 1 is " + word, "x.bin", "mend: make the file again"},
                 [&] { return all_tokens(*source); });
  };
  check(4, 4, raw<std::int32_t>({5, -3}), "-3 (i32)");
  check(5, 8, raw<std::int64_t>({5, 2147483648.0}), "2147483648 (i64)");
  check(7, 4, raw<float>({5, 2.5}), "2.5 (f32)");
  check(6, 8, raw<double>({5, std::numeric_limits<double>::quiet_NaN()}), "nan (f64)");
  check(6, 8, raw<double>({5, 1e300}), "1e+300 (f64)");
}

TEST(MegatronFile, NamesTheFaultOfEachField) {
  const auto refuse = [](const std::string& index, const std::string& tokens, std::vector<std::string> words,
                         ErrorKind kind = ErrorKind::io) {
    words.push_back("mend: ");
    expect_error(kind, words, [&] { Pair().open(index, tokens); });
  };
  Index i = kThree;
  i.version = 2;
  refuse(i.bytes(), kThreeTokens, {"version 2 of the index, 1 expected", "x.idx"});
  i = kThree;
  i.code = 9;
  refuse(i.bytes(), kThreeTokens, {"token type 9 is none of 1 u8", "x.idx"});
  i = kThree;
  i.lengths[1] = -4;
  refuse(i.bytes(), kThreeTokens, {"sequence 1 has -4 tokens"});
  i = kThree;
  i.boundaries = {0, 2, 1, 3};
  refuse(i.bytes(), kThreeTokens, {"document boundary 2 is sequence 1, before 2"});
  i.boundaries = {1, 3};
  refuse(i.bytes(), kThreeTokens, {"the first document begins at sequence 1, not 0"});
  i.boundaries = {0, 2};
  refuse(i.bytes(), kThreeTokens, {"the last document ends at sequence 2 of 3"});
  i.boundaries = {};
  refuse(i.bytes(), kThreeTokens, {"no document boundaries"});
  i = kThree;
  i.tail = "abc";
  refuse(i.bytes(), kThreeTokens, {"multimodal", "3 mode bytes"}, ErrorKind::unsupported);
  i.tail = "abcd";
  refuse(i.bytes(), kThreeTokens, {"106 bytes do not fit 3 sequences and 4 document boundaries: 102 bytes"});
  i = kThree;
  i.token_bytes = 4;
  refuse(i.bytes(), kThreeTokens, {"sequence 1 begins at byte 12 of the tokens, 6 expected"},
         ErrorKind::unsupported);
  refuse(kThree.bytes(), kThreeTokens + "z", {"11 bytes, but x.idx says 5 tokens of u16: 10 bytes", "x.bin"});
  refuse("PK\3\4 something else, long enough for a header", kThreeTokens,
         {"does not begin with MMIDIDX", "x.idx"});
}

TEST(MegatronFile, HugeCountsAreRefusedBeforeAnythingIsMultiplied) {
  for (const std::uint64_t count : {std::uint64_t{1} << 61, std::uint64_t{1} << 63, ~std::uint64_t{0}}) {
    for (const std::size_t at : {18, 26}) {
      std::string bytes = kThree.bytes();
      std::memcpy(bytes.data() + at, &count, sizeof count);
      expect_error(ErrorKind::io, {"do not fit", std::to_string(count)},
                   [&] { Pair().open(bytes, kThreeTokens); });
    }
  }
}

TEST(MegatronFile, EveryTruncationOfEitherFileIsRefused) {
  const std::string index = kThree.bytes();
  EXPECT_THAT(all_tokens(*Pair().open(index, kThreeTokens)), ElementsAre(7, 8, 65535, 9, 10));
  for (std::size_t size = 0; size < index.size(); ++size) {
    expect_error(ErrorKind::io, {"x.idx"}, [&] { Pair().open(index.substr(0, size), kThreeTokens); });
  }
  for (std::size_t size = 0; size < kThreeTokens.size(); ++size) {
    expect_error(ErrorKind::io, {"x.bin", "5 tokens"},
                 [&] { Pair().open(index, kThreeTokens.substr(0, size)); });
  }
}

TEST(MegatronFile, EveryFlippedBitOfTheIndexIsRefusedOrHarmless) {
  const std::string index = kThree.bytes();
  int refused = 0;
  for (std::size_t bit = 0; bit < 8 * index.size(); ++bit) {
    std::string bytes = index;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    try {
      const auto source = Pair().open(bytes, kThreeTokens);
      EXPECT_THAT(all_tokens(*source), ElementsAre(7, 8, 65535, 9, 10)) << bit;
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::internal) << "bit " << bit << ": " << error.what();
      ++refused;
    }
  }
  // Two flips leave a valid index: inner document boundaries 1, 1 of 3 become 0, 1 or 1, 3.
  EXPECT_EQ(refused, static_cast<int>(8 * index.size()) - 2);
}

TEST(MegatronFile, RandomBytesBehindTheMagicNeverCrash) {
  std::mt19937 random(7);
  for (int round = 0; round < 300; ++round) {
    std::string bytes = kThree.bytes();
    for (int k = 0; k < 6; ++k) bytes[9 + random() % (bytes.size() - 9)] = static_cast<char>(random());
    try {
      const auto source = Pair().open(bytes, kThreeTokens);
      all_tokens(*source);
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::internal) << error.what();
    }
  }
}

TEST(MegatronFile, ReadingOutsideTheStreamThrows) {
  Pair pair;
  const auto source = pair.open(kThree.bytes(), kThreeTokens);
  std::vector<std::int32_t> two(2);
  for (const std::int64_t begin :
       {std::int64_t{-1}, std::int64_t{4}, std::int64_t{6}, std::int64_t{1} << 62}) {
    expect_error(ErrorKind::internal, {"of a stream of 5"}, [&] { source->copy(begin, two); });
  }
}

TEST(MegatronWriter, WhatItWritesIsReadBack) {
  for (const TokenType type : {TokenType::u16, TokenType::i32}) {
    const TempFolder folder;
    MegatronWriter writer(folder / "out", type);
    writer.append(std::vector<std::int32_t>{1, 2});
    writer.append(std::vector<std::int32_t>{3});
    writer.end_document();
    writer.append(std::vector<std::int32_t>{65535});
    EXPECT_FALSE(std::filesystem::exists(folder / "out.bin"));
    writer.finish();
    for (const char* name : {"out", "out.bin", "out.idx"}) {
      const auto source = open_token_file(folder / name);
      EXPECT_THAT(all_tokens(*source), ElementsAre(1, 2, 3, 65535));
      EXPECT_EQ(source->num_documents(), 2);
    }
  }
}

TEST(MegatronWriter, WritesTheBytesOfTheFormatTable) {
  const TempFolder folder;
  MegatronWriter writer(folder / "out.bin", TokenType::u16);
  writer.append(std::vector<std::int32_t>{7, 8, 65535});
  writer.end_document();
  writer.append(std::vector<std::int32_t>{9, 10});
  writer.finish();
  EXPECT_EQ(read_text(folder / "out.bin"), kThreeTokens);
  EXPECT_EQ(read_text(folder / "out.idx"), (Index{.lengths = {3, 2}, .boundaries = {0, 1, 2}}.bytes()));
}

TEST(MegatronWriter, LeavesNothingWithoutFinishAndKeepsTheOldPair) {
  const TempFolder folder;
  {
    MegatronWriter writer(folder / "out", TokenType::u16);
    writer.append(std::vector<std::int32_t>{1});
    writer.finish();
  }
  {
    MegatronWriter writer(folder / "out", TokenType::u16);
    writer.append(std::vector<std::int32_t>(1'000'000, 2));
  }
  EXPECT_THAT(all_tokens(*open_token_file(folder / "out")), ElementsAre(1));
  std::size_t files = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator(folder.path())) ++files;
  EXPECT_EQ(files, 2);
}

TEST(MegatronWriter, RefusesAnIdThatItsTypeCannotHold) {
  const TempFolder folder;
  MegatronWriter writer(folder / "out", TokenType::u16);
  writer.append(std::vector<std::int32_t>{1, 2});
  expect_error(ErrorKind::config,
               {"token 3 is 65536, but u16 holds 0 to 65535", "out.bin", "mend: write i32"}, [&] {
                 writer.append(std::vector<std::int32_t>{4, 65536});
               });
  expect_error(ErrorKind::config, {"token 2 is -1"}, [&] { writer.append(std::vector<std::int32_t>{-1}); });
}

TEST(MegatronWriter, AFolderThatIsMissingIsNamed) {
  const TempFolder folder;
  expect_error(ErrorKind::io, {"cannot create", "nowhere/out.bin", "mend: check that the folder exists"},
               [&] { MegatronWriter(folder / "nowhere/out", TokenType::u16); });
}

TEST(MegatronWriter, TakesTwoBytesBelow65500Ids) {
  EXPECT_EQ(megatron_type_for(65'499), TokenType::u16);
  EXPECT_EQ(megatron_type_for(65'500), TokenType::i32);
}

}  // namespace
}  // namespace tessera::data
