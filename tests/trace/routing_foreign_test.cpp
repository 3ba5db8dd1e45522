// Other programs' routing files: SGLang's recorder, TensorRT-LLM's folder, NPY, CSV and JSON tables, real
// data of three models where it lies beside the checkout; wrong and hostile ones are refused by name.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/file.h"
#include "routing_support.h"
#include "trace/routing_container.h"

namespace tessera::trace {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

using Counts = std::vector<std::int64_t>;

RoutingStats read(const std::string& text, const RoutingReadOptions& options = {}) {
  return parse_routing(bytes_of(text), "a.file", options);
}

TEST(SglangJson, LogicalCountsSumOverStepsAndLeaveOutDenseLayers) {
  const RoutingStats s = read(
      R"({"rank": 0, "logical_count": [
          [[0,0,0],[1,2,3],[4,5,6]], [[0,0,0],[1,0,0],[0,0,7]], [[0,0,0],[0,0,0],[0,0,0]]],
          "average_utilization_rate_over_window": null})");
  EXPECT_EQ(s.source, "sglang stat");
  EXPECT_EQ(s.num_experts, 3);
  EXPECT_THAT(s.layers, ElementsAre(1, 2));
  EXPECT_EQ(s.chosen, (Counts{2, 2, 3, 4, 5, 13}));
  ASSERT_EQ(s.windows.size(), 2U) << "the pass that never came is left out";
  EXPECT_EQ(s.windows[1].chosen, (Counts{1, 0, 0, 0, 0, 7}));
  EXPECT_EQ(read(R"({"logical_count": [[1, 2.0], [3, 4]]})").chosen, (Counts{1, 2, 3, 4}));
}

TEST(SglangJson, TokensOfPhysicalExpertsBecomeThoseOfTheModel) {
  // Five physical experts hold four logical ones; layer 0 is dense; columns beyond top_k are -1.
  const RoutingStats s = read(R"({"records": [
      {"forward_pass_id": 1, "rank": 0, "topk_ids_of_layer":
        [[[-1,-1,-1],[-1,-1,-1]], [[0,4,-1],[2,1,-1]], [[1,0,-1],[3,2,-1]]]},
      {"forward_pass_id": 2, "rank": 0, "topk_ids_of_layer": [[[-1,-1,-1]], [[4,2,-1]], [[-1,-1,-1]]]}],
      "last_physical_to_logical_map": [[0,1,2,3,0], [0,1,2,3,3], [3,2,1,0,0]]})");
  EXPECT_EQ(s.source, "sglang per_token");
  EXPECT_EQ(s.num_experts, 4);
  EXPECT_EQ(s.top_k, 2);
  EXPECT_EQ(s.num_tokens, 3);
  EXPECT_THAT(s.layers, ElementsAre(1, 2));
  EXPECT_THAT(s.choices, ElementsAre(0, 3, 2, 1, 3, 2, 2, 3, 0, 1, -1, -1));
  EXPECT_EQ(s.chosen, (Counts{1, 1, 2, 2, 1, 1, 1, 1}));
  EXPECT_EQ(s.across_of(0)[0 * 4 + 2], 1);
  EXPECT_EQ(s.across_of(0)[2 * 4 + 1], 1);
}

TEST(SglangJson, CountsOfPassesBecomeWindows) {
  const RoutingStats s = read(R"({"records": [
      {"forward_pass_id": 1, "global_physical_count": [[1,2,3,4,5]]},
      {"forward_pass_id": 2, "global_physical_count": [[0,0,0,0,9]]}],
      "last_physical_to_logical_map": [[0,1,2,3,0]]})");
  EXPECT_EQ(s.source, "sglang per_pass");
  EXPECT_EQ(s.chosen, (Counts{15, 2, 3, 4}));
  ASSERT_EQ(s.windows.size(), 2U);
  EXPECT_EQ(s.windows[1].chosen, (Counts{9, 0, 0, 0}));
}

