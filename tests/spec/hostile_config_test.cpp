// Broken and hostile config.json files of every family: the reader returns with problems or without, and
// nothing else. What it takes for good can be counted, priced and written back. Fixed seeds.
#include <gtest/gtest.h>

#include <cmath>

#include "base/text.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

// Returns whether the file was taken.
bool survives(const std::string& text) {
  Problems problems;
  const ModelSpec m = parse_hf_config(text, "config.json", problems);
  for (const Problem& p : problems.list()) {
    EXPECT_FALSE(p.what.empty() || p.where.empty() || p.mend.empty()) << text;
  }
  if (!problems.empty()) return false;
  EXPECT_GT(num_parameters(m), 0) << text;
  EXPECT_GE(num_parameters(m), num_active_parameters(m)) << text;
  EXPECT_TRUE(std::isfinite(train_flops_per_token(m, 4096, AttentionFlops::causal))) << text;
  EXPECT_GE(num_mtp_parameters(m), 0) << text;
  (void)layer_class(m, m.num_hidden_layers - 1);
  Problems trains;
  check_trainable(m, "config.json", trains);
  Problems again;
  const std::string json = to_hf_config(m);
  EXPECT_EQ(parse_hf_config(json, "again.json", again), m) << text << json << test::listed(again.list());
  return true;
}

struct Edit {
  std::uint64_t seed;
  [[nodiscard]] std::uint64_t below(std::uint64_t n, std::uint64_t draw) const {
    return uniform_below(n, seed, stream_of("hostile config"), draw);
  }
};

// The text of one value in place of another: positions of ": value" in a flat file.
std::string with_a_strange_value(const std::string& text, const Edit& edit) {
  static const std::string kStrange[] = {"0",
                                         "1",
                                         "-1",
                                         "2",
                                         "3",
                                         "7",
                                         "64",
                                         "1e9",
                                         "1e308",
                                         "-1e-308",
                                         "2147483647",
                                         "2147483648",
                                         "9223372036854775807",
                                         "9223372036854775808",
                                         "-9223372036854775808",
                                         "99999999999999999999999",
                                         "1073741824",
                                         "100000",
                                         "100001",
                                         "0.5",
                                         "1048576",
                                         "null",
                                         "true",
                                         "false",
                                         "\"\"",
                                         "\"silu\"",
                                         "\"yarn\"",
                                         "\"\\u0000\"",
                                         "[]",
                                         "[1]",
                                         "[[[[1]]]]",
                                         "{}",
                                         "{\"a\": {\"b\": {}}}",
                                         "[\"full_attention\"]",
                                         "{\"rope_type\": \"linear\", \"factor\": 2}",
                                         "{\"alibi\": false}",
                                         "NaN",
                                         "Infinity",
                                         "[0, 1, 2]",
                                         "1048577",
                                         "536870912"};
  std::string out = text;
  const std::uint64_t edits = 1 + edit.below(3, 0);
  for (std::uint64_t i = 0; i < edits; ++i) {
    std::vector<std::size_t> at;
    for (std::size_t p = out.find("\": "); p != std::string::npos; p = out.find("\": ", p + 1))
      at.push_back(p + 3);
    const std::size_t begin = at[edit.below(at.size(), 3 * i + 1)];
    const std::size_t end = out.find_first_of(",\n", begin);
    out.replace(begin, end - begin, kStrange[edit.below(std::size(kStrange), 3 * i + 2)]);
  }
  return out;
}

// Keys of one family's file in another's.
std::string crossed(const std::string& a, const std::string& b, const Edit& edit) {
  std::vector<std::string> lines;
  for (const std::string& file : {a, b})
    for (const std::string& line : split(file, '\n'))
      if (line.size() > 4 && line.ends_with(',') && line.find("\": ") != std::string::npos)
        lines.push_back(line);
  std::string out = "{\n";
  for (std::size_t i = 0; i < lines.size(); ++i)
    if (edit.below(3, i) != 0) out += lines[i] + "\n";
  return out + "\"torch_dtype\": \"bfloat16\"\n}\n";
}

TEST(HostileConfig, OfEveryFamilyIsReadOrRefused) {
  std::int64_t taken = 0;
  std::int64_t refused = 0;
  const auto note = [&](bool good) { good ? ++taken : ++refused; };
  std::vector<std::string> files;
  for (const char* name :
       {"llama-3.1-8b", "mistral-7b-v0.1", "mixtral-8x7b", "qwen2-7b", "qwen3-8b", "qwen1.5-moe-a2.7b",
        "qwen3-30b-a3b", "llama-4-scout", "deepseek-v2-lite", "deepseek-v3", "olmoe-1b-7b", "gpt-oss-20b",
        "gpt2", "pythia-70m", "mpt-7b", "bloom-560m", "falcon-7b", "falcon-40b"}) {
    files.push_back(read_text(fmt::format("{}/src/spec/models/{}.json", TESSERA_SOURCE_DIR, name)));
  }
  for (std::size_t f = 0; f < files.size(); ++f) {
    const std::string& text = files[f];
    for (std::size_t n = 0; n < text.size(); n += 29) note(survives(text.substr(0, n)));
    for (std::uint64_t seed = 0; seed < 120; ++seed) {
      note(survives(test::mutated(text, 1000 * f + seed)));
      note(survives(with_a_strange_value(text, {1000 * f + seed})));
    }
    for (std::uint64_t seed = 0; seed < 30; ++seed) {
      note(survives(crossed(text, files[(f + 1 + seed) % files.size()], {1000 * f + seed})));
    }
  }
  EXPECT_GT(taken, 300);
  EXPECT_GT(refused, 4000);
}

TEST(HostileConfig, OfHugeLayersOrNestingIsRefusedAtOnce) {
  const std::string oss = read_text(fmt::format("{}/src/spec/models/gpt-oss-20b.json", TESSERA_SOURCE_DIR));
  EXPECT_FALSE(
      survives(test::replaced(oss, "\"num_hidden_layers\": 24", "\"num_hidden_layers\": 2147483647")));
  // Numbers at the ends of their range are reported, not computed with.
  const auto file = [](const char* name) {
    return read_text(fmt::format("{}/src/spec/models/{}.json", TESSERA_SOURCE_DIR, name));
  };
  EXPECT_FALSE(
      survives(test::replaced(file("qwen3-8b"), "\"head_dim\": 128", "\"head_dim\": 9223372036854775807")));
  EXPECT_FALSE(survives(
      test::replaced(file("bloom-560m"), "\"hidden_size\": 1024", "\"hidden_size\": -9223372036854775808")));
  std::string text = "{\"model_type\": \"llama4\", \"text_config\": ";
  for (int i = 0; i < 20; ++i) text += "{\"model_type\": \"llama4\", \"text_config\": ";
  EXPECT_FALSE(survives(text + std::string(21, '}') + "}"));
  EXPECT_FALSE(survives(std::string(100'000, '{')));
  EXPECT_FALSE(survives(""));
  EXPECT_FALSE(survives(std::string(3, '\0')));
}

}  // namespace
}  // namespace tessera::spec
