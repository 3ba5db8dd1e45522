// Layout: where things live. Two factorisations of one world (arXiv 2504.14960, "MoE parallel folding"):
//   world = tp * cp * dp * pp  for attention and dense weights
//   world = etp * ep * edp * pp for experts; the pp groups are the same in both.
// The leftmost axis has stride 1 (Megatron's order tp-cp-dp-pp and etp-ep-edp-pp). A group is "the ranks that
// differ only in these axes", ascending. Every parameter is a value that knows its global shape, the slice
// held here, which group its gradient is summed over, who counts it in norms and writes it, and what it is
// tied to.
#pragma once
#include <array>
#include <compare>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/quantity.h"
#include "spec/job.h"

namespace tessera::layout {

enum class Axis : std::uint8_t { tp, cp, dp, pp, etp, ep, edp };
[[nodiscard]] std::string_view name(Axis axis);

// One factorisation: four axes, leftmost with stride 1.
class RankGrid {
 public:
  RankGrid(std::array<Axis, 4> axes, std::array<std::int32_t, 4> sizes);
  [[nodiscard]] std::int32_t world_size() const;
  [[nodiscard]] std::int32_t size(Axis axis) const;  // Error{internal} for an axis of the other grid
  [[nodiscard]] std::int32_t coordinate(Rank rank, Axis axis) const;
  [[nodiscard]] std::vector<Rank> group(Rank rank, std::span<const Axis> axes) const;
  [[nodiscard]] std::vector<Rank> group(Rank rank, std::initializer_list<Axis> axes) const;
  friend bool operator==(const RankGrid&, const RankGrid&) = default;

 private:
  std::array<Axis, 4> axes_;
  std::array<std::int32_t, 4> sizes_;
};

// Which group a gradient is summed over (plain SUM).
enum class GradGroup : std::uint8_t {
  dp,     // dense weights sharded over tp, and everything when tp = 1: dp x cp
  tp_dp,  // replicated over tp but fed with its own tokens (norms, router): tp x cp x dp
  edp,    // expert weights
};
[[nodiscard]] std::string_view name(GradGroup group);

// A rectangle of a global tensor: [begin, begin + size) per dim. One or two dims.
struct Slice {
  std::array<std::int64_t, 2> begin{0, 0};
  std::array<std::int64_t, 2> size{1, 1};
  friend bool operator==(const Slice&, const Slice&) = default;
};

enum class ParamKind : std::uint8_t {
  embedding,
  position,  // learned positions
  norm,
  norm_bias,
  // Attention
  q,
  k,
  v,
  q_bias,
  k_bias,
  v_bias,
  q_norm,
  k_norm,
  sinks,
  o,
  o_bias,
  // Latent attention; also q without a q_a, and o
  q_a,
  q_a_bias,
  q_a_norm,
  q_b,
  kv_a,
  kv_a_bias,
  kv_a_norm,
  kv_b,
  // Dense MLP
  gate,
  up,
  down,
  gate_bias,
  up_bias,
  down_bias,
  // Mixture of experts
  router,
  router_bias,
  router_correction,  // added to the scores for the choice only; a buffer
  shared_gate,
  shared_up,
  shared_down,
  shared_expert_gate,  // of the sigmoid on the shared expert
  expert_gate,
  expert_up,
  expert_down,
  expert_gate_bias,
  expert_up_bias,
  expert_down_bias,
  head,
  // Multi-token prediction
  mtp_embedding,  // the embedding's second use; a tied copy
  mtp_proj        // [hidden, 2 hidden], of the embedding and the stream, each normed
};

// Of the model's input, before its first layer: the embedding and learned positions.
[[nodiscard]] bool is_input(ParamKind kind);

enum class Init : std::uint8_t {
  normal,  // normal(0, initializer_range)
  zeros,   // biases, buffers
  ones     // norms
};

// One parameter as one rank holds it. Matrices are [out, in]; a vector has num_dims 1 and uses entry 0 of its
// arrays. The name is the Hugging Face name of the whole tensor; for gpt2 and gpt_oss, whose files fuse and
// transpose, it is the name that llama would give (ckpt/hf_names.h maps them to the files').
struct ParamSpec {
  std::string name;
  ParamKind kind = ParamKind::norm;
  std::int32_t num_dims = 2;
  std::array<std::int64_t, 2> global{1, 1};  // [out, in], or [n, 1]
  Slice slice;
  GradGroup group = GradGroup::dp;
  StageId stage;
  std::int32_t layer = -1;   // -1: embedding, final norm, head; MTP layer k: num_hidden_layers + k
  std::int32_t expert = -1;  // -1: not an expert's
  bool weight_decay = true;  // matrices only
  Init init = Init::normal;
  // Lies directly behind the parameter before it: both are parts of one fused weight.
  bool follows = false;
  // Kept, loaded and written, but without gradient: neither updated by the optimiser nor counted in norms.
  bool buffer = false;
  // The second use of an embedding (a tied head, or that of MTP layers): same name as the embedding, its
  // gradient is added to the embedding's over the first and the last stage; not counted in norms, not written
  // to files.
  bool tied_copy = false;
  // Held and updated here as well as on the ranks of another gradient group, which count it in norms and
  // write it: an expert's down_bias on etp ranks beyond the first.
  bool duplicate = false;
  // True on exactly one rank for each element of the world's model: that rank counts it in norms and writes
  // it.
  bool owner = false;
  [[nodiscard]] std::int64_t num_elements() const { return slice.size[0] * slice.size[1]; }
  friend bool operator==(const ParamSpec&, const ParamSpec&) = default;
};

// Rows of the vocabulary that one of `parts` tp ranks holds: as even as possible, the first ranks take the
// remainder.
struct VocabShare {
  std::int64_t begin = 0, size = 0;
};
[[nodiscard]] VocabShare vocab_share(std::int64_t vocab_size, std::int32_t part, std::int32_t parts);

// What one pipeline stage holds: transformer layers [first_layer, first_layer + num_layers).
struct StageCut {
  std::int32_t first_layer = 0;
  std::int32_t num_layers = 0;
  bool has_embedding = false;
  bool has_head = false;  // final norm, head and loss
  friend bool operator==(const StageCut&, const StageCut&) = default;
};

struct Layout {
  RankGrid dense;                // tp, cp, dp, pp
  RankGrid expert;               // etp, ep, edp, pp
  std::vector<StageCut> stages;  // pp * vpp
  // Pipeline rank of each stage; a loop (s % pp) or a vee (ZB-V).
  std::vector<std::int32_t> stage_rank;
  // [layer of the model] the expert of each slot and the slot of each expert (ParallelSpec::expert_slots);
  // empty: slot i has expert i. More slots than experts: replicas, then slot_of_expert has one of them.
  std::vector<std::vector<std::int32_t>> expert_of_slot, slot_of_expert;

