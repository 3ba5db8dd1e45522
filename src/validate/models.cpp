#include "validate/models.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>

namespace tessera::validate {
namespace {

using spec::ModelSpec;

// Names that cannot be modelled, first match; small letters.
struct Refused {
  std::string_view word, reason;
};
constexpr std::array kRefused = {
    Refused{"nemotron-h", "Mamba hybrid model"},
    Refused{"nemotron-3", "Mamba hybrid model"},
    Refused{"qwen3-next", "linear-attention hybrid model"},
    Refused{"qwen3.5", "linear-attention hybrid model"},
    Refused{"deepseek-v4", "sparse attention (DSA) is not modelled"},
    Refused{"glm-5", "sparse attention (DSA) is not modelled"},
    Refused{"-vl", "vision-language model"},
    Refused{"multimodal", "vision-language model"},
    Refused{"idefics", "vision-language model"},
    Refused{"mllama", "vision-language model"},
    Refused{"gemma", "Gemma's attention is not modelled"},
    Refused{"palm", "PaLM's block is not modelled"},
    Refused{"mla, 32 experts", "test model of unknown shape"},
    Refused{"dmoe-", "shape not printed"},
};

// Models that a shipped config.json describes better than the columns can. First match.
struct Preset {
  std::string_view word, preset;
};
constexpr std::array kPresets = {
    Preset{"deepseek-v3", "deepseek-v3"},
    Preset{"deepseekv3", "deepseek-v3"},
    Preset{"deepseek-v2-lite", "deepseek-v2-lite"},
    Preset{"deepseek-v2", "deepseek-v2"},
    Preset{"deepseekv2", "deepseek-v2"},
    Preset{"kimi-k2", "kimi-k2"},
    Preset{"moonlight", "moonlight-16b-a3b"},
    Preset{"gpt-oss-120b", "gpt-oss-120b"},
    Preset{"gpt-oss-20b", "gpt-oss-20b"},
    Preset{"qwen3-235b", "qwen3-235b-a22b"},
    Preset{"qwen3-30b", "qwen3-30b-a3b"},
    Preset{"qwen2-57b", "qwen2-57b-a14b"},
    Preset{"llama4-maverick", "llama-4-maverick"},
    Preset{"llama4-scout", "llama-4-scout"},
};

bool tied(const Row& row, bool usual) {
  const std::string notes = to_lower(row.notes + " ; " + row.overlap_notes);
  if (notes.starts_with("tied embedding")) return true;  // may speak of untied ones further on
  if (has(notes, {"untied"})) return false;
  if (has(notes, {"tied embedding"})) return true;
  return usual;
}

// FLOPs a token of DeepSeek-V3 as NVIDIA counts them: 260.6e9 with the MTP layer, 250.4e9 without.
bool trains_mtp(const Row& row) {
  const std::string text = row.words();
  if (has(text, {"mtp1", "mtp 1", "tml"})) return true;
  if (has(text, {"no mtp", "mtp off"})) return false;
  if (row.tflops_per_gpu && row.tokens_per_s_per_gpu) {
    const double per_token = *row.tflops_per_gpu * 1e12 / *row.tokens_per_s_per_gpu;
    if (per_token > 255e9 && per_token < 270e9) return true;
    if (per_token > 240e9) return false;
  }
  return row.prefix() == "dsv3";
}

void cut_layers(const Row& row, ModelSpec& m) {
  if (!row.layers || *row.layers == m.num_hidden_layers) return;
  const auto layers = static_cast<std::int32_t>(*row.layers);
  m.num_hidden_layers = layers;
  if (!m.layer_spans.empty())
    m.layer_spans.resize(static_cast<std::size_t>(layers), spec::AttentionSpan::full);
  if (m.moe) {
    const std::string notes = to_lower(row.notes);
    if (has(notes, {"1 dense layer"})) m.moe->first_k_dense_replace = 1;
    m.moe->first_k_dense_replace = std::min(m.moe->first_k_dense_replace, layers);
  }
}

NamedModel from_preset(const Row& row, const Library& library, std::string_view preset) {
  NamedModel out;
  const auto it = library.models.find(preset);
  if (it == library.models.end()) {
    out.reason = fmt::format("no shipped model '{}'", preset);
    return out;
  }
  ModelSpec m = it->second;
  cut_layers(row, m);
  if (row.vocab) m.vocab_size = *row.vocab;
  if (preset == "deepseek-v3") m.num_nextn_predict_layers = trains_mtp(row) ? 1 : 0;
  if (preset != "deepseek-v3") m.num_nextn_predict_layers = 0;
  out.value = std::move(m);
  return out;
}

enum class Look : std::uint8_t { llama, gpt, nemotron, mpt, bloom, grok };

Look look_of(const Row& row) {
  const std::string n = to_lower(row.model);
  if (has(n, {"nemotron"})) return Look::nemotron;
  if (has(n, {"mpt"})) return Look::mpt;
  if (has(n, {"bloom"})) return Look::bloom;
  if (has(n, {"grok"})) return Look::grok;
  if (has(n, {"llama", "mistral", "mixtral", "qwen", "internlm", "aquila", "baichuan", "skywork", "yi-",
              "smollm", "352b", "minicpm", "codellama"})) {
    return Look::llama;
  }
  return Look::gpt;
}

void dress(const Row& row, Look look, ModelSpec& m) {
  switch (look) {
    case Look::llama:
    case Look::grok:
      m.family = m.moe ? spec::Family::mixtral : spec::Family::llama;
      m.tie_word_embeddings = tied(row, false);
      if (has(to_lower(row.model), {"qwen3"})) m.qk_norm = true;
      if (has(to_lower(row.model), {"qwen2", "qwen-"})) m.attention_qkv_bias = true;
      return;
    case Look::nemotron:  // squared ReLU, LayerNorm, no biases, own head (arXiv 2402.16819)
      m.family = spec::Family::gpt_neox;
      m.norm = spec::NormKind::layer;
      m.gated_mlp = false;
      m.tie_word_embeddings = false;
      return;
    case Look::gpt:
      m.family = spec::Family::gpt2;
      m.norm = spec::NormKind::layer;
      m.gated_mlp = false;
      m.position = spec::PositionKind::learned;
      m.attention_qkv_bias = m.attention_out_bias = m.mlp_bias = true;
      // Megatron's GPT shares the embedding unless told; the CI model's memory shows two matrices.
      m.tie_word_embeddings = tied(row, row.prefix() != "mlmci");
      return;
    case Look::mpt:
      m.family = spec::Family::mpt;
      m.norm = spec::NormKind::layer_no_bias;
      m.gated_mlp = false;
      m.position = spec::PositionKind::alibi;
      m.tie_word_embeddings = true;
      return;
    case Look::bloom:
      m.family = spec::Family::bloom;
      m.norm = spec::NormKind::layer;
      m.gated_mlp = false;
      m.position = spec::PositionKind::alibi;
      m.attention_qkv_bias = m.attention_out_bias = m.mlp_bias = true;
      m.embedding_norm = true;
      m.tie_word_embeddings = true;
      return;
  }
}

// Vocabulary from the printed count of all parameters, of a plain decoder of 12 h^2 a layer with one
// embedding matrix; nullopt when that gives nothing like a vocabulary.
std::optional<std::int64_t> vocab_from_params(const Row& row, std::int64_t layers) {
  if (!row.params_total || !row.hidden) return std::nullopt;
  const auto h = static_cast<double>(*row.hidden);
  const double rest = *row.params_total - static_cast<double>(layers) * 12.0 * h * h;
  const double v = std::round(rest / h / 128.0) * 128.0;
  if (v < 25000 || v > 300000) return std::nullopt;
  return static_cast<std::int64_t>(v);
}

NamedModel missing(std::string_view what) {
  NamedModel out;
  out.reason = fmt::format("model: {} not printed", what);
  return out;
}

NamedModel from_columns(const Row& row) {
  const std::optional<std::int64_t> layers = row.layers ? row.layers : printed(row, "layers");
  if (!layers || !row.hidden || !row.heads) return missing("layers, hidden size or heads");
  NamedModel out;
  const Look look = look_of(row);
  ModelSpec m;
  m.num_hidden_layers = static_cast<std::int32_t>(*layers);
  m.hidden_size = *row.hidden;
  m.num_attention_heads = static_cast<std::int32_t>(*row.heads);
  m.num_key_value_heads = static_cast<std::int32_t>(row.kv_heads.value_or(*row.heads));
  m.head_dim = *row.hidden / *row.heads;
  if (!row.ffn_hidden && !row.moe_ffn_hidden) return missing("width of the MLP");
  m.intermediate_size = row.ffn_hidden.value_or(row.moe_ffn_hidden.value_or(0));
  const std::optional<std::int64_t> vocab = row.vocab ? row.vocab : vocab_from_params(row, *layers);
  if (!vocab) return missing("vocabulary");
  if (!row.vocab) out.assumptions.push_back("vocabulary from the count of parameters");
  m.vocab_size = *vocab;
  m.max_position_embeddings = row.seq_len.value_or(8192);
  if (row.experts && *row.experts > 1) {
    if (!row.topk) return missing("top-k");
    spec::MoeSpec moe;
    moe.num_experts = static_cast<std::int32_t>(*row.experts);
    moe.num_experts_per_tok = static_cast<std::int32_t>(*row.topk);
    moe.moe_intermediate_size = row.moe_ffn_hidden.value_or(m.intermediate_size);
    if (has(to_lower(row.notes), {"every 2nd layer"})) moe.moe_layer_freq = 2;
    m.moe = moe;
  }
  dress(row, look, m);
  out.value = std::move(m);
  return out;
}

}  // namespace

NamedModel model_of(const Row& row, const Library& library) {
  const std::string n = to_lower(row.model);
  for (const Refused& r : kRefused) {
    if (!has(n, {r.word})) continue;
    NamedModel out;
    out.reason = fmt::format("model: {}", r.reason);
    out.detail = row.model;
    return out;
  }
  for (const Preset& p : kPresets) {
    if (has(n, {p.word})) return from_preset(row, library, p.preset);
  }
  return from_columns(row);
}

}  // namespace tessera::validate
