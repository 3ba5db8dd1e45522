// Reading one config.json, by groups of keys. Used by the files hf_*.cpp only.
#pragma once
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "spec/internal.h"

namespace tessera::spec {

struct Reading {
  MapReader& r;
  Problems& problems;
  ModelSpec& m;
};

// The first of `names` is the one that messages use; the others are older or newer names of it. Two of them
// that differ are a problem.
template <class T>
bool read_named(MapReader& r, std::initializer_list<std::string_view> names, T& out) {
  bool found = false;
  for (const std::string_view key : names) {
    const Value* v = r.take(key);
    if (v == nullptr || v->kind == Value::Kind::null) continue;
    T value = out;
    r.convert(key, *v, value);
    if (r.faulty().contains(r.place().child(key))) {
      r.mark_faulty(*names.begin());
    } else if (found && !(value == out)) {
      r.problem(key, std::string(key) + " contradicts another name of the same key in this file",
                "keep one of them");
      r.mark_faulty(*names.begin());
    }
    if (!found) out = value;
    found = true;
  }
  return found;
}
template <class T>
void require_named(MapReader& r, std::initializer_list<std::string_view> names, T& out) {
  if (!read_named(r, names, out)) r.missing(*names.begin());
}

// The key may stand in the file, with this value only.
void only_false(MapReader& r, std::string_view key, std::string_view meaning);
void only_true(MapReader& r, std::string_view key, std::string_view meaning);
void only_word(MapReader& r, std::string_view key, std::initializer_list<std::string_view> words);
void only_null(MapReader& r, std::string_view key, std::string_view meaning);

// rope_theta and rope_scaling, in newer files together as rope_parameters.
void read_rope(const Reading& in);
// Heads of the llama-like families. Where Hugging Face has a number of its own for an absent
// num_key_value_heads, the key is required.
void read_attention(const Reading& in);
// head_dim from hidden size and heads.
void derive_head_dim(MapReader& r, ModelSpec& m);
// layer_types, one word a layer; false: not given.
bool read_layer_types(const Reading& in, AttentionSpan narrow);
// Every layer of [first, layers), when the number of layers can be trusted.
void set_spans(ModelSpec& m, std::int64_t first, AttentionSpan span);
[[nodiscard]] std::string_view span_word(AttentionSpan span);  // "sliding_attention"
// All full is written as none.
void trim_spans(ModelSpec& m);

// Sizes, heads, rope and the rest of the families with RMSNorm and rope.
void read_rms_sizes(const Reading& in);
// Dropout, router noise and other numbers of a training recipe, details without cost: read as numbers, not
// kept. Nothing here drops or adds noise.
void accept_dropout(MapReader& r, std::initializer_list<std::string_view> keys);
void read_attention_bias(const Reading& in);  // one switch for q, k, v and the output

void read_llama_like(const Reading& in);
void read_mistral(const Reading& in);
void read_mixtral(const Reading& in);
void read_qwen(const Reading& in);  // qwen2, qwen3 and their MoE forms
void read_deepseek(const Reading& in);
void read_olmoe(const Reading& in);
void read_gpt_oss(const Reading& in);
void read_llama4(const Reading& in);
void read_gpt2(const Reading& in);
void read_gpt_neox(const Reading& in);
void read_mpt(const Reading& in);
void read_bloom(const Reading& in);
void read_falcon(const Reading& in);

}  // namespace tessera::spec
