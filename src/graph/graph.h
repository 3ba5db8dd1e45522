// Graph: one optimiser step of one rank as operators, each with FLOPs, bytes moved, bytes kept and bytes
// sent. It describes what the engine does, operation by operation: its FLOPs and its bytes per axis and call
// are those that the engine counts.
//
//   const StepGraph g = build(job, layout, Rank(0));
//   g.flops();                 // of a whole step
//   g.bytes_sent(Axis::tp);    // by this rank, of a whole step
//   g.stages[0].saved_bytes()  // one slot of the first stage
//
// What counts (as in the kernels and communicators of the engine):
//   FLOPs: GEMMs, 2 m n k, and attention, 4 batch heads head_dim S (S + 1) / 2 forward and twice that
//   backward (causal: the kept half). Everything else counts 0.
//   Bytes sent: to other ranks. With S bytes of the whole tensor and N ranks: reduce_scatter and all_gather
//   (N-1)/N S; ring all_reduce the chunks it passes on, 2 (N-1)/N S when N divides the elements;
//   all_reduce_direct (N-1) S; all_gather_v (N-1) own rows; reduce_scatter_v the rows of others;
//   all_to_all_v the rows for others; send S. A group of one rank sends nothing and is not listed.
//   Bytes moved: every operand read or written once; what a perfect cache would leave.
//   Bytes kept: forward, what a slot holds until W; backward-input, what I hands to W; each tensor rounded up
//   to 64 bytes.
// Not here: the optimizer's arithmetic, packing, evaluation, checkpoints.
//
// Pure functions, thread safe. REQUIRES a validated job; a routing of the wrong shape is Error{config}.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/ids.h"
#include "base/quantity.h"
#include "layout/layout.h"
#include "spec/job.h"

namespace tessera::graph {

enum class OpKind : std::uint8_t { gemm, attention, memory, collective };
[[nodiscard]] std::string_view name(OpKind kind);

// Groups of ranks that talk, by the labels of their communicators. tie: the two ends of a pipeline that share
// the embedding. ep_inter, ep_intra: layout::expert_nodes.
enum class Axis : std::uint8_t { tp, cp, pp, dp, tp_dp, edp, ep, ep_inter, ep_intra, etp, tie, world };
inline constexpr std::int32_t kNumAxes = 12;
[[nodiscard]] std::string_view name(Axis axis);

enum class Call : std::uint8_t {
  all_reduce,
  all_reduce_direct,
  reduce_scatter,
  all_gather,
  all_gather_v,
  reduce_scatter_v,
  all_to_all_v,
  send,
};
[[nodiscard]] std::string_view name(Call call);  // as the engine's counters call it

// Of a gemm: `groups` products y[m, n] (+)= a[m, k] b[k, n] (grouped: one an expert, m rows each on average).
struct GemmShape {
  std::int64_t m = 0, n = 0, k = 0, groups = 1;
  bool batched = false;  // groups of equal size in one kernel (scores of attention), not one launch each
  friend bool operator==(const GemmShape&, const GemmShape&) = default;
};
// Of an attention kernel: `keys` that one query sees on average (causal: half of the sequence).
struct AttentionShape {
  std::int64_t batch = 0, heads = 0, kv_heads = 0, queries = 0;
  double keys = 0.0;
  std::int64_t qk_dim = 0, v_dim = 0;
  friend bool operator==(const AttentionShape&, const AttentionShape&) = default;
};

// What a collective may run beside when the software overlaps it.
enum class Beside : std::uint8_t {
  nothing,
  gemm,        // the product next to it (chunked, or of the other half of backward)
  attention,   // the blocks of ring attention
  shared,      // the shared expert of the same layer
  microbatch,  // compute of another micro-batch
};

struct Op {
  std::string name;  // "layers.3.attention.qkv"
  OpKind kind = OpKind::memory;
  Flops flops;
  Bytes bytes_moved;
  Bytes bytes_kept;
  GemmShape gemm;
  AttentionShape attention;
  bool low_precision = false;  // a gemm that an fp8 recipe runs in fp8
  std::int32_t kernels = 1;    // launched on the device: 0 for what is fused into a neighbour
  std::uint32_t modules = 0;   // Module bits (block.h) whose recomputation runs it again
  Beside beside = Beside::nothing;
  // Collectives only.
  Axis axis = Axis::tp;
  Call call = Call::all_gather;
  Bytes bytes_sent;
  // How often these numbers occur in a step: once a micro-batch, or once for the numbers of a routing that is
  // a sum over micro-batches.
  std::int64_t count = 1;
  std::int64_t calls = 0;  // of the collective in a step
  std::int32_t unit =
      0;  // of the stage: -1 embedding or stage input, 0, 1, ... its transformer layers, then the head
  bool recomputed = false;  // forward made again in backward: not model FLOPs
  friend bool operator==(const Op&, const Op&) = default;
};
using OpList = std::vector<Op>;

// Choices that experts got, after drops, as sums over `num_microbatches` micro-batches of each rank (1, or
// all of a step).
struct RoutingCounts {
  std::int32_t num_microbatches = 1;
  // [layer][world rank][expert]. Ranks that are not in the expert group (etp x ep) of the rank in question
  // may be empty. No layers: perfectly balanced (balanced_routing).
  std::vector<std::vector<std::vector<std::int64_t>>> kept;
  // [layer][world rank][node of its ep group]: tokens with a kept choice there. Hierarchical dispatch only.
  std::vector<std::vector<std::vector<std::int64_t>>> node_rows;
};
// Choice k of token i of a micro-batch goes to expert (i K + k) mod E, for one micro-batch; over capacity the
// first stay.
[[nodiscard]] std::vector<std::int64_t> balanced_routing(const spec::Job& job, const layout::Layout& layout,
                                                         Rank rank);

// Memory for I -> W: does W of a unit follow its I at once (then the units share it), or later?
enum class Backward : std::uint8_t { fused, split };

struct StageGraph {
  StageId stage;
  OpList forward, backward_input,
      backward_weight;  // in the engine's order, messages of the pipeline included

  [[nodiscard]] Bytes saved_bytes() const;  // of one live slot, the streams between layers included
  [[nodiscard]] Bytes deferred_bytes(Backward backward) const;  // of one deferred slot
  // With full recomputation and split backward: where forward writes the values that it throws away.
  [[nodiscard]] Bytes discarded_bytes() const;
};

struct StepGraph {
  Rank rank;
  std::int32_t num_microbatches = 0;  // of this rank's replica in a step
  std::vector<StageGraph> stages;     // of this rank, ascending
  OpList step;                        // once a step: gradient reductions, tied sums, scalars, gathers of ZeRO

  // Of the whole step.
  [[nodiscard]] Flops flops() const;        // recomputation included
  [[nodiscard]] Flops model_flops() const;  // without it
  [[nodiscard]] Bytes bytes_sent(Axis axis) const;
  [[nodiscard]] Bytes bytes_sent(Axis axis, Call call) const;
  [[nodiscard]] std::int64_t calls(Axis axis, Call call) const;
  [[nodiscard]] Bytes bytes_moved() const;
};

[[nodiscard]] StepGraph build(const spec::Job& job, const layout::Layout& layout, Rank rank,
                              const RoutingCounts& routing = {});

// A table: phases down, FLOPs and bytes per axis across.
[[nodiscard]] std::string describe(const StepGraph& graph);

}  // namespace tessera::graph
