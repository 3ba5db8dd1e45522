// Parameters and FLOPs of a model. The counts are templates on the number, so that validation can estimate
// absurd sizes in double before anything is multiplied in 63 bits.
#include "spec/model_size.h"

#include <algorithm>

#include "spec/model.h"

namespace tessera::spec {

namespace {

template <class N>
N heads_times(const ModelSpec& m, std::int64_t dim) {
  return static_cast<N>(m.num_attention_heads) * static_cast<N>(dim);
}

template <class N>
N norm_size(const ModelSpec& m) {
  const N hidden = static_cast<N>(m.hidden_size);
  return m.norm == NormKind::layer ? 2 * hidden : hidden;
}

// Matrices of MLA: q down and up (or q whole), kv down with the rotary key, kv up, output.
template <class N>
N mla_matrices(const ModelSpec& m, const MlaSpec& a) {
  const N hidden = static_cast<N>(m.hidden_size);
  const N q = heads_times<N>(m, a.qk_nope_head_dim + a.qk_rope_head_dim);
  const N q_rank = static_cast<N>(a.q_lora_rank);
  const N kv_rank = static_cast<N>(a.kv_lora_rank);
  return (a.q_lora_rank > 0 ? (hidden + q) * q_rank : hidden * q) +
         hidden * (kv_rank + static_cast<N>(a.qk_rope_head_dim)) +
         kv_rank * heads_times<N>(m, a.qk_nope_head_dim + a.v_head_dim) +
         heads_times<N>(m, a.v_head_dim) * hidden;
}

template <class N>
N attention_matrices(const ModelSpec& m) {
  if (m.mla) return mla_matrices<N>(m, *m.mla);
  const N kv = static_cast<N>(m.num_key_value_heads) * static_cast<N>(m.head_dim);
  return 2 * static_cast<N>(m.hidden_size) * (heads_times<N>(m, m.head_dim) + kv);
}

// Biases, norms inside of attention, sinks.
template <class N>
N attention_vectors(const ModelSpec& m) {
  const N out_bias = m.attention_out_bias ? static_cast<N>(m.hidden_size) : N{0};
  if (m.mla) {
    const N q_rank = static_cast<N>(m.mla->q_lora_rank);
    const N kv_rank = static_cast<N>(m.mla->kv_lora_rank);
    const N latents = q_rank + kv_rank + static_cast<N>(m.mla->qk_rope_head_dim);
    return q_rank + kv_rank + (m.attention_qkv_bias ? latents : N{0}) + out_bias;
  }
  const N q = heads_times<N>(m, m.head_dim);
  const N kv = static_cast<N>(m.num_key_value_heads) * static_cast<N>(m.head_dim);
  N sum = out_bias;
  if (m.attention_qkv_bias) sum += q + 2 * kv;
  // The norm of llama4 has no weights.
  if (m.qk_norm && m.family != Family::llama4)
    sum += m.qk_norm_whole ? q + kv : 2 * static_cast<N>(m.head_dim);
  if (m.attention_sinks) sum += static_cast<N>(m.num_attention_heads);
  return sum;
}

template <class N>
N mlp_matrices(const ModelSpec& m, std::int64_t width) {
  return static_cast<N>(m.gated_mlp ? 3 : 2) * static_cast<N>(m.hidden_size) * static_cast<N>(width);
}
template <class N>
N mlp_biases(const ModelSpec& m, std::int64_t width) {
  return static_cast<N>(m.gated_mlp ? 2 : 1) * static_cast<N>(width) + static_cast<N>(m.hidden_size);
}

enum class Experts : std::uint8_t { all, of_one_token };

std::int64_t expert_count(const MoeSpec& moe, Experts which) {
  return which == Experts::all ? moe.num_experts : moe.num_experts_per_tok;
}

// Matrices of a layer's feed-forward part: the dense MLP, or router, experts and shared experts.
template <class N>
N ffn_matrices(const ModelSpec& m, const LayerClass& layer, Experts which) {
  if (!layer.moe || !m.moe) return mlp_matrices<N>(m, m.intermediate_size);
  const MoeSpec& e = *m.moe;
  const N hidden = static_cast<N>(m.hidden_size);
  return static_cast<N>(e.num_experts) * hidden + (e.shared_expert_gate ? hidden : N{0}) +
         mlp_matrices<N>(m, e.shared_intermediate_size) +
         static_cast<N>(expert_count(e, which)) * mlp_matrices<N>(m, expert_intermediate_size(m));
}
template <class N>
N ffn_vectors(const ModelSpec& m, const LayerClass& layer, Experts which) {
  if (!layer.moe || !m.moe) return m.mlp_bias ? mlp_biases<N>(m, m.intermediate_size) : N{0};
  const MoeSpec& e = *m.moe;
  const N experts = static_cast<N>(e.num_experts);
  N sum = 0;
  if (e.router_bias) sum += experts;
  if (e.score_correction_bias) sum += experts;
  if (e.expert_bias)
    sum += static_cast<N>(expert_count(e, which)) * mlp_biases<N>(m, expert_intermediate_size(m));
  return sum;
}

template <class N>
N layer_matrices(const ModelSpec& m, const LayerClass& layer, Experts which) {
  return attention_matrices<N>(m) + ffn_matrices<N>(m, layer, which);
}
template <class N>
N layer_total(const ModelSpec& m, const LayerClass& layer, Experts which) {
  const N norms = static_cast<N>(m.parallel_residual && m.parallel_shared_norm ? 1 : 2);
  return layer_matrices<N>(m, layer, which) + attention_vectors<N>(m) + ffn_vectors<N>(m, layer, which) +
         norms * norm_size<N>(m);
}

std::int32_t num_moe_layers(const ModelSpec& m) {
  if (!m.moe) return 0;
  std::int32_t n = 0;
  for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) n += layer_class(m, l).moe ? 1 : 0;
  return n;
}

template <class N>
N model_total(const ModelSpec& m, Experts which) {
  const std::int32_t moe = num_moe_layers(m);
  const N hidden = static_cast<N>(m.hidden_size);
  const N table = static_cast<N>(m.vocab_size) * hidden;
  N sum = (m.tie_word_embeddings ? table : 2 * table) + norm_size<N>(m);
  if (m.embedding_norm) sum += norm_size<N>(m);
  if (m.position == PositionKind::learned) sum += static_cast<N>(m.max_position_embeddings) * hidden;
  if (moe > 0) sum += static_cast<N>(moe) * layer_total<N>(m, {.moe = true}, which);
  if (moe < m.num_hidden_layers) {
    sum += static_cast<N>(m.num_hidden_layers - moe) * layer_total<N>(m, {.moe = false}, which);
  }
  return sum;
}

}  // namespace

