// config.json of the families that the engine trains: every key that changes the maths is kept or refused,
// with the values of Hugging Face for absent ones.
#include <gtest/gtest.h>

#include "spec/presets.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

using test::replaced;
using test::reports;

const char* const kFamilies[] = {"llama",     "mistral",   "qwen2", "qwen3",       "gpt2",        "mixtral",
                                 "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3", "gpt_oss"};

std::string golden(std::string_view family) {
  return read_text(fmt::format("{}/tests/golden/hf/{}/config.json", TESSERA_SOURCE_DIR, family));
}
// Keys in front of the file's own.
std::string with(std::string_view family, std::string_view keys) {
  return replaced(golden(family), "{", fmt::format("{{{},", keys));
}
// The line of one key gone.
std::string without(std::string text, std::string_view key) {
  const std::size_t at = text.find(fmt::format("  \"{}\": ", key));
  if (at == std::string::npos) throw std::runtime_error(std::string(key));
  return text.erase(at, text.find('\n', at) + 1 - at);
}

ModelSpec parsed(std::string_view json) {
  Problems problems;
  ModelSpec m = parse_hf_config(json, "config.json", problems);
  EXPECT_TRUE(problems.empty()) << test::listed(problems.list()) << json;
  const std::string written = to_hf_config(m);
  Problems again;
  EXPECT_EQ(parse_hf_config(written, "again.json", again), m) << written << test::listed(again.list());
  Problems trains;
  check_trainable(m, "config.json", trains);
  EXPECT_TRUE(trains.empty()) << test::listed(trains.list());
  return m;
}

void refused(const std::string& json, std::string_view what, std::string_view where, std::string_view mend) {
  Problems problems;
  (void)parse_hf_config(json, "config.json", problems);
  EXPECT_EQ(problems.list().size(), 1) << test::listed(problems.list());
  EXPECT_TRUE(reports(problems.list(), what, fmt::format("config.json: {}", where), mend));
}

TEST(TrainedFamilies, AreReadWrittenAndTrained) {
  for (const char* family : kFamilies) {
    SCOPED_TRACE(family);
    const ModelSpec m = parsed(golden(family));
    EXPECT_EQ(name(m.family), family);
    EXPECT_EQ(to_hf_config(parsed(to_hf_config(m))), to_hf_config(m));
  }
}

TEST(TrainedFamilies, KeepTheirMaths) {
  const ModelSpec gpt2 = parsed(golden("gpt2"));
  EXPECT_EQ(gpt2.hidden_act, Activation::gelu_tanh);
  EXPECT_FALSE(gpt2.gated_mlp);
  EXPECT_EQ(gpt2.intermediate_size, 128);
  EXPECT_EQ(gpt2.norm, NormKind::layer);
  EXPECT_TRUE(gpt2.tie_word_embeddings);
  const ModelSpec oss = parsed(golden("gpt_oss"));
  EXPECT_EQ(oss.hidden_act, Activation::clamped_swiglu);
  EXPECT_EQ(oss.swiglu_limit, 7.0);
  EXPECT_EQ(oss.sliding_window, 7);
  EXPECT_FALSE(oss.rope_scaling.truncate);
  EXPECT_FALSE(oss.moe->softmax_before_topk);
  EXPECT_TRUE(oss.moe->router_bias);
  EXPECT_TRUE(oss.moe->expert_bias);
  const ModelSpec v2 = parsed(golden("deepseek_v2"));
  EXPECT_TRUE(v2.rope_interleaved);
  EXPECT_EQ(v2.moe->n_group, 4);
  EXPECT_EQ(v2.moe->topk_group, 2);
  EXPECT_EQ(v2.moe->group_score, GroupScore::max);
  EXPECT_EQ(v2.moe->score, RouterScore::softmax);
  EXPECT_FALSE(v2.moe->norm_topk_prob);
  EXPECT_FALSE(v2.moe->score_correction_bias);
  EXPECT_EQ(v2.moe->shared_intermediate_size, 12);
  EXPECT_EQ(v2.rope_scaling.mscale, 0.707);
  EXPECT_EQ(v2.mla->q_lora_rank, 0);
  const ModelSpec v3 = parsed(golden("deepseek_v3"));
  EXPECT_EQ(v3.moe->group_score, GroupScore::top2_sum);
  EXPECT_EQ(v3.moe->score, RouterScore::sigmoid);
  EXPECT_TRUE(v3.moe->norm_topk_prob);
  EXPECT_TRUE(v3.moe->score_correction_bias);
  EXPECT_EQ(v3.mla->q_lora_rank, 16);
  const ModelSpec qwen = parsed(golden("qwen2_moe"));
  EXPECT_TRUE(qwen.attention_qkv_bias);
  EXPECT_FALSE(qwen.attention_out_bias);
  EXPECT_TRUE(qwen.moe->shared_expert_gate);
  EXPECT_FALSE(qwen.moe->norm_topk_prob);
  EXPECT_TRUE(qwen.layer_spans.empty());
  EXPECT_FALSE(layer_class(qwen, 2).moe);
  EXPECT_TRUE(layer_class(qwen, 3).moe);
  EXPECT_TRUE(parsed(golden("olmoe")).qk_norm_whole);
  EXPECT_TRUE(parsed(golden("qwen3")).qk_norm);
  EXPECT_EQ(layer_class(parsed(golden("mistral")), 0).span, AttentionSpan::sliding);
  EXPECT_EQ(parsed(golden("mistral")).sliding_window, 8);
  EXPECT_EQ(parsed(golden("qwen2")).sliding_window, 0);  // switched off
}