TEST(Json, TablesByNameBecomeWindowsOfThatName) {
  const RoutingStats s = read(R"({"arxiv": [[1,2],[3,4]], "book": [[5,6],[7,8]]})", {.first_layer = 3});
  EXPECT_EQ(s.chosen, (Counts{6, 8, 10, 12}));
  EXPECT_THAT(s.layers, ElementsAre(3, 4));
  ASSERT_EQ(s.windows.size(), 2U);
  EXPECT_EQ(s.windows[1].name, "book");
  EXPECT_EQ(s.windows[1].chosen, (Counts{5, 6, 7, 8}));
}

TEST(Json, WithoutNamesHoldsWhatTheOptionsSay) {
  EXPECT_EQ(read("[[1,2,3],[4,5,6]]").chosen, (Counts{1, 2, 3, 4, 5, 6}));
  const RoutingStats s = read("[[1,2,3],[0,1,2]]", {.content = RoutingContent::choices});
  EXPECT_EQ(s.num_layers(), 3) << "two tokens choose one expert in each of three layers";
  EXPECT_EQ(s.num_tokens, 2);
  EXPECT_EQ(s.top_k, 1);
}

TEST(Json, WhatIsNoRoutingIsNamed) {
  EXPECT_THAT(error_of_text("{\"logical_count\": [[1, 2]"), AllOf(StartsWith("io"), HasSubstr("not JSON")));
  EXPECT_THAT(error_of_text("{\"logical_count\": [[1, 2], [3]]}"),
              HasSubstr("has 1 members, the one before 2"));
  EXPECT_THAT(error_of_text("{\"logical_count\": [[1, -2]]}"),
              HasSubstr("expert 1 of layer 0 has the count -2"));
  EXPECT_THAT(error_of_text("{\"logical_count\": [[1, 1.5]]}"), HasSubstr("member 1 is not a whole number"));
  EXPECT_THAT(error_of_text("{\"logical_count\": [[0, 0]]}"), HasSubstr("all counts are 0"));
  EXPECT_THAT(error_of_text("{\"logical_count\": 7}"), HasSubstr("not a table"));
  EXPECT_THAT(error_of_text("{\"logical_count\": [[9000000000000000000, 1], [9000000000000000000, 1]]}"),
              HasSubstr("9000000000000000000"));
  EXPECT_THAT(error_of_text("{\"physical_to_logical_map\": [[0, 1]]}"), HasSubstr("where experts are"));
  EXPECT_THAT(error_of_text("{\"model\": \"x\"}"), HasSubstr("\"model\" is no table"));
  EXPECT_THAT(error_of_text("{\"records\": []}"), HasSubstr("no records"));
  EXPECT_THAT(error_of_text("{\"records\": [{}]}"), HasSubstr("records[0]"));
  EXPECT_THAT(error_of_text(
                  R"({"records": [{"topk_ids_of_layer": [[[5]]]}], "last_physical_to_logical_map": [[0]]})"),
              HasSubstr("physical expert 5 of 1"));
  EXPECT_THAT(error_of_text(R"({"a": [[[1,2],[3,4]]]})"), HasSubstr("[1, 2, 2], not [layers, experts]"));
  EXPECT_THAT(error_of_text("[[[[[1]]]]]"), HasSubstr("deeper than"));
  EXPECT_THAT(error_of_text("[[[]],[1]]"), Not("no error"));
  EXPECT_THAT(error_of_text("[[],[]]"), Not("no error"));
  EXPECT_THAT(error_of_text("  \n"), HasSubstr("empty"));
  EXPECT_THAT(error_of_text("[[0, 0]]", {.content = RoutingContent::choices, .num_experts = 1}), "no error");
}

