// Our routing file: it reads back exactly, any reader of safetensors can read its counts, damage anywhere is
// found, and what a newer version or another program wrote is named.
#include "trace/routing_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "routing_support.h"

namespace tessera::trace {
namespace {

using testing::AllOf;
using testing::AnyOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

RoutingStats reread(const RoutingStats& s) {
  return parse_routing(bytes_of(to_routing_file(s)), "a.file");
}

TEST(RoutingFile, ReadsBackWhatWasWritten) {
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    const auto n = static_cast<std::int32_t>(seed);
    RoutingStats s = random_routing(
        seed, {.layers = 1 + n % 4, .experts = 2 + 31 * n, .top_k = 1 + n % 2, .tokens = 10 + 5 * n});
    if (seed % 3 == 1) s.choices.clear(), s.sequence_lengths.clear();
    if (seed % 3 == 2) s.within.clear(), s.across.clear(), s.windows.clear(), s.dropped.clear();
    EXPECT_EQ(reread(s), s) << "seed " << seed;
  }
}

TEST(RoutingFile, KeepsTokensWithoutAChoice) {
  RoutingStats s{.num_experts = 3, .top_k = 2, .layers = {4}, .choices = {0, 2, -1, 1, -1, -1}};
  count_choices(s);
  EXPECT_EQ(reread(s), s);
}

TEST(RoutingFile, IsTheSameBytesForTheSameStatistics) {
  EXPECT_EQ(to_routing_file(random_routing(4)), to_routing_file(random_routing(4)));
}

TEST(RoutingFile, IsASafetensorsFileWhoseCountsAnyReaderFinds) {
  const RoutingStats s = random_routing(6);
  const std::string file = to_routing_file(s);
  std::uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const auto header = nlohmann::json::parse(file.substr(8, length));
  EXPECT_EQ(header["__metadata__"]["format"], "tessera-routing");
  EXPECT_EQ(header["__metadata__"]["model"], "tiny \"moe\"");
  EXPECT_EQ(header["__metadata__"]["choices.zst"], "U8 3,40,2");
  EXPECT_EQ(header["chosen"]["dtype"], "I64");
  EXPECT_EQ(header["chosen"]["shape"], (std::vector<int>{3, 8}));
  EXPECT_EQ((8 + length) % 64, 0U) << "the data are aligned";
  const std::size_t begin = header["chosen"]["data_offsets"][0];
  std::vector<std::int64_t> chosen(24);
  std::memcpy(chosen.data(), file.data() + 8 + length + begin, 24 * 8);
  EXPECT_EQ(chosen, s.chosen);
}

TEST(RoutingFile, CompressesChoicesAndPairs) {
  const RoutingStats s = random_routing(7, {.layers = 8, .experts = 64, .top_k = 6, .tokens = 2000});
  const std::size_t plain = 8 * (s.within.size() + s.across.size()) + 2 * s.choices.size();
  EXPECT_LT(to_routing_file(s).size(), plain / 3);
}

TEST(RoutingFile, IsWrittenWholeOrNotAtAll) {
  std::string pattern = std::filesystem::temp_directory_path() / "tessera_routing_XXXXXX";
  const std::filesystem::path folder = ::mkdtemp(pattern.data());
  const RoutingStats s = random_routing(8);
  write_routing(folder / "r.safetensors", s);
  EXPECT_EQ(read_routing(folder / "r.safetensors"), s);
  RoutingStats bad = s;
  bad.chosen[0] = -1;
  EXPECT_THAT(error_of([&] { write_routing(folder / "r.safetensors", bad); }), StartsWith("internal"));
  EXPECT_EQ(read_routing(folder / "r.safetensors"), s);
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  EXPECT_THAT(error_of([&] { (void)read_routing(folder / "none"); }), HasSubstr("none"));
  std::filesystem::remove_all(folder);
}

TEST(RoutingFile, CutOffAnywhereIsRefused) {
  const std::string file = to_routing_file(random_routing(9, {.layers = 2, .experts = 4, .tokens = 12}));
  for (std::size_t n = 0; n < file.size(); ++n) {
    ASSERT_THAT(error_of_text(file.substr(0, n)), AllOf(Not("no error"), HasSubstr("a.file")))
        << n << " bytes";
  }
  EXPECT_THAT(error_of_text(file + '\0'), HasSubstr("bytes"));
}

TEST(RoutingFile, ABitFlippedAnywhereIsFound) {
  const std::string file = to_routing_file(random_routing(10, {.layers = 2, .experts = 4, .tokens = 12}));
  for (std::size_t i = 0; i < file.size(); ++i) {
    std::string flipped = file;
    flipped[i] = static_cast<char>(flipped[i] ^ (1 << uniform_below(8, 3, 4, i)));
    ASSERT_THAT(error_of_text(flipped), AllOf(Not("no error"), Not(HasSubstr("internal")))) << "byte " << i;
  }
}

// Replaces text in the header by text of the same length and takes the digest out, as a tool that edits
// would.
std::string edited(std::string file, const std::string& from, const std::string& to) {
  const std::size_t digest = file.find("\"xxh3_128\":\"");
  file.replace(digest, 12 + 32 + 2, 12 + 32 + 2, ' ');
  const std::size_t at = file.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  EXPECT_EQ(from.size(), to.size());
  return file.replace(at, from.size(), to);
}

TEST(RoutingFile, WithoutADigestIsReadAndCheckedStill) {
  const RoutingStats s = random_routing(11);
  const std::string file = to_routing_file(s);
  RoutingStats renamed = s;
  renamed.source = "b test";
  EXPECT_EQ(parse_routing(bytes_of(edited(file, "a test", "b test")), "f"), renamed);
  const auto fault = [&](const char* from, const char* to) { return error_of_text(edited(file, from, to)); };
  EXPECT_THAT(fault("\"version\":\"1\"", "\"version\":\"2\""),
              AllOf(StartsWith("unsupported"), HasSubstr("version 2"), HasSubstr("newer")));
  EXPECT_THAT(fault("\"num_experts\":\"8\"", "\"num_experts\":\"7\""),
              HasSubstr("[3, 8], which is not [3, 7]"));
  EXPECT_THAT(fault("\"num_experts\":\"8\"", "\"num_experts\":\"x\""), HasSubstr("num_experts is \"x\""));
  EXPECT_THAT(fault("\"top_k\":\"2\"", "\"top_k\":\"3\""), HasSubstr("not [3, tokens, 3]"));
  EXPECT_THAT(fault("I64 3,8,8", "I64 3,8,9"), HasSubstr("does not hold"));
  EXPECT_THAT(fault("U8 3,40,2", "U8 3,40,x"), HasSubstr("no type and shape"));
  EXPECT_THAT(fault("\"window_chosen\"", "\"window_chosem\""), HasSubstr("window_chosem"));
  EXPECT_THAT(fault("\"model\"", "\"moddl\""), HasSubstr("unknown metadata \"moddl\""));
}

TEST(RoutingFile, ThatClaimsOtherSizesThanItHoldsIsRefused) {
  const std::string file = to_routing_file(random_routing(12));
  for (const std::string shape : {"I64 1,9,0", "I64 99999", "I8 999999", "I64 -9,-8"}) {
    EXPECT_THAT(error_of_text(edited(file, "I64 3,8,8", (shape + "         ").substr(0, 9))),
                AnyOf(HasSubstr("does not hold"), HasSubstr("no type and shape")))
        << shape;
  }
}

TEST(RoutingFile, PicklesAreNeverRead) {
  for (const std::string magic : {"PK\x03\x04", "\x80\x02}q", "\x80\x04\x95"}) {
    EXPECT_THAT(error_of_text(magic + std::string(100, '\0')),
                AllOf(StartsWith("unsupported"), HasSubstr("pickle"), HasSubstr("routing.md")));
  }
}

}  // namespace
}  // namespace tessera::trace