TEST(RopeScaling, OfEveryKindIsKept) {
  const auto scaled = [](std::string_view map) {
    return parsed(
               replaced(golden("olmoe"), "\"rope_scaling\": null", fmt::format("\"rope_scaling\": {}", map)))
        .rope_scaling;
  };
  EXPECT_EQ(scaled(R"({"type": "linear", "factor": 4})"),
            (RopeScaling{.kind = RopeKind::linear, .factor = 4.0}));
  EXPECT_EQ(scaled(R"({"rope_type": "linear", "factor": 4, "original_max_position_embeddings": 64})"),
            (RopeScaling{.kind = RopeKind::linear, .factor = 4.0}));
  EXPECT_EQ(scaled(R"({"rope_type": "dynamic", "type": "dynamic", "factor": 2.5})"),
            (RopeScaling{.kind = RopeKind::dynamic, .factor = 2.5}));
  EXPECT_EQ(scaled(R"({"rope_type": "default"})"), RopeScaling{});
  EXPECT_EQ(scaled(R"({"type": "yarn", "factor": 8.0})"),  // from the model's own positions
            (RopeScaling{.kind = RopeKind::yarn, .factor = 8.0, .original_max_position_embeddings = 256}));
  EXPECT_EQ(scaled(R"({"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64,
                       "attention_factor": 1.25, "beta_fast": 24, "beta_slow": 2, "truncate": false,
                       "mscale": 0.5, "mscale_all_dim": 0.25})"),
            (RopeScaling{.kind = RopeKind::yarn,
                         .factor = 8.0,
                         .original_max_position_embeddings = 64,
                         .beta_fast = 24.0,
                         .beta_slow = 2.0,
                         .mscale = 0.5,
                         .mscale_all_dim = 0.25,
                         .attention_factor = 1.25,
                         .truncate = false}));
  EXPECT_EQ(scaled(R"({"rope_type": "yarn", "factor": 8.0, "attention_factor": null})").attention_factor,
            0.0);
  const auto faulty = [](std::string_view map, std::string_view what, std::string_view key,
                         std::string_view mend) {
    refused(replaced(golden("olmoe"), "\"rope_scaling\": null", fmt::format("\"rope_scaling\": {}", map)),
            what, fmt::format("rope_scaling.{}", key), mend);
  };
  faulty(R"({"type": "yarn"})", "factor is missing", "factor", "add");
  faulty(R"({"type": "yarn", "factor": 4, "attention_factor": -1.0})", "attention_factor=-1 is not above 0",
         "attention_factor", "follows from factor");
  faulty(R"({"type": "linear", "rope_type": "dynamic", "factor": 4})", "rope_type=dynamic and type=linear",
         "type", "rope_type only");
  faulty(R"({"type": "dynamic", "factor": 4, "original_max_position_embeddings": 64})",
         "original_max_position_embeddings=64 differs from max_position_embeddings=256",
         "original_max_position_embeddings", "keep max_position_embeddings only");
  faulty(R"({"type": "longrope", "factor": 4})", "rope_type=longrope", "rope_type", "dynamic, llama3, yarn");
}