TEST(Npy, ThreeDimsAreChoicesLayersFirst) {
  const std::vector<std::uint8_t> ids = {0, 1, 1, 2, 2, 0,   // layer 0: three tokens
                                         2, 1, 0, 1, 0, 2};  // layer 1
  const RoutingStats s = read(npy("|u1", "(2, 3, 2)", ids), {.num_experts = 4, .first_layer = 1});
  EXPECT_EQ(s.num_experts, 4);
  EXPECT_EQ(s.num_tokens, 3);
  EXPECT_THAT(s.layers, ElementsAre(1, 2));
  EXPECT_EQ(s.chosen, (Counts{2, 2, 2, 0, 2, 2, 2, 0}));
  EXPECT_THAT(s.choices_of(1), ElementsAre(2, 1, 0, 1, 0, 2));
  const std::vector<std::int32_t> by_token = {0, 1, 2, 1, 1, 2, 0, 1, 2, 0, 0, 2};
  const RoutingStats other = read(npy("<i4", "(3, 2, 2)", by_token),
                                  {.order = RoutingOrder::tokens_first, .num_experts = 4, .first_layer = 1});
  EXPECT_EQ(other, s);
}

TEST(Npy, FewerDimsAreCountsUnlessSaidOtherwise) {
  EXPECT_EQ(read(npy("<i8", "(2, 2)", std::vector<std::int64_t>{1, 2, 3, 4})).chosen, (Counts{1, 2, 3, 4}));
  EXPECT_EQ(read(npy("<f8", "(3,)", std::vector<double>{1, 2, 3})).num_layers(), 1);
  const RoutingStats s = read(npy("<i8", "(3, 2)", std::vector<std::int64_t>{0, 1, 1, 1, 0, 0}),
                              {.content = RoutingContent::choices});
  EXPECT_EQ(s.num_tokens, 3);
  EXPECT_EQ(s.chosen, (Counts{2, 1, 1, 2}));
  const RoutingStats w = read(npy("<u2", "(2, 1, 2)", std::vector<std::uint16_t>{1, 2, 3, 4}),
                              {.content = RoutingContent::counts});
  EXPECT_EQ(w.chosen, (Counts{4, 6}));
  EXPECT_EQ(w.windows.size(), 2U);
}

TEST(Npy, WhatCannotBeReadIsNamed) {
  const std::vector<std::int32_t> two = {0, 1};
  const auto choices = RoutingReadOptions{.content = RoutingContent::choices, .num_experts = 1};
  EXPECT_THAT(error_of_text(npy("<i4", "(1, 3)", two)),
              HasSubstr("8 bytes of data, its shape [1, 3] needs 12"));
  EXPECT_THAT(error_of_text(npy(">i4", "(1, 2)", two)), AllOf(StartsWith("unsupported"), HasSubstr(">i4")));
  EXPECT_THAT(error_of_text(npy("|O", "(1, 2)", two)), StartsWith("unsupported"));
  EXPECT_THAT(error_of_text(npy("<i4", "(1, 99999999999, 99999999999)", two)), HasSubstr("more than"));
  EXPECT_THAT(error_of_text(npy("<i4", "(1, -2)", two)), HasSubstr("shape cannot be read"));
  EXPECT_THAT(error_of_text(npy("<i4", "5", two)), HasSubstr("no tuple"));
  EXPECT_THAT(error_of_text(npy("<i4", "(1, 2)", two), choices), HasSubstr("at least 2"));
  EXPECT_THAT(error_of_text(npy("<i4", "(1, 1, 2)", std::vector<std::int32_t>{3, 3})),
              HasSubstr("expert 3 twice"));
  EXPECT_THAT(error_of_text(npy("<f4", "(1, 2)", std::vector<float>{0.5F, 1})), HasSubstr("0.5"));
  EXPECT_THAT(error_of_text(npy("<f8", "(1, 2)", std::vector<double>{std::nan(""), 1})), HasSubstr("nan"));
  EXPECT_THAT(error_of_text(npy("<i4", "(0, 2, 2)", std::vector<std::int32_t>{})), Not("no error"));
  EXPECT_THAT(error_of_text(npy("<i4", "(2, 2, 0)", std::vector<std::int32_t>{})), Not("no error"));
}

