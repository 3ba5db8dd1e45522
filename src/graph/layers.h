// The operators of each layer of the engine for one micro-batch on one rank. Inside of this room.
//
// Legend: T tokens of the micro-batch, t = T / tp of this rank, H hidden, D heads * head_dim, I intermediate,
// V vocabulary, E experts, K top-k; of this rank where the layer is cut. P = ep, Q = etp, n rows sent, R rows
// of the local experts.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/sequence_cut.h"
#include "graph/graph.h"

namespace tessera::graph {

struct LayerOps {
  OpList forward, backward_input, backward_weight;
  void append(LayerOps other);
};

// What attention has beside heads; nothing here is cut.
enum class QkNorm : std::uint8_t { none, per_head, whole };
struct AttentionSizes {
  bool qkv_bias = false, out_bias = false, sinks = false, clip = false, rope = true;
  QkNorm qk_norm = QkNorm::none;
  std::int64_t window = 0;  // keys that a query sees; 0: all before it
  // Latent attention only; qkv_bias is then that of the down-projections.
  std::int64_t q_lora_rank = 0, kv_lora_rank = 0, nope_dim = 0, rope_dim = 0, v_dim = 0;
};
[[nodiscard]] AttentionSizes attention_sizes(const spec::ModelSpec& m, const spec::LayerClass& layer);

// Sizes of this rank.
struct Sizes {
  std::int64_t element = 4;                     // bytes
  std::int64_t batch = 0, seq = 0, hidden = 0;  // seq: rows of a sequence on this cp rank
  std::int32_t tp = 1, ep = 1, etp = 1;
  std::int32_t cp = 1, cp_rank = 0;
  std::int64_t heads = 0, kv_heads = 0, head_dim = 0;
  std::int64_t intermediate = 0;  // of the dense MLP
  std::int64_t vocab = 0;
  bool layer_norm = false;  // else RMSNorm
  bool gated_mlp = true, mlp_bias = false, learned_positions = false;
  bool selective = false;
  bool tp_comm_overlap = false;
  AttentionSizes attention;
  std::int64_t num_microbatches = 0;
  [[nodiscard]] std::int64_t tokens() const { return batch * seq; }
  [[nodiscard]] SequenceCut cut() const { return {.length = seq * cp, .cp = cp, .rank = cp_rank}; }
  [[nodiscard]] std::int64_t local_tokens() const { return tokens() / tp; }
  [[nodiscard]] std::int64_t stream_bytes() const { return local_tokens() * hidden * element; }
};

// One MoE layer: what is fixed, and the rows of this rank over `row_microbatches` micro-batches.
struct MoeSizes {
  std::int64_t num_experts = 0, top_k = 0;
  std::int64_t choices = 0;              // of one token: K, or E where experts choose
  std::int64_t intermediate = 0;         // of one expert
  std::int64_t shared_intermediate = 0;  // of the shared experts; 0: none
  bool shared_gate = false;              // a sigmoid gate on them
  bool keeps_logits = false;             // for the z-loss of sigmoid scores
  std::int64_t num_units = 1;            // balancing units of a micro-batch
  bool balanced = false;                 // with a balancing loss of this layer alone
  bool counts_units = false;             // whose counts are summed over tp
  bool drops = false;                    // with a capacity
  bool drops_by_weight = false;
  bool experts_choose = false;
  bool gathers = false;  // all rows to all ep ranks, else all_to_all_v
  // Hierarchical: N nodes; what follows below is then of the rows that this rank takes on, inside its node.
  std::int32_t nodes = 1;
  std::int64_t unique = 0;  // rows sent to nodes, a token once to each
  std::int64_t unique_to_others = 0;
  std::int64_t taken_from_others = 0;
  std::int64_t max_rows = 0;  // rows that can arrive
  std::int64_t max_sent = 0;  // rows that this rank can send of a micro-batch
  std::int64_t padded = 0;    // rows that are computed of a micro-batch whatever arrives; 0: no padding
  [[nodiscard]] std::int64_t buffer_rows() const { return padded > 0 ? padded : max_rows; }
  [[nodiscard]] std::int64_t computed() const { return padded > 0 ? padded * row_microbatches : received; }
  std::int64_t row_microbatches = 1;
  std::int64_t sent = 0;            // n, over all ep ranks
  std::int64_t sent_to_others = 0;  // of them to other ep ranks
  std::int64_t part = 0;            // rows that arrive here from all ep ranks, before etp
  std::int64_t part_from_others = 0;
  std::int64_t received = 0;  // R, with the parts of the other etp ranks
};

[[nodiscard]] LayerOps attention_ops(const Sizes& s, const std::string& prefix);
[[nodiscard]] LayerOps latent_attention_ops(const Sizes& s, const std::string& prefix);
[[nodiscard]] LayerOps mlp_ops(const Sizes& s, const std::string& prefix);
[[nodiscard]] LayerOps moe_ops(const Sizes& s, const MoeSizes& m, const std::string& prefix);
[[nodiscard]] LayerOps embedding_ops(const Sizes& s, const std::string& prefix);
[[nodiscard]] LayerOps head_ops(const Sizes& s, const std::string& prefix);
// What an MTP layer does in front of its transformer layer: embedding, two norms, projection.
[[nodiscard]] LayerOps mtp_join_ops(const Sizes& s, const std::string& prefix);
struct MtpOps {
  LayerOps join, layer, head;
};
// Backward runs the main head, the heads of all depths, then the depths from the last.
[[nodiscard]] LayerOps head_with_mtp_ops(LayerOps head, std::vector<MtpOps> depths);

// ceil(factor T K / E); a product within rounding of an integer is that integer.
[[nodiscard]] std::int64_t capacity_rows(double factor, std::int64_t tokens, std::int64_t top_k,
                                         std::int64_t num_experts);

}  // namespace tessera::graph
