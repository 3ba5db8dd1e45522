// MoE models outside of the llama line's keys: deepseek v2 and v3, olmoe, gpt_oss, llama4.
#include <fmt/format.h>

#include "spec/hf_reader.h"

namespace tessera::spec {

namespace {

// Hugging Face has numbers of its own for these keys when they are absent: too easy to get wrong unsaid.
void refuse_absent(MapReader& r, std::string_view key, std::string_view silent) {
  if (r.take(key) != nullptr) return;
  r.problem(key, fmt::format("{} is missing (Hugging Face would read {})", key, silent),
            fmt::format("add {}", key));
}

void read_mla(const Reading& in) {
  MlaSpec a;
  refuse_absent(in.r, "q_lora_rank", "1536");
  in.r.optional("q_lora_rank", a.q_lora_rank);
  in.r.required("kv_lora_rank", a.kv_lora_rank);
  in.r.required("qk_nope_head_dim", a.qk_nope_head_dim);
  in.r.required("qk_rope_head_dim", a.qk_rope_head_dim);
  in.r.required("v_head_dim", a.v_head_dim);
  in.m.mla = a;
}

// Each latent key serves every head: num_key_value_heads can only repeat num_attention_heads. head_dim is the
// query's, whatever the file says of it (versions of Hugging Face write the rotary part there).
void read_mla_heads(const Reading& in) {
  ModelSpec& m = in.m;
  in.r.required("num_attention_heads", m.num_attention_heads);
  m.num_key_value_heads = m.num_attention_heads;
  in.r.optional("num_key_value_heads", m.num_key_value_heads);
  for (const std::string_view key : {"head_dim", "qk_head_dim"}) {
    std::int64_t ignored = 0;
    in.r.optional(key, ignored);
  }
  const MlaSpec& a = *m.mla;
  if (a.qk_nope_head_dim >= 1 && a.qk_nope_head_dim < kMaxMlaSize && a.qk_rope_head_dim >= 1 &&
      a.qk_rope_head_dim < kMaxMlaSize) {
    m.head_dim = a.qk_nope_head_dim + a.qk_rope_head_dim;
  } else {
    in.r.mark_faulty("head_dim");  // the sizes it follows from are reported
  }
}

// deepseek_v2: softmax and the best expert of a group; deepseek_v3: sigmoid, a bias for the choice and the
// two best of a group. The keys can only repeat it.
void read_group_routing(const Reading& in, MoeSpec& moe) {
  MapReader& r = in.r;
  const bool v3 = in.m.family == Family::deepseek_v3;
  if (v3) {
    refuse_absent(r, "n_group", "8");
    refuse_absent(r, "topk_group", "4");
    only_word(r, "topk_method", {"noaux_tc"});
    only_word(r, "scoring_func", {"sigmoid"});
    moe.score = RouterScore::sigmoid;
    moe.score_correction_bias = true;
    moe.group_score = GroupScore::top2_sum;
  }
  r.optional("n_group", moe.n_group);
  r.optional("topk_group", moe.topk_group);
  if (v3) return;
  std::string method = "greedy";
  r.optional("topk_method", method);
  only_word(r, "topk_method", {"greedy", "group_limited_greedy"});
  only_word(r, "scoring_func", {"softmax"});
  if (method != "greedy") return;
  moe.n_group = 1;
  moe.topk_group = 1;
}

void read_shared_experts(const Reading& in, MoeSpec& moe) {
  std::int64_t shared = 0;
  refuse_absent(in.r, "n_shared_experts", in.m.family == Family::deepseek_v3 ? "1" : "2");
  in.r.optional("n_shared_experts", shared);
  constexpr std::int64_t kMost = 1 << 20;
  if (shared < 0 || shared > kMost) {
    in.r.problem("n_shared_experts",
                 fmt::format("n_shared_experts={} is not between 0 and {}", shared, kMost),
                 "use the number of shared experts, 0 for none");
  } else if (moe.moe_intermediate_size >= 1 && moe.moe_intermediate_size <= kMost) {
    moe.shared_intermediate_size = shared * moe.moe_intermediate_size;
  }
}

void read_deepseek_experts(const Reading& in) {
  MapReader& r = in.r;
  MoeSpec moe;
  const bool v3 = in.m.family == Family::deepseek_v3;
  moe.routed_scaling_factor = v3 ? 2.5 : 1.0;
  require_named(r, {"n_routed_experts", "num_local_experts", "num_experts"}, moe.num_experts);
  r.required("num_experts_per_tok", moe.num_experts_per_tok);
  r.required("moe_intermediate_size", moe.moe_intermediate_size);
  read_shared_experts(in, moe);
  if (v3) refuse_absent(r, "first_k_dense_replace", "3");
  r.optional("first_k_dense_replace", moe.first_k_dense_replace);
  bool normalised = v3;
  r.optional("norm_topk_prob", normalised);
  moe.norm_topk_prob = v3 && normalised;  // Hugging Face never normalises those of v2
  r.optional("routed_scaling_factor", moe.routed_scaling_factor);
  r.optional("aux_loss_alpha", moe.router_aux_loss_coef);
  read_group_routing(in, moe);
  std::int64_t every = 1;
  r.optional("moe_layer_freq", every);
  if (every != 1) {
    r.problem("moe_layer_freq",
              fmt::format("moe_layer_freq={}: dense layers between MoE layers are not known", every),
              "use a model with moe_layer_freq: 1");
  }
  // How the balancing loss is summed, and how the reference code spreads experts: no cost.
  bool ignored = false;
  std::int64_t ep_size = 1;
  r.optional("seq_aux", ignored);
  if (v3) r.optional("rope_interleave", in.m.rope_interleaved);
  r.optional("ep_size", ep_size);
  in.m.moe = moe;
}

}  // namespace

void read_deepseek(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  r.required("num_hidden_layers", m.num_hidden_layers);
  r.required("hidden_size", m.hidden_size);
  r.required("intermediate_size", m.intermediate_size);
  r.required("vocab_size", m.vocab_size);
  read_mla(in);
  read_mla_heads(in);
  r.optional("max_position_embeddings", m.max_position_embeddings);
  r.optional("rms_norm_eps", m.rms_norm_eps);
  read_rope(in);
  r.optional("tie_word_embeddings", m.tie_word_embeddings);
  r.optional("initializer_range", m.initializer_range);
  only_word(r, "hidden_act", {"silu"});
  read_attention_bias(in);
  only_false(r, "mlp_bias", "a bias in the MLP");
  accept_dropout(r, {"attention_dropout"});
  read_deepseek_experts(in);
  r.optional("num_nextn_predict_layers", m.num_nextn_predict_layers);
}

void read_olmoe(const Reading& in) {
  read_rms_sizes(in);
  read_attention_bias(in);
  accept_dropout(in.r, {"attention_dropout"});
  const Value* clip = in.r.take("clip_qkv");
  in.r.optional("clip_qkv", in.m.clip_qkv);
  if (clip != nullptr && clip->kind != Value::Kind::null && !(in.m.clip_qkv > 0.0)) {
    in.r.problem("clip_qkv", fmt::format("clip_qkv={} is not above 0", in.m.clip_qkv), "use null for none");
  }
  MoeSpec moe;
  moe.norm_topk_prob = false;
  moe.router_aux_loss_coef = 0.01;
  require_named(in.r, {"num_experts", "num_local_experts"}, moe.num_experts);
  in.r.required("num_experts_per_tok", moe.num_experts_per_tok);
  in.r.optional("norm_topk_prob", moe.norm_topk_prob);
  in.r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  in.m.moe = moe;
}

void read_gpt_oss(const Reading& in) {
  MapReader& r = in.r;
  read_rms_sizes(in);
  read_attention_bias(in);
  accept_dropout(r, {"attention_dropout", "initial_context_length"});
  r.optional("swiglu_limit", in.m.swiglu_limit);
  constexpr double kAlpha = 1.702;
  double alpha = kAlpha;
  r.optional("swiglu_alpha", alpha);
  if (alpha != kAlpha) {
    r.problem("swiglu_alpha", fmt::format("swiglu_alpha={} is not known to Tessera", alpha),
              fmt::format("use a model with swiglu_alpha: {}", kAlpha));
  }
  MoeSpec moe;
  moe.softmax_before_topk = false;
  moe.router_bias = true;
  moe.expert_bias = true;
  moe.router_aux_loss_coef = 0.9;
  require_named(r, {"num_local_experts", "num_experts"}, moe.num_experts);
  require_named(r, {"num_experts_per_tok", "experts_per_token"}, moe.num_experts_per_tok);
  r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  in.m.moe = moe;
  in.m.sliding_window = 128;
  const Value* window = r.take("sliding_window");
  if (window != nullptr && window->kind == Value::Kind::null) in.m.sliding_window = 0;
  r.optional("sliding_window", in.m.sliding_window);
  if (!read_layer_types(in, AttentionSpan::sliding) && in.m.sliding_window != 0) {
    set_spans(in.m, 0, AttentionSpan::full);
    for (std::size_t l = 0; l < in.m.layer_spans.size(); l += 2) in.m.layer_spans[l] = AttentionSpan::sliding;
  }
}

namespace {

// no_rope_layers: 1 where the layer turns q and k, and attends inside of its chunk.
void read_rope_layers(const Reading& in) {
  std::vector<std::int32_t> turned;
  std::int32_t interval = 4;
  in.r.optional("no_rope_layers", turned);
  in.r.optional("no_rope_layer_interval", interval);
  const bool typed = read_layer_types(in, AttentionSpan::chunked);
  std::vector<AttentionSpan> spans;
  if (!turned.empty()) {
    for (const std::int32_t on : turned)
      spans.push_back(on != 0 ? AttentionSpan::chunked : AttentionSpan::full);
  } else if (interval >= 1 && in.m.num_hidden_layers <= kMaxLayers) {
    for (std::int32_t l = 0; l < in.m.num_hidden_layers; ++l)
      spans.push_back((l + 1) % interval == 0 ? AttentionSpan::full : AttentionSpan::chunked);
  }
  if (interval < 1) {
    in.r.problem("no_rope_layer_interval", fmt::format("no_rope_layer_interval={} is not above 0", interval),
                 "use for example 4");
  }
  if (!typed) {
    in.m.layer_spans = std::move(spans);
  } else if (!turned.empty() && spans != in.m.layer_spans) {
    in.r.problem("layer_types", "layer_types and no_rope_layers do not name the same chunked layers",
                 "keep one of them");
  }
}

// moe_layers may repeat what interleave_moe_layer_step says.
void check_moe_layers(const Reading& in, const MoeSpec& moe) {
  std::vector<std::int32_t> given;
  in.r.optional("moe_layers", given);
  if (given.empty() || moe.moe_layer_freq < 1 || in.m.num_hidden_layers > kMaxLayers) return;
  std::vector<std::int32_t> expected;
  for (std::int32_t l = moe.moe_layer_freq - 1; l < in.m.num_hidden_layers; l += moe.moe_layer_freq) {
    expected.push_back(l);
  }
  if (given != expected) {
    in.r.problem("moe_layers",
                 fmt::format("moe_layers are not every {}. layer, as interleave_moe_layer_step says",
                             moe.moe_layer_freq),
                 "remove moe_layers, or set interleave_moe_layer_step to match");
  }
}

}  // namespace

void read_llama4(const Reading& in) {
  MapReader& r = in.r;
  ModelSpec& m = in.m;
  read_rms_sizes(in);
  read_attention_bias(in);
  r.optional("use_qk_norm", m.qk_norm);
  accept_dropout(r, {"attention_dropout", "router_jitter_noise", "floor_scale", "attn_scale"});
  const Value* tuning = r.take("attn_temperature_tuning");  // a switch, in older files a number
  if (tuning != nullptr && (tuning->kind == Value::Kind::list || tuning->kind == Value::Kind::map)) {
    r.problem("attn_temperature_tuning", "attn_temperature_tuning is no switch", "use true or false");
  }
  bool for_llm_compressor = false;
  r.optional("for_llm_compressor", for_llm_compressor);
  MoeSpec moe;
  moe.score = RouterScore::sigmoid;
  moe.softmax_before_topk = false;
  moe.norm_topk_prob = false;
  r.required("num_local_experts", moe.num_experts);
  r.required("num_experts_per_tok", moe.num_experts_per_tok);
  r.required("intermediate_size", moe.moe_intermediate_size);
  moe.shared_intermediate_size = moe.moe_intermediate_size;
  r.optional("interleave_moe_layer_step", moe.moe_layer_freq);
  r.optional("router_aux_loss_coef", moe.router_aux_loss_coef);
  check_moe_layers(in, moe);
  m.moe = moe;
  m.attention_chunk = 8'192;
  const Value* chunk = r.take("attention_chunk_size");
  if (chunk != nullptr && chunk->kind == Value::Kind::null) m.attention_chunk = 0;
  r.optional("attention_chunk_size", m.attention_chunk);
  read_rope_layers(in);
  if (m.attention_chunk == 0) m.layer_spans.clear();
}

}  // namespace tessera::spec