TEST(Csv, CountsByLayerAndExpert) {
  const RoutingStats s = read("Layer,Expert,Count\n# a comment\n5,0,3\n2,1,4\r\n2,0,1\n");
  EXPECT_THAT(s.layers, ElementsAre(2, 5));
  EXPECT_EQ(s.chosen, (Counts{1, 4, 3, 0}));
  const RoutingStats w = read("window,layer,expert,count\n0,0,0,1\n1,0,0,2\n1,0,2,2\n");
  EXPECT_EQ(w.chosen, (Counts{3, 0, 2}));
  EXPECT_EQ(w.windows.size(), 2U);
}

TEST(Csv, ChoicesByTokenAndLayerInAnyOrder) {
  const RoutingStats s = read("layer token expert1 expert0\n1 0 3 2\n0 1 1 0\n0 0 2 1\n");
  EXPECT_EQ(s.num_tokens, 2);
  EXPECT_THAT(s.choices, ElementsAre(1, 2, 0, 1, 2, 3, -1, -1));
}

TEST(Csv, SetsWithTheirTokens) {
  const RoutingStats s = read("layer,count,expert0,expert1\n0,10,0,1\n0,5,1,2\n3,15,0,2\n");
  EXPECT_EQ(s.num_tokens, 15);
  EXPECT_EQ(s.chosen, (Counts{10, 15, 5, 15, 0, 15}));
  EXPECT_EQ(s.within_of(0)[1], 10);
  EXPECT_TRUE(s.across.empty());
}

TEST(Csv, NumbersAloneAreALineOfCountsALayer) {
  EXPECT_EQ(read("1 2 3\n4 5 6\n").num_layers(), 2);
  EXPECT_EQ(read("1\n2\n3\n").num_experts, 3) << "one number a line is one layer";
  EXPECT_EQ(read("7, 8, 9").chosen, (Counts{7, 8, 9}));
}

TEST(Csv, WhatCannotBeReadIsNamedWithItsLine) {
  EXPECT_THAT(error_of_text("layer,expert,count\n0,0,1\n0,0,2\n"),
              AllOf(HasSubstr("a.file:3"), HasSubstr("second")));
  EXPECT_THAT(error_of_text("layer,expert,count\n0,0\n"), HasSubstr("2 cells, the header 3"));
  EXPECT_THAT(error_of_text("layer,expert,count\n0,0,x\n"), HasSubstr("\"x\" is not a whole number"));
  // All of them at once, each with its line.
  EXPECT_THAT(
      error_of_text("layer,expert,count\n0,0,-3\n0,1,nan\n0,2\n"),
      AllOf(HasSubstr("count -3 is below 0"), HasSubstr(":2"), HasSubstr("\"nan\" is not a whole number"),
            HasSubstr(":3"), HasSubstr("2 cells, the header 3"), HasSubstr(":4")));
  EXPECT_THAT(error_of_text("layer,expert,count\n0,0,-1\n"), HasSubstr("count -1"));
  EXPECT_THAT(error_of_text("layer,expert,count\n-1,0,1\n"), HasSubstr("layer -1"));
  EXPECT_THAT(error_of_text("layer,expert,count\n0,99999,1\n"), HasSubstr("expert 99999"));
  EXPECT_THAT(error_of_text("layer,expert,count,windw\n0,0,1,1\n"), HasSubstr("did you mean window"));
  EXPECT_THAT(error_of_text("a,b\n1,2\n"), HasSubstr("the columns are a, b"));
  EXPECT_THAT(error_of_text("token,layer,expert0\n0,0,1\n0,0,2\n"), HasSubstr("there twice"));
  EXPECT_THAT(error_of_text("token,layer,expert0\n99999999999,0,1\n"), HasSubstr("token 99999999999"));
  EXPECT_THAT(error_of_text("layer,count,expert0,expert1\n0,4,1,1\n"), HasSubstr("in the set twice"));
  EXPECT_THAT(error_of_text("1 2\n3\n"), AllOf(HasSubstr("a.file:2"), HasSubstr("1 numbers")));
  EXPECT_THAT(error_of_text("layer,expert,count\n"), HasSubstr("no lines"));
}