TEST(RopeScaling, OfNewerFilesStandsBesideTheBase) {
  for (const char* family : {"deepseek_v3", "gpt_oss"}) {
    const std::string old = golden(family);
    const ModelSpec m = parsed(old);
    std::string text = replaced(old, "\"rope_scaling\": {",
                                fmt::format("\"rope_parameters\": {{\"rope_theta\": {},", m.rope_theta));
    text = replaced(without(text, "rope_theta"), "torch_dtype", "dtype");
    EXPECT_EQ(parsed(text), m) << text;
  }
  // Hugging Face has a YaRN of its own for an absent key of gpt_oss.
  std::string none = golden("gpt_oss");
  const std::size_t at = none.find("  \"rope_scaling\"");
  none.erase(at, none.find("},\n", at) + 3 - at);
  refused(none, "rope_scaling is missing (Hugging Face would read yarn", "rope_scaling", "null for none");
  EXPECT_EQ(parsed(replaced(none, "{", "{\"rope_scaling\": null,")).rope_scaling, RopeScaling{});
}

TEST(RopeScaling, DynamicMayTrainOnSequencesBeyondTheModelsPositions) {
  Job job;
  job.model = parsed(
      replaced(golden("llama"), "\"max_position_embeddings\": 256", "\"max_position_embeddings\": 16"));
  job.train.sequence_length = 20;
  Problems refused_at_once;
  check_engine_runs(job, "here", refused_at_once);
  EXPECT_TRUE(reports(refused_at_once.list(),
                      "sequence_length=20 is above the model's max_position_embeddings=16",
                      "here: train.sequence_length", "1 to 16"));
  job.model.rope_scaling = {.kind = RopeKind::dynamic, .factor = 2.0};
  Problems none;
  check_engine_runs(job, "here", none);
  EXPECT_TRUE(none.empty()) << test::listed(none.list());
  job.model.num_nextn_predict_layers = 1;
  Problems mtp;
  check_engine_runs(job, "here", mtp);
  EXPECT_TRUE(reports(mtp.list(), "does not train MTP layers (num_nextn_predict_layers=1)", "here: model",
                      "num_nextn_predict_layers: 0"));
}

TEST(HeadDim, OfAbsentKeysIsThatOfHuggingFace) {
  EXPECT_EQ(parsed(without(golden("qwen3"), "head_dim")).head_dim, 128);
  EXPECT_EQ(parsed(without(golden("gpt_oss"), "head_dim")).head_dim, 64);
  EXPECT_EQ(parsed(without(golden("qwen3_moe"), "head_dim")).head_dim, 8);
  EXPECT_EQ(parsed(replaced(golden("qwen3"), "\"head_dim\": 16", "\"head_dim\": null")).head_dim, 8);
  EXPECT_EQ(parsed(with("mistral", "\"head_dim\": 20")).head_dim, 20);
  for (const char* family : {"llama", "olmoe", "deepseek_v2"})
    EXPECT_EQ(parsed(without(golden(family), "num_key_value_heads")).num_key_value_heads, 4);
  refused(without(golden("qwen3"), "num_key_value_heads"), "num_key_value_heads is missing",
          "num_key_value_heads", "add num_key_value_heads");
}

