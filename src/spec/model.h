// ModelSpec: what the network is, read from a Hugging Face config.json (llama and mixtral families).
// Plain data; derived sizes are functions. Field names follow Hugging Face.
#pragma once
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"

namespace tessera::spec {

enum class Family : std::uint8_t { llama, mixtral };

enum class RopeKind : std::uint8_t { none, linear, llama3 };
struct RopeScaling {  // Hugging Face modeling_rope_utils; see docs/numerics.md
  RopeKind kind = RopeKind::none;
  double factor = 1.0;
  double low_freq_factor = 1.0;
  double high_freq_factor = 4.0;
  std::int64_t original_max_position_embeddings = 0;
  friend bool operator==(const RopeScaling&, const RopeScaling&) = default;
};

struct MoeSpec {
  std::int32_t num_experts = 0;          // num_local_experts
  std::int32_t num_experts_per_tok = 0;  // top-k
  // softmax over E then top-k (false: top-k of logits, then softmax over the chosen); renormalised or not.
  // Mixtral: softmax, top-k, renormalised.
  bool softmax_before_topk = true;
  bool norm_topk_prob = true;
  double router_aux_loss_coef = 0.001;  // of the config; the job may override it
  friend bool operator==(const MoeSpec&, const MoeSpec&) = default;
};

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
  friend bool operator==(const ModelSpec&, const ModelSpec&) = default;

  [[nodiscard]] std::int64_t q_dim() const { return num_attention_heads * head_dim; }
  [[nodiscard]] std::int64_t kv_dim() const { return num_key_value_heads * head_dim; }
};

[[nodiscard]] std::string_view name(Family family);

// Parameters in all, and those one token uses (attention, norms, router, its top-k experts, embedding and
// head).
[[nodiscard]] std::int64_t num_parameters(const ModelSpec& m);
[[nodiscard]] std::int64_t num_active_parameters(const ModelSpec& m);

// Model FLOPs of forward + backward per token at sequence length `seq`: 6 per matmul weight used, plus
// attention. causal: attention counts the kept half (seq + 1) / 2 keys per query; otherwise all seq keys
// (PaLM, nanoGPT).
enum class AttentionFlops : std::uint8_t { causal, full };
[[nodiscard]] double train_flops_per_token(const ModelSpec& m, std::int64_t seq, AttentionFlops convention);

// Reads config.json text. `where` names the file in messages. Adds every problem; keys that change the maths
// and are not understood are refused by name with the nearest known key, keys without influence are listed in
// the source.
[[nodiscard]] ModelSpec parse_hf_config(std::string_view json, std::string_view where, Problems& problems);
// Whole read of a file or of a folder's config.json; throws Error{config} with all problems.
[[nodiscard]] ModelSpec read_hf_config(const std::filesystem::path& path);
// The config.json that Hugging Face transformers reads for this model.
[[nodiscard]] std::string to_hf_config(const ModelSpec& m);

// Everything wrong with the numbers themselves (zero sizes, heads not dividing, top-k above experts, ...).
void validate(const ModelSpec& m, std::string_view where, Problems& problems);

}  // namespace tessera::spec
