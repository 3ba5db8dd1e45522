// Layer: one piece of the model with explicit forward (F), backward-input (I) and backward-weight (W). No
// autograd; all state is in slots that the executor sizes from the plan.
//
// Shapes: T = tokens of one micro-batch (micro_batch_size * seq, row t = b * seq + s), t = T / tp = this
// rank's contiguous share of them, H hidden. The residual stream between layers is sequence-sharded: x_tH.
// Inside a layer, column-parallel linears work on the gathered rows x_TH and row-parallel linears end in a
// reduce-scatter (Megatron's sequence parallelism, generalised from positions to rows of the micro-batch).
// With tp = 1 gathers and scatters vanish without copies. With context parallelism (cp) every rank has its
// own part of each sequence (base/sequence_cut.h): T, t and seq count the tokens of this cp rank's part, and
// only attention and what is defined on whole sequences or micro-batches talks to the other parts.
//
// Slots. `saved` holds what one micro-batch keeps from F to W; `deferred` what I hands to W. reserve_* is
// called once per slot at set-up, over a counting or a real arena, and adds one slot (rebuild the layer
// between the two). Scratch is taken from Context::scratch inside a call and given back at its end; after
// measure_scratch, peak() of the counting arena covers the worst call (nothing stays taken).
//
// Gradients: backward_input transforms g_tH in place (in: d loss / d y, out: d loss / d x). Param::grad
// accumulates (+=) in W only, so W order alone fixes the bits. Every term enters with its final weight
// (Context::weights): reductions are plain sums.
//
// With full recomputation the executor runs forward again (Pass::recompute) into a slot before I; it must not
// count statistics twice. One layer is used by one thread at a time.
//
// Example, one micro-batch in slot 0:
//   layer.forward(ctx, {0, 0}, mb, x_tH, y_tH, Pass::forward);
//   layer.backward_input(ctx, {0, 0}, mb, g_tH);    // g: d loss / d y becomes d loss / d x
//   layer.backward_weight(ctx, {0, 0}, mb);         // Param::grad += ...
#pragma once
#include <cstdint>
#include <vector>

#include "base/sequence_cut.h"
#include "comm/communicator.h"
#include "comm/worker.h"
#include "kernels/kernels.h"
#include "tensor/arena.h"

namespace tessera::nn {

using kernels::Kernels;
using tensor::Arena;
using tensor::DType;
using tensor::Frame;
using tensor::Tensor;

class KvCache;  // nn/kv_cache.h

// A weight and its gradient accumulator (same shape and dtype). Views; the executor owns the memory.
struct Param {
  kernels::Weight weight;
  Tensor grad;
};

// Sizes every layer of a rank shares.
struct Dims {
  DType dtype;
  std::int64_t batch;  // sequences of a micro-batch
  std::int64_t seq;    // rows of a sequence on this cp rank
  std::int64_t hidden;
  std::int32_t tp;               // size of the sequence-parallel group
  bool tp_comm_overlap = false;  // gathers and scatters part by part beside the GEMM (nn/tp_overlap.h)
  std::int32_t cp = 1;           // ranks that share a sequence
  [[nodiscard]] DType stats() const { return tensor::stats_of(dtype); }
  [[nodiscard]] std::int64_t tokens() const { return batch * seq; }          // T
  [[nodiscard]] std::int64_t local_tokens() const { return tokens() / tp; }  // t
  [[nodiscard]] std::int64_t all_tokens() const { return tokens() * cp; }    // of all cp ranks
};

// Full recomputation is the executor's: it runs whole layers again.
enum class Recompute : std::uint8_t { none, selective };

// Final weights of the terms of the loss in this step.
struct LossWeights {
  double ce = 0.0;  // 1 / target tokens of the global batch
  // 1 / balancing units of the global batch (sequences or micro-batches; 1 for the global batch unit)
  double aux_unit = 0.0;
  double z_token = 0.0;  // 1 / tokens of the global batch
};

// Token ids and targets of one micro-batch, all T of them on every tp rank (i32; targets below 0 are
// ignored). With cp, rows of this cp rank.
struct Microbatch {
  Tensor ids_T;
  Tensor targets_T;
  std::int32_t index = 0;  // of this replica's micro-batches of the step
  // Number of the micro-batch's first token (of all cp ranks) among all tokens of the run, the same on every
  // layout.
  std::int64_t first_token = 0;
  // Of all cp ranks, sequence by sequence; where layers ask for them.
  Tensor all_ids = {}, all_targets = {};
  // With a cache (generation, forward only) rows are single tokens, in any order: row t is at positions_T[t]
  // of the sequence in slot slots_T[t] of the cache (i32), and sees what that slot holds up to there. Dims:
  // seq 1.
  KvCache* cache = nullptr;
  Tensor slots_T, positions_T;
};

// Two passes of one rank that take turns on its core: where one waits for rows on their way, the other
// computes.
class Turn {
 public:
  virtual ~Turn() = default;
  // Lets the other pass run until it waits itself or ends. At the same points of the passes on every rank.
  virtual void pass() = 0;
};

struct Context {
  Kernels& kernels;
  comm::Communicator& tp;
  Arena& scratch;
  LossWeights weights;
  bool training = true;                // false: no noise
  comm::CommWorker* worker = nullptr;  // runs collectives beside compute; null: in line
  // Not null: another pass is under way, so whatever goes to experts must go through the worker, in its
  // order.
  Turn* turn = nullptr;
  comm::Whereabouts* whereabouts = nullptr;  // of the rank, for errors of communication; null: nobody asks
  comm::Communicator* cp = nullptr;          // the ranks that share the sequences; null: this one alone
  void at_layer(std::int32_t layer) const {
    if (whereabouts != nullptr) whereabouts->set_layer(layer);
  }
};

enum class Pass : std::uint8_t { forward, recompute };

struct Slots {
  std::int32_t saved;
  std::int32_t deferred;  // in forward: unused
};

class Layer {
 public:
  virtual ~Layer() = default;
  virtual void reserve_saved(Arena& arena) = 0;
  virtual void reserve_deferred(Arena& arena) = 0;
  virtual void measure_scratch(Arena& counting) const = 0;