TEST(TrainedFamilies, FillOtherAbsentKeysAsHuggingFaceDoes) {
  EXPECT_EQ(parsed(without(golden("mistral"), "sliding_window")).sliding_window, 4096);
  EXPECT_EQ(parsed(without(golden("mixtral"), "sliding_window")).sliding_window, 0);
  EXPECT_FALSE(parsed(without(golden("qwen3_moe"), "norm_topk_prob")).moe->norm_topk_prob);
  EXPECT_FALSE(parsed(without(golden("olmoe"), "norm_topk_prob")).moe->norm_topk_prob);
  EXPECT_TRUE(parsed(without(golden("deepseek_v3"), "norm_topk_prob")).moe->norm_topk_prob);
  EXPECT_FALSE(parsed(without(golden("qwen2"), "tie_word_embeddings")).tie_word_embeddings);
  EXPECT_FALSE(parsed(with("gpt2", "\"tie_word_embeddings\": false")).tie_word_embeddings);
  EXPECT_EQ(parsed(with("gpt2", "\"n_inner\": 48")).intermediate_size, 48);
  EXPECT_EQ(parsed(with("gpt2", "\"n_inner\": null")).intermediate_size, 128);
  EXPECT_EQ(parsed(without(golden("gpt_oss"), "swiglu_limit")).swiglu_limit, 7.0);
  const ModelSpec oss = parsed(golden("gpt_oss"));
  std::string untyped = golden("gpt_oss");
  const std::size_t types = untyped.find("  \"layer_types\"");
  untyped.erase(types, untyped.find("],\n", types) + 3 - types);
  EXPECT_EQ(parsed(untyped), oss);  // alternating, the first with a window
}

