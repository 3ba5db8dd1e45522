// What each family is before its file is read.
#include "spec/internal.h"

namespace tessera::spec {

const KeyNames& key_names(Family family) {
  static constexpr KeyNames kPlain;
  static constexpr KeyNames kQwenMoe = {.experts = "num_experts"};
  static constexpr KeyNames kDeepseek = {.experts = "n_routed_experts", .shared_width = "n_shared_experts"};
  static constexpr KeyNames kLlama4 = {.intermediate = "intermediate_size_mlp",
                                       .expert_width = "intermediate_size"};
  static constexpr KeyNames kGpt2 = {.layers = "n_layer",
                                     .hidden = "n_embd",
                                     .intermediate = "n_inner",
                                     .heads = "n_head",
                                     .kv_heads = "n_head",
                                     .positions = "n_positions",
                                     .eps = "layer_norm_epsilon"};
  static constexpr KeyNames kNeox = {.kv_heads = "num_attention_heads", .eps = "layer_norm_eps"};
  static constexpr KeyNames kMpt = {.layers = "n_layers",
                                    .hidden = "d_model",
                                    .intermediate = "expansion_ratio",
                                    .heads = "n_heads",
                                    .kv_heads = "attn_config",
                                    .positions = "max_seq_len",
                                    .eps = "layer_norm_epsilon"};
  static constexpr KeyNames kBloom = {.layers = "n_layer",
                                      .intermediate = "hidden_size",
                                      .heads = "n_head",
                                      .kv_heads = "n_head",
                                      .positions = "seq_length",
                                      .eps = "layer_norm_epsilon"};
  static constexpr KeyNames kFalcon = {
      .intermediate = "ffn_hidden_size", .kv_heads = "num_kv_heads", .eps = "layer_norm_epsilon"};
  switch (family) {
    case Family::llama:
    case Family::mixtral:
    case Family::mistral:
    case Family::qwen2:
    case Family::qwen3:
    case Family::gpt_oss:
      return kPlain;
    case Family::qwen2_moe:
    case Family::qwen3_moe:
    case Family::olmoe:
      return kQwenMoe;
    case Family::deepseek_v2:
    case Family::deepseek_v3:
      return kDeepseek;
    case Family::llama4:
      return kLlama4;
    case Family::gpt2:
      return kGpt2;
    case Family::gpt_neox:
      return kNeox;
    case Family::mpt:
      return kMpt;
    case Family::bloom:
      return kBloom;
    case Family::falcon:
      return kFalcon;
  }
  return kPlain;
}

bool has_experts(Family family) {
  switch (family) {
    case Family::mixtral:
    case Family::llama4:
    case Family::qwen2_moe:
    case Family::qwen3_moe:
    case Family::deepseek_v2:
    case Family::deepseek_v3:
    case Family::olmoe:
    case Family::gpt_oss:
      return true;
    case Family::llama:
    case Family::mistral:
    case Family::qwen2:
    case Family::qwen3:
    case Family::gpt2:
    case Family::gpt_neox:
    case Family::mpt:
    case Family::bloom:
    case Family::falcon:
      return false;
  }
  return false;
}

bool has_mla(Family family) {
  return family == Family::deepseek_v2 || family == Family::deepseek_v3;
}

namespace {

// The GPT line: LayerNorm, one matrix up, a tied table.
ModelSpec classic(Family family, PositionKind position, bool biases) {
  ModelSpec m;
  m.family = family;
  m.norm = NormKind::layer;
  m.position = position;
  m.gated_mlp = false;
  m.hidden_act = family == Family::gpt2 || family == Family::bloom ? Activation::gelu_tanh : Activation::gelu;
  m.tie_word_embeddings = true;
  m.max_position_embeddings = 2'048;
  m.attention_qkv_bias = biases;
  m.attention_out_bias = biases;
  m.mlp_bias = biases;
  return m;
}

ModelSpec llama_like(Family family, std::int64_t positions, double eps, double theta) {
  ModelSpec m;
  m.family = family;
  m.max_position_embeddings = positions;
  m.rms_norm_eps = eps;
  m.rope_theta = theta;
  return m;
}

ModelSpec classic_defaults(Family family) {
  ModelSpec m = classic(family, PositionKind::rope, true);
  if (family == Family::gpt2) {
    m.position = PositionKind::learned;
    m.max_position_embeddings = 1'024;
  } else if (family == Family::gpt_neox) {
    m.tie_word_embeddings = false;
    m.parallel_residual = true;
    m.partial_rotary_factor = 0.25;
  } else if (family == Family::mpt) {
    m = classic(family, PositionKind::alibi, false);
    m.norm = NormKind::layer_no_bias;
  } else if (family == Family::bloom) {
    m.position = PositionKind::alibi;
    m.embedding_norm = true;
  } else {
    m = classic(family, PositionKind::rope, false);
    m.parallel_residual = true;
    m.parallel_shared_norm = true;
  }
  return m;
}

}  // namespace

ModelSpec family_defaults(Family family) {
  ModelSpec m;
  switch (family) {
    case Family::llama:
      return llama_like(family, 2'048, 1e-6, 1e4);
    case Family::mixtral:
      return llama_like(family, 131'072, 1e-5, 1e6);
    case Family::mistral:
      return llama_like(family, 131'072, 1e-6, 1e4);
    case Family::qwen2:
    case Family::qwen2_moe:
      m = llama_like(family, 32'768, 1e-6, 1e4);
      m.attention_qkv_bias = true;
      return m;
    case Family::qwen3:
    case Family::qwen3_moe:
      m = llama_like(family, 32'768, 1e-6, 1e4);
      m.qk_norm = true;
      return m;
    case Family::llama4:
      m = llama_like(family, 131'072, 1e-5, 5e5);
      m.qk_norm = true;
      return m;
    case Family::deepseek_v2:
    case Family::deepseek_v3:
      m = llama_like(family, family == Family::deepseek_v2 ? 2'048 : 4'096, 1e-6, 1e4);
      m.rope_interleaved = true;
      return m;
    case Family::olmoe:
      m = llama_like(family, 4'096, 1e-5, 1e4);
      m.qk_norm = true;
      m.qk_norm_whole = true;
      return m;
    case Family::gpt_oss:
      m = llama_like(family, 131'072, 1e-5, 1.5e5);
      m.attention_qkv_bias = true;
      m.attention_out_bias = true;
      m.attention_sinks = true;
      m.hidden_act = Activation::clamped_swiglu;
      m.swiglu_limit = 7.0;
      return m;
    case Family::gpt2:
    case Family::gpt_neox:
    case Family::mpt:
    case Family::bloom:
    case Family::falcon:
      return classic_defaults(family);
  }
  return m;
}

}  // namespace tessera::spec
