// The model as Megatron-LM's arguments, and the check that arguments are of the model.
#include <fmt/format.h>

#include "base/text.h"
#include "frameworks/internal.h"

namespace tessera::frameworks {

namespace {

using spec::ModelSpec;

constexpr const char* kModel = "MODEL_ARGS";
constexpr const char* kMoe = "MOE_ARGS";

// 0 of a dense layer, 1 of one with experts, as Python writes lists of runs: "([0]*3+[1]*58)".
std::string layer_pattern(const ModelSpec& m) {
  std::vector<std::string> runs;
  std::int32_t first = 0;
  for (std::int32_t l = 1; l <= m.num_hidden_layers; ++l) {
    const bool moe = layer_class(m, first).moe;
    if (l < m.num_hidden_layers && layer_class(m, l).moe == moe) continue;
    runs.push_back(fmt::format("[{}]*{}", moe ? 1 : 0, l - first));
    first = l;
  }
  return "(" + join(runs, "+") + ")";
}

void attention(const ModelSpec& m, Settings& out) {
  out.number(kModel, "num-attention-heads", m.num_attention_heads);
  if (m.mla) {
    out.flag(kModel, "multi-latent-attention");
    if (m.mla->q_lora_rank > 0) out.number(kModel, "q-lora-rank", m.mla->q_lora_rank);
    out.number(kModel, "kv-lora-rank", m.mla->kv_lora_rank);
    out.number(kModel, "qk-head-dim", m.mla->qk_nope_head_dim);
    out.number(kModel, "qk-pos-emb-head-dim", m.mla->qk_rope_head_dim);
    out.number(kModel, "v-head-dim", m.mla->v_head_dim);
  } else {
    if (m.num_key_value_heads != m.num_attention_heads) {
      out.flag(kModel, "group-query-attention");
      out.number(kModel, "num-query-groups", m.num_key_value_heads);
    }
    out.number(kModel, "kv-channels", m.head_dim);
  }
  if (m.qk_norm || m.mla) out.flag(kModel, "qk-layernorm");
  if (m.attention_sinks) out.text(kModel, "softmax-type", "learnable");
  if (m.sliding_window > 0) {
    out.text(kModel, "window-size", fmt::format("{},0", m.sliding_window - 1));
    if (!m.layer_spans.empty()) {
      std::vector<std::string> spans;
      for (const spec::AttentionSpan s : m.layer_spans)
        spans.emplace_back(s == spec::AttentionSpan::sliding ? "1" : "0");
      out.text(kModel, "window-attn-skip-freq", "[" + join(spans, ",") + "]");
    }
  }
}

void positions_and_norms(const ModelSpec& m, std::int64_t sequence, Settings& out) {
  out.number(kModel, "max-position-embeddings", std::max(m.max_position_embeddings, sequence));
  switch (m.position) {
    case spec::PositionKind::rope:
      out.text(kModel, "position-embedding-type", "rope");
      out.number(kModel, "rotary-base", static_cast<std::int64_t>(m.rope_theta));
      if (m.partial_rotary_factor != 1.0) out.real(kModel, "rotary-percent", m.partial_rotary_factor);
      break;
    case spec::PositionKind::learned:
      out.text(kModel, "position-embedding-type", "learned_absolute");
      break;
    case spec::PositionKind::alibi:
      out.text(kModel, "position-embedding-type", "none");
      out.notes.emplace_back("ALiBi positions have no argument: the file says none");
      break;
  }
  if (m.rope_scaling.kind == spec::RopeKind::llama3) {
    out.flag(kModel, "use-rope-scaling");
    out.real(kModel, "rope-scaling-factor", m.rope_scaling.factor);
  } else if (m.rope_scaling.kind == spec::RopeKind::yarn && m.mla) {
    out.text(kModel, "rope-type", "yarn");
    out.real(kModel, "rotary-scaling-factor", m.rope_scaling.factor);
    if (m.rope_scaling.mscale > 0) out.real(kModel, "mscale", m.rope_scaling.mscale);
    if (m.rope_scaling.mscale_all_dim > 0) out.real(kModel, "mscale-all-dim", m.rope_scaling.mscale_all_dim);
  } else if (m.rope_scaling.kind != spec::RopeKind::none) {
    out.notes.emplace_back("the scaling of the rotary positions has no argument");
  }
  out.text(kModel, "normalization", m.norm == spec::NormKind::rms ? "RMSNorm" : "LayerNorm");
  out.real(kModel, "norm-epsilon", m.rms_norm_eps);
  out.real(kModel, "init-method-std", m.initializer_range);
}

void mlp(const ModelSpec& m, Settings& out) {
  out.number(kModel, "ffn-hidden-size", m.intermediate_size);
  switch (m.hidden_act) {
    case spec::Activation::silu:
      if (m.gated_mlp) out.flag(kModel, "swiglu");
      break;
    case spec::Activation::clamped_swiglu:
      out.flag(kModel, "quick-geglu");
      if (m.swiglu_limit > 0) out.real(kModel, "activation-func-clamp-value", m.swiglu_limit);
      out.real(kModel, "glu-linear-offset", 1.0);
      break;
    case spec::Activation::gelu:
    case spec::Activation::gelu_tanh:
      break;  // its default
    case spec::Activation::relu:
      out.notes.emplace_back("ReLU has no argument: Megatron-LM computes GeLU, which costs the same");
      break;
  }
  if (!m.mlp_bias && !m.attention_out_bias) out.flag(kModel, "disable-bias-linear");
  if (m.attention_qkv_bias && !m.attention_out_bias) out.flag(kModel, "add-qkv-bias");
  if (m.parallel_residual) out.notes.emplace_back("attention and MLP beside each other have no argument");
  if (m.embedding_norm) out.notes.emplace_back("the norm behind the embedding has no argument");
  if (m.clip_qkv > 0) out.notes.emplace_back("the clamp of q, k and v has no argument");
  if (m.attention_chunk > 0) out.notes.emplace_back("attention in chunks has no argument");
}

void experts(const ModelSpec& m, Settings& out) {
  const spec::MoeSpec& moe = *m.moe;
  out.number(kMoe, "num-experts", moe.num_experts);
  out.number(kMoe, "moe-router-topk", moe.num_experts_per_tok);
  out.number(kMoe, "moe-ffn-hidden-size", spec::expert_intermediate_size(m));
  if (const auto n = spec::moe_layers(m).size();
      static_cast<std::int32_t>(n) < m.num_hidden_layers + m.num_nextn_predict_layers) {
    out.text(kMoe, "moe-layer-freq", layer_pattern(m));
  }
  if (moe.shared_intermediate_size > 0)
    out.number(kMoe, "moe-shared-expert-intermediate-size", moe.shared_intermediate_size);
  if (moe.shared_expert_gate) out.notes.emplace_back("the gate of the shared expert has no argument");
  out.text(kMoe, "moe-router-score-function",
           moe.score == spec::RouterScore::sigmoid ? "sigmoid" : "softmax");
  if (moe.softmax_before_topk && !moe.norm_topk_prob) out.flag(kMoe, "moe-router-pre-softmax");
  if (moe.n_group > 1) {
    out.number(kMoe, "moe-router-num-groups", moe.n_group);
    out.number(kMoe, "moe-router-group-topk", moe.topk_group);
  }
  if (moe.routed_scaling_factor != 1.0)
    out.real(kMoe, "moe-router-topk-scaling-factor", moe.routed_scaling_factor);
}

}  // namespace

void megatron_model(const Launch& l, Settings& out) {
  const ModelSpec& m = l.job.model;
  out.number(kModel, "num-layers", m.num_hidden_layers);
  out.number(kModel, "hidden-size", m.hidden_size);
  mlp(m, out);
  attention(m, out);
  positions_and_norms(m, l.job.train.sequence_length, out);
  if (!m.tie_word_embeddings) out.flag(kModel, "untie-embeddings-and-output-weights");
  if (m.num_nextn_predict_layers > 0) {
    out.number(kModel, "mtp-num-layers", m.num_nextn_predict_layers);
    if (l.job.train.mtp_loss_coef > 0) out.real(kModel, "mtp-loss-scaling-factor", l.job.train.mtp_loss_coef);
  }
  if (m.moe) experts(m, out);
}

void check_dimension(Arguments& args, std::string_view name, std::int64_t of_model, Interpretation& in) {
  const auto given = args.integer(name, in.problems);
  if (!given || *given == of_model) return;
  in.problems.add(fmt::format("{} is {}, the model has {}", args.spelt(name), *given, of_model),
                  args.where(name), "name the model that the file trains, or correct the file");
}

namespace {

// Latent attention of the file and of the model.
void check_latent(Arguments& args, Interpretation& in) {
  const ModelSpec& m = in.launch.job.model;
  const auto check = [&](std::string_view name, std::int64_t v) { check_dimension(args, name, v, in); };
  if (m.mla) {
    check("q-lora-rank", m.mla->q_lora_rank);
    check("kv-lora-rank", m.mla->kv_lora_rank);
    check("qk-head-dim", m.mla->qk_nope_head_dim);
    check("qk-pos-emb-head-dim", m.mla->qk_rope_head_dim);
    check("v-head-dim", m.mla->v_head_dim);
  }
  const bool latent = args.on("multi-latent-attention", in.problems);
  if (latent && !m.mla) {
    in.problems.add("the file says --multi-latent-attention, the model has none",
                    args.where("multi-latent-attention"), "name the model that the file trains");
  }
}

}  // namespace

void check_megatron_model(Arguments& args, Interpretation& in) {
  const ModelSpec& m = in.launch.job.model;
  const auto check = [&](std::string_view name, std::int64_t v) { check_dimension(args, name, v, in); };
  check("num-layers", m.num_hidden_layers);
  check("hidden-size", m.hidden_size);
  check("num-attention-heads", m.num_attention_heads);
  if (!m.moe || spec::moe_layers(m).empty() || m.moe->moe_intermediate_size > 0)
    check("ffn-hidden-size", m.intermediate_size);
  args.accept("ffn-hidden-size");
  if (args.on("group-query-attention", in.problems)) check("num-query-groups", m.num_key_value_heads);
  if (!m.mla) check("kv-channels", m.head_dim);
  check_latent(args, in);
  const auto experts = args.integer("num-experts", in.problems).value_or(0);
  const std::int64_t of_model = m.moe ? m.moe->num_experts : 0;
  if (args.has("num-layers") && experts != of_model) {
    in.problems.add(fmt::format("the file has {} experts, the model {}", experts, of_model),
                    args.where(args.has("num-experts") ? "num-experts" : "num-layers"),
                    "name the model that the file trains, or correct --num-experts");
  }
  if (m.moe) {
    check("moe-router-topk", m.moe->num_experts_per_tok);
    check("moe-ffn-hidden-size", spec::expert_intermediate_size(m));
    check("moe-shared-expert-intermediate-size", m.moe->shared_intermediate_size);
  }
  // Sizes that the planner takes of the model, and details that cost nothing.
  for (const char* name : {"max-position-embeddings",
                           "position-embedding-type",
                           "rotary-base",
                           "rotary-percent",
                           "use-rope-scaling",
                           "rope-scaling-factor",
                           "rope-type",
                           "rotary-scaling-factor",
                           "mscale",
                           "mscale-all-dim",
                           "normalization",
                           "norm-epsilon",
                           "init-method-std",
                           "swiglu",
                           "quick-geglu",
                           "activation-func-clamp-value",
                           "glu-linear-offset",
                           "disable-bias-linear",
                           "add-qkv-bias",
                           "untie-embeddings-and-output-weights",
                           "qk-layernorm",
                           "softmax-type",
                           "window-size",
                           "window-attn-skip-freq",
                           "num-query-groups",
                           "moe-layer-freq",
                           "moe-router-score-function",
                           "moe-router-pre-softmax",
                           "moe-router-num-groups",
                           "moe-router-group-topk",
                           "moe-router-topk-scaling-factor",
                           "mtp-num-layers",
                           "vocab-size"}) {
    args.accept(name);
  }
}

}  // namespace tessera::frameworks
