#include "graph/block_size.h"

#include <algorithm>
#include <array>
#include <initializer_list>

#include "base/math.h"

namespace tessera::graph {

namespace {

std::int64_t norm_elements(const spec::ModelSpec& m) {
  switch (m.norm) {
    case spec::NormKind::rms:
    case spec::NormKind::layer_no_bias:
      return m.hidden_size;
    case spec::NormKind::layer:
      return 2 * m.hidden_size;
  }
  return 0;
}

// Norms of a layer: Falcon's parallel block has one before both halves.
std::int64_t num_norms(const spec::ModelSpec& m) {
  return m.parallel_residual && m.family == spec::Family::falcon && m.num_key_value_heads == 1 ? 1 : 2;
}

// Matrices into the MLP: gate and up, or up alone.
std::int64_t num_inputs(const spec::ModelSpec& m) {
  return m.gated_mlp ? 2 : 1;
}

// Heads of k and v on a rank: whole ones, repeated where there are fewer than ranks.
std::int64_t local_kv_dim(const spec::ModelSpec& m, std::int32_t tp) {
  return div_ceil(m.num_key_value_heads, tp) * m.head_dim;
}
std::int64_t local_heads(const spec::ModelSpec& m, std::int32_t tp) {
  return div_ceil(m.num_attention_heads, tp);
}

void add_replicated(BlockParams& p, std::int64_t n) {
  p.dense += n;
  p.replicated += n;
}

void add_mla(BlockParams& p, const spec::ModelSpec& m, const spec::MlaSpec& a, std::int32_t tp) {
  const std::int64_t h = m.hidden_size;
  const std::int64_t heads = local_heads(m, tp);
  const std::int64_t qk = a.qk_nope_head_dim + a.qk_rope_head_dim;
  if (a.q_lora_rank > 0) {
    add_replicated(p, h * a.q_lora_rank + a.q_lora_rank);
    p.dense += a.q_lora_rank * heads * qk;
  } else {
    p.dense += h * heads * qk;
  }
  add_replicated(p, h * (a.kv_lora_rank + a.qk_rope_head_dim) + a.kv_lora_rank);
  p.dense += a.kv_lora_rank * heads * (a.qk_nope_head_dim + a.v_head_dim) + heads * a.v_head_dim * h;
}

void add_attention(BlockParams& p, const spec::ModelSpec& m, std::int32_t tp) {
  if (m.mla) {
    add_mla(p, m, *m.mla, tp);
    return;
  }
  const std::int64_t h = m.hidden_size;
  const std::int64_t q = local_heads(m, tp) * m.head_dim;
  const std::int64_t kv = local_kv_dim(m, tp);
  p.dense += h * (q + 2 * kv) + q * h;
  if (m.attention_qkv_bias) p.dense += q + 2 * kv;
  if (m.attention_out_bias) add_replicated(p, h);
  if (m.attention_sinks) p.dense += local_heads(m, tp);
  // Llama 4's norms of q and k have no weights.
  if (m.qk_norm && m.family != spec::Family::llama4)
    add_replicated(p, m.qk_norm_whole ? m.q_dim() + m.kv_dim() : 2 * m.head_dim);
}

// A dense MLP, or all shared experts.
void add_mlp(BlockParams& p, const spec::ModelSpec& m, std::int64_t width, std::int32_t tp) {
  const std::int64_t f = div_ceil(width, tp);
  p.dense += (num_inputs(m) + 1) * m.hidden_size * f;
  if (!m.mlp_bias) return;
  p.dense += num_inputs(m) * f;
  add_replicated(p, m.hidden_size);
}

void add_moe(BlockParams& p, const spec::ModelSpec& m, const spec::MoeSpec& moe, const Cut& cut) {
  const std::int64_t h = m.hidden_size;
  add_replicated(p, moe.num_experts * h);
  if (moe.router_bias) add_replicated(p, moe.num_experts);
  if (moe.score_correction_bias) add_replicated(p, moe.num_experts);
  const std::int64_t f = div_ceil(spec::expert_intermediate_size(m), cut.etp);
  std::int64_t one = (num_inputs(m) + 1) * h * f;
  if (moe.expert_bias) one += num_inputs(m) * f + h;
  p.expert += div_ceil(moe.num_experts, cut.ep) * one;
  if (moe.shared_intermediate_size > 0) {
    add_mlp(p, m, moe.shared_intermediate_size, cut.tp);
    if (moe.shared_expert_gate) add_replicated(p, h);
  }
}

// Widths of one element in quarters of a bit: mxfp8 has a scale of 8 bits every 32 elements, nvfp4 one every
// 16.
struct Widths {
  std::int64_t activation = 64;
  std::int64_t linear_input = 64;  // as a matrix product keeps it for its weight gradient
};
Widths widths(spec::Precision precision) {
  switch (precision) {
    case spec::Precision::f32:
      return {128, 128};
    case spec::Precision::f64:
      return {256, 256};
    case spec::Precision::bf16:
    case spec::Precision::fp16:
      return {64, 64};
    case spec::Precision::fp8:
    case spec::Precision::fp8_block:
      return {64, 32};
    case spec::Precision::mxfp8:
      return {64, 33};
    case spec::Precision::nvfp4:
      return {64, 18};
  }
  return {};
}

// Sizes of one micro-batch on this rank; a and l turn elements into bytes.
struct Shape {
  Widths width;
  std::int64_t tokens = 0;        // T
  std::int64_t local_tokens = 0;  // t
  std::int64_t hidden = 0;
  [[nodiscard]] Bytes a(std::int64_t elements) const {
    return Bytes(div_ceil(elements * width.activation, 32));
  }
  [[nodiscard]] Bytes l(std::int64_t elements) const {
    return Bytes(div_ceil(elements * width.linear_input, 32));
  }
  [[nodiscard]] bool low() const { return width.linear_input < width.activation; }
};
Shape shape_of(const spec::ModelSpec& m, const Cut& cut) {
  Shape s{.width = widths(cut.precision)};
  s.tokens = cut.micro_batch_size * div_ceil(cut.sequence_length, cut.cp);
  s.local_tokens = cut.sequence_parallel ? div_ceil(s.tokens, cut.tp) : s.tokens;
  s.hidden = m.hidden_size;
  return s;
}

// What a norm keeps: its input apart, its output as the product behind it stores it. An eager RMSNorm keeps
// x in f32 and the normalised x besides (LayerNorm is one kernel in every framework).
Bytes norm_output(const spec::ModelSpec& m, const Shape& s, const Practice& practice, bool read_by_router) {
  const std::int64_t n = s.local_tokens * s.hidden;
  // Gathered over tp, unless it is gathered again in backward.
  const std::int64_t stored = practice.separate_sequence_gather ? n : s.tokens * s.hidden;
  Bytes bytes = read_by_router ? s.a(stored) : s.l(stored);
  if (!practice.fused_norm && m.norm == spec::NormKind::rms) bytes += Bytes(4 * n) + s.a(n);
  return bytes;
}

void add_scores(SavedBytes& saved, const Shape& s, const Cut& cut, std::int64_t heads,
                const Practice& practice) {
  if (practice.flash_attention) {
    saved.core += Bytes(4 * heads * s.tokens);  // log of the sum of exponentials, f32
    return;
  }
  const std::int64_t scores = s.tokens * heads * cut.sequence_length;
  saved.core += s.a(scores);
  if (practice.dropout) saved.core += s.a(scores) + Bytes(scores);
}

void add_saved_attention(SavedBytes& saved, const spec::ModelSpec& m, const Shape& s, const Cut& cut,
                         const Practice& practice) {
  const std::int64_t heads = local_heads(m, cut.tp);
  std::int64_t out = heads * m.head_dim;
  if (m.mla) {
    const spec::MlaSpec& a = *m.mla;
    const std::int64_t qk = a.qk_nope_head_dim + a.qk_rope_head_dim;
    out = heads * a.v_head_dim;
    // Compressed q and kv before and after their norms; q and k put together with their rotated parts, v.
    saved.other += s.a(s.local_tokens * (2 * a.q_lora_rank + 2 * a.kv_lora_rank + a.qk_rope_head_dim));
    saved.up_proj += s.a(s.tokens * heads * (2 * qk + a.v_head_dim));
  } else {
    const std::int64_t qkv = out + 2 * local_kv_dim(m, cut.tp);
    saved.attention += s.a(s.tokens * qkv);
    if (m.qk_norm) saved.attention += s.a(s.tokens * (out + local_kv_dim(m, cut.tp)));
  }
  saved.attention += s.a(s.tokens * out);
  if (s.low()) saved.attention += s.l(s.tokens * out);  // beside the flash kernel's own copy
  add_scores(saved, s, cut, heads, practice);
}

// Inputs and output of the activation of an MLP of `width` on `rows` rows.
struct MlpSaved {
  Bytes inputs, product;
};
MlpSaved mlp_saved(const spec::ModelSpec& m, const Shape& s, std::int64_t rows, std::int64_t width,
                   const Practice& practice) {
  MlpSaved saved{s.a(num_inputs(m) * rows * width), s.l(rows * width)};
  if (!practice.fused_activation && m.gated_mlp) saved.product += s.a(rows * width);  // silu(gate)
  return saved;
}

std::int64_t expert_rows(const Shape& s, const Cut& cut, const spec::MoeSpec& moe) {
  const std::int64_t tokens = div_ceil(s.tokens, cut.tp);
  return tokens * moe.num_experts_per_tok * cut.etp;
}

void add_saved_moe(SavedBytes& saved, const spec::ModelSpec& m, const spec::MoeSpec& moe, const Shape& s,
                   const Cut& cut, const Practice& practice) {
  const std::int64_t rows = expert_rows(s, cut, moe);
  const std::int64_t f = div_ceil(spec::expert_intermediate_size(m), cut.etp);
  const MlpSaved expert = mlp_saved(m, s, rows, f, practice);
  saved.router += Bytes(4 * moe.num_experts * div_ceil(s.tokens, cut.tp));
  saved.experts += s.l(rows * s.hidden) + expert.inputs;
  saved.activation += expert.product;
  if (moe.shared_intermediate_size > 0) {
    const MlpSaved shared =
        mlp_saved(m, s, s.tokens, div_ceil(moe.shared_intermediate_size, cut.tp), practice);
    saved.mlp += shared.inputs + shared.product;
  }
}

}  // namespace

BlockParams layer_params(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut) {
  BlockParams p;
  add_replicated(p, num_norms(m) * norm_elements(m));
  add_attention(p, m, cut.tp);
  if (layer.moe)
    add_moe(p, m, *m.moe, cut);
  else
    add_mlp(p, m, m.intermediate_size, cut.tp);
  return p;
}

BlockParams embedding_params(const spec::ModelSpec& m, const Cut& cut) {
  BlockParams p;
  p.dense = div_ceil(m.vocab_size, cut.tp) * m.hidden_size;
  if (m.position == spec::PositionKind::learned) add_replicated(p, m.max_position_embeddings * m.hidden_size);
  if (m.embedding_norm) add_replicated(p, norm_elements(m));
  return p;
}

BlockParams head_params(const spec::ModelSpec& m, const Cut& cut, TiedHead tied) {
  BlockParams p;
  add_replicated(p, norm_elements(m));
  if (!m.tie_word_embeddings || tied == TiedHead::own_copy)
    p.dense += div_ceil(m.vocab_size, cut.tp) * m.hidden_size;
  return p;
}

BlockParams mtp_params(const spec::ModelSpec& m, const Cut& cut) {
  BlockParams p = layer_params(m, spec::layer_class(m, m.num_hidden_layers - 1), cut);
  add_replicated(p, 3 * norm_elements(m));
  p.dense += 2 * m.hidden_size * div_ceil(m.hidden_size, cut.tp);
  return p;
}

SavedBytes layer_saved(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut,
                       const Practice& practice) {
  const Shape s = shape_of(m, cut);
  const std::int64_t stream = s.local_tokens * s.hidden;
  SavedBytes saved;
  saved.input = s.a(stream);
  saved.norm = norm_output(m, s, practice, false);
  if (num_norms(m) == 2) saved.norm += norm_output(m, s, practice, layer.moe);
  // The sum behind attention, which the second norm reads; a parallel block has none.
  if (!m.parallel_residual) saved.other += s.a(stream);
  if (practice.dropout) saved.other += Bytes(2 * stream);
  add_saved_attention(saved, m, s, cut, practice);
  if (layer.moe) {
    add_saved_moe(saved, m, *m.moe, s, cut, practice);
  } else {
    const MlpSaved mlp = mlp_saved(m, s, s.tokens, div_ceil(m.intermediate_size, cut.tp), practice);
    saved.mlp += mlp.inputs;
    saved.activation += mlp.product;
  }
  return saved;
}

SavedBytes embedding_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  const Shape s = shape_of(m, cut);
  SavedBytes saved;
  saved.other = Bytes(8 * s.tokens);  // token numbers
  if (practice.dropout) saved.other += Bytes(s.local_tokens * s.hidden);
  if (m.embedding_norm) saved.norm = s.a(s.local_tokens * s.hidden);
  return saved;
}

