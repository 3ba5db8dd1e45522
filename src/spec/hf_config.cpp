// The keys of config.json: the family, what its members share, and the table of keys without influence.
// Rotary embedding is in hf_rope.cpp, the families
// themselves in hf_llama.cpp, hf_moe.cpp and hf_classic.cpp.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "base/text.h"
#include "spec/hf_reader.h"

namespace tessera::spec {

namespace {

// Accepted and not read: file keeping, tokenizer ids, generation, the format of stored weights, and switches
// of other engines that leave the maths as it is.
const std::vector<std::string>& keys_without_influence() {
  static const std::vector<std::string> kKeys = {
      // clang-format off
      "architectures", "bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id",
      "sep_token_id", "decoder_start_token_id", "use_cache", "pretraining_tp",
      "output_router_logits", "torch_dtype", "dtype", "transformers_version", "_name_or_path",
      "name_or_path", "_attn_implementation", "auto_map", "tokenizer_class", "return_dict",
      "output_hidden_states", "output_attentions", "torchscript", "use_bfloat16", "tf_legacy_loss",
      "pruned_heads", "is_encoder_decoder", "is_decoder", "add_cross_attention",
      "cross_attention_hidden_size", "tie_encoder_decoder", "chunk_size_feed_forward", "id2label",
      "label2id", "num_labels", "finetuning_task", "task_specific_params", "problem_type", "prefix",
      "remove_invalid_values", "max_length", "min_length", "do_sample", "early_stopping",
      "num_beams", "temperature", "top_k", "top_p", "typical_p", "repetition_penalty",
      "length_penalty", "num_return_sequences", "suppress_tokens", "begin_suppress_tokens",
      "bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "quantization_config",
      "model_parallel", "gradient_checkpointing", "attn_implementation", "diversity_penalty",
      "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "no_repeat_ngram_size",
      "num_beam_groups", "output_scores", "return_dict_in_generate", "transformers.js_config"
      // clang-format on
  };
  return kKeys;
}

constexpr std::array<std::pair<std::string_view, Family>, 19> kModelTypes = {
    {{"llama", Family::llama},
     {"mixtral", Family::mixtral},
     {"mistral", Family::mistral},
     {"llama4", Family::llama4},
     {"llama4_text", Family::llama4},
     {"qwen2", Family::qwen2},
     {"qwen3", Family::qwen3},
     {"qwen2_moe", Family::qwen2_moe},
     {"qwen3_moe", Family::qwen3_moe},
     {"deepseek_v2", Family::deepseek_v2},
     {"deepseek_v3", Family::deepseek_v3},
     {"kimi_k2", Family::deepseek_v3},
     {"olmoe", Family::olmoe},
     {"gpt_oss", Family::gpt_oss},
     {"gpt2", Family::gpt2},
     {"gpt_neox", Family::gpt_neox},
     {"mpt", Family::mpt},
     {"bloom", Family::bloom},
     {"falcon", Family::falcon}}};

std::optional<Family> read_family(MapReader& r) {
  std::string type;
  std::vector<std::string> words;
  for (const auto& [word, family] : kModelTypes) words.emplace_back(word);
  if (r.take("model_type") == nullptr) {
    r.problem("model_type", "model_type is missing", fmt::format("add model_type: {}", join(words, ", ")));
    return std::nullopt;
  }
  r.required("model_type", type);
  if (r.faulty().contains(r.place().child("model_type"))) return std::nullopt;
  for (const auto& [word, family] : kModelTypes)
    if (word == type) return family;
  const std::string near = nearest(type, words);
  r.problem(
      "model_type", fmt::format("model_type={} is not a family that Tessera knows", type),
      fmt::format("known: {}{}", join(words, ", "), near.empty() ? "" : "; did you mean " + near + "?"));
  return std::nullopt;
}

void read_by_family(const Reading& in) {
  switch (in.m.family) {
    case Family::llama:
      return read_llama_like(in);
    case Family::mistral:
      return read_mistral(in);
    case Family::mixtral:
      return read_mixtral(in);
    case Family::qwen2:
    case Family::qwen3:
    case Family::qwen2_moe:
    case Family::qwen3_moe:
      return read_qwen(in);
    case Family::deepseek_v2:
    case Family::deepseek_v3:
      return read_deepseek(in);
    case Family::olmoe:
      return read_olmoe(in);
    case Family::gpt_oss:
      return read_gpt_oss(in);
    case Family::llama4:
      return read_llama4(in);
    case Family::gpt2:
      return read_gpt2(in);
    case Family::gpt_neox:
      return read_gpt_neox(in);
    case Family::mpt:
      return read_mpt(in);
    case Family::bloom:
      return read_bloom(in);
    case Family::falcon:
      return read_falcon(in);
  }
}

// The file of a llama4 model with images: its text model is the one that is planned.
const std::vector<std::string>& keys_beside_text_config() {
  static const std::vector<std::string> kKeys = {"text_config",       "vision_config",
                                                 "boi_token_index",   "eoi_token_index",
                                                 "image_token_index", "tie_word_embeddings"};
  return kKeys;
}

std::set<std::string, std::less<>> inside(const std::set<std::string, std::less<>>& keys,
                                          const Place& place) {
  if (place.path.empty()) return keys;
  std::set<std::string, std::less<>> out;
  for (const std::string& key : keys)
    if (key.starts_with(place.path + ".")) out.insert(key.substr(place.path.size() + 1));
  return out;
}

}  // namespace

ModelSpec read_model(const Value& map, const Place& place, std::span<const std::string> also_known,
                     Problems& problems) {
  MapReader r(map, place, problems);
  const std::optional<Family> family = read_family(r);
  if (!family) return {};
  const Value* text = map.find("text_config");
  if (family == Family::llama4 && text != nullptr && text->kind == Value::Kind::map) {
    r.know(keys_beside_text_config());
    r.know(keys_without_influence());
    r.know(also_known);
    r.refuse_unknown();
    if (text->find("text_config") != nullptr) {
      r.problem("text_config", "text_config stands inside of text_config", "keep the inner one");
      return {};
    }
    return read_model(*text, {.file = place.file, .path = place.child("text_config")}, {}, problems);
  }
  ModelSpec m = family_defaults(*family);
  read_by_family({r, problems, m});
  if (m.moe && m.family != Family::deepseek_v3) r.optional(kOwnCorrectionBias, m.moe->score_correction_bias);
  trim_spans(m);
  r.know(keys_without_influence());
  r.know(also_known);
  r.refuse_unknown();
  Checker checker([&](std::string_view key) { return place.where(key, map.find(key)); },
                  inside(r.faulty(), place), problems);
  validate_model(m, checker);
  return m;
}

// --- one key

namespace {
void refuse(MapReader& r, std::string_view key, std::string_view value, std::string_view meaning,
            std::string mend) {
  r.problem(key, fmt::format("{}={}: {} is not known to Tessera", key, value, meaning), std::move(mend));
}
}  // namespace

void only_false(MapReader& r, std::string_view key, std::string_view meaning) {
  bool on = false;
  r.optional(key, on);
  if (on) refuse(r, key, "true", meaning, fmt::format("use a model with {}: false", key));
}
void only_true(MapReader& r, std::string_view key, std::string_view meaning) {
  bool on = true;
  r.optional(key, on);
  if (!on) refuse(r, key, "false", meaning, fmt::format("use a model with {}: true", key));
}
void only_null(MapReader& r, std::string_view key, std::string_view meaning) {
  const Value* v = r.take(key);
  if (v != nullptr && v->kind != Value::Kind::null) {
    refuse(r, key, v->text.empty() ? "..." : v->text, meaning, fmt::format("use a model with {}: null", key));
  }
}
void only_word(MapReader& r, std::string_view key, std::initializer_list<std::string_view> words) {
  std::string word(*words.begin());
  r.optional(key, word);
  if (std::find(words.begin(), words.end(), word) != words.end()) return;
  r.problem(key, fmt::format("{}={} is not known for this family", key, word),
            fmt::format("use a model with {}: {}", key, fmt::join(words, ", ")));
}

// --- heads

namespace {

// What Hugging Face reads for an absent num_key_value_heads; 0: num_attention_heads. Too easy to get wrong
// unsaid.
std::int32_t silent_kv_heads(Family family) {
  switch (family) {
    case Family::mixtral:
    case Family::mistral:
    case Family::llama4:
    case Family::gpt_oss:
      return 8;
    case Family::qwen2:
    case Family::qwen3:
      return 32;
    case Family::qwen2_moe:
      return 16;
    case Family::qwen3_moe:
      return 4;
    case Family::llama:
    case Family::deepseek_v2:
    case Family::deepseek_v3:
    case Family::olmoe:
    case Family::gpt2:
    case Family::gpt_neox:
    case Family::mpt:
    case Family::bloom:
    case Family::falcon:
      return 0;
  }
  return 0;
}

// What Hugging Face has for an absent head_dim; 0: hidden_size / num_attention_heads, as for null.
std::int64_t default_head_dim(Family family) {
  if (family == Family::qwen3) return 128;
  return family == Family::gpt_oss ? 64 : 0;
}

}  // namespace

void read_attention(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  r.required("num_attention_heads", m.num_attention_heads);
  m.num_key_value_heads = m.num_attention_heads;
  const std::int32_t silent = silent_kv_heads(m.family);
  if (silent > 0 && r.take("num_key_value_heads") == nullptr) {
    r.problem("num_key_value_heads",
              fmt::format("num_key_value_heads is missing (Hugging Face would read {})", silent),
              fmt::format("add num_key_value_heads, for example {}", m.num_attention_heads));
  }
  r.optional("num_key_value_heads", m.num_key_value_heads);
  if (m.num_attention_heads < 1 && m.num_key_value_heads < 1) r.mark_faulty("num_key_value_heads");
  const Value* given = r.take("head_dim");
  if (given != nullptr && given->kind != Value::Kind::null) {
    r.convert("head_dim", *given, m.head_dim);
    return;
  }
  if (given == nullptr && default_head_dim(m.family) > 0) {
    m.head_dim = default_head_dim(m.family);
    return;
  }
  derive_head_dim(r, m);
}

void derive_head_dim(MapReader& r, ModelSpec& m) {
  const KeyNames& k = key_names(m.family);
  if (m.num_attention_heads < 1 || m.hidden_size < 1) {
    r.mark_faulty("head_dim");  // the sizes it follows from are reported
    return;
  }
  m.head_dim = m.hidden_size / m.num_attention_heads;
  if (m.hidden_size % m.num_attention_heads != 0) {
    r.problem(k.heads,
              fmt::format("{}={} does not divide {}={}{}", k.heads, m.num_attention_heads, k.hidden,
                          m.hidden_size, m.norm == NormKind::rms ? " and head_dim is not given" : ""),
              fmt::format("use {} in {}{}", k.heads, divisor_choices(m.hidden_size),
                          m.norm == NormKind::rms ? ", or give head_dim" : ""));
  }
}

// --- spans

namespace {
constexpr std::array<std::pair<std::string_view, AttentionSpan>, 3> kSpanWords = {
    {{"full_attention", AttentionSpan::full},
     {"sliding_attention", AttentionSpan::sliding},
     {"chunked_attention", AttentionSpan::chunked}}};
}  // namespace

std::string_view span_word(AttentionSpan span) {
  for (const auto& [word, value] : kSpanWords)
    if (value == span) return word;
  return "";
}

bool read_layer_types(const Reading& in, AttentionSpan narrow) {
  constexpr std::string_view kKey = "layer_types";
  const Value* v = in.r.take(kKey);
  if (v == nullptr || v->kind == Value::Kind::null) return false;
  std::vector<std::string> words;
  in.r.convert(kKey, *v, words);
  if (in.r.faulty().contains(in.r.place().child(kKey))) return true;
  std::vector<AttentionSpan> spans;
  for (const std::string& word : words) {
    AttentionSpan span = AttentionSpan::full;
    const auto at =
        std::find_if(kSpanWords.begin(), kSpanWords.end(), [&](const auto& s) { return s.first == word; });
    if (at != kSpanWords.end()) span = at->second;
    if (at == kSpanWords.end() || (span != AttentionSpan::full && span != narrow)) {
      in.r.problem(kKey, fmt::format("layer_types has \"{}\"", word),
                   fmt::format("use full_attention or {}", span_word(narrow)));
      return true;
    }
    spans.push_back(span);
  }
  in.m.layer_spans = std::move(spans);
  return true;
}

void set_spans(ModelSpec& m, std::int64_t first, AttentionSpan span) {
  if (m.num_hidden_layers < 1 || m.num_hidden_layers > kMaxLayers) return;
  m.layer_spans.assign(static_cast<std::size_t>(m.num_hidden_layers), AttentionSpan::full);
  for (std::int64_t l = std::max<std::int64_t>(first, 0); l < m.num_hidden_layers; ++l)
    m.layer_spans[static_cast<std::size_t>(l)] = span;
}

void trim_spans(ModelSpec& m) {
  if (std::ssize(m.layer_spans) != m.num_hidden_layers) return;  // validation will say so
  if (std::ranges::all_of(m.layer_spans, [](AttentionSpan s) { return s == AttentionSpan::full; })) {
    m.layer_spans.clear();
  }
}

}  // namespace tessera::spec
