// ModelSpec and config.json: published sizes, every refusal by name, round trips, and mutated files.
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "spec/presets.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

using test::data_file;
using test::replaced;
using test::reports;

ModelSpec parsed(std::string_view json) {
  Problems problems;
  ModelSpec m = parse_hf_config(json, "config.json", problems);
  EXPECT_TRUE(problems.empty()) << test::listed(problems.list());
  return m;
}

std::vector<Problem> problems_of(std::string_view json) {
  Problems problems;
  (void)parse_hf_config(json, "config.json", problems);
  return problems.list();
}

ModelSpec mixtral_8x7b() {
  return {.family = Family::mixtral,
          .num_hidden_layers = 32,
          .hidden_size = 4096,
          .intermediate_size = 14336,
          .num_attention_heads = 32,
          .num_key_value_heads = 8,
          .head_dim = 128,
          .vocab_size = 32000,
          .max_position_embeddings = 32768,
          .moe = MoeSpec{.num_experts = 8, .num_experts_per_tok = 2}};
}

TEST(ParameterCount, EqualsThePublishedModels) {
  EXPECT_EQ(num_parameters(mixtral_8x7b()), 46'702'792'704);
  EXPECT_EQ(num_active_parameters(mixtral_8x7b()), 12'879'925'248);
  const ModelSpec llama2_7b = {.num_hidden_layers = 32,
                               .hidden_size = 4096,
                               .intermediate_size = 11008,
                               .num_attention_heads = 32,
                               .num_key_value_heads = 32,
                               .head_dim = 128,
                               .vocab_size = 32000};
  EXPECT_EQ(num_parameters(llama2_7b), 6'738'415'616);
  EXPECT_EQ(num_active_parameters(llama2_7b), 6'738'415'616);
  const ModelSpec llama3_8b = {.num_hidden_layers = 32,
                               .hidden_size = 4096,
                               .intermediate_size = 14336,
                               .num_attention_heads = 32,
                               .num_key_value_heads = 8,
                               .head_dim = 128,
                               .vocab_size = 128256};
  EXPECT_EQ(num_parameters(llama3_8b), 8'030'261'248);
}

TEST(ParameterCount, CountsATiedTableOnce) {  // Llama-3.2-1B
  const ModelSpec m = {.num_hidden_layers = 16,
                       .hidden_size = 2048,
                       .intermediate_size = 8192,
                       .num_attention_heads = 32,
                       .num_key_value_heads = 8,
                       .head_dim = 64,
                       .vocab_size = 128256,
                       .tie_word_embeddings = true};
  EXPECT_EQ(num_parameters(m), 1'235'814'400);
}

TEST(TrainFlops, AreSixPerUsedMatmulWeightPlusAttention) {
  ModelSpec m = mixtral_8x7b();
  // Active parameters less the embedding table and the norms, which no matmul reads.
  const double weights = 12'879'925'248.0 - 32000.0 * 4096 - 65.0 * 4096;
  const double causal = 32 * 12 * ((4096 + 1) / 2.0) * 4096;
  EXPECT_EQ(train_flops_per_token(m, 4096, AttentionFlops::causal), 6 * weights + causal);
  EXPECT_EQ(train_flops_per_token(m, 4096, AttentionFlops::full), 6 * weights + 32.0 * 12 * 4096 * 4096);
  m.tie_word_embeddings = true;  // the head is a matmul all the same
  EXPECT_EQ(train_flops_per_token(m, 4096, AttentionFlops::causal), 6 * weights + causal);
}

TEST(HfConfig, ReadsALlamaFile) {
  const ModelSpec m = parsed(data_file("llama_config.json"));
  EXPECT_EQ(m.family, Family::llama);
  EXPECT_EQ(m.num_hidden_layers, 2);
  EXPECT_EQ(m.hidden_size, 40);
  EXPECT_EQ(m.head_dim, 10);
  EXPECT_EQ(m.num_key_value_heads, 2);
  EXPECT_EQ(m.rope_theta, 500'000.0);
  EXPECT_EQ(m.rope_scaling, (RopeScaling{.kind = RopeKind::llama3,
                                         .factor = 8.0,
                                         .low_freq_factor = 1.0,
                                         .high_freq_factor = 4.0,
                                         .original_max_position_embeddings = 2048}));
  EXPECT_FALSE(m.moe.has_value());
}

TEST(HfConfig, ReadsAMixtralFile) {
  const ModelSpec m = parsed(data_file("mixtral_config.json"));
  EXPECT_EQ(m.family, Family::mixtral);
  EXPECT_EQ(m.rope_theta, 1e6);
  EXPECT_EQ(m.rope_scaling.kind, RopeKind::none);
  ASSERT_TRUE(m.moe.has_value());
  EXPECT_EQ(m.moe->num_experts, 5);
  EXPECT_EQ(m.moe->num_experts_per_tok, 2);
  EXPECT_EQ(m.moe->router_aux_loss_coef, 0.02);
  EXPECT_TRUE(m.moe->softmax_before_topk);
  EXPECT_TRUE(m.moe->norm_topk_prob);
}

TEST(HfConfig, ReadsTheNewerNamesAsTheOlderOnes) {
  std::string newer = replaced(data_file("llama_config.json"), "\"rope_scaling\": {",
                               "\"rope_parameters\": {\"rope_theta\": 500000,");
  newer = replaced(newer, "\"rope_theta\": 500000.0,", "");
  newer = replaced(newer, "torch_dtype", "dtype");
  EXPECT_EQ(parsed(newer), parsed(data_file("llama_config.json")));
  const std::string plain =
      replaced(data_file("mixtral_config.json"), "\"rope_theta\": 1000000.0",
               "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 1000000}");
  EXPECT_EQ(parsed(plain), parsed(data_file("mixtral_config.json")));
}

TEST(HfConfig, FillsAbsentKeysAsHuggingFaceDoes) {
  std::string json = replaced(data_file("llama_config.json"), "\"num_key_value_heads\": 2,", "");
  json = replaced(json, "\"tie_word_embeddings\": false,", "");
  const ModelSpec m = parsed(json);
  EXPECT_EQ(m.num_key_value_heads, 4);
  EXPECT_FALSE(m.tie_word_embeddings);
  const std::string wide =
      replaced(data_file("llama_config.json"), "\"hidden_size\"", "\"head_dim\": 16, \"hidden_size\"");
  EXPECT_EQ(parsed(wide).head_dim, 16);
  const std::string null =
      replaced(data_file("llama_config.json"), "\"hidden_size\"", "\"head_dim\": null, \"hidden_size\"");
  EXPECT_EQ(parsed(null).head_dim, 10);
  // Absent, Hugging Face reads 8 for mixtral: refused rather than guessed.
  EXPECT_TRUE(
      reports(problems_of(replaced(data_file("mixtral_config.json"), "\"num_key_value_heads\": 2,", "")),
              "num_key_value_heads is missing", "config.json", "add num_key_value_heads"));
}

TEST(HfConfig, RefusesByNameWhatIsNotUnderstood) {
  const std::string llama = data_file("llama_config.json");
  const std::string mixtral = data_file("mixtral_config.json");
  const auto refused = [](const std::string& json, const char* what, const char* where, const char* mend) {
    const auto problems = problems_of(json);
    EXPECT_EQ(problems.size(), 1) << test::listed(problems);
    EXPECT_TRUE(reports(problems, what, where, mend));
  };
  refused(replaced(mixtral, "\"sliding_window\": null", "\"sliding_window\": null, \"attention_bias\": true"),
          "attention_bias=true", "config.json: attention_bias", "attention_bias: false");
  refused(replaced(llama, "\"silu\"", "\"gelu\""), "hidden_act=gelu", "hidden_act", "silu");
  refused(replaced(llama, "\"llama3\"", "\"longrope\""), "rope_type=longrope", "rope_scaling.rope_type",
          "default, linear, dynamic, llama3, yarn");
  refused(replaced(llama, "\"rms_norm_eps\"", "\"rms_norm_epz\""), "unknown key \"rms_norm_epz\"",
          "rms_norm_epz", "did you mean rms_norm_eps?");
  refused(replaced(llama, "\"factor\": 8.0", "\"factor\": 8.0, \"factors\": 8.0"), "unknown key \"factors\"",
          "rope_scaling.factors", "did you mean rope_scaling.factor?");
  refused(replaced(llama, "\"model_type\": \"llama\"", "\"model_type\": \"qwen4\""),
          "model_type=qwen4 is not a family that Tessera knows", "config.json: model_type",
          "did you mean qwen");
  refused(replaced(llama, "\"model_type\": \"llama\",", ""), "model_type is missing", "config.json", "llama");
  refused(replaced(llama, "\"hidden_size\": 40", "\"hidden_size\": 40, \"hidden_size\": 40"),
          "\"hidden_size\" is given twice", "config.json", "keep one");
  refused(replaced(llama, "\"vocab_size\": 101", "\"vocab_size\": 101.5"),
          "vocab_size=101.5 is not a whole number", "vocab_size", "whole number");
  refused(replaced(llama, "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 9999999999"), "9999999999",
          "num_hidden_layers", "2147483647");
  refused(llama.substr(0, 200), "not valid JSON", "config.json", "syntax");
  refused("[1]", "not one JSON object", "config.json", "config.json of Hugging Face");
}

TEST(Trainable, NamesWhatTheEngineDoesNotCompute) {
  const std::string llama = data_file("llama_config.json");
  const std::string mixtral = data_file("mixtral_config.json");
  const auto refused = [](const std::string& json, const char* what, const char* mend) {
    Problems problems;
    check_trainable(parsed(json), "config.json", problems);
    EXPECT_EQ(problems.list().size(), 1) << test::listed(problems.list());
    EXPECT_TRUE(reports(problems.list(), what, "config.json: model_type", mend));
    EXPECT_THROW(require_trainable(parsed(json), "config.json"), Error);
  };
  for (const std::string& good : {llama, mixtral}) {
    const ModelSpec m = parsed(good);
    EXPECT_EQ(&require_trainable(m, "config.json"), &m);
  }
  const std::string gpt2 = replaced(test::shipped_model("gpt2"), "gelu_new", "relu");
  refused(gpt2, "does not train activation_function=relu", "gelu_new or gelu");
  refused(replaced(test::shipped_model("deepseek-v3"), "{", "{\"rope_interleave\": false,"),
          "rope_interleave=false", "rope_interleave: true");
  const std::map<Family, std::string> why = {{Family::llama4, "(chunked attention)"},
                                             {Family::gpt_neox, "(rotary embedding of a part of each head)"},
                                             {Family::mpt, "(ALiBi)"},
                                             {Family::bloom, "(ALiBi)"},
                                             {Family::falcon, "(attention and MLP side by side)"}};
  std::set<Family> accepted;
  for (const PresetInfo& p : model_presets()) {
    const ModelSpec m = model_preset(p.name);
    if (const auto at = why.find(m.family); at != why.end()) {
      refused(to_hf_config(m), fmt::format("model_type={} {}", name(m.family), at->second).c_str(),
              "one of llama, mistral, qwen2");
    } else {
      EXPECT_EQ(&require_trainable(m, "config.json"), &m);
      accepted.insert(m.family);
    }
  }
  EXPECT_EQ(accepted.size(), 12);
}

TEST(HfConfig, ReportsEveryFaultAtOnce) {
  std::string json =
      replaced(data_file("mixtral_config.json"), "\"num_experts_per_tok\": 2", "\"num_experts_per_tok\": 6");
  json = replaced(json, "\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
  json = replaced(json, "\"vocab_size\": 101", "\"vocab_size\": 0");
  json = replaced(json, "\"hidden_act\": \"silu\"", "\"hidden_act\": \"relu\"");
  json = replaced(json, "\"intermediate_size\": 20,", "");
  const auto problems = problems_of(json);
  EXPECT_EQ(problems.size(), 5) << test::listed(problems);
  EXPECT_TRUE(reports(problems, "num_experts_per_tok=6 is above num_local_experts=5", "num_experts_per_tok",
                      "1 to 5"));
  EXPECT_TRUE(reports(problems, "num_key_value_heads=3 does not divide num_attention_heads=4",
                      "num_key_value_heads", "{1, 2, 4}"));
  EXPECT_TRUE(reports(problems, "vocab_size=0", "vocab_size", "from 1"));
  EXPECT_TRUE(reports(problems, "hidden_act=relu", "hidden_act", "silu"));
  EXPECT_TRUE(reports(problems, "intermediate_size is missing", "intermediate_size", "add"));
}

TEST(HfConfig, NamesHeadsThatDoNotDivideTheHiddenSize) {
  const auto problems = problems_of(
      replaced(data_file("llama_config.json"), "\"num_attention_heads\": 4", "\"num_attention_heads\": 6"));
  EXPECT_TRUE(reports(problems, "num_attention_heads=6 does not divide hidden_size=40", "num_attention_heads",
                      "{1, 2, 4, 5, 8, 10, 20, 40}"));
}

TEST(HfConfig, WritesWhatItReadsBack) {
  std::vector<ModelSpec> models = {parsed(data_file("llama_config.json")),
                                   parsed(data_file("mixtral_config.json")), mixtral_8x7b()};
  ModelSpec odd = models[0];
  odd.rope_scaling = {.kind = RopeKind::linear, .factor = 2.5};
  odd.tie_word_embeddings = true;
  odd.rms_norm_eps = 1e-6 / 3;
  odd.head_dim = 16;
  models.push_back(odd);
  ModelSpec routed = models[1];
  routed.moe->norm_topk_prob = false;
  routed.moe->softmax_before_topk = false;
  models.push_back(routed);
  for (const ModelSpec& m : models) {
    const std::string json = to_hf_config(m);
    EXPECT_EQ(parsed(json), m) << json;
    EXPECT_EQ(to_hf_config(parsed(json)), json);
  }
}

TEST(HfConfig, ReadsAFolder) {
  EXPECT_THROW((void)read_hf_config("/nowhere/config.json"), Error);
  const std::filesystem::path folder = std::filesystem::path(TESSERA_BINARY_DIR) / "spec_model";
  std::filesystem::create_directories(folder);
  write_atomically(folder / "config.json", data_file("llama_config.json"));
  EXPECT_EQ(read_hf_config(folder), parsed(data_file("llama_config.json")));
  EXPECT_EQ(read_hf_config(folder / "config.json"), parsed(data_file("llama_config.json")));
}

TEST(HfConfig, SurvivesEveryMutationAndTruncation) {
  const std::string texts[] = {data_file("llama_config.json"), data_file("mixtral_config.json")};
  std::int64_t refused = 0;
  for (const std::string& text : texts) {
    for (std::size_t n = 0; n < text.size(); n += 3) {
      Problems problems;
      (void)parse_hf_config(text.substr(0, n), "config.json", problems);
      EXPECT_FALSE(problems.empty() && n + 3 < text.size()) << n;
    }
    for (std::uint64_t seed = 0; seed < 3000; ++seed) {
      Problems problems;
      const ModelSpec m = parse_hf_config(test::mutated(text, seed), "config.json", problems);
      refused += problems.empty() ? 0 : 1;
      if (problems.empty()) {
        EXPECT_GT(num_parameters(m), 0);
        EXPECT_EQ(parsed(to_hf_config(m)), m);
      }
    }
  }
  EXPECT_GT(refused, 3000);
  Problems deep;
  (void)parse_hf_config(std::string(1'000'000, '['), "config.json", deep);
  EXPECT_TRUE(reports(deep.list(), "nested deeper than 32", "config.json", "flatten"));
}

}  // namespace
}  // namespace tessera::spec
