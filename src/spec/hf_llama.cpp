// The llama line: llama, mistral, mixtral, qwen2 and qwen3 with their MoE forms.
#include <fmt/format.h>

#include <algorithm>

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
  // gpt_oss has its own activation, whatever the key says.
  if (m.family == Family::gpt_oss) {
    std::string ignored;
    r.optional("hidden_act", ignored);
  } else {
    only_word(r, "hidden_act", {"silu"});
  }
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

void read_mixtral_experts(const Reading& in) {
  MoeSpec moe;
  require_named(in.r, {"num_local_experts", "num_experts"}, moe.num_experts);
  in.r.required("num_experts_per_tok", moe.num_experts_per_tok);
  in.r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  // Two keys of Tessera, for router forms that the family does not have at Hugging Face.
  in.r.optional("norm_topk_prob", moe.norm_topk_prob);
  in.r.optional("softmax_before_topk", moe.softmax_before_topk);
  accept_dropout(in.r, {"router_jitter_noise"});
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
  const Value* given = in.r.take("sliding_window");
  in.r.optional("sliding_window", window);
  in.r.optional("max_window_layers", first);
  if (use && has_experts(in.m.family)) {
    in.r.problem("use_sliding_window",
                 fmt::format("use_sliding_window=true: versions of Hugging Face differ in which layers of {} "
                             "have a window then",
                             name(in.m.family)),
                 "use a model with use_sliding_window: false");
    return;
  }
  const bool typed = read_layer_types(in, AttentionSpan::sliding);
  if (!use) {
    trim_spans(in.m);
    if (!in.m.layer_spans.empty()) {
      in.r.problem("layer_types", "layer_types has sliding layers and use_sliding_window is false",
                   "set use_sliding_window: true, or make all layers full_attention");
    }
    return;
  }
  if (given != nullptr && given->kind == Value::Kind::null) use = false;  // a window without a size
  in.m.sliding_window = window;
  if (!typed && use) set_spans(in.m, first, AttentionSpan::sliding);
}

void read_mlp_only_layers(const Reading& in, MoeSpec& moe) {
  std::vector<std::int32_t>& layers = moe.mlp_only_layers;
  in.r.optional("mlp_only_layers", layers);
  std::ranges::sort(layers);
  layers.erase(std::ranges::unique(layers).begin(), layers.end());
}

void read_qwen_experts(const Reading& in) {
  MoeSpec moe;
  moe.norm_topk_prob = false;
  require_named(in.r, {"num_experts", "num_local_experts"}, moe.num_experts);
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
  accept_dropout(in.r, {"attention_dropout"});
}

void read_mistral(const Reading& in) {
  read_rms_sizes(in);
  accept_dropout(in.r, {"attention_dropout"});
  if (in.r.take("sliding_window") == nullptr) in.m.sliding_window = 4'096;  // of Hugging Face
  read_window(in);
}

void read_mixtral(const Reading& in) {
  read_rms_sizes(in);
  only_false(in.r, "attention_bias", "a bias in the attention projections");
  only_false(in.r, "mlp_bias", "a bias in the MLP");
  accept_dropout(in.r, {"attention_dropout"});
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
