// config.json of every family: the keys that Hugging Face writes, other names of them, contradictions, the
// shipped models by name, and broken files.
#include <gtest/gtest.h>

#include <set>

#include "spec/presets.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

using test::replaced;
using test::reports;

ModelSpec parsed(std::string_view json) {
  Problems problems;
  ModelSpec m = parse_hf_config(json, "config.json", problems);
  EXPECT_TRUE(problems.empty()) << test::listed(problems.list()) << json;
  return m;
}

std::vector<Problem> problems_of(std::string_view json) {
  Problems problems;
  (void)parse_hf_config(json, "config.json", problems);
  return problems.list();
}

// Keys in front of the file's own.
std::string with(std::string_view name, std::string_view keys) {
  return replaced(test::shipped_model(name), "{", fmt::format("{{{},", keys));
}

TEST(Families, AreAllShippedAndWrittenAsTheyAreRead) {
  std::set<Family> seen;
  EXPECT_GE(model_presets().size(), 40U);
  for (const PresetInfo& p : model_presets()) {
    const ModelSpec m = model_preset(p.name);
    seen.insert(m.family);
    const std::string json = to_hf_config(m);
    EXPECT_EQ(parsed(json), m) << p.name << json;
    EXPECT_EQ(to_hf_config(parsed(json)), json) << p.name;
    EXPECT_NE(p.summary.find(" parameters"), std::string::npos) << p.summary;
    EXPECT_NE(p.summary.find("; "), std::string::npos) << p.name << " names no source";
  }
  EXPECT_EQ(seen.size(), 17U);
}