std::int64_t expert_intermediate_size(const ModelSpec& m) {
  return m.moe && m.moe->moe_intermediate_size > 0 ? m.moe->moe_intermediate_size : m.intermediate_size;
}

LayerClass layer_class(const ModelSpec& m, std::int32_t layer) {
  LayerClass c;
  if (layer >= 0 && layer < std::ssize(m.layer_spans)) {
    c.span = m.layer_spans[static_cast<std::size_t>(layer)];
  }
  if (!m.moe) return c;
  if (layer >= m.num_hidden_layers) {
    c.moe = true;
    return c;
  }
  const MoeSpec& e = *m.moe;
  c.moe = layer >= e.first_k_dense_replace && (layer + 1) % std::max(e.moe_layer_freq, 1) == 0 &&
          !std::ranges::binary_search(e.mlp_only_layers, layer);
  return c;
}

std::vector<std::int32_t> moe_layers(const ModelSpec& m) {
  std::vector<std::int32_t> layers;
  for (std::int32_t l = 0; l < m.num_hidden_layers + m.num_nextn_predict_layers; ++l)
    if (layer_class(m, l).moe) layers.push_back(l);
  return layers;
}

double estimated_parameters(const ModelSpec& m) {
  const double mtp = m.num_nextn_predict_layers;
  const double hidden = static_cast<double>(m.hidden_size);
  return model_total<double>(m, Experts::all) +
         mtp * (layer_total<double>(m, {.moe = m.moe.has_value()}, Experts::all) + 2.0 * hidden * hidden);
}

