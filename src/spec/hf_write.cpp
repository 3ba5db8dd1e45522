// A ModelSpec as the config.json of its family.
#include <algorithm>
#include <utility>

#include "spec/hf_reader.h"

namespace tessera::spec {

namespace {

struct Writing {
  const ModelSpec& m;
  Value v = map_value();

  void word(std::string_view key, std::string_view value) { v.set(key, scalar(value)); }
  void flag(std::string_view key, bool value) { v.set(key, scalar(value)); }
  void whole(std::string_view key, std::int64_t value) { v.set(key, scalar(value)); }
  void number(std::string_view key, double value) { v.set(key, scalar(value)); }
  void null(std::string_view key) { v.set(key, Value{}); }
};

struct Names {
  std::string_view model_type;
  std::string_view architecture;
};

Names names_of(Family family) {
  switch (family) {
    case Family::llama:
      return {"llama", "LlamaForCausalLM"};
    case Family::mixtral:
      return {"mixtral", "MixtralForCausalLM"};
    case Family::llama4:
      return {"llama4_text", "Llama4ForCausalLM"};
    case Family::mistral:
      return {"mistral", "MistralForCausalLM"};
    case Family::qwen2:
      return {"qwen2", "Qwen2ForCausalLM"};
    case Family::qwen3:
      return {"qwen3", "Qwen3ForCausalLM"};
    case Family::qwen2_moe:
      return {"qwen2_moe", "Qwen2MoeForCausalLM"};
    case Family::qwen3_moe:
      return {"qwen3_moe", "Qwen3MoeForCausalLM"};
    case Family::deepseek_v2:
      return {"deepseek_v2", "DeepseekV2ForCausalLM"};
    case Family::deepseek_v3:
      return {"deepseek_v3", "DeepseekV3ForCausalLM"};
    case Family::olmoe:
      return {"olmoe", "OlmoeForCausalLM"};
    case Family::gpt_oss:
      return {"gpt_oss", "GptOssForCausalLM"};
    case Family::gpt2:
      return {"gpt2", "GPT2LMHeadModel"};
    case Family::gpt_neox:
      return {"gpt_neox", "GPTNeoXForCausalLM"};
    case Family::mpt:
      return {"mpt", "MptForCausalLM"};
    case Family::bloom:
      return {"bloom", "BloomForCausalLM"};
    case Family::falcon:
      return {"falcon", "FalconForCausalLM"};
  }
  return {"", ""};
}

void write_rope(Writing& w) {
  w.number("rope_theta", w.m.rope_theta);
  const RopeScaling& rope = w.m.rope_scaling;
  Value s = map_value();
  switch (rope.kind) {
    case RopeKind::none:
      w.null("rope_scaling");
      return;
    case RopeKind::linear:
      s.set("rope_type", scalar(std::string_view("linear")));
      s.set("factor", scalar(rope.factor));
      break;
    case RopeKind::dynamic:
      s.set("rope_type", scalar(std::string_view("dynamic")));
      s.set("factor", scalar(rope.factor));
      break;
    case RopeKind::llama3:
      s.set("rope_type", scalar(std::string_view("llama3")));
      s.set("factor", scalar(rope.factor));
      s.set("low_freq_factor", scalar(rope.low_freq_factor));
      s.set("high_freq_factor", scalar(rope.high_freq_factor));
      s.set("original_max_position_embeddings", scalar(rope.original_max_position_embeddings));
      break;
    case RopeKind::yarn:
      s.set("rope_type", scalar(std::string_view("yarn")));
      s.set("factor", scalar(rope.factor));
      s.set("original_max_position_embeddings", scalar(rope.original_max_position_embeddings));
      s.set("beta_fast", scalar(rope.beta_fast));
      s.set("beta_slow", scalar(rope.beta_slow));
      if (rope.mscale != 0.0) s.set("mscale", scalar(rope.mscale));
      if (rope.mscale_all_dim != 0.0) s.set("mscale_all_dim", scalar(rope.mscale_all_dim));
      if (rope.attention_factor != 0.0) s.set("attention_factor", scalar(rope.attention_factor));
      if (!rope.truncate) s.set("truncate", scalar(false));
      break;
  }
  w.v.set("rope_scaling", std::move(s));
}

void write_layer_types(Writing& w) {
  Value list;
  list.kind = Value::Kind::list;
  for (const AttentionSpan span : w.m.layer_spans) list.items.push_back(scalar(span_word(span)));
  w.v.set("layer_types", std::move(list));
}

void write_ints(Writing& w, std::string_view key, const std::vector<std::int64_t>& items) {
  Value list;
  list.kind = Value::Kind::list;
  for (const std::int64_t item : items) list.items.push_back(scalar(item));
  w.v.set(key, std::move(list));
}

void write_rms_family(Writing& w) {
  const ModelSpec& m = w.m;
  w.whole("num_hidden_layers", m.num_hidden_layers);
  w.whole("hidden_size", m.hidden_size);
  w.whole(key_names(m.family).intermediate, m.intermediate_size);
  w.whole("num_attention_heads", m.num_attention_heads);
  w.whole("num_key_value_heads", m.num_key_value_heads);
  if (!m.mla) w.whole("head_dim", m.head_dim);
  w.whole("vocab_size", m.vocab_size);
  w.whole("max_position_embeddings", m.max_position_embeddings);
  w.word("hidden_act", "silu");
  w.number("rms_norm_eps", m.rms_norm_eps);
  write_rope(w);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

// The key is there when it is not what is read without it.
void write_window(Writing& w) {
  if (w.m.sliding_window == 0) return w.null("sliding_window");
  w.whole("sliding_window", w.m.sliding_window);
  const bool everywhere =
      !w.m.layer_spans.empty() &&
      std::ranges::count(w.m.layer_spans, AttentionSpan::sliding) == w.m.num_hidden_layers;
  const bool always = w.m.family == Family::mistral || w.m.family == Family::mixtral;
  if (always && everywhere) return;
  if (!w.m.layer_spans.empty()) return write_layer_types(w);
  // A window that no layer has.
  if (w.m.num_hidden_layers > kMaxLayers) return;
  Value list;
  list.kind = Value::Kind::list;
  for (std::int32_t l = 0; l < w.m.num_hidden_layers; ++l)
    list.items.push_back(scalar(span_word(AttentionSpan::full)));
  w.v.set("layer_types", std::move(list));
}

void write_mixtral(Writing& w) {
  const MoeSpec moe = w.m.moe.value_or(MoeSpec{});
  w.whole("num_local_experts", moe.num_experts);
  w.whole("num_experts_per_tok", moe.num_experts_per_tok);
  w.number("router_aux_loss_coef", moe.router_aux_loss_coef);
  write_window(w);
  // Hugging Face ignores these two; absent they are what its mixtral does.
  if (!moe.norm_topk_prob) w.flag("norm_topk_prob", false);
  if (!moe.softmax_before_topk) w.flag("softmax_before_topk", false);
}

// Older versions of Hugging Face read this one instead of layer_types.
void write_max_window_layers(Writing& w) {
  const std::vector<AttentionSpan>& spans = w.m.layer_spans;
  const auto first = std::ranges::find(spans, AttentionSpan::sliding);
  if (std::find(first, spans.end(), AttentionSpan::full) != spans.end()) return;
  w.whole("max_window_layers", spans.empty() ? w.m.num_hidden_layers : first - spans.begin());
}

void write_qwen(Writing& w) {
  const ModelSpec& m = w.m;
  if (m.family == Family::qwen3 || m.family == Family::qwen3_moe)
    w.flag("attention_bias", m.attention_qkv_bias);
  if (m.family == Family::qwen2_moe) w.flag("qkv_bias", m.attention_qkv_bias);
  w.flag("use_sliding_window", m.sliding_window > 0);
  write_window(w);
  if (m.sliding_window > 0) write_max_window_layers(w);
  if (!m.moe) return;
  w.whole("num_experts", m.moe->num_experts);
  w.whole("num_experts_per_tok", m.moe->num_experts_per_tok);
  w.whole("moe_intermediate_size", m.moe->moe_intermediate_size);
  if (m.family == Family::qwen2_moe)
    w.whole("shared_expert_intermediate_size", m.moe->shared_intermediate_size);
  w.flag("norm_topk_prob", m.moe->norm_topk_prob);
  w.number("router_aux_loss_coef", m.moe->router_aux_loss_coef);
  w.whole("decoder_sparse_step", m.moe->moe_layer_freq);
  std::vector<std::int64_t> dense;
  for (std::int64_t l = 0; l < m.moe->first_k_dense_replace && l < kMaxLayers; ++l) dense.push_back(l);
  for (const std::int32_t l : m.moe->mlp_only_layers)
    if (l >= std::ssize(dense)) dense.push_back(l);
  write_ints(w, "mlp_only_layers", dense);
}

void write_deepseek(Writing& w) {
  const ModelSpec& m = w.m;
  const MlaSpec a = m.mla.value_or(MlaSpec{});
  const MoeSpec e = m.moe.value_or(MoeSpec{});
  if (a.q_lora_rank > 0) {
    w.whole("q_lora_rank", a.q_lora_rank);
  } else {
    w.null("q_lora_rank");
  }
  w.whole("kv_lora_rank", a.kv_lora_rank);
  w.whole("qk_nope_head_dim", a.qk_nope_head_dim);
  w.whole("qk_rope_head_dim", a.qk_rope_head_dim);
  w.whole("v_head_dim", a.v_head_dim);
  w.flag("attention_bias", m.attention_qkv_bias);
  if (!m.rope_interleaved) w.flag("rope_interleave", false);
  w.whole("n_routed_experts", e.num_experts);
  w.whole("num_experts_per_tok", e.num_experts_per_tok);
  w.whole("moe_intermediate_size", e.moe_intermediate_size);
  w.whole("n_shared_experts",
          e.moe_intermediate_size > 0 ? e.shared_intermediate_size / e.moe_intermediate_size : 0);
  w.whole("first_k_dense_replace", e.first_k_dense_replace);
  w.whole("moe_layer_freq", 1);
  w.flag("norm_topk_prob", e.norm_topk_prob);
  w.number("routed_scaling_factor", e.routed_scaling_factor);
  w.number("aux_loss_alpha", e.router_aux_loss_coef);
  const bool grouped = e.n_group > 1 || e.topk_group > 1;
  w.word("topk_method", m.family == Family::deepseek_v3 ? "noaux_tc"
                        : grouped                       ? "group_limited_greedy"
                                                        : "greedy");
  w.whole("n_group", e.n_group);
  w.whole("topk_group", e.topk_group);
  w.word("scoring_func", e.score == RouterScore::sigmoid ? "sigmoid" : "softmax");
  if (m.family == Family::deepseek_v3) w.whole("num_nextn_predict_layers", m.num_nextn_predict_layers);
}

void write_experts(Writing& w) {  // olmoe and gpt_oss
  const MoeSpec e = w.m.moe.value_or(MoeSpec{});
  w.flag("attention_bias", w.m.attention_qkv_bias);
  w.whole(key_names(w.m.family).experts, e.num_experts);
  w.whole("num_experts_per_tok", e.num_experts_per_tok);
  w.number("router_aux_loss_coef", e.router_aux_loss_coef);
  if (w.m.family == Family::olmoe) {
    w.flag("norm_topk_prob", e.norm_topk_prob);
    if (w.m.clip_qkv > 0.0) {
      w.number("clip_qkv", w.m.clip_qkv);
    } else {
      w.null("clip_qkv");
    }
  } else {
    w.number("swiglu_limit", w.m.swiglu_limit);
    write_window(w);
  }
}

void write_llama4(Writing& w) {
  const ModelSpec& m = w.m;
  const MoeSpec e = m.moe.value_or(MoeSpec{});
  w.flag("attention_bias", m.attention_qkv_bias);
  w.flag("use_qk_norm", m.qk_norm);
  w.whole("num_local_experts", e.num_experts);
  w.whole("num_experts_per_tok", e.num_experts_per_tok);
  w.whole("intermediate_size", e.moe_intermediate_size);
  w.whole("interleave_moe_layer_step", e.moe_layer_freq);
  w.number("router_aux_loss_coef", e.router_aux_loss_coef);
  if (m.attention_chunk == 0) return w.null("attention_chunk_size");
  w.whole("attention_chunk_size", m.attention_chunk);
  std::vector<std::int64_t> turned;
  for (const AttentionSpan span : m.layer_spans) turned.push_back(span == AttentionSpan::chunked ? 1 : 0);
  if (turned.empty() && m.num_hidden_layers <= kMaxLayers)
    turned.resize(static_cast<std::size_t>(m.num_hidden_layers));
  write_ints(w, "no_rope_layers", turned);
}

void write_gpt2(Writing& w) {
  const ModelSpec& m = w.m;
  w.whole("n_layer", m.num_hidden_layers);
  w.whole("n_embd", m.hidden_size);
  w.whole("n_head", m.num_attention_heads);
  w.whole("n_inner", m.intermediate_size);
  w.whole("n_positions", m.max_position_embeddings);
  w.whole("vocab_size", m.vocab_size);
  w.word("activation_function", m.hidden_act == Activation::gelu   ? "gelu"
                                : m.hidden_act == Activation::relu ? "relu"
                                                                   : "gelu_new");
  w.flag("scale_attn_by_inverse_layer_idx", m.scale_attn_by_inverse_layer_idx);
  w.number("layer_norm_epsilon", m.rms_norm_eps);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

void write_gpt_neox(Writing& w) {
  const ModelSpec& m = w.m;
  w.whole("num_hidden_layers", m.num_hidden_layers);
  w.whole("hidden_size", m.hidden_size);
  w.whole("num_attention_heads", m.num_attention_heads);
  w.whole("intermediate_size", m.intermediate_size);
  w.whole("vocab_size", m.vocab_size);
  w.whole("max_position_embeddings", m.max_position_embeddings);
  w.word("hidden_act", "gelu");
  w.number("layer_norm_eps", m.rms_norm_eps);
  w.number("rotary_pct", m.partial_rotary_factor);
  write_rope(w);
  w.flag("use_parallel_residual", m.parallel_residual);
  w.flag("attention_bias", m.attention_qkv_bias);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

void write_mpt(Writing& w) {
  const ModelSpec& m = w.m;
  w.whole("n_layers", m.num_hidden_layers);
  w.whole("d_model", m.hidden_size);
  w.whole("n_heads", m.num_attention_heads);
  w.number("expansion_ratio", static_cast<double>(m.intermediate_size) / static_cast<double>(m.hidden_size));
  w.whole("vocab_size", m.vocab_size);
  w.whole("max_seq_len", m.max_position_embeddings);
  Value attention = map_value();
  attention.set("alibi", scalar(m.position == PositionKind::alibi));
  if (m.num_key_value_heads == m.num_attention_heads) {
    attention.set("attn_type", scalar(std::string_view("multihead_attention")));
  } else {
    attention.set("attn_type", scalar(std::string_view("grouped_query_attention")));
    attention.set("kv_n_heads", scalar(std::int64_t{m.num_key_value_heads}));
  }
  w.v.set("attn_config", std::move(attention));
  w.flag("no_bias", true);
  w.number("layer_norm_epsilon", m.rms_norm_eps);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

void write_bloom(Writing& w) {
  const ModelSpec& m = w.m;
  w.whole("n_layer", m.num_hidden_layers);
  w.whole("hidden_size", m.hidden_size);
  w.whole("n_head", m.num_attention_heads);
  w.whole("vocab_size", m.vocab_size);
  w.whole("seq_length", m.max_position_embeddings);
  w.number("layer_norm_epsilon", m.rms_norm_eps);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

void write_falcon(Writing& w) {
  const ModelSpec& m = w.m;
  const bool plain_heads = m.num_key_value_heads == 1 || m.num_key_value_heads == m.num_attention_heads;
  const bool grouped = m.parallel_residual && (!m.parallel_shared_norm || !plain_heads);
  w.whole("num_hidden_layers", m.num_hidden_layers);
  w.whole("hidden_size", m.hidden_size);
  w.whole("num_attention_heads", m.num_attention_heads);
  w.whole("num_kv_heads", m.num_key_value_heads);
  w.whole("ffn_hidden_size", m.intermediate_size);
  w.whole("vocab_size", m.vocab_size);
  w.whole("max_position_embeddings", m.max_position_embeddings);
  w.flag("new_decoder_architecture", grouped);
  if (grouped) w.whole("num_ln_in_parallel_attn", m.parallel_shared_norm ? 1 : 2);
  w.flag("multi_query", m.num_key_value_heads == 1);
  w.flag("parallel_attn", m.parallel_residual);
  w.flag("alibi", m.position == PositionKind::alibi);
  w.flag("bias", m.mlp_bias);
  w.word("activation", "gelu");
  w.number("layer_norm_epsilon", m.rms_norm_eps);
  write_rope(w);
  w.flag("tie_word_embeddings", m.tie_word_embeddings);
  w.number("initializer_range", m.initializer_range);
}

void write_keys(Writing& w) {
  switch (w.m.family) {
    case Family::llama:
      write_rms_family(w);
      // Only where they are: what the engine trains has none.
      if (w.m.attention_qkv_bias) w.flag("attention_bias", true);
      if (w.m.mlp_bias) w.flag("mlp_bias", true);
      return;
    case Family::mistral:
      write_rms_family(w);
      return write_window(w);
    case Family::mixtral:
      write_rms_family(w);
      return write_mixtral(w);
    case Family::qwen2:
    case Family::qwen3:
    case Family::qwen2_moe:
    case Family::qwen3_moe:
      write_rms_family(w);
      return write_qwen(w);
    case Family::deepseek_v2:
    case Family::deepseek_v3:
      write_rms_family(w);
      return write_deepseek(w);
    case Family::olmoe:
    case Family::gpt_oss:
      write_rms_family(w);
      return write_experts(w);
    case Family::llama4:
      write_rms_family(w);
      return write_llama4(w);
    case Family::gpt2:
      return write_gpt2(w);
    case Family::gpt_neox:
      return write_gpt_neox(w);
    case Family::mpt:
      return write_mpt(w);
    case Family::bloom:
      return write_bloom(w);
    case Family::falcon:
      return write_falcon(w);
  }
}

}  // namespace

Value model_value(const ModelSpec& m) {
  Writing w{.m = m};
  Value architectures;
  architectures.kind = Value::Kind::list;
  architectures.items.push_back(scalar(names_of(m.family).architecture));
  w.v.set("architectures", std::move(architectures));
  w.word("model_type", names_of(m.family).model_type);
  write_keys(w);
  if (m.moe && m.moe->score_correction_bias && m.family != Family::deepseek_v3) {
    w.flag(kOwnCorrectionBias, true);
  }
  w.word("torch_dtype", "float32");
  return std::move(w.v);
}

}  // namespace tessera::spec
