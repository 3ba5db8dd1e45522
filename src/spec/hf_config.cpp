// The keys of config.json: one function a group of them, and one table of keys without influence.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <utility>

#include "base/text.h"
#include "spec/internal.h"

namespace tessera::spec {

namespace {

// Accepted and not read: file keeping, tokenizer ids, generation, and switches of other engines that leave
// the maths as it is.
const std::vector<std::string>& keys_without_influence() {
  static const std::vector<std::string> kKeys = {"architectures",
                                                 "bos_token_id",
                                                 "eos_token_id",
                                                 "pad_token_id",
                                                 "unk_token_id",
                                                 "sep_token_id",
                                                 "decoder_start_token_id",
                                                 "use_cache",
                                                 "pretraining_tp",
                                                 "output_router_logits",
                                                 "torch_dtype",
                                                 "dtype",
                                                 "transformers_version",
                                                 "_name_or_path",
                                                 "name_or_path",
                                                 "_attn_implementation",
                                                 "auto_map",
                                                 "tokenizer_class",
                                                 "return_dict",
                                                 "output_hidden_states",
                                                 "output_attentions",
                                                 "torchscript",
                                                 "use_bfloat16",
                                                 "tf_legacy_loss",
                                                 "pruned_heads",
                                                 "is_encoder_decoder",
                                                 "is_decoder",
                                                 "add_cross_attention",
                                                 "cross_attention_hidden_size",
                                                 "tie_encoder_decoder",
                                                 "chunk_size_feed_forward",
                                                 "id2label",
                                                 "label2id",
                                                 "num_labels",
                                                 "finetuning_task",
                                                 "task_specific_params",
                                                 "problem_type",
                                                 "prefix",
                                                 "remove_invalid_values",
                                                 "max_length",
                                                 "min_length",
                                                 "do_sample",
                                                 "early_stopping",
                                                 "num_beams",
                                                 "temperature",
                                                 "top_k",
                                                 "top_p",
                                                 "typical_p",
                                                 "repetition_penalty",
                                                 "length_penalty",
                                                 "num_return_sequences",
                                                 "suppress_tokens",
                                                 "begin_suppress_tokens",
                                                 "bad_words_ids",
                                                 "forced_bos_token_id",
                                                 "forced_eos_token_id"};
  return kKeys;
}

// A switch whose other positions change the maths.
void refuse_true(MapReader& r, std::string_view key, std::string_view meaning) {
  bool on = false;
  r.optional(key, on);
  if (on) {
    r.problem(key, fmt::format("{}=true: {} is not supported by this engine", key, meaning),
              fmt::format("use a model with {}: false", key));
  }
}
void refuse_nonzero(MapReader& r, std::string_view key, std::string_view meaning) {
  double value = 0.0;
  r.optional(key, value);
  if (value != 0.0) {
    r.problem(key, fmt::format("{}={}: {} is not supported by this engine", key, value, meaning),
              fmt::format("set {}: 0.0", key));
  }
}

Family read_family(MapReader& r) {
  std::string type;
  if (r.take("model_type") == nullptr) {
    r.problem("model_type", "model_type is missing", "add model_type: llama, or mixtral");
    return Family::llama;
  }
  r.required("model_type", type);
  if (type == "llama" || r.faulty().contains(r.place().child("model_type"))) return Family::llama;
  if (type == "mixtral") return Family::mixtral;
  const std::vector<std::string> families = {"llama", "mixtral"};
  const std::string near = nearest(type, families);
  r.problem("model_type", fmt::format("model_type={} is not supported by this engine", type),
            fmt::format("supported: llama, mixtral{}", near.empty() ? "" : "; did you mean " + near + "?"));
  return Family::llama;
}

// rope_type, in older files type.
std::string read_rope_type(MapReader& r) {
  std::string type;
  std::string old_type;
  r.optional("rope_type", type);
  r.optional("type", old_type);
  if (!type.empty() && !old_type.empty() && type != old_type) {
    r.problem("type", fmt::format("rope_type={} and type={} differ", type, old_type), "keep rope_type only");
  }
  if (type.empty()) type = old_type;
  return type.empty() ? "default" : type;
}

RopeScaling read_rope_map(MapReader& r) {
  RopeScaling rope;
  const std::string type = read_rope_type(r);
  double partial = 1.0;
  r.optional("partial_rotary_factor", partial);
  if (partial != 1.0) {
    r.problem("partial_rotary_factor",
              fmt::format("partial_rotary_factor={} is not supported by this engine", partial),
              "use a model that rotates whole heads");
  }
  if (type == "default") return rope;
  if (type == "linear") {
    rope.kind = RopeKind::linear;
    r.required("factor", rope.factor);
  } else if (type == "llama3") {
    rope.kind = RopeKind::llama3;
    r.required("factor", rope.factor);
    r.required("low_freq_factor", rope.low_freq_factor);
    r.required("high_freq_factor", rope.high_freq_factor);
    r.required("original_max_position_embeddings", rope.original_max_position_embeddings);
  } else {
    r.problem("rope_type", fmt::format("rope_type={} is not supported by this engine", type),
              "supported: default, linear, llama3");
  }
  return rope;
}

// rope_theta and rope_scaling, in newer files together as rope_parameters.
void read_rope(MapReader& r, Problems& problems, ModelSpec& m) {
  const Value* theta = r.take("rope_theta");
  r.optional("rope_theta", m.rope_theta);
  const Value* scaling = r.take("rope_scaling");
  const Value* parameters = r.take("rope_parameters");
  if (scaling != nullptr && scaling->kind == Value::Kind::null) scaling = nullptr;
  if (parameters != nullptr && parameters->kind == Value::Kind::null) parameters = nullptr;
  if (scaling != nullptr && parameters != nullptr) {
    r.problem("rope_parameters", "rope_scaling and rope_parameters are both given", "keep one of them");
    return;
  }
  const std::string key = parameters != nullptr ? "rope_parameters" : "rope_scaling";
  const Value* map = parameters != nullptr ? parameters : scaling;
  if (map == nullptr) return;
  if (map->kind != Value::Kind::map) {
    r.problem(key, fmt::format("{} is not a map", key), "write a map, or null");
    return;
  }
  Problems inner;
  MapReader rope(*map, {.file = r.place().file, .path = r.place().child(key)}, inner);
  if (parameters != nullptr) {
    double inner_theta = m.rope_theta;
    rope.optional("rope_theta", inner_theta);
    if (theta != nullptr && inner_theta != m.rope_theta) {
      rope.problem("rope_theta", fmt::format("rope_theta={} here and {} outside", inner_theta, m.rope_theta),
                   "keep one of them");
    }
    m.rope_theta = inner_theta;
  }
  m.rope_scaling = read_rope_map(rope);
  // After an unsupported type its own keys are not news.
  if (!rope.faulty().contains(rope.place().child("rope_type"))) rope.refuse_unknown();
  problems.append(inner);
  if (!inner.empty()) r.mark_faulty("rope_scaling");
}

void read_attention(MapReader& r, ModelSpec& m) {
  r.required("num_attention_heads", m.num_attention_heads);
  m.num_key_value_heads = m.num_attention_heads;
  if (m.family == Family::mixtral) {
    // Hugging Face reads an absent key as 8 here and as num_attention_heads in llama: too easy to get wrong
    // unsaid.
    const Value* v = r.take("num_key_value_heads");
    if (v == nullptr) {
      r.problem("num_key_value_heads", "num_key_value_heads is missing (Hugging Face would read 8)",
                fmt::format("add num_key_value_heads, for example {}", m.num_attention_heads));
    }
  }
  r.optional("num_key_value_heads", m.num_key_value_heads);
  if (m.num_attention_heads < 1 && m.num_key_value_heads < 1) r.mark_faulty("num_key_value_heads");
  const Value* given = r.take("head_dim");
  if (given != nullptr && given->kind != Value::Kind::null) {
    r.convert("head_dim", *given, m.head_dim);
    return;
  }
  if (m.num_attention_heads < 1 || m.hidden_size < 1) {
    r.mark_faulty("head_dim");  // the sizes it follows from are reported
    return;
  }
  m.head_dim = m.hidden_size / m.num_attention_heads;
  if (m.hidden_size % m.num_attention_heads != 0) {
    r.problem("num_attention_heads",
              fmt::format("num_attention_heads={} does not divide hidden_size={} and head_dim is not given",
                          m.num_attention_heads, m.hidden_size),
              fmt::format("use num_attention_heads in {}, or give head_dim", divisor_choices(m.hidden_size)));
  }
}

void read_moe(MapReader& r, ModelSpec& m) {
  MoeSpec moe;
  r.required("num_local_experts", moe.num_experts);
  r.required("num_experts_per_tok", moe.num_experts_per_tok);
  r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  // Two keys of Tessera, for router forms that the family does not have at Hugging Face.
  r.optional("norm_topk_prob", moe.norm_topk_prob);
  r.optional("softmax_before_topk", moe.softmax_before_topk);
  refuse_nonzero(r, "router_jitter_noise", "router noise");
  const Value* window = r.take("sliding_window");
  if (window != nullptr && window->kind != Value::Kind::null) {
    r.problem("sliding_window",
              fmt::format("sliding_window={}: sliding window attention is not supported by this engine yet",
                          window->text),
              "use a model with sliding_window: null");
  }
  m.moe = moe;
}

void set_family_defaults(ModelSpec& m) {  // of Hugging Face, for absent keys
  const bool mixtral = m.family == Family::mixtral;
  m.max_position_embeddings = mixtral ? 131'072 : 2'048;
  m.rms_norm_eps = mixtral ? 1e-5 : 1e-6;
  m.rope_theta = mixtral ? 1e6 : 1e4;
  m.initializer_range = 0.02;
  m.tie_word_embeddings = false;
}

}  // namespace

ModelSpec read_model(MapReader& r, Problems& problems) {
  ModelSpec m;
  m.family = read_family(r);
  if (r.faulty().contains(r.place().child("model_type"))) return m;
  set_family_defaults(m);
  r.required("num_hidden_layers", m.num_hidden_layers);
  r.required("hidden_size", m.hidden_size);
  r.required("intermediate_size", m.intermediate_size);
  r.required("vocab_size", m.vocab_size);
  read_attention(r, m);
  r.optional("max_position_embeddings", m.max_position_embeddings);
  r.optional("rms_norm_eps", m.rms_norm_eps);
  read_rope(r, problems, m);
  r.optional("tie_word_embeddings", m.tie_word_embeddings);
  r.optional("initializer_range", m.initializer_range);
  if (m.family == Family::mixtral) read_moe(r, m);
  std::string act = "silu";
  r.optional("hidden_act", act);
  if (act != "silu") {
    r.problem("hidden_act", fmt::format("hidden_act={} is not supported by this engine", act),
              "use a model with hidden_act: silu");
  }
  refuse_true(r, "attention_bias", "a bias in the attention projections");
  refuse_true(r, "mlp_bias", "a bias in the MLP");
  refuse_nonzero(r, "attention_dropout", "dropout");
  r.know(keys_without_influence());
  r.refuse_unknown();
  return m;
}

Value model_value(const ModelSpec& m) {
  Value v = map_value();
  const bool mixtral = m.family == Family::mixtral;
  Value architectures;
  architectures.kind = Value::Kind::list;
  architectures.items.push_back(
      scalar(std::string_view(mixtral ? "MixtralForCausalLM" : "LlamaForCausalLM")));
  v.set("architectures", std::move(architectures));
  v.set("model_type", scalar(name(m.family)));
  v.set("num_hidden_layers", scalar(std::int64_t{m.num_hidden_layers}));
  v.set("hidden_size", scalar(m.hidden_size));
  v.set("intermediate_size", scalar(m.intermediate_size));
  v.set("num_attention_heads", scalar(std::int64_t{m.num_attention_heads}));
  v.set("num_key_value_heads", scalar(std::int64_t{m.num_key_value_heads}));
  v.set("head_dim", scalar(m.head_dim));
  v.set("vocab_size", scalar(m.vocab_size));
  v.set("max_position_embeddings", scalar(m.max_position_embeddings));
  v.set("hidden_act", scalar(std::string_view("silu")));
  v.set("rms_norm_eps", scalar(m.rms_norm_eps));
  v.set("rope_theta", scalar(m.rope_theta));
  const RopeScaling& rope = m.rope_scaling;
  if (rope.kind == RopeKind::none) {
    v.set("rope_scaling", Value{});
  } else {
    Value scaling = map_value();
    const bool llama3 = rope.kind == RopeKind::llama3;
    scaling.set("rope_type", scalar(std::string_view(llama3 ? "llama3" : "linear")));
    scaling.set("factor", scalar(rope.factor));
    if (llama3) {
      scaling.set("low_freq_factor", scalar(rope.low_freq_factor));
      scaling.set("high_freq_factor", scalar(rope.high_freq_factor));
      scaling.set("original_max_position_embeddings", scalar(rope.original_max_position_embeddings));
    }
    v.set("rope_scaling", std::move(scaling));
  }
  v.set("tie_word_embeddings", scalar(m.tie_word_embeddings));
  v.set("initializer_range", scalar(m.initializer_range));
  if (m.moe) {
    v.set("num_local_experts", scalar(std::int64_t{m.moe->num_experts}));
    v.set("num_experts_per_tok", scalar(std::int64_t{m.moe->num_experts_per_tok}));
    v.set("router_aux_loss_coef", scalar(m.moe->router_aux_loss_coef));
    v.set("sliding_window", Value{});
    // Hugging Face ignores these two; absent they are what its mixtral does.
    if (!m.moe->norm_topk_prob) v.set("norm_topk_prob", scalar(false));
    if (!m.moe->softmax_before_topk) v.set("softmax_before_topk", scalar(false));
  }
  v.set("torch_dtype", scalar(std::string_view("float32")));
  return v;
}

}  // namespace tessera::spec