std::int64_t num_parameters(const ModelSpec& m) {
  return model_total<std::int64_t>(m, Experts::all);
}
std::int64_t num_active_parameters(const ModelSpec& m) {
  return model_total<std::int64_t>(m, Experts::of_one_token);
}
std::int64_t num_mtp_parameters(const ModelSpec& m) {
  const std::int64_t one = layer_total<std::int64_t>(m, {.moe = m.moe.has_value()}, Experts::all) +
                           2 * m.hidden_size * m.hidden_size + 3 * norm_size<std::int64_t>(m);
  return m.num_nextn_predict_layers * one;
}

std::int64_t layer_parameters(const ModelSpec& m, const LayerClass& layer) {
  return layer_total<std::int64_t>(m, layer, Experts::all);
}
std::int64_t layer_active_parameters(const ModelSpec& m, const LayerClass& layer) {
  return layer_total<std::int64_t>(m, layer, Experts::of_one_token);
}

namespace {

// Sum over i < n of min(i + 1, window).
double kept_keys(double n, double window) {
  const double ramp = std::min(n, window);
  return ramp * (ramp + 1.0) / 2.0 + (n - ramp) * ramp;
}

}  // namespace

double mean_keys(const ModelSpec& m, AttentionSpan span, std::int64_t seq, AttentionFlops convention) {
  const auto s = static_cast<double>(seq);
  const auto window = static_cast<double>(m.sliding_window);
  const std::int64_t chunk = m.attention_chunk;
  const bool full = convention == AttentionFlops::full;
  switch (span) {
    case AttentionSpan::full:
      break;
    case AttentionSpan::sliding:
      if (m.sliding_window < 1 || m.sliding_window >= seq) break;
      return full ? window : kept_keys(s, window) / s;
    case AttentionSpan::chunked: {
      if (chunk < 1 || chunk >= seq) break;
      const auto c = static_cast<double>(chunk);
      const auto whole = static_cast<double>(seq / chunk);
      const auto rest = static_cast<double>(seq % chunk);
      if (full) return (whole * c * c + rest * rest) / s;
      return (whole * kept_keys(c, c) + kept_keys(rest, rest)) / s;
    }
  }
  return full ? s : (s + 1.0) / 2.0;
}

double train_flops_per_token(const ModelSpec& m, std::int64_t seq, AttentionFlops convention) {
  // Forward: 2 per weight of a matmul (the embedding lookup and norms are none; the head is one, tied or
  // not), and per layer 2 keys per element of all queries for the scores plus as much per element of the
  // values. Backward is twice the forward.
  const auto one = Experts::of_one_token;
  const std::int64_t head = m.vocab_size * m.hidden_size;
  const std::int64_t heads = m.num_attention_heads;
  const std::int64_t qk = heads * (m.mla ? m.mla->qk_nope_head_dim + m.mla->qk_rope_head_dim : m.head_dim);
  const std::int64_t v = heads * (m.mla ? m.mla->v_head_dim : m.head_dim);
  const auto per_key = static_cast<double>(qk + v);
  const std::int64_t moe = num_moe_layers(m);
  std::int64_t weights =
      head + (m.num_hidden_layers - moe) * layer_matrices<std::int64_t>(m, {.moe = false}, one);
  if (moe > 0) weights += moe * layer_matrices<std::int64_t>(m, {.moe = true}, one);
  const double full = mean_keys(m, AttentionSpan::full, seq, convention);
  double keys = 0.0;
  if (m.layer_spans.empty()) keys = static_cast<double>(m.num_hidden_layers) * full;
  for (const AttentionSpan span : m.layer_spans) keys += mean_keys(m, span, seq, convention);
  if (m.num_nextn_predict_layers > 0) {
    weights +=
        m.num_nextn_predict_layers * (layer_matrices<std::int64_t>(m, {.moe = m.moe.has_value()}, one) +
                                      2 * m.hidden_size * m.hidden_size + head);
    keys += m.num_nextn_predict_layers * full;
  }
  return 3.0 * (2.0 * static_cast<double>(weights) + 2.0 * keys * per_key);
}

}  // namespace tessera::spec