SavedBytes head_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  Shape s = shape_of(m, cut);
  s.width.linear_input = s.width.activation;  // no recipe runs the head in fp8
  SavedBytes saved;
  saved.input = s.a(s.local_tokens * s.hidden);
  saved.norm = norm_output(m, s, practice, false);
  return saved;
}

SavedBytes mtp_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  const Shape s = shape_of(m, cut);
  const std::int64_t stream = s.local_tokens * s.hidden;
  SavedBytes saved = layer_saved(m, spec::layer_class(m, m.num_hidden_layers - 1), cut, practice);
  const SavedBytes head = head_saved(m, cut, practice);
  // Both streams before their norms and together behind them, the input of the projection.
  saved.other += s.a(2 * stream) + head.input + head.norm;
  saved.norm += s.l(2 * stream);
  return saved;
}

namespace {
// At the peak, and of these between forward and backward (the gradient, or the f32 softmax).
struct LossBytes {
  std::int64_t peak, kept;
};
LossBytes loss_bytes(const Practice& practice) {
  const std::int64_t peak =
      practice.fused_cross_entropy ? std::min(4, practice.loss_bytes) : practice.loss_bytes;
  return {peak, std::min<std::int64_t>(peak, practice.fused_cross_entropy ? 2 : 4)};
}
std::int64_t num_logits(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  return shape_of(m, cut).tokens * div_ceil(m.vocab_size, practice.gathered_logits ? 1 : cut.tp);
}
}  // namespace