StoredArray stored(const std::string& name, std::vector<std::int64_t> shape,
                   const std::vector<std::int32_t>& v) {
  return {
      .name = name, .type = ArrayType::i32, .shape = std::move(shape), .bytes = std::as_bytes(std::span(v))};
}

TEST(EngineSafetensors, CountsAndChoicesAreFoundByName) {
  const std::vector<std::int32_t> counts = {1, 2, 3, 4};
  const std::vector<StoredArray> stat = {stored("logical_count", {2, 2}, counts)};
  EXPECT_EQ(read(to_container({}, stat)).chosen, (Counts{1, 2, 3, 4}));
  const std::vector<std::int32_t> ids = {0, 1, 2, 0};
  const std::vector<std::int32_t> map = {1, 0, 1};
  const std::vector<StoredArray> tokens = {stored("topk_ids_of_layer", {1, 4, 1}, ids),
                                           stored("last_physical_to_logical_map", {1, 3}, map)};
  EXPECT_THAT(read(to_container({}, tokens)).choices, ElementsAre(1, 0, 1, 1));
  const std::vector<StoredArray> other = {stored("weights", {2, 2}, counts)};
  EXPECT_THAT(error_of_text(to_container({}, other)), HasSubstr("none of the arrays"));
}

class EngineFolder : public testing::Test {
 protected:
  EngineFolder() {
    std::string pattern = std::filesystem::temp_directory_path() / "tessera_engine_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    put("meta_info.json", "{\"num_experts\": 4, \"num_experts_per_token\": 2}");
  }
  ~EngineFolder() override { std::filesystem::remove_all(folder_); }
  void put(const std::string& file, const std::string& text) const {
    std::ofstream(folder_ / file, std::ios::binary) << text;
  }
  std::filesystem::path folder_;
};

TEST_F(EngineFolder, CountsOfAllRanksAndPasses) {
  const std::vector<std::int32_t> a = {1, 0, 0, 1}, b = {0, 2, 0, 0}, none = {0, 0, 0, 0};
  const std::vector<StoredArray> rank0 = {stored("7_3", {4}, a), stored("7_4", {4}, b),
                                          stored("8_3", {4}, none), stored("8_4", {4}, a)};
  const std::vector<StoredArray> rank1 = {stored("7_3", {4}, a), stored("7_4", {4}, a), stored("8_3", {4}, b),
                                          stored("8_4", {4}, none)};
  put("rank0.safetensors", to_container({}, rank0));
  put("rank1.safetensors", to_container({}, rank1));
  const RoutingStats s = read_routing(folder_);
  EXPECT_THAT(s.layers, ElementsAre(3, 4));
  EXPECT_EQ(s.top_k, 2);
  EXPECT_EQ(s.chosen, (Counts{2, 2, 0, 2, 2, 2, 0, 2}));
  ASSERT_EQ(s.windows.size(), 2U);
  EXPECT_EQ(s.windows[0].chosen, (Counts{2, 0, 0, 2, 1, 2, 0, 1}));
}

TEST_F(EngineFolder, RawChoicesSayMore) {
  const std::vector<std::int32_t> a = {0, 1, 1, 2}, b = {3, 0, 0, 1};
  const std::vector<StoredArray> rank0 = {stored("0_3", {2, 2}, a), stored("0_4", {2, 2}, b)};
  const std::vector<StoredArray> rank1 = {stored("0_3", {1, 2}, a), stored("0_4", {1, 2}, b)};
  put("rank0_raw.safetensors", to_container({}, rank0));
  put("rank1_raw.safetensors",
      to_container({}, std::vector<StoredArray>{stored("0_3", {1, 2}, {a.begin(), a.begin() + 2}),
                                                stored("0_4", {1, 2}, {b.begin(), b.begin() + 2})}));
  const RoutingStats s = read_routing(folder_);
  EXPECT_EQ(s.num_experts, 4);
  EXPECT_EQ(s.num_tokens, 3);
  EXPECT_EQ(s.across_of(0)[1 * 4 + 3], 2);
}

