// Sizes of a block: parameters on a rank, bytes that backward needs of a micro-batch, bytes that live inside
// of the block only. The companion of block.h; the operators are elsewhere.
//
//   const SavedBytes saved = layer_saved(model, layer_class(model, 3), cut, practice);
//   saved.kept(spec::Recompute::selective, module_bits({"core_attn"}))
//
// Legend: T tokens of a micro-batch on the rank's sequence (batch * sequence / cp), t of them where norms and
// residuals are (T / tp with sequence parallelism, else T), R rows of the rank's experts, H hidden, F
// intermediate, e bytes of an activation, l bytes of a stored input of a matrix product (e, or less with an
// fp8 recipe). Source of the classic forms: arXiv 2205.05198 Table 2; of the terms of MLA and of experts:
// tensors that Megatron-Core's layers save. docs/cost-model.md has every term. Pure, thread safe.
#pragma once
#include <cstdint>

#include "graph/block.h"

namespace tessera::graph {

[[nodiscard]] BlockParams layer_params(const spec::ModelSpec& m, const spec::LayerClass& layer,
                                       const Cut& cut);
// Table, learned positions, norm of the embedding.
[[nodiscard]] BlockParams embedding_params(const spec::ModelSpec& m, const Cut& cut);
// Final norm and head. A tied head is the table of the embedding: on a stage of its own it is a copy that
// takes memory like any other weight, beside the embedding it takes none.
enum class TiedHead : std::uint8_t { shares_table, own_copy };
[[nodiscard]] BlockParams head_params(const spec::ModelSpec& m, const Cut& cut,
                                      TiedHead tied = TiedHead::own_copy);
// One MTP layer: its two norms, projection, transformer layer and final norm. Table and head are shared.
[[nodiscard]] BlockParams mtp_params(const spec::ModelSpec& m, const Cut& cut);

[[nodiscard]] SavedBytes layer_saved(const spec::ModelSpec& m, const spec::LayerClass& layer, const Cut& cut,
                                     const Practice& practice);
[[nodiscard]] SavedBytes embedding_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);
// Final norm. The logits are apart (head_logits): they go at the start of the backward pass.
[[nodiscard]] SavedBytes head_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);
[[nodiscard]] SavedBytes mtp_saved(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);

// Between forward and backward of the head, of one micro-batch.
[[nodiscard]] Bytes head_logits(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);

// Beside what is saved, at the block's own peak of each pass.
struct Transients {
  Bytes forward, backward;
  friend bool operator==(const Transients&, const Transients&) = default;
};
[[nodiscard]] Transients layer_transients(const spec::ModelSpec& m, const spec::LayerClass& layer,
                                          const Cut& cut, const Practice& practice);
// Beside head_logits.
[[nodiscard]] Transients head_transients(const spec::ModelSpec& m, const Cut& cut, const Practice& practice);

// Elements of the distinct weight shapes of a layer and of the head, one each: what TransformerEngine keeps
// as dummy weight gradients, one buffer a shape for all layers together.
[[nodiscard]] std::int64_t layer_distinct_weights(const spec::ModelSpec& m, const spec::LayerClass& layer,
                                                  const Cut& cut);
[[nodiscard]] std::int64_t head_distinct_weights(const spec::ModelSpec& m, const Cut& cut);

}  // namespace tessera::graph