Bytes head_logits(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  return Bytes(loss_bytes(practice).kept * num_logits(m, cut, practice));
}

Transients layer_transients(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut,
                            const Practice& practice) {
  (void)practice;
  const Shape s = shape_of(m, cut);
  // With tensor parallelism: the gathered input of the product and the sum before its reduce-scatter.
  const Bytes gathered = cut.tp > 1 ? s.a(2 * s.tokens * s.hidden) : Bytes(0);
  std::int64_t widest = (num_inputs(m) + 1) * s.tokens * div_ceil(m.intermediate_size, cut.tp);
  if (layer.moe) {
    const std::int64_t f = div_ceil(spec::expert_intermediate_size(m), cut.etp);
    // And of the rows: of the output and of the input, each before and behind the exchange.
    widest = expert_rows(s, cut, *m.moe) * ((num_inputs(m) + 1) * f + 4 * s.hidden);
  }
  // Forward the new stream, backward the gradients of the MLP's product, gate and up.
  return {gathered + s.a(s.local_tokens * s.hidden), gathered + s.a(widest)};
}

Transients head_transients(const spec::ModelSpec& m, const Cut& cut, const Practice& practice) {
  const Shape s = shape_of(m, cut);
  const Bytes gathered = cut.tp > 1 ? s.a(s.tokens * s.hidden) : Bytes(0);
  const LossBytes bytes = loss_bytes(practice);
  const Bytes loss((bytes.peak - bytes.kept) * num_logits(m, cut, practice));
  return {gathered + loss, gathered + loss};
}