TEST_F(EngineFolder, WithoutItsFilesSaysWhatIsMissing) {
  EXPECT_THAT(error_of([&] { (void)read_routing(folder_); }),
              HasSubstr("meta_info.json beside rank*.safetensors"));
  const std::vector<std::int32_t> a = {1, 0};
  put("rank0.safetensors",
      to_container({}, std::vector<StoredArray>{stored("0_1", {2}, a), stored("1_2", {2}, a)}));
  EXPECT_THAT(error_of([&] { (void)read_routing(folder_); }),
              HasSubstr("not all passes have the same layers"));
  put("rank0.safetensors", to_container({}, std::vector<StoredArray>{stored("0_x", {2}, a)}));
  EXPECT_THAT(error_of([&] { (void)read_routing(folder_); }), HasSubstr("\"0_x\""));
}

// ---------------------------------------------------------------- damage

// Every reader under random damage of small good files: an Error or another reading, never a crash. Runs
// under the sanitizers too.
TEST(RoutingFuzz, DamagedFilesOfAnyKindEndInAnError) {
  const std::vector<std::int32_t> counts = {1, 2, 3, 4};
  const std::vector<std::string> good = {
      to_routing_file(random_routing(1, {.layers = 2, .experts = 4, .tokens = 12})),
      R"({"logical_count": [[[1,2],[3,4]],[[5,6],[7,8]]]})",
      R"({"records": [{"topk_ids_of_layer": [[[0,1],[1,2]]]}], "last_physical_to_logical_map": [[0,1,2]]})",
      R"({"records": [{"global_physical_count": [[0,1,7]]}], "last_physical_to_logical_map": [[0,1,0]]})",
      R"({"a": [[1,2],[3,4]], "b": [[1,2],[3,4]]})",
      npy("|u1", "(2, 3, 2)", std::vector<std::uint8_t>{0, 1, 1, 2, 2, 0, 2, 1, 0, 1, 0, 2}),
      npy("<f8", "(1, 2)", std::vector<double>{3, 4}),
      "layer,expert,count,window\n0,0,1,0\n0,1,2,1\n3,1,2,0\n",
      "token,layer,expert0,expert1\n0,0,1,2\n1,0,2,3\n0,1,1,0\n1,1,0,2\n",
      "layer,count,expert0,expert1\n0,10,0,1\n0,5,1,2\n",
      "1 2 3\n4 5 6\n",
      to_container({}, std::vector<StoredArray>{stored("0_1", {4}, counts), stored("0_2", {4}, counts)}),
      to_container({}, std::vector<StoredArray>{stored("topk_ids", {1, 2, 2}, counts)}),
  };
  std::uint64_t next = 0;
  const auto below = [&](std::uint64_t n) { return uniform_below(n, 11, 12, next++); };
  const std::string glyphs = "0123456789-,.[]{}()\":'eE \n\tx\xff";
  std::int64_t refused = 0, read_still = 0;
  for (const std::string& file : good) {
    EXPECT_NO_THROW((void)read(file)) << file;
    for (int round = 0; round < 600; ++round) {
      std::string text = file;
      const std::size_t faults = 1 + below(3);
      for (std::size_t f = 0; f < faults && !text.empty(); ++f) {
        const std::size_t at = below(text.size());
        switch (below(5)) {
          case 0:
            text[at] = static_cast<char>(below(256));
            break;
          case 1:
            text[at] = glyphs[below(glyphs.size())];
            break;
          case 2:
            text.erase(at, 1 + below(8));
            break;
          case 3:
            text.insert(at, 1 + below(4), glyphs[below(glyphs.size())]);
            break;
          default:
            text.insert(at, text.substr(below(text.size()), below(20)));
        }
      }
      RoutingReadOptions options;
      options.content = static_cast<RoutingContent>(below(3));
      options.order = static_cast<RoutingOrder>(below(3));
      try {
        Problems problems;
        check_routing(read(text, options), "read", problems);
        ASSERT_TRUE(problems.empty()) << problems.list()[0].what << "\n" << text;
        ++read_still;
      } catch (const Error& e) {
        ASSERT_NE(e.kind(), ErrorKind::internal) << e.what() << "\n" << text;
        ASSERT_FALSE(e.problems().empty());
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 3000);
  EXPECT_GT(read_still, 200) << "damage to a number gives another number";
}

// ---------------------------------------------------------------- real data

class RealRouting : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::path(TESSERA_SOURCE_DIR) / ".." / "shared" / "routing";
    if (!std::filesystem::is_directory(folder_)) {
      GTEST_SKIP() << "no real routing data beside the checkout (../shared/routing)";
    }
  }
  std::filesystem::path folder_;
};