TEST(TrainedFamilies, TakeTheSwitchesTheyHave) {
  const ModelSpec llama =
      parsed(replaced(replaced(golden("llama"), "\"attention_bias\": false", "\"attention_bias\": true"),
                      "\"mlp_bias\": false", "\"mlp_bias\": true"));
  EXPECT_TRUE(llama.attention_qkv_bias && llama.attention_out_bias && llama.mlp_bias);
  for (const char* family : {"qwen3", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3"}) {
    const ModelSpec m =
        parsed(replaced(golden(family), "\"attention_bias\": false", "\"attention_bias\": true"));
    EXPECT_TRUE(m.attention_qkv_bias && m.attention_out_bias) << family;
    EXPECT_EQ(num_parameters(m) > num_parameters(parsed(golden(family))), true);
  }
  EXPECT_FALSE(parsed(with("qwen2_moe", "\"qkv_bias\": false")).attention_qkv_bias);
  EXPECT_EQ(parsed(replaced(golden("olmoe"), "\"clip_qkv\": null", "\"clip_qkv\": 0.5")).clip_qkv, 0.5);
  EXPECT_EQ(
      parsed(replaced(golden("gpt_oss"), "\"swiglu_limit\": 7.0", "\"swiglu_limit\": 3.5")).swiglu_limit,
      3.5);
  EXPECT_TRUE(
      parsed(with("gpt2", "\"scale_attn_by_inverse_layer_idx\": true")).scale_attn_by_inverse_layer_idx);
  EXPECT_EQ(parsed(replaced(golden("gpt2"), "gelu_new", "gelu")).hidden_act, Activation::gelu);
  EXPECT_EQ(parsed(replaced(golden("gpt2"), "gelu_new", "gelu_pytorch_tanh")).hidden_act,
            Activation::gelu_tanh);
  EXPECT_EQ(
      parsed(replaced(golden("mixtral"), "\"sliding_window\": null", "\"sliding_window\": 6")).sliding_window,
      6);
  const ModelSpec greedy = parsed(replaced(golden("deepseek_v2"), "group_limited_greedy", "greedy"));
  EXPECT_EQ(greedy.moe->n_group, 1);
  EXPECT_EQ(greedy.moe->topk_group, 1);
  EXPECT_FALSE(
      parsed(replaced(golden("deepseek_v2"), "\"norm_topk_prob\": false", "\"norm_topk_prob\": true"))
          .moe->norm_topk_prob);
  EXPECT_EQ(parsed(replaced(golden("deepseek_v3"), "\"num_nextn_predict_layers\": 0",
                            "\"num_nextn_predict_layers\": 1"))
                .num_nextn_predict_layers,
            1);
  // Dropout of a recipe changes no number here.
  EXPECT_EQ(parsed(replaced(golden("llama"), "\"attention_dropout\": 0.0", "\"attention_dropout\": 0.1")),
            parsed(golden("llama")));
  EXPECT_EQ(parsed(with("mixtral", "\"router_jitter_noise\": 0.1")), parsed(golden("mixtral")));
}

TEST(Windows, OfQwenBeginAtALayer) {
  const std::string on =
      replaced(golden("qwen2"), "\"use_sliding_window\": false", "\"use_sliding_window\": true");
  const ModelSpec m = parsed(on);
  EXPECT_EQ(m.sliding_window, 6);
  EXPECT_EQ(m.layer_spans, (std::vector<AttentionSpan>{AttentionSpan::full, AttentionSpan::sliding}));
  EXPECT_NE(to_hf_config(m).find("\"max_window_layers\": 1"), std::string::npos);
  EXPECT_EQ(parsed(replaced(on, "\"max_window_layers\": 1", "\"max_window_layers\": 0")).layer_spans,
            (std::vector<AttentionSpan>{AttentionSpan::sliding, AttentionSpan::sliding}));
  EXPECT_TRUE(
      parsed(replaced(on, "\"max_window_layers\": 1", "\"max_window_layers\": 9")).layer_spans.empty());
  EXPECT_TRUE(parsed(replaced(on, "\"sliding_window\": 6", "\"sliding_window\": null")).layer_spans.empty());
  const std::string qwen3 =
      replaced(replaced(golden("qwen3"), "\"use_sliding_window\": false", "\"use_sliding_window\": true"),
               "\"sliding_window\": null", "\"sliding_window\": 5");
  EXPECT_TRUE(parsed(qwen3).layer_spans.empty());  // from layer 2 of 2 on
  for (const char* family : {"qwen2_moe", "qwen3_moe"}) {
    refused(replaced(golden(family), "\"use_sliding_window\": false", "\"use_sliding_window\": true"),
            "use_sliding_window=true: versions of Hugging Face differ", "use_sliding_window",
            "use_sliding_window: false");
  }
  refused(replaced(golden("gpt_oss"), "\"sliding_attention\",", ""),
          "layer_types has 1 entries for num_hidden_layers=2", "layer_types", "one a layer");
}

TEST(DenseLayers, OfMoeModelsStandAnywhere) {
  const std::string four =
      replaced(golden("qwen3_moe"), "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 4");
  const auto dense = [&](std::string_view list) {
    return replaced(four, "\"mlp_only_layers\": []", fmt::format("\"mlp_only_layers\": {}", list));
  };
  const ModelSpec m = parsed(dense("[3, 1, 3]"));
  EXPECT_EQ(m.moe->mlp_only_layers, (std::vector<std::int32_t>{1, 3}));
  EXPECT_TRUE(layer_class(m, 0).moe);
  EXPECT_FALSE(layer_class(m, 1).moe);
  EXPECT_TRUE(layer_class(m, 2).moe);
  EXPECT_FALSE(layer_class(m, 3).moe);
  const ModelSpec both =
      parsed(replaced(dense("[1]"), "\"decoder_sparse_step\": 1", "\"decoder_sparse_step\": 2"));
  EXPECT_FALSE(layer_class(both, 0).moe);
  EXPECT_FALSE(layer_class(both, 1).moe);
  EXPECT_TRUE(layer_class(both, 3).moe);
  refused(dense("[4]"), "mlp_only_layers=[4] names layers beyond num_hidden_layers=4", "mlp_only_layers",
          "0 to 3");
  refused(dense("[-1]"), "mlp_only_layers=[-1] names layers beyond", "mlp_only_layers", "0 to 3");
  refused(dense("[0, 1, 2, 3]"), "leaves no layer with experts", "mlp_only_layers", "dense model");
}

TEST(TrainedFamilies, RefuseContradictions) {
  refused(replaced(golden("deepseek_v2"), "group_limited_greedy", "noaux_tc"), "topk_method=noaux_tc",
          "topk_method", "greedy, group_limited_greedy");
  refused(replaced(golden("deepseek_v3"), "noaux_tc", "greedy"), "topk_method=greedy", "topk_method",
          "topk_method: noaux_tc");
  refused(replaced(golden("deepseek_v3"), "sigmoid", "softmax"), "scoring_func=softmax", "scoring_func",
          "scoring_func: sigmoid");
  refused(replaced(golden("deepseek_v2"), "\"scoring_func\": \"softmax\"", "\"scoring_func\": \"sigmoid\""),
          "scoring_func=sigmoid", "scoring_func", "softmax");
  refused(replaced(golden("deepseek_v3"), "\"qk_rope_head_dim\": 8", "\"qk_rope_head_dim\": 7"),
          "qk_rope_head_dim=7 is odd", "qk_rope_head_dim", "8");
  for (const char* key :
       {"first_k_dense_replace", "n_group", "topk_group", "q_lora_rank", "n_shared_experts"})
    refused(without(golden("deepseek_v3"), key), fmt::format("{} is missing (Hugging Face would read", key),
            key, "add");
  refused(replaced(golden("gpt_oss"), "\"experts_per_token\": 2", "\"experts_per_token\": 3"),
          "experts_per_token contradicts", "experts_per_token", "keep one");
  refused(with("gpt_oss", "\"swiglu_alpha\": 1.5"), "swiglu_alpha=1.5", "swiglu_alpha", "1.702");
  EXPECT_EQ(parsed(with("gpt_oss", "\"swiglu_alpha\": 1.702")), parsed(golden("gpt_oss")));
  refused(with("deepseek_v2", "\"mlp_bias\": true"), "mlp_bias=true: a bias in the MLP", "mlp_bias",
          "mlp_bias: false");
  EXPECT_EQ(parsed(with("deepseek_v2", "\"mlp_bias\": false, \"head_dim\": 8")),
            parsed(golden("deepseek_v2")));
  refused(replaced(golden("gpt_oss"), "\"swiglu_limit\": 7.0", "\"swiglu_limit\": 0.0"),
          "swiglu_limit=0 is not above 0", "swiglu_limit", "7.0");
  refused(replaced(golden("olmoe"), "\"clip_qkv\": null", "\"clip_qkv\": -8.0"), "clip_qkv=-8 is not above 0",
          "clip_qkv", "null");
  refused(replaced(golden("gpt2"), "gelu_new", "quick_gelu"), "activation_function=quick_gelu",
          "activation_function", "gelu_new");
  refused(with("gpt2", "\"scale_attn_weights\": false"), "scale_attn_weights=false", "scale_attn_weights",
          "true");
  refused(replaced(golden("mistral"), "\"silu\"", "\"gelu\""), "hidden_act=gelu", "hidden_act", "silu");
  refused(with("qwen2", "\"attention_bias\": true"), "unknown key \"attention_bias\"", "attention_bias", "");
}

TEST(TrainedFamilies, ReadOrRefuseEveryMutationOfTheirFiles) {
  std::int64_t taken = 0;
  for (const char* family : kFamilies) {
    const std::string text = golden(family);
    for (std::uint64_t seed = 0; seed < 250; ++seed) {
      Problems problems;
      const ModelSpec m = parse_hf_config(test::mutated(text, seed), "config.json", problems);
      if (!problems.empty()) continue;
      ++taken;
      Problems again;
      EXPECT_EQ(parse_hf_config(to_hf_config(m), "again.json", again), m) << test::mutated(text, seed);
      EXPECT_GT(num_parameters(m), 0);
    }
  }
  EXPECT_GT(taken, 20);
}

}  // namespace
}  // namespace tessera::spec