TEST(Families, KeepTheirOwnParts) {
  const ModelSpec qwen2 = model_preset("qwen2-7b");
  EXPECT_TRUE(qwen2.attention_qkv_bias);
  EXPECT_FALSE(qwen2.attention_out_bias);
  EXPECT_EQ(qwen2.sliding_window, 0);  // use_sliding_window is false
  EXPECT_TRUE(model_preset("qwen3-8b").qk_norm);
  const ModelSpec scout = model_preset("llama-4-scout");
  EXPECT_EQ(layer_class(scout, 2), (LayerClass{.span = AttentionSpan::chunked, .moe = true}));
  EXPECT_EQ(layer_class(scout, 3), (LayerClass{.span = AttentionSpan::full, .moe = true}));
  const ModelSpec maverick = model_preset("llama-4-maverick");
  EXPECT_FALSE(layer_class(maverick, 0).moe);
  EXPECT_TRUE(layer_class(maverick, 1).moe);
  EXPECT_EQ(maverick.intermediate_size, 16'384);
  EXPECT_EQ(expert_intermediate_size(maverick), 8'192);
  const ModelSpec v3 = model_preset("deepseek-v3");
  EXPECT_FALSE(layer_class(v3, 2).moe);
  EXPECT_TRUE(layer_class(v3, 3).moe);
  EXPECT_EQ(v3.head_dim, 192);
  EXPECT_EQ(v3.moe->shared_intermediate_size, 2'048);
  EXPECT_EQ(v3.moe->n_group, 8);
  EXPECT_TRUE(v3.moe->score_correction_bias);
  EXPECT_EQ(v3.rope_scaling.kind, RopeKind::yarn);
  EXPECT_EQ(model_preset("kimi-k2").family, Family::deepseek_v3);
  const ModelSpec oss = model_preset("gpt-oss-20b");
  EXPECT_EQ(layer_class(oss, 0).span, AttentionSpan::sliding);
  EXPECT_EQ(layer_class(oss, 1).span, AttentionSpan::full);
  EXPECT_TRUE(oss.attention_sinks);
  const ModelSpec window = model_preset("mistral-7b-v0.1");
  EXPECT_EQ(layer_class(window, 31).span, AttentionSpan::sliding);
  EXPECT_TRUE(model_preset("mistral-7b-v0.3").layer_spans.empty());
  EXPECT_EQ(model_preset("gpt2").intermediate_size, 3'072);
  EXPECT_EQ(model_preset("falcon-7b").num_key_value_heads, 1);
  EXPECT_TRUE(model_preset("falcon-7b").parallel_shared_norm);
  EXPECT_FALSE(model_preset("falcon-40b").parallel_shared_norm);
  EXPECT_EQ(model_preset("mpt-7b").position, PositionKind::alibi);
  EXPECT_EQ(model_preset("mpt-7b").norm, NormKind::layer_no_bias);
  EXPECT_TRUE(model_preset("bloom-176b").embedding_norm);
  EXPECT_EQ(model_preset("gpt-neox-20b").partial_rotary_factor, 0.25);
}

TEST(Families, ReadTheOtherNamesOfAKey) {
  std::string bloom = replaced(test::shipped_model("bloom-7b1"), "\"hidden_size\"", "\"n_embed\"");
  bloom = replaced(bloom, "\"n_head\"", "\"num_attention_heads\"");
  EXPECT_EQ(parsed(bloom), model_preset("bloom-7b1"));
  std::string falcon = replaced(test::shipped_model("falcon-40b"), "\"num_kv_heads\"", "\"n_head_kv\"");
  falcon = replaced(falcon, "\"num_hidden_layers\"", "\"n_layer\"");
  EXPECT_EQ(parsed(falcon), model_preset("falcon-40b"));
  const std::string oss = replaced(test::shipped_model("gpt-oss-20b"), "\"num_experts_per_tok\": 4,", "");
  EXPECT_EQ(parsed(oss), model_preset("gpt-oss-20b"));
  EXPECT_TRUE(reports(problems_of(with("falcon-40b", "\"n_layer\": 61")), "n_layer contradicts another name",
                      "config.json: n_layer", "keep one"));
  EXPECT_TRUE(reports(problems_of(with("gpt2", "\"hidden_size\": 512")), "hidden_size contradicts",
                      "hidden_size", "keep one"));
}

TEST(Families, ReadTheTextOfALlama4WithImages) {
  const std::string whole = fmt::format(
      R"({{"architectures": ["Llama4ForConditionalGeneration"], "model_type": "llama4",
          "vision_config": {{"a": 1}},
          "image_token_index": 200092, "text_config": {}}})",
      test::shipped_model("llama-4-scout"));
  EXPECT_EQ(parsed(whole), model_preset("llama-4-scout"));
  EXPECT_TRUE(reports(problems_of(replaced(whole, "\"num_local_experts\": 16", "\"num_local_experts\": 0")),
                      "num_local_experts=0", "config.json: text_config.num_local_experts", "from 1"));
  EXPECT_TRUE(reports(problems_of(replaced(whole, "\"image_token_index\"", "\"image_tokens\"")),
                      "unknown key \"image_tokens\"", "config.json", ""));
}

TEST(Families, DeriveSpansFromWhateverSaysThem) {
  const std::string qwen = replaced(test::shipped_model("qwen2-7b"), "\"use_sliding_window\": false",
                                    "\"use_sliding_window\": true");
  const ModelSpec late = parsed(replaced(qwen, "\"max_window_layers\": 28", "\"max_window_layers\": 20"));
  EXPECT_EQ(late.sliding_window, 131'072);
  EXPECT_EQ(layer_class(late, 19).span, AttentionSpan::full);
  EXPECT_EQ(layer_class(late, 20).span, AttentionSpan::sliding);
  EXPECT_EQ(parsed(to_hf_config(late)), late);
  EXPECT_TRUE(parsed(qwen).layer_spans.empty());
  std::string mistral = replaced(test::shipped_model("mistral-7b-v0.1"), "\"sliding_window\": 4096,", "");
  EXPECT_EQ(parsed(mistral).sliding_window, 4096);  // what Hugging Face reads for an absent key
  std::string oss = with("gpt-oss-20b", "\"layer_types\": [\"full_attention\"]");
  EXPECT_TRUE(reports(problems_of(oss), "layer_types has 1 entries for num_hidden_layers=24", "layer_types",
                      "one a layer"));
  EXPECT_TRUE(reports(problems_of(with("gpt-oss-20b", "\"layer_types\": [\"chunked_attention\"]")),
                      "layer_types has \"chunked_attention\"", "layer_types", "sliding_attention"));
  EXPECT_TRUE(reports(
      problems_of(with("llama-4-scout", "\"no_rope_layers\": [1], \"layer_types\": [\"full_attention\"]")),
      "do not name the same chunked layers", "layer_types", "keep one"));
}

TEST(Families, RefuseWhatContradictsItselfOrIsNotUnderstood) {
  const auto refused = [](const std::string& json, std::string_view what, std::string_view where,
                          std::string_view mend) {
    EXPECT_TRUE(reports(problems_of(json), what, where, mend)) << json;
  };
  refused(replaced(test::shipped_model("deepseek-v3"), "\"num_key_value_heads\": 128",
                   "\"num_key_value_heads\": 8"),
          "num_key_value_heads=8 differs from num_attention_heads=128", "num_key_value_heads", "128");
  refused(replaced(test::shipped_model("deepseek-v3"), "\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2"),
          "moe_layer_freq=2", "moe_layer_freq", "moe_layer_freq: 1");
  refused(replaced(test::shipped_model("deepseek-v3"), "\"noaux_tc\"", "\"aux\""), "topk_method=aux",
          "topk_method", "noaux_tc");
  refused(replaced(test::shipped_model("deepseek-v3"), "\"topk_group\": 4", "\"topk_group\": 9"),
          "topk_group=9 is above n_group=8", "topk_group", "1 to 8");
  refused(replaced(test::shipped_model("deepseek-v3"), "\"kv_lora_rank\": 512,", ""),
          "kv_lora_rank is missing", "kv_lora_rank", "");
  refused(replaced(test::shipped_model("deepseek-v3"), "\"first_k_dense_replace\": 3",
                   "\"first_k_dense_replace\": 61"),
          "no layer has experts", "first_k_dense_replace", "dense model");
  refused(with("qwen3-30b-a3b", "\"num_expert\": 4"), "unknown key \"num_expert\"", "num_expert",
          "num_experts");
  refused(replaced(test::shipped_model("mpt-7b"), "\"no_bias\": true", "\"no_bias\": false"),
          "no_bias=false: biases", "no_bias", "no_bias: true");
  refused(replaced(test::shipped_model("mpt-7b"), "\"qk_ln\": false", "\"qk_ln\": true"), "qk_ln=true",
          "attn_config.qk_ln", "false");
  refused(replaced(test::shipped_model("mpt-7b"), "multihead_attention", "some_attention"),
          "attn_type=some_attention", "attn_config.attn_type", "multiquery");
}

}  // namespace
}  // namespace tessera::spec
