// Blocks: the operators of one piece of a model of any family, for one micro-batch on one rank, as a training
// framework (Practice) runs them. The planner's view of the same Op that build() makes for the engine.
//
//   const BlockWork w = layer_work(model, layer_class(model, 3), cut, practice);
//   for (const Op& op : w.ops.forward) ...
//
// FLOPs: 2 m n k a gemm, attention 2 queries keys (qk_dim + v_dim) heads forward and 2.5 times that backward
// of a flash kernel (the scores are made again). Bytes: activations of 2 bytes unless said. Sources: Megatron
// (arXiv 1909.08053, 2104.04473, 2205.05198), DeepSeek-V2/V3 (2405.04434, 2412.19437), folding (2504.14960).
// Pure, thread safe. REQUIRES that degrees divide what they cut (else sizes are rounded up).
#pragma once
#include <cstdint>

#include "graph/graph.h"
#include "graph/layers.h"
#include "graph/practice.h"
#include "spec/job.h"
#include "spec/model.h"

namespace tessera::graph {

// What one rank's part of a micro-batch is.
struct Cut {
  std::int64_t micro_batch_size = 1;
  std::int64_t sequence_length = 1;
  std::int32_t tp = 1, cp = 1, ep = 1, etp = 1;
  bool sequence_parallel = true;
  spec::Precision precision = spec::Precision::bf16;
  friend bool operator==(const Cut&, const Cut&) = default;
};

// Elements on this rank.
struct BlockParams {
  std::int64_t dense = 0;       // cut by tp, or replicated with tp: summed over dp x cp
  std::int64_t replicated = 0;  // of `dense`, those that every tp rank holds whole (norms, router)
  std::int64_t expert = 0;      // cut by ep x etp: summed over edp
  [[nodiscard]] std::int64_t total() const { return dense + expert; }
};

// Bytes that backward needs of one micro-batch, by what keeps them, so that recomputation of modules can take
// them away. Derivations in docs/cost-model.md.
struct SavedBytes {
  Bytes input;       // of the block: what full recomputation keeps
  Bytes norm;        // outputs of norms (layernorm)
  Bytes attention;   // q k v, output, statistics of the kernel
  Bytes core;        // scores, softmax, mask: without flash attention (core_attn)
  Bytes up_proj;     // MLA up-projections (mla_up_proj)
  Bytes mlp;         // gate and up of a dense or shared MLP
  Bytes activation;  // products of the activation, input of down (moe_act, or mlp_act)
  Bytes experts;     // rows of the experts: dispatched input, gate and up
  Bytes router;
  Bytes other;
  [[nodiscard]] Bytes total() const;
  // What stays with selective recomputation of `modules`, or with full.
  [[nodiscard]] Bytes kept(spec::Recompute recompute, std::uint32_t modules) const;
};

// recompute_modules as bits.
enum class Module : std::uint32_t {
  core_attn = 1,
  layernorm = 2,
  mlp = 4,
  moe = 8,
  moe_act = 16,
  mla_up_proj = 32,
  shared_experts = 64,
};
[[nodiscard]] std::uint32_t module_bits(const std::vector<std::string>& names);

struct BlockWork {
  LayerOps ops;  // `count` 1; forward without recomputation
  BlockParams params;
  SavedBytes saved;
  Bytes transient_forward, transient_backward;  // live inside of the block only, at its peak
};

[[nodiscard]] BlockWork layer_work(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut,
                                   const Practice& practice);
[[nodiscard]] BlockWork embedding_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);
// Final norm, head, loss.
[[nodiscard]] BlockWork head_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);
// One MTP layer with its projection, transformer layer and loss (embedding and head are shared).
[[nodiscard]] BlockWork mtp_work(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);
// Operators of forward that backward runs again.
[[nodiscard]] OpList recomputed(const BlockWork& work, spec::Recompute recompute, std::uint32_t modules);

}  // namespace tessera::graph
