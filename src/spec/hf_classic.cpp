// The GPT line: gpt2, gpt_neox, mpt, bloom, falcon. LayerNorm, one matrix up in the MLP, mostly tied tables.
#include <fmt/format.h>

#include <cmath>

#include "spec/hf_reader.h"

namespace tessera::spec {

namespace {

void only_gelu(MapReader& r, std::string_view key) {
  only_word(r, key, {"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python", "relu"});
}

// Four times the hidden size, as all of them have it when nothing is said.
void default_width(ModelSpec& m) {
  constexpr std::int64_t kSane = std::int64_t{1} << 40;  // larger ones are reported, not multiplied
  if (m.intermediate_size == 0 && m.hidden_size >= 1 && m.hidden_size < kSane)
    m.intermediate_size = 4 * m.hidden_size;
}

void read_rest(const Reading& in) {
  in.r.required("vocab_size", in.m.vocab_size);
  in.r.optional("tie_word_embeddings", in.m.tie_word_embeddings);
  in.r.optional("initializer_range", in.m.initializer_range);
}

// The tanh forms differ in how their constant is rounded only.
void read_gpt2_activation(const Reading& in) {
  std::string word = "gelu_new";
  in.r.optional("activation_function", word);
  if (word == "gelu_new" || word == "gelu_fast" || word == "gelu_pytorch_tanh") {
    in.m.hidden_act = Activation::gelu_tanh;
  } else if (word == "gelu" || word == "gelu_python") {
    in.m.hidden_act = Activation::gelu;
  } else if (word == "relu") {
    in.m.hidden_act = Activation::relu;
  } else {
    in.r.problem("activation_function", fmt::format("activation_function={} is not known for gpt2", word),
                 "use a model with activation_function: gelu_new, gelu or relu");
  }
}

}  // namespace

void read_gpt2(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  require_named(r, {"n_layer", "num_hidden_layers"}, m.num_hidden_layers);
  require_named(r, {"n_embd", "hidden_size"}, m.hidden_size);
  require_named(r, {"n_head", "num_attention_heads"}, m.num_attention_heads);
  read_named(r, {"n_positions", "max_position_embeddings", "n_ctx"}, m.max_position_embeddings);
  read_named(r, {"n_inner"}, m.intermediate_size);
  default_width(m);
  r.optional("layer_norm_epsilon", m.rms_norm_eps);
  read_rest(in);
  m.num_key_value_heads = m.num_attention_heads;
  derive_head_dim(r, m);
  read_gpt2_activation(in);
  accept_dropout(r, {"attn_pdrop", "resid_pdrop", "embd_pdrop", "summary_first_dropout"});
  only_true(r, "scale_attn_weights", "attention without the scale of its scores");
  r.optional("scale_attn_by_inverse_layer_idx", m.scale_attn_by_inverse_layer_idx);
  bool precision = false;  // of the scores: the maths are the same
  r.optional("reorder_and_upcast_attn", precision);
  static const std::vector<std::string> kHeads = {
      "summary_activation", "summary_proj_to_labels", "summary_type", "summary_use_proj",
      "n_special",          "predict_special_tokens", "output_past"};
  r.know(kHeads);
}

void read_gpt_neox(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  r.required("num_hidden_layers", m.num_hidden_layers);
  r.required("hidden_size", m.hidden_size);
  r.required("num_attention_heads", m.num_attention_heads);
  r.required("intermediate_size", m.intermediate_size);
  r.optional("max_position_embeddings", m.max_position_embeddings);
  r.optional("layer_norm_eps", m.rms_norm_eps);
  read_named(r, {"rotary_pct", "partial_rotary_factor"}, m.partial_rotary_factor);
  read_named(r, {"rotary_emb_base"}, m.rope_theta);
  read_rope(in);
  read_rest(in);
  m.num_key_value_heads = m.num_attention_heads;
  derive_head_dim(r, m);
  r.optional("use_parallel_residual", m.parallel_residual);
  read_attention_bias(in);
  only_gelu(r, "hidden_act");
  accept_dropout(r, {"attention_dropout", "hidden_dropout", "classifier_dropout",
                     "attention_probs_dropout_prob", "hidden_dropout_prob"});
}

namespace {

void read_mpt_attention(const Reading& in, const Value& map) {
  ModelSpec& m = in.m;
  Problems inner;
  MapReader r(map, {.file = in.r.place().file, .path = in.r.place().child("attn_config")}, inner);
  bool alibi = true;
  r.optional("alibi", alibi);
  m.position = alibi ? PositionKind::alibi : PositionKind::learned;
  std::string type = "multihead_attention";
  r.optional("attn_type", type);
  if (type == "multiquery_attention") {
    m.num_key_value_heads = 1;
  } else if (type == "grouped_query_attention" || type == "grouped_attention") {
    r.required("kv_n_heads", m.num_key_value_heads);
  } else if (type != "multihead_attention") {
    r.problem("attn_type", fmt::format("attn_type={} is not known to Tessera", type),
              "known: multihead_attention, multiquery_attention, grouped_query_attention");
  }
  only_null(r, "clip_qkv", "a clamp of q, k and v");
  only_false(r, "prefix_lm", "a prefix that sees itself both ways");
  only_false(r, "qk_ln", "norms of q and k");
  only_false(r, "rope", "rotary embedding");
  only_null(r, "softmax_scale", "another scale of the scores");
  accept_dropout(r, {"attn_pdrop", "alibi_bias_max"});
  static const std::vector<std::string> kKernels = {"attn_impl", "attn_uses_sequence_id", "model_type",
                                                    "kv_n_heads"};
  r.know(kKernels);
  r.refuse_unknown();
  in.problems.append(inner);
  if (!inner.empty()) in.r.mark_faulty("attn_config");
}

void read_expansion(const Reading& in) {
  double ratio = 4.0;
  in.r.optional("expansion_ratio", ratio);
  const double width = std::round(ratio * static_cast<double>(in.m.hidden_size));
  constexpr double kLargest = 1e12;
  constexpr double kRounding = 1e-6;  // a ratio such as 8/3 is written with 17 digits
  const bool whole = std::abs(width - ratio * static_cast<double>(in.m.hidden_size)) <= kRounding;
  if (ratio > 0.0 && width < kLargest && whole) {
    in.m.intermediate_size = static_cast<std::int64_t>(width);
  } else {
    in.r.problem("expansion_ratio",
                 fmt::format("expansion_ratio={} times d_model={} is no width", ratio, in.m.hidden_size),
                 "use for example 4");
  }
}

}  // namespace

void read_mpt(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  require_named(r, {"n_layers", "num_hidden_layers"}, m.num_hidden_layers);
  require_named(r, {"d_model", "hidden_size"}, m.hidden_size);
  require_named(r, {"n_heads", "num_attention_heads"}, m.num_attention_heads);
  r.optional("max_seq_len", m.max_position_embeddings);
  r.optional("layer_norm_epsilon", m.rms_norm_eps);
  m.num_key_value_heads = m.num_attention_heads;
  read_expansion(in);
  read_rest(in);
  derive_head_dim(r, m);
  const Value* attention = r.take("attn_config");
  if (attention != nullptr && attention->kind == Value::Kind::map) {
    read_mpt_attention(in, *attention);
  } else if (attention != nullptr && attention->kind != Value::Kind::null) {
    r.problem("attn_config", "attn_config is not a map", "write a map, or null");
  }
  only_true(r, "no_bias", "biases");
  only_true(r, "learned_pos_emb", "a model without positions");
  only_word(r, "norm_type", {"low_precision_layernorm", "layernorm"});
  only_null(r, "logit_scale", "a scale of the logits");
  accept_dropout(r, {"resid_pdrop", "emb_pdrop", "embedding_fraction"});
  static const std::vector<std::string> kSetUp = {
      "init_config", "init_device", "verbose", "tokenizer_name", "fc_type", "ffn_config", "expansion_ratio"};
  r.know(kSetUp);
}

void read_bloom(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  require_named(r, {"n_layer", "num_hidden_layers"}, m.num_hidden_layers);
  require_named(r, {"hidden_size", "n_embed", "n_embd"}, m.hidden_size);
  require_named(r, {"n_head", "num_attention_heads"}, m.num_attention_heads);
  r.optional("seq_length", m.max_position_embeddings);
  r.optional("layer_norm_epsilon", m.rms_norm_eps);
  default_width(m);
  read_rest(in);
  m.num_key_value_heads = m.num_attention_heads;
  derive_head_dim(r, m);
  only_false(r, "apply_residual_connection_post_layernorm", "a residual after the norm");
  accept_dropout(r, {"attention_dropout", "hidden_dropout"});
  static const std::vector<std::string> kKernels = {"attention_softmax_in_fp32",
                                                    "bias_dropout_fusion",
                                                    "masked_softmax_fusion",
                                                    "offset_alibi",
                                                    "skip_bias_add",
                                                    "skip_bias_add_qkv",
                                                    "slow_but_exact"};
  r.know(kKernels);
}

void read_falcon(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  require_named(r, {"num_hidden_layers", "n_layer"}, m.num_hidden_layers);
  r.required("hidden_size", m.hidden_size);
  require_named(r, {"num_attention_heads", "n_head"}, m.num_attention_heads);
  r.optional("ffn_hidden_size", m.intermediate_size);
  default_width(m);
  r.optional("max_position_embeddings", m.max_position_embeddings);
  r.optional("layer_norm_epsilon", m.rms_norm_eps);
  bool grouped = false;
  bool multi_query = true;
  bool alibi = false;
  bool bias = false;
  r.optional("new_decoder_architecture", grouped);
  r.optional("multi_query", multi_query);
  r.optional("parallel_attn", m.parallel_residual);
  r.optional("alibi", alibi);
  r.optional("bias", bias);
  m.num_key_value_heads = m.num_attention_heads;
  read_named(r, {"num_kv_heads", "n_head_kv"}, m.num_key_value_heads);
  if (!grouped) m.num_key_value_heads = multi_query ? 1 : m.num_attention_heads;
  if (grouped) m.parallel_residual = true;  // whatever parallel_attn says
  std::int32_t norms = grouped ? 2 : 1;
  r.optional("num_ln_in_parallel_attn", norms);
  if (norms != 1 && (norms != 2 || !grouped)) {
    r.problem("num_ln_in_parallel_attn", fmt::format("num_ln_in_parallel_attn={} is not known here", norms),
              grouped ? "use 1 or 2" : "leave it out without new_decoder_architecture");
  }
  m.parallel_shared_norm = m.parallel_residual && norms == 1;
  m.position = alibi ? PositionKind::alibi : PositionKind::rope;
  m.attention_qkv_bias = bias;
  m.attention_out_bias = bias;
  m.mlp_bias = bias;
  read_rope(in);
  read_rest(in);
  derive_head_dim(r, m);
  only_word(r, "activation", {"gelu"});
  only_false(r, "apply_residual_connection_post_layernorm", "a residual after the norm");
  accept_dropout(r, {"attention_dropout", "hidden_dropout"});
}

}  // namespace tessera::spec
