// The llama line: llama, mistral, mixtral, qwen2 and qwen3 with their MoE forms.
#include <fmt/format.h>

#include "spec/hf_reader.h"

namespace tessera::spec {

void read_rms_sizes(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  r.required("num_hidden_layers", m.num_hidden_layers);
  r.required("hidden_size", m.hidden_size);
  r.required(key_names(m.family).intermediate, m.intermediate_size);
  r.required("vocab_size", m.vocab_size);
  read_attention(in);
  r.optional("max_position_embeddings", m.max_position_embeddings);
  r.optional("rms_norm_eps", m.rms_norm_eps);
  read_rope(in);
  r.optional("tie_word_embeddings", m.tie_word_embeddings);
  r.optional("initializer_range", m.initializer_range);
  only_word(r, "hidden_act", {"silu"});
}

void accept_dropout(MapReader& r, std::initializer_list<std::string_view> keys) {
  for (const std::string_view key : keys) {
    double probability = 0.0;
    r.optional(key, probability);
  }
}

void read_attention_bias(const Reading& in) {
  bool bias = in.m.attention_qkv_bias;
  in.r.optional("attention_bias", bias);
  in.m.attention_qkv_bias = bias;
  in.m.attention_out_bias = bias;
}

namespace {

// The engine trains these without dropout, so it may not pass in silence.
void refuse_dropout(MapReader& r) {
  only_zero(r, "attention_dropout", "dropout");
}

void read_mixtral_experts(const Reading& in) {
  MoeSpec moe;
  in.r.required("num_local_experts", moe.num_experts);
  in.r.required("num_experts_per_tok", moe.num_experts_per_tok);
  in.r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  // Two keys of Tessera, for router forms that the family does not have at Hugging Face.
  in.r.optional("norm_topk_prob", moe.norm_topk_prob);
  in.r.optional("softmax_before_topk", moe.softmax_before_topk);
  only_zero(in.r, "router_jitter_noise", "router noise");
  in.m.moe = moe;
}

void read_window(const Reading& in) {
  in.r.optional("sliding_window", in.m.sliding_window);
  if (!read_layer_types(in, AttentionSpan::sliding) && in.m.sliding_window > 0) {
    set_spans(in.m, 0, AttentionSpan::sliding);
  }
}

// Only with use_sliding_window, and from layer max_window_layers on.
void read_qwen_window(const Reading& in) {
  bool use = false;
  std::int64_t window = 0;
  std::int64_t first = 28;
  in.r.optional("use_sliding_window", use);
  in.r.optional("sliding_window", window);
  in.r.optional("max_window_layers", first);
  const bool typed = read_layer_types(in, AttentionSpan::sliding);
  if (!use) {
    trim_spans(in.m);
    if (!in.m.layer_spans.empty()) {
      in.r.problem("layer_types", "layer_types has sliding layers and use_sliding_window is false",
                   "set use_sliding_window: true, or make all layers full_attention");
    }
    return;
  }
  in.m.sliding_window = window;
  if (!typed) set_spans(in.m, first, AttentionSpan::sliding);
}

// mlp_only_layers may name the first layers, as first_k_dense_replace does elsewhere.
void read_mlp_only_layers(const Reading& in, MoeSpec& moe) {
  std::vector<std::int32_t> layers;
  in.r.optional("mlp_only_layers", layers);
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i] == static_cast<std::int32_t>(i)) continue;
    in.r.problem("mlp_only_layers",
                 fmt::format("mlp_only_layers=[{}] are not the first layers", fmt::join(layers, ", ")),
                 "use a model whose dense layers are the first ones");
    return;
  }
  moe.first_k_dense_replace = static_cast<std::int32_t>(layers.size());
}

void read_qwen_experts(const Reading& in) {
  MoeSpec moe;
  moe.norm_topk_prob = false;
  in.r.required("num_experts", moe.num_experts);
  in.r.required("num_experts_per_tok", moe.num_experts_per_tok);
  in.r.required("moe_intermediate_size", moe.moe_intermediate_size);
  in.r.optional("norm_topk_prob", moe.norm_topk_prob);
  in.r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  in.r.optional("decoder_sparse_step", moe.moe_layer_freq);
  read_mlp_only_layers(in, moe);
  if (in.m.family == Family::qwen2_moe) {
    in.r.required("shared_expert_intermediate_size", moe.shared_intermediate_size);
    moe.shared_expert_gate = true;
  }
  in.m.moe = moe;
}

}  // namespace

void read_llama_like(const Reading& in) {
  read_rms_sizes(in);
  read_attention_bias(in);
  in.r.optional("mlp_bias", in.m.mlp_bias);
  refuse_dropout(in.r);
}

void read_mistral(const Reading& in) {
  read_rms_sizes(in);
  refuse_dropout(in.r);
  if (in.r.take("sliding_window") == nullptr) in.m.sliding_window = 4'096;  // of Hugging Face
  read_window(in);
}

void read_mixtral(const Reading& in) {
  read_rms_sizes(in);
  only_false(in.r, "attention_bias", "a bias in the attention projections");
  only_false(in.r, "mlp_bias", "a bias in the MLP");
  refuse_dropout(in.r);
  read_mixtral_experts(in);
  read_window(in);
}

void read_qwen(const Reading& in) {
  const Family family = in.m.family;
  read_rms_sizes(in);
  accept_dropout(in.r, {"attention_dropout"});
  read_qwen_window(in);
  only_false(in.r, "use_mrope", "rotary embedding of more than one dimension");
  if (family == Family::qwen3 || family == Family::qwen3_moe) read_attention_bias(in);
  if (family == Family::qwen2_moe) in.r.optional("qkv_bias", in.m.attention_qkv_bias);
  if (has_experts(family)) read_qwen_experts(in);
}

}  // namespace tessera::spec