  [[nodiscard]] std::int32_t expert_at(std::int32_t layer, std::int32_t slot) const;
  [[nodiscard]] std::int32_t slots_of(std::int32_t layer, std::int32_t num_experts) const;
  [[nodiscard]] std::int32_t world_size() const { return dense.world_size(); }
  [[nodiscard]] std::vector<StageId> stages_of(Rank rank) const;  // ascending
  friend bool operator==(const Layout&, const Layout&) = default;
};

// Experts to slots, as ParallelSpec::expert_slots has them (valid); empty: the layout stays.
void place_experts(Layout& layout, const spec::ModelSpec& model, std::span<const std::int32_t> slots);

enum class Placement : std::uint8_t { loop, vee };

// REQUIRES: a validated job. Stage cuts: stage_layers, or even with the remainder on the first stages.
[[nodiscard]] Layout make_layout(const spec::ModelSpec& model, const spec::ParallelSpec& parallel,
                                 Placement placement);

// The parameters that `rank` holds, stage by stage in stage order, inside a stage in this order ([x] only
// where the model has it):
//   embedding [position] | per layer: norm [norm_bias]
//      attention: q k v [q_bias k_bias v_bias] [q_norm k_norm] [sinks] o [o_bias]
//      or latent: (q_a [q_a_bias] q_a_norm q_b | q) kv_a [kv_a_bias] kv_a_norm kv_b o [o_bias]
//      norm [norm_bias]
//      dense: [gate] up down [gate_bias] [up_bias down_bias]
//      MoE:   router [router_bias] [router_correction]
//             [shared_gate shared_up shared_down [shared_expert_gate]]
//             per local expert: gate up [gate_bias up_bias] down [down_bias]
//   | norm [norm_bias] head (or the tied copy)
//   | with MTP layers: mtp_embedding (none beside a tied head, which serves); per MTP layer: norm (of the
//     embedding) norm (of the stream) mtp_proj, a layer as above, norm (before the model's head).
// Fused weights (ParamSpec::follows on all but the first): q k v; their biases; gate up; their biases; so too
// of experts and shared experts.
// Sharding: q, k, v, q_b, kv_b, gate, up with their biases, sinks, norms over the whole of q and k, embedding
// and head (vocab_share) by rows over tp; o, down by columns over tp; experts by ep (contiguous blocks of
// experts) and rows/columns over etp; the rest whole. An expert's down_bias is whole on every etp rank and
// belongs to the first: all of them see the same rows, so its gradient is the same on each.
[[nodiscard]] std::vector<ParamSpec> parameters(const spec::ModelSpec& model, const Layout& layout,
                                                Rank rank);

// A tied head or MTP layers: the last stage has a copy of the embedding.
[[nodiscard]] bool shares_embedding(const spec::ModelSpec& model);

// Of the ep group of `rank`, spread over `nodes` nodes in order: the ranks in its place on each node, and
// those on its own node. REQUIRES nodes to divide ep.
struct NodeGroups {
  std::vector<Rank> across, inside;
};
[[nodiscard]] NodeGroups expert_nodes(const Layout& layout, Rank rank, std::int32_t nodes);

// Human-readable table of ranks, coordinates and stages.
[[nodiscard]] std::string describe(const Layout& layout);

}  // namespace tessera::layout
