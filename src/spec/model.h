// ModelSpec: what the network is, read from a Hugging Face config.json. Plain data; derived sizes are
// functions. Field names follow Hugging Face. The planner knows every family below, the engine some of them
// (check_trainable).
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera::spec {

enum class Family : std::uint8_t {
  llama,  // llama 2 and 3
  mixtral,
  llama4,   // text model; chunked attention, MoE on every interleave_moe_layer_step-th layer
  mistral,  // sliding window as an option
  qwen2,    // bias on q k v
  qwen3,    // norms on q and k
  qwen2_moe,
  qwen3_moe,
  deepseek_v2,  // MLA, shared experts, first layers dense
  deepseek_v3,  // and sigmoid routing with bias, MTP
  olmoe,
  gpt_oss,   // sinks, every second layer with a sliding window, biases
  gpt2,      // LayerNorm, learned positions, GeLU, biases: GPT-3 like
  gpt_neox,  // LayerNorm, rope on a part of the head, parallel residual as an option
  mpt,       // LayerNorm without bias, ALiBi, no biases
  bloom,     // ALiBi, LayerNorm of the embedding
  falcon,    // parallel attention and MLP, one kv head
};

enum class RopeKind : std::uint8_t { none, linear, dynamic, llama3, yarn };
struct RopeScaling {  // Hugging Face modeling_rope_utils; see docs/numerics.md
  RopeKind kind = RopeKind::none;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 0;
  double beta_fast = 32.0;  // yarn (arXiv 2309.00071)
  double beta_slow = 1.0;
  double mscale = 0.0;  // 0: none given
  double mscale_all_dim = 0.0;
  double attention_factor = 0.0;  // yarn, on cosines and sines; 0: none given, it follows from the mscales
  bool truncate = true;           // yarn: the limits of the ramp are whole numbers
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

enum class RouterScore : std::uint8_t { softmax, sigmoid };
// Of a group of experts: its best score (deepseek_v2), or the sum of its two best (deepseek_v3).
enum class GroupScore : std::uint8_t { max, top2_sum };

struct MoeSpec {
  std::int32_t num_experts = 0;               // num_local_experts, n_routed_experts
  std::int32_t num_experts_per_tok = 0;       // top-k
  std::int64_t moe_intermediate_size = 0;     // of one expert; 0: the model's intermediate_size
  std::int64_t shared_intermediate_size = 0;  // of all shared experts together; 0: none
  bool shared_expert_gate = false;            // sigmoid gate on the shared expert (qwen2_moe)
  std::int32_t first_k_dense_replace = 0;     // so many first layers are dense
  std::int32_t moe_layer_freq = 1;            // every so-manieth layer (the last of each group) is MoE
  std::vector<std::int32_t> mlp_only_layers;  // ascending; dense whatever the two before say
  std::int32_t n_group = 1;                   // groups of experts of group-limited routing (nodes)
  std::int32_t topk_group = 1;                // groups that one token may use
  GroupScore group_score = GroupScore::max;
  RouterScore score = RouterScore::softmax;
  bool score_correction_bias = false;  // bias for the choice only (aux-loss-free balancing)
  bool expert_bias = false;            // bias on the experts' matrices (gpt_oss)
  bool router_bias = false;
  double routed_scaling_factor = 1.0;
  // softmax over E then top-k (false: top-k of logits, then softmax over the chosen); renormalised or not.
  // Mixtral: softmax, top-k, renormalised.
  bool softmax_before_topk = true;
  bool norm_topk_prob = true;
  double router_aux_loss_coef = 0.001;  // of the config; the job may override it
  friend bool operator==(const MoeSpec&, const MoeSpec&) = default;
};

// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434 section 2.1).
struct MlaSpec {
  std::int64_t q_lora_rank = 0;  // 0: q is not compressed
  std::int64_t kv_lora_rank = 0;
  std::int64_t qk_nope_head_dim = 0;
  std::int64_t qk_rope_head_dim = 0;
  std::int64_t v_head_dim = 0;
  friend bool operator==(const MlaSpec&, const MlaSpec&) = default;
};

// Of the MLP. gelu is the erf form, gelu_tanh the one with tanh (gelu_new). clamped_swiglu (gpt_oss): both
// halves are limited and up gets 1 added, see docs/numerics.md.
enum class Activation : std::uint8_t { silu, gelu, gelu_tanh, relu, clamped_swiglu };
enum class NormKind : std::uint8_t { rms, layer, layer_no_bias };
enum class PositionKind : std::uint8_t { rope, learned, alibi };
// Which keys a query sees: all before it, the last sliding_window, or those of its own chunk.
enum class AttentionSpan : std::uint8_t { full, sliding, chunked };

struct ModelSpec {
  Family family = Family::llama;
  std::int32_t num_hidden_layers = 0;
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;  // of the dense MLP, or of one expert
  std::int32_t num_attention_heads = 0;
  std::int32_t num_key_value_heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t vocab_size = 0;
  std::int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  double initializer_range = 0.02;
  std::optional<MoeSpec> moe;
  std::optional<MlaSpec> mla;
  NormKind norm = NormKind::rms;
  PositionKind position = PositionKind::rope;
  Activation hidden_act = Activation::silu;
  double swiglu_limit = 0.0;        // of clamped_swiglu
  bool gated_mlp = true;            // SwiGLU and the like: gate and up; false: one matrix up
  bool attention_qkv_bias = false;  // with MLA: of q_a_proj and kv_a_proj_with_mqa
  bool attention_out_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;           // RMSNorm of q and k
  bool qk_norm_whole = false;     // over all heads at once (olmoe), else one head
  double clip_qkv = 0.0;          // q, k and v are clamped to +- this (olmoe); 0: not
  bool rope_interleaved = false;  // rope turns the pairs (2j, 2j+1), not (j, j + d/2) (deepseek)
  // The scores of layer l are divided by l + 1 (gpt2).
  bool scale_attn_by_inverse_layer_idx = false;
  bool attention_sinks = false;    // one learned logit a head (gpt_oss)
  bool parallel_residual = false;  // attention and MLP both start from the layer's input (gpt_neox, falcon)
  bool parallel_shared_norm = false;          // and one norm serves both (falcon 7b); else each has its own
  bool embedding_norm = false;                // bloom
  double partial_rotary_factor = 1.0;         // the share of a head that rope turns (gpt_neox)
  std::int64_t sliding_window = 0;            // keys of a sliding layer; 0: none
  std::int64_t attention_chunk = 0;           // keys of a chunk of a chunked layer; 0: none
  std::vector<AttentionSpan> layer_spans;     // one a layer; empty: all full
  std::int32_t num_nextn_predict_layers = 0;  // MTP layers (deepseek_v3)
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;

  [[nodiscard]] std::int64_t q_dim() const { return num_attention_heads * head_dim; }
  [[nodiscard]] std::int64_t kv_dim() const { return num_key_value_heads * head_dim; }
  // Columns of a head that rope turns in the engine: 0 without rotary positions.
  [[nodiscard]] std::int64_t rotated_dim() const {
    if (position != PositionKind::rope) return 0;
    return mla ? mla->qk_rope_head_dim : head_dim;
  }
};

[[nodiscard]] std::string_view name(Family family);

// Layers that cost the same: what one transformer layer is. MTP layer k is layer num_hidden_layers + k; it
// has experts where the model has any.
struct LayerClass {
  AttentionSpan span = AttentionSpan::full;
  bool moe = false;
  friend bool operator==(const LayerClass&, const LayerClass&) = default;
};
[[nodiscard]] LayerClass layer_class(const ModelSpec& m, std::int32_t layer);
// Layers whose feed-forward is a mixture of experts, ascending, MTP layers among them.
[[nodiscard]] std::vector<std::int32_t> moe_layers(const ModelSpec& m);
// Width of one expert.
[[nodiscard]] std::int64_t expert_intermediate_size(const ModelSpec& m);

// Refuses, by name, what the engine cannot train (the planner can price it): other families, some parts of
// its own. MTP layers pass here; a job that has some and no train.mtp_loss_coef is refused
// (check_engine_runs).
void check_trainable(const ModelSpec& m, std::string_view where, Problems& problems);
// The same as Error{config}; returns its argument.
const ModelSpec& require_trainable(const ModelSpec& m, std::string_view where);

// Parameters of the main model as stored: a tied table once; without the MTP layers, as published counts are
// (DeepSeek-V3: 671B and 14B beside).
[[nodiscard]] std::int64_t num_parameters(const ModelSpec& m);
// Those one token uses: all but the experts it is not sent to. Embedding table and head count whole, as
// stored.
[[nodiscard]] std::int64_t num_active_parameters(const ModelSpec& m);
// Of the MTP layers beside: each a transformer layer, two norms and a projection of 2 hidden to hidden
// (arXiv 2412.19437 section 2.2) and a final norm; embedding and head are those of the main model.
[[nodiscard]] std::int64_t num_mtp_parameters(const ModelSpec& m);
// Of one transformer layer; active: with the experts of one token only.
[[nodiscard]] std::int64_t layer_parameters(const ModelSpec& m, const LayerClass& layer);
[[nodiscard]] std::int64_t layer_active_parameters(const ModelSpec& m, const LayerClass& layer);

// Model FLOPs of forward + backward per token at sequence length `seq`: 6 per matmul weight used, plus
// attention. causal: a query counts the keys it keeps, on average (seq + 1) / 2, fewer under a sliding window
// or a chunk; full: all seq keys (PaLM, nanoGPT), at most those of the window or chunk. An MTP layer counts
// as one more layer, its projection and one more head.
enum class AttentionFlops : std::uint8_t { causal, full };
[[nodiscard]] double train_flops_per_token(const ModelSpec& m, std::int64_t seq, AttentionFlops convention);

// Average number of keys of a query over a sequence of `seq`.
[[nodiscard]] double mean_keys(const ModelSpec& m, AttentionSpan span, std::int64_t seq,
                               AttentionFlops convention);

// Reads config.json text. `where` names the file in messages. Adds every problem; keys that change the maths
// and are not understood are refused by name with the nearest known key, keys without influence are listed in
// the source. Dropout and router noise are accepted and not kept: nothing here drops or adds noise. So are
// details that cost nothing (temperatures of attention) of the families that the engine does not train. A
// llama4 file may be the whole of a model with images: its text_config is read. kimi_k2 is deepseek_v3.
[[nodiscard]] ModelSpec parse_hf_config(std::string_view json, std::string_view where, Problems& problems);
// Whole read of a file or of a folder's config.json; throws Error{config} with all problems.
[[nodiscard]] ModelSpec read_hf_config(const std::filesystem::path& path);
// The config.json that Hugging Face transformers reads for this model.
[[nodiscard]] std::string to_hf_config(const ModelSpec& m);

// Everything wrong with the numbers themselves (zero sizes, heads not dividing, top-k above experts, ...).
void validate(const ModelSpec& m, std::string_view where, Problems& problems);

}  // namespace tessera::spec
