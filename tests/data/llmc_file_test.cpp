#include "data/llmc_file.h"

#include "data/support.h"

namespace tessera::data {
namespace {
using test::all_tokens;
using test::expect_error;
using test::put;
using test::TempFolder;
using test::write_plain;
using testing::ElementsAre;

std::string header(std::int32_t magic, std::int32_t version, std::int32_t tokens) {
  std::string out;
  for (const std::int32_t v : {magic, version, tokens}) put(out, v);
  out.resize(1024, '\0');
  return out;
}

template <class T>
std::string tokens(const std::vector<std::int64_t>& values) {
  std::string out;
  for (const std::int64_t v : values) put(out, static_cast<T>(v));
  return out;
}

std::shared_ptr<const TokenSource> open(const TempFolder& folder, const std::string& bytes) {
  write_plain(folder / "x.bin", bytes);
  return open_token_file(folder / "x.bin");
}

TEST(LlmcFile, ReadsGpt2AndLlama3Files) {
  const TempFolder folder;
  const auto two = open(folder, header(20240520, 1, 3) + tokens<std::uint16_t>({50256, 1, 65535}));
  EXPECT_THAT(all_tokens(*two), ElementsAre(50256, 1, 65535));
  EXPECT_EQ(two->vocab_bound(), 65536);
  EXPECT_EQ(two->num_documents(), 1);
  const auto four = open(folder, header(20240801, 7, 2) + tokens<std::uint32_t>({128000, 5}));
  EXPECT_THAT(all_tokens(*four), ElementsAre(128000, 5));
  EXPECT_EQ(four->vocab_bound(), std::nullopt);
}

TEST(LlmcFile, EveryTruncationIsRefused) {
  const TempFolder folder;
  const std::string whole = header(20240520, 1, 4) + tokens<std::uint16_t>({1, 2, 3, 4});
  for (std::size_t size = 4; size < whole.size(); ++size) {
    expect_error(ErrorKind::io, {"x.bin", std::to_string(size) + " bytes"},
                 [&] { open(folder, whole.substr(0, size)); });
  }
  for (std::size_t size = 0; size < 4; ++size) {
    expect_error(ErrorKind::config, {"x.bin", "nor an llm.c header"},
                 [&] { open(folder, whole.substr(0, size)); });
  }
  expect_error(ErrorKind::io, {"1033 bytes, but the header says 4 tokens of 2 bytes: 1032 bytes"},
               [&] { open(folder, whole + "z"); });
}

TEST(LlmcFile, EveryFlippedBitOfItsThreeWordsIsRefused) {
  const TempFolder folder;
  const std::string whole = header(20240520, 1, 4) + tokens<std::uint16_t>({1, 2, 3, 4});
  for (std::size_t bit = 0; bit < 96; ++bit) {
    std::string bytes = whole;
    bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
    try {
      open(folder, bytes);
      ADD_FAILURE() << "bit " << bit << " went unseen";
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::internal) << error.what();
    }
  }
}

TEST(LlmcFile, NamesAnEvaluationFileAndAWrongVersion) {
  const TempFolder folder;
  expect_error(ErrorKind::unsupported, {"evaluation file", "20240522", "mend: give a training file"},
               [&] { open(folder, header(20240522, 1, 0)); });
  expect_error(ErrorKind::io, {"version 3", "have version 1", "mend: make the file again"},
               [&] { open(folder, header(20240520, 3, 0)); });
  expect_error(ErrorKind::io, {"-1 tokens"}, [&] { open(folder, header(20240520, 1, -1)); });
}

TEST(LlmcFile, AnIdAboveTheEnginesRangeIsRefusedWhenRead) {
  const TempFolder folder;
  const auto source = open(folder, header(20240801, 7, 2) + tokens<std::uint32_t>({1, 0x80000000}));
  expect_error(ErrorKind::io, {"token 1 is 2147483648 (u32)"}, [&] { return all_tokens(*source); });
}

TEST(OpenTokenFile, ListsWhatItAcceptsWhenItRefuses) {
  const TempFolder folder;
  const std::vector<std::string> accepted = {"mend: give one of", "NAME.bin or NAME.idx", "Megatron",
                                             "llm.c"};
  const auto refuse = [&](const char* name, const std::string& content, std::vector<std::string> words) {
    write_plain(folder / name, content);
    words.insert(words.end(), accepted.begin(), accepted.end());
    words.push_back(name);
    expect_error(ErrorKind::config, words, [&] { return open_token_file(folder / name); });
  };
  refuse("text.txt", "It is a truth", {"not a token file: begins with 49 74 20 69 73 20 61 20"});
  refuse("lonely.bin", std::string("\1\0\2\0", 4),
         {"neither a lonely.idx beside it", "begins with 01 00 02 00"});
  refuse("empty.bin", "", {"begins with nothing"});
  refuse("renamed.index", std::string("MMIDIDX\0\0\1", 10),
         {"a Megatron index under a name that does not end in .idx"});
  expect_error(ErrorKind::config, {"no such token file", "absent", "mend: give one of"},
               [&] { return open_token_file(folder / "absent"); });
}

TEST(OpenTokenFile, AnIndexWithoutTokensNamesTheMissingFile) {
  const TempFolder folder;
  write_plain(folder / "x.idx", std::string("MMIDIDX\0\0", 9));
  expect_error(ErrorKind::io, {"cannot open", "x.bin", "mend: check the path"},
               [&] { return open_token_file(folder / "x.idx"); });
}

TEST(OpenTokenFile, AFolderIsRefused) {
  const TempFolder folder;
  expect_error(ErrorKind::io, {"not a regular file"}, [&] { return open_token_file(folder.path()); });
}

}  // namespace
}  // namespace tessera::data