TEST_F(RealRouting, PerTokenChoicesOfDeepSeekV2Lite) {
  for (const std::string domain : {"intent", "summary"}) {
    const auto base = folder_ / "deepseek_v2_lite_esft";
    const auto meta = nlohmann::json::parse(read_text(base / (domain + "_meta.json")));
    RoutingStats s = read_routing(base / (domain + "_topk.npy"), {.num_experts = 64, .first_layer = 1});
    EXPECT_EQ(s.num_layers(), meta["layers"]);
    EXPECT_EQ(s.top_k, meta["topk"]);
    EXPECT_EQ(s.num_tokens, meta["tokens"]);
    EXPECT_EQ(s.layers.front(), 1);
    s.sequence_lengths = meta["sequence_lengths"].get<std::vector<std::int64_t>>();
    for (std::int32_t l = 0; l < s.num_layers(); ++l) {
      const auto chosen = s.chosen_of(l);
      EXPECT_EQ(std::accumulate(chosen.begin(), chosen.end(), std::int64_t{0}), 6 * s.num_tokens);
      const LoadSpread spread = spread_of(chosen);
      EXPECT_GT(spread.effective_experts, 10.0);
      EXPECT_LT(spread.effective_experts, 64.0);
    }
    const std::string file = to_routing_file(s);
    EXPECT_EQ(parse_routing(bytes_of(file), "f"), s);
    EXPECT_LT(file.size(), 3'000'000U) << domain;
  }
}

TEST_F(RealRouting, CountsOfOlmoeAndMixtralByDomain) {
  const RoutingStats olmoe = read_routing(folder_ / "olmoe" / "olmoe_expert_counts.json");
  EXPECT_EQ(olmoe.num_experts, 64);
  EXPECT_EQ(olmoe.num_layers(), 3);
  EXPECT_GT(olmoe.windows.size(), 3U);
  const RoutingStats mixtral = read_routing(folder_ / "mixtral_olmoe" / "mistral_expert_counts.json");
  EXPECT_EQ(mixtral.num_experts, 8);
  EXPECT_EQ(mixtral.windows[0].name, "arxiv");
  EXPECT_EQ(mixtral.windows[0].chosen[0], 55713);
  EXPECT_GT(spread_of(mixtral.chosen_of(0)).effective_experts, 7.5) << "Mixtral balances well";
}

TEST_F(RealRouting, MatricesBetweenLayersAreNotTakenForCounts) {
  EXPECT_THAT(
      error_of([&] { (void)read_routing(folder_ / "olmoe" / "olmoe_expert_counts_crosslayer.json"); }),
      HasSubstr("[2, 64, 64], not [layers, experts]"));
}

}  // namespace
}  // namespace tessera::trace
