// What is wrong with the numbers of a model, whoever made them.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/text.h"
#include "spec/internal.h"
#include "spec/model_size.h"

namespace tessera::spec {

namespace {

// Far above every model there is, and low enough that products of two never overflow 63 bits.
constexpr std::int64_t kMaxSize = std::int64_t{1} << 30;
constexpr std::int64_t kMaxExperts = 1 << 20;
constexpr double kMaxParameters = 1e18;

bool between(Checker& checker, std::string_view key, std::int64_t value, std::int64_t smallest,
             std::int64_t largest) {
  return checker.check(value >= smallest && value <= largest, {key},
                       fmt::format("{}={} is not between {} and {}", key, value, smallest, largest),
                       fmt::format("use a whole number from {} to {}", smallest, largest));
}
bool in_range(Checker& checker, std::string_view key, std::int64_t value, std::int64_t largest) {
  return between(checker, key, value, 1, largest);
}

bool validate_rope(const ModelSpec& m, Checker& checker) {
  const RopeScaling& r = m.rope_scaling;
  bool good = checker.check(m.rope_theta > 0.0, {"rope_theta"},
                            fmt::format("rope_theta={} is not above 0", m.rope_theta),
                            "use the value of the published model, for example 10000.0");
  if (r.kind == RopeKind::none) return good;
  good &=
      checker.check(r.factor >= 1.0, {"rope_scaling"},
                    fmt::format("rope_scaling factor={} is below 1", r.factor), "use a factor of 1 or more");
  if (r.kind == RopeKind::linear || r.kind == RopeKind::dynamic) return good;
  if (r.kind == RopeKind::llama3) {
    // Llama-4-Scout has both equal: a step in place of the ramp.
    const bool rising = m.family == Family::llama4 ? r.high_freq_factor >= r.low_freq_factor
                                                   : r.high_freq_factor > r.low_freq_factor;
    good &= checker.check(r.low_freq_factor > 0.0 && rising, {"rope_scaling"},
                          fmt::format("rope_scaling low_freq_factor={} and high_freq_factor={} are no range",
                                      r.low_freq_factor, r.high_freq_factor),
                          "use 0 < low_freq_factor < high_freq_factor, for example 1.0 and 4.0");
  } else {
    good &= checker.check(
        r.beta_slow > 0.0 && r.beta_fast >= r.beta_slow, {"rope_scaling"},
        fmt::format("rope_scaling beta_slow={} and beta_fast={} are no range", r.beta_slow, r.beta_fast),
        "use 0 < beta_slow <= beta_fast, for example 1 and 32");
  }
  good &= checker.check(r.attention_factor >= 0.0, {"rope_scaling"},
                        fmt::format("rope_scaling attention_factor={} is below 0", r.attention_factor),
                        "remove it: it follows from factor then");
  good &= checker.check(r.original_max_position_embeddings >= 1, {"rope_scaling"},
                        fmt::format("rope_scaling original_max_position_embeddings={} is not above 0",
                                    r.original_max_position_embeddings),
                        "use the context length before scaling, for example 8192");
  return good;
}

bool validate_moe_sizes(const ModelSpec& m, const MoeSpec& e, Checker& checker) {
  const KeyNames& k = key_names(m.family);
  bool good = in_range(checker, k.experts, e.num_experts, kMaxExperts);
  good &= in_range(checker, "num_experts_per_tok", e.num_experts_per_tok, kMaxExperts);
  good &= checker.check(
      e.num_experts_per_tok <= e.num_experts, {"num_experts_per_tok", k.experts},
      fmt::format("num_experts_per_tok={} is above {}={}", e.num_experts_per_tok, k.experts, e.num_experts),
      fmt::format("use num_experts_per_tok from 1 to {}", e.num_experts));
  good &= checker.check(e.router_aux_loss_coef >= 0.0, {"router_aux_loss_coef"},
                        fmt::format("router_aux_loss_coef={} is below 0", e.router_aux_loss_coef),
                        "use 0 or more");
  const bool own_width = k.expert_width != "moe_intermediate_size" || m.family == Family::qwen2_moe ||
                         m.family == Family::qwen3_moe || has_mla(m.family);
  good &= between(checker, k.expert_width, e.moe_intermediate_size, own_width ? 1 : 0, kMaxSize);
  good &= between(checker, k.shared_width, e.shared_intermediate_size, 0, kMaxSize);
  return good;
}

bool validate_mlp_only_layers(const ModelSpec& m, const MoeSpec& e, Checker& checker) {
  constexpr std::string_view kKey = "mlp_only_layers";
  const std::vector<std::int32_t>& dense = e.mlp_only_layers;
  if (dense.empty()) return true;
  const std::string_view layers = key_names(m.family).layers;
  bool good = checker.check(m.family == Family::qwen2_moe || m.family == Family::qwen3_moe, {"model_type"},
                            fmt::format("{} has no {}", name(m.family), kKey), "use a qwen MoE model");
  good &= checker.check(std::ranges::is_sorted(dense) && std::ranges::adjacent_find(dense) == dense.end(),
                        {kKey}, fmt::format("{}=[{}] is not ascending", kKey, fmt::join(dense, ", ")),
                        "name each layer once, in order");
  good &= checker.check(dense.front() >= 0 && dense.back() < m.num_hidden_layers, {kKey, layers},
                        fmt::format("{}=[{}] names layers beyond {}={}", kKey, fmt::join(dense, ", "), layers,
                                    m.num_hidden_layers),
                        fmt::format("name layers from 0 to {}", m.num_hidden_layers - 1));
  if (!good) return false;
  bool any = false;
  for (std::int32_t l = 0; l < m.num_hidden_layers && !any; ++l) any = layer_class(m, l).moe;
  return checker.check(any, {kKey, layers},
                       fmt::format("{}=[{}] leaves no layer with experts", kKey, fmt::join(dense, ", ")),
                       "use a dense model, or fewer dense layers");
}

bool validate_moe_places(const ModelSpec& m, const MoeSpec& e, Checker& checker) {
  const std::string_view freq =
      m.family == Family::llama4 ? "interleave_moe_layer_step" : "decoder_sparse_step";
  const std::string_view first = "first_k_dense_replace";
  const std::string_view layers = key_names(m.family).layers;
  bool good = in_range(checker, freq, e.moe_layer_freq, kMaxLayers);
  good &= between(checker, first, e.first_k_dense_replace, 0, kMaxLayers);
  good &= checker.check(e.first_k_dense_replace < m.num_hidden_layers, {first, layers},
                        fmt::format("the first {} layers are dense, of {}={}: no layer has experts",
                                    e.first_k_dense_replace, layers, m.num_hidden_layers),
                        "use a dense model, or fewer dense layers");
  good &= checker.check(e.moe_layer_freq <= m.num_hidden_layers, {freq, layers},
                        fmt::format("{}={} is above {}={}: no layer has experts", freq, e.moe_layer_freq,
                                    layers, m.num_hidden_layers),
                        "use a dense model, or a smaller step");
  return good && validate_mlp_only_layers(m, e, checker);
}

bool validate_routing(const MoeSpec& e, Checker& checker, std::string_view experts) {
  bool good = in_range(checker, "n_group", e.n_group, kMaxExperts);
  good &= in_range(checker, "topk_group", e.topk_group, kMaxExperts);
  if (!good) return false;
  good &= checker.check(e.num_experts % e.n_group == 0, {"n_group", experts},
                        fmt::format("n_group={} does not divide {}={}", e.n_group, experts, e.num_experts),
                        fmt::format("use n_group in {}", divisor_choices(std::max(e.num_experts, 1))));
  good &= checker.check(e.topk_group <= e.n_group, {"topk_group", "n_group"},
                        fmt::format("topk_group={} is above n_group={}", e.topk_group, e.n_group),
                        fmt::format("use topk_group from 1 to {}", e.n_group));
  if (!good) return false;
  const std::int64_t reachable = std::int64_t{e.num_experts / e.n_group} * e.topk_group;
  good &= checker.check(e.num_experts_per_tok <= reachable, {"topk_group", "num_experts_per_tok", experts},
                        fmt::format("num_experts_per_tok={} is above the {} experts of topk_group={} groups",
                                    e.num_experts_per_tok, reachable, e.topk_group),
                        "use more groups a token");
  good &= checker.check(
      std::isfinite(e.routed_scaling_factor) && e.routed_scaling_factor > 0.0, {"routed_scaling_factor"},
      fmt::format("routed_scaling_factor={} is not above 0", e.routed_scaling_factor), "use for example 1.0");
  return good;
}

bool validate_moe(const ModelSpec& m, Checker& checker) {
  const bool wanted = has_experts(m.family);
  const std::string_view experts = key_names(m.family).experts;
  if (!checker.check(wanted == m.moe.has_value(), {"model_type"},
                     fmt::format("a {} model has {}experts", name(m.family), m.moe ? "" : "no "),
                     wanted ? fmt::format("give {}, or use the family of a dense model", experts)
                            : "use model_type mixtral exactly when num_local_experts is given")) {
    return false;
  }
  if (!m.moe) return true;
  bool good = validate_moe_sizes(m, *m.moe, checker);
  good &= validate_moe_places(m, *m.moe, checker);
  return good && validate_routing(*m.moe, checker, experts);
}

bool validate_mla(const ModelSpec& m, Checker& checker) {
  if (!checker.check(has_mla(m.family) == m.mla.has_value(), {"model_type"},
                     fmt::format("a {} model has {}latent attention", name(m.family), m.mla ? "" : "no "),
                     "use model_type deepseek_v2 or deepseek_v3 exactly with kv_lora_rank")) {
    return false;
  }
  if (!m.mla) return true;
  bool good = between(checker, "q_lora_rank", m.mla->q_lora_rank, 0, kMaxMlaSize);
  good &= in_range(checker, "kv_lora_rank", m.mla->kv_lora_rank, kMaxMlaSize);
  good &= in_range(checker, "qk_nope_head_dim", m.mla->qk_nope_head_dim, kMaxMlaSize);
  good &= in_range(checker, "qk_rope_head_dim", m.mla->qk_rope_head_dim, kMaxMlaSize);
  good &= in_range(checker, "v_head_dim", m.mla->v_head_dim, kMaxMlaSize);
  if (!good) return false;
  good &= checker.check(
      m.mla->qk_rope_head_dim % 2 == 0, {"qk_rope_head_dim"},
      fmt::format("qk_rope_head_dim={} is odd; rotary embedding turns pairs", m.mla->qk_rope_head_dim),
      fmt::format("use an even qk_rope_head_dim, for example {}", m.mla->qk_rope_head_dim + 1));
  good &= checker.check(m.num_key_value_heads == m.num_attention_heads,
                        {"num_key_value_heads", "num_attention_heads"},
                        fmt::format("num_key_value_heads={} differs from num_attention_heads={}: with latent "
                                    "attention every head has its own",
                                    m.num_key_value_heads, m.num_attention_heads),
                        fmt::format("use num_key_value_heads {}", m.num_attention_heads));
  good &= checker.check(m.head_dim == m.mla->qk_nope_head_dim + m.mla->qk_rope_head_dim,
                        {"head_dim", "qk_nope_head_dim", "qk_rope_head_dim"},
                        fmt::format("head_dim={} is not qk_nope_head_dim={} + qk_rope_head_dim={}",
                                    m.head_dim, m.mla->qk_nope_head_dim, m.mla->qk_rope_head_dim),
                        "head_dim is that of a query");
  return good;
}

bool validate_spans(const ModelSpec& m, Checker& checker) {
  const std::string_view layers = key_names(m.family).layers;
  bool good = between(checker, "sliding_window", m.sliding_window, 0, kMaxSize);
  good &= between(checker, "attention_chunk_size", m.attention_chunk, 0, kMaxSize);
  good &= between(checker, "num_nextn_predict_layers", m.num_nextn_predict_layers, 0, 64);
  good &= checker.check(
      m.layer_spans.empty() || std::ssize(m.layer_spans) == m.num_hidden_layers, {"layer_types", layers},
      fmt::format("layer_types has {} entries for {}={}", m.layer_spans.size(), layers, m.num_hidden_layers),
      "give one a layer");
  const auto has = [&](AttentionSpan span) {
    return std::ranges::find(m.layer_spans, span) != m.layer_spans.end();
  };
  good &= checker.check(!has(AttentionSpan::sliding) || m.sliding_window >= 1,
                        {"sliding_window", "layer_types"}, "there are sliding layers and no sliding_window",
                        "give sliding_window, for example 4096");
  good &= checker.check(!has(AttentionSpan::chunked) || m.attention_chunk >= 1,
                        {"attention_chunk_size", "layer_types"}, "there are chunked layers and no chunk",
                        "give attention_chunk_size, for example 8192");
  return good;
}

// Switches that a family's config.json cannot say stay as the family has them.
bool validate_switches(const ModelSpec& m, Checker& checker) {
  ModelSpec f = family_defaults(m.family);
  const Family family = m.family;
  const bool one_bias = family == Family::llama || family == Family::qwen3 || family == Family::qwen3_moe ||
                        family == Family::olmoe || family == Family::gpt_oss || family == Family::llama4 ||
                        family == Family::gpt_neox || family == Family::falcon || has_mla(family);
  if (one_bias) f.attention_qkv_bias = f.attention_out_bias = m.attention_qkv_bias;
  if (family == Family::qwen2_moe) f.attention_qkv_bias = m.attention_qkv_bias;
  if (family == Family::llama) f.mlp_bias = m.mlp_bias;
  if (family == Family::falcon) f.mlp_bias = m.attention_qkv_bias;
  if (family == Family::llama4) f.qk_norm = m.qk_norm;
  if (family == Family::gpt_neox || family == Family::falcon) f.parallel_residual = m.parallel_residual;
  if (family == Family::falcon) f.parallel_shared_norm = m.parallel_residual && m.parallel_shared_norm;
  const bool other_position = (family == Family::mpt && m.position == PositionKind::learned) ||
                              (family == Family::falcon && m.position == PositionKind::alibi);
  if (other_position) f.position = m.position;
  if (family == Family::gpt_neox) f.partial_rotary_factor = m.partial_rotary_factor;
  if (family == Family::gpt2 && m.hidden_act != Activation::silu &&
      m.hidden_act != Activation::clamped_swiglu) {
    f.hidden_act = m.hidden_act;
  }
  if (family == Family::gpt2) f.scale_attn_by_inverse_layer_idx = m.scale_attn_by_inverse_layer_idx;
  if (family == Family::deepseek_v3) f.rope_interleaved = m.rope_interleaved;
  if (family == Family::olmoe) f.clip_qkv = m.clip_qkv;
  if (family == Family::gpt_oss) f.swiglu_limit = m.swiglu_limit;
  const bool same_maths = f.hidden_act == m.hidden_act && f.rope_interleaved == m.rope_interleaved &&
                          f.clip_qkv == m.clip_qkv && f.swiglu_limit == m.swiglu_limit &&
                          f.scale_attn_by_inverse_layer_idx == m.scale_attn_by_inverse_layer_idx;
  const bool same =
      same_maths && f.norm == m.norm && f.position == m.position && f.gated_mlp == m.gated_mlp &&
      f.attention_qkv_bias == m.attention_qkv_bias && f.attention_out_bias == m.attention_out_bias &&
      f.mlp_bias == m.mlp_bias && f.qk_norm == m.qk_norm && f.qk_norm_whole == m.qk_norm_whole &&
      f.attention_sinks == m.attention_sinks && f.parallel_residual == m.parallel_residual &&
      f.parallel_shared_norm == m.parallel_shared_norm && f.embedding_norm == m.embedding_norm &&
      f.partial_rotary_factor == m.partial_rotary_factor;
  return checker.check(
      same, {"model_type"},
      fmt::format("norms, positions, activation, biases or residuals are not those of {}", name(family)),
      "use the family that has them");
}

bool validate_heads(const ModelSpec& m, Checker& checker) {
  const KeyNames& k = key_names(m.family);
  bool good = true;
  if (m.num_attention_heads >= 1 && m.num_key_value_heads >= 1) {
    good &=
        checker.check(m.num_attention_heads % m.num_key_value_heads == 0, {k.kv_heads, k.heads},
                      fmt::format("num_key_value_heads={} does not divide {}={}", m.num_key_value_heads,
                                  k.heads, m.num_attention_heads),
                      fmt::format("use num_key_value_heads in {}", divisor_choices(m.num_attention_heads)));
  }
  if (m.head_dim >= 1 && m.position == PositionKind::rope && !m.mla) {
    good &= checker.check(
        m.head_dim % 2 == 0, {"head_dim", k.hidden, k.heads},
        fmt::format("head_dim={} is odd; rotary embedding turns pairs", m.head_dim),
        fmt::format("use an even head_dim, for example {}", m.head_dim / 2 * 2 + (m.head_dim < 2 ? 2 : 0)));
  }
  if (m.norm != NormKind::rms && m.head_dim >= 1 && m.head_dim <= kMaxSize) {
    good &= checker.check(m.head_dim * m.num_attention_heads == m.hidden_size, {k.heads, k.hidden},
                          fmt::format("{} heads of head_dim={} are not {}={}", m.num_attention_heads,
                                      m.head_dim, k.hidden, m.hidden_size),
                          "use heads that divide the hidden size");
  }
  const bool one_each = m.family == Family::gpt2 || m.family == Family::gpt_neox || m.family == Family::bloom;
  if (one_each) {
    good &= checker.check(m.num_key_value_heads == m.num_attention_heads, {k.heads},
                          fmt::format("num_key_value_heads={} in a {} model of {} heads",
                                      m.num_key_value_heads, name(m.family), m.num_attention_heads),
                          "this family has as many key-value heads as heads");
  }
  return good;
}

}  // namespace

bool validate_model(const ModelSpec& m, Checker& checker) {
  const KeyNames& k = key_names(m.family);
  bool good = in_range(checker, k.layers, m.num_hidden_layers, kMaxLayers);
  good &= in_range(checker, k.hidden, m.hidden_size, kMaxSize);
  good &= in_range(checker, k.intermediate, m.intermediate_size, kMaxSize);
  good &= in_range(checker, k.heads, m.num_attention_heads, kMaxLayers);
  good &= in_range(checker, k.kv_heads, m.num_key_value_heads, kMaxLayers);
  good &= in_range(checker, "head_dim", m.head_dim, kMaxSize);
  good &= in_range(checker, "vocab_size", m.vocab_size, kMaxSize);
  good &= in_range(checker, k.positions, m.max_position_embeddings, kMaxSize);
  good &= validate_heads(m, checker);
  good &= checker.check(m.rms_norm_eps > 0.0, {k.eps},
                        fmt::format("{}={} is not above 0", k.eps, m.rms_norm_eps), "use for example 1e-5");
  good &= checker.check(m.clip_qkv >= 0.0, {"clip_qkv"}, fmt::format("clip_qkv={} is below 0", m.clip_qkv),
                        "use null for none");
  good &=
      checker.check((m.hidden_act == Activation::clamped_swiglu) == (m.swiglu_limit > 0.0), {"swiglu_limit"},
                    fmt::format("swiglu_limit={} is not above 0", m.swiglu_limit), "use for example 7.0");
  good &= checker.check(m.initializer_range >= 0.0, {"initializer_range"},
                        fmt::format("initializer_range={} is below 0", m.initializer_range),
                        "use for example 0.02");
  good &= checker.check(m.partial_rotary_factor >= 0.0 && m.partial_rotary_factor <= 1.0, {"rotary_pct"},
                        fmt::format("rotary_pct={} is not between 0 and 1", m.partial_rotary_factor),
                        "use 1.0 for whole heads");
  good &= validate_rope(m, checker);
  good &= validate_moe(m, checker);
  good &= validate_mla(m, checker);
  good &= validate_spans(m, checker);
  good &= validate_switches(m, checker);
  if (!good) return false;
  const double size = estimated_parameters(m);
  return checker.check(size <= kMaxParameters, {k.hidden},
                       fmt::format("the model has {} parameters", human_count(size)),
                       "reduce hidden_size, intermediate_size, num_hidden_layers or num_local_experts");
}

}  // namespace tessera::spec