std::int64_t layer_distinct_weights(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut) {
  const BlockParams all = layer_params(m, layer, cut);
  // Experts of a layer share their shapes.
  const std::int64_t experts = layer.moe ? div_ceil(m.moe->num_experts, cut.ep) : 1;
  return all.dense + all.expert / experts;
}
std::int64_t head_distinct_weights(const spec::ModelSpec& m, const Cut& cut) {
  return div_ceil(m.vocab_size, cut.tp) * m.hidden_size;
}

Bytes SavedBytes::total() const {
  return input + norm + attention + core + up_proj + mlp + activation + experts + router + other;
}

Bytes SavedBytes::kept(spec::Recompute recompute, std::uint32_t modules) const {
  const auto has = [&](Module bit) { return (modules & static_cast<std::uint32_t>(bit)) != 0; };
  const bool moe_layer = experts.value > 0;
  SavedBytes left = *this;
  switch (recompute) {
    case spec::Recompute::none:
      return total();
    case spec::Recompute::full:
      return input;
    case spec::Recompute::selective:
      break;
  }
  if (modules == 0) {  // what the engine does
    left.norm = left.activation = Bytes(0);
    return left.total();
  }
  if (has(Module::core_attn)) left.core = Bytes(0);
  if (has(Module::layernorm)) left.norm = Bytes(0);
  if (has(Module::mla_up_proj)) left.up_proj = Bytes(0);
  if (moe_layer) {
    if (has(Module::moe_act) || has(Module::moe)) left.activation = Bytes(0);
    if (has(Module::shared_experts) || has(Module::moe)) left.mlp = Bytes(0);
    if (has(Module::moe)) left.experts = left.router = Bytes(0);
  } else if (has(Module::mlp)) {
    left.mlp = left.activation = Bytes(0);
  }
  return left.total();
}

std::uint32_t module_bits(const std::vector<std::string>& names) {
  static constexpr std::array<std::pair<std::string_view, Module>, 7> kModules{{
      {"core_attn", Module::core_attn},
      {"layernorm", Module::layernorm},
      {"mlp", Module::mlp},
      {"moe", Module::moe},
      {"moe_act", Module::moe_act},
      {"mla_up_proj", Module::mla_up_proj},
      {"shared_experts", Module::shared_experts},
  }};
  std::uint32_t bits = 0;
  for (const std::string& name : names) {
    const auto* const at =
        std::ranges::find(kModules, std::string_view(name), &std::pair<std::string_view, Module>::first);
    if (at == kModules.end())
      throw Error(ErrorKind::config, "'" + name + "' is no module that can be recomputed",
                  "train.recompute_modules",
                  "use core_attn, layernorm, mlp, moe, moe_act, mla_up_proj or shared_experts");
    bits |= static_cast<std::uint32_t>(at->second);
  }
  return bits;
}

}  // namespace tessera::graph