  // y_tH = layer(x_tH), y is not x. x stays valid and unchanged until W of this slot: layers keep the view,
  // not a copy.
  virtual void forward(Context& ctx, Slots slots, const Microbatch& mb, Tensor x_tH, Tensor y_tH,
                       Pass pass) = 0;
  virtual void backward_input(Context& ctx, Slots slots, const Microbatch& mb, Tensor g_tH) = 0;
  virtual void backward_weight(Context& ctx, Slots slots, const Microbatch& mb) = 0;
};

// One slot of a layer's list; Error{internal} when it was not reserved.
template <class T>
[[nodiscard]] T& slot_at(std::vector<T>& list, std::int32_t slot) {
  TESSERA_CHECK(slot >= 0 && slot < static_cast<std::int32_t>(list.size()), "this slot was not reserved");
  return list[static_cast<std::size_t>(slot)];
}
template <class T>
[[nodiscard]] const T& slot_at(const std::vector<T>& list, std::int32_t slot) {
  TESSERA_CHECK(slot >= 0 && slot < static_cast<std::int32_t>(list.size()), "this slot was not reserved");
  return list[static_cast<std::size_t>(slot)];
}

// The group of Context::cp; Error{internal} when it has another size.
[[nodiscard]] comm::Communicator& context_group(const Context& ctx, std::int32_t cp);
// Which positions of a sequence this rank has.
[[nodiscard]] SequenceCut sequence_cut(const Context& ctx, const Dims& dims);

// Before the host reads what kernels wrote into shared memory, or writes what they may still read.
inline void host_turn(const Context& ctx) {
  ctx.kernels.memory()->synchronise();
}

// This rank's rows of a tensor that holds the rows of the whole group.
[[nodiscard]] Tensor local_rows(const Context& ctx, Tensor full_TH);
// all_gather / reduce_scatter over the sequence-parallel group that cost nothing when it has one rank.
// full_TH = gathered part_tH; part may be local_rows(full). With one rank: a copy when the memory differs,
// else nothing.
void gather_rows(Context& ctx, Tensor full_TH, Tensor part_tH);
// part_tH = this rank's rows of the sum of partial_TH over the group; part may be local_rows(partial). The
// rest of partial_TH is destroyed. With one rank as above.
void scatter_sum(Context& ctx, Tensor part_tH, Tensor partial_TH);

}  // namespace tessera::nn
