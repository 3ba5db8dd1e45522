// Bytes that one rank sends, as formulas. The graph sums operators; tests hold the sums to these. S: bytes of
// the whole tensor, n ranks. Sources: Thakur, Rabenseifner and Gropp 2005 (ring); Megatron-LM, arXiv
// 2205.05198 section 4.2 (sequence parallelism: all-gather and reduce-scatter around each block); arXiv
// 2101.03961 (expert dispatch).
#pragma once
#include <cstdint>

#include "base/quantity.h"

namespace tessera::graph {

// 2 (n-1)/n S. REQUIRES n divides S (in elements).
[[nodiscard]] Bytes ring_all_reduce_bytes(Bytes s, std::int32_t n);
// Any number of elements: chunks of ceil(elements / n); `rank` passes on all chunks but its own, then all but
// its successor's.
[[nodiscard]] std::int64_t ring_all_reduce_elements(std::int64_t elements, std::int32_t rank, std::int32_t n);
// (n-1)/n S, also of a reduce_scatter. REQUIRES n divides S.
[[nodiscard]] Bytes all_gather_bytes(Bytes s, std::int32_t n);

// Tensor parallelism, one micro-batch, forward and backward, S = T H b of the residual stream:
//   attention or dense MLP: 4 (tp-1)/tp S, one gather more with selective recomputation, two more with full
//   recomputation;
//   embedding: 2 (tp-1)/tp S; head: 2 (tp-1)/tp S + (tp-1) 3 T b of softmax statistics.
enum class TpBlock : std::uint8_t { attention_or_mlp, embedding, head };
enum class TpRecompute : std::uint8_t { none, selective, full };
struct TpShape {
  std::int64_t tokens;  // T of the micro-batch
  std::int64_t hidden;
  std::int64_t element_bytes;
  std::int32_t tp;
};
[[nodiscard]] Bytes tp_bytes(TpBlock block, const TpShape& shape, TpRecompute recompute);

// Pipeline: T H b / tp to each neighbour stage on another rank, a micro-batch and direction.
[[nodiscard]] Bytes pp_bytes(const TpShape& shape, std::int32_t num_messages);

// Expert parallelism with balanced routing, one MoE layer, one micro-batch: rows there and back, forward and
// backward (6 with full recomputation): 4 t K H b (ep-1)/ep, t = T / tp tokens of the rank; REQUIRES that ep
// divides t K. Without the counts.
[[nodiscard]] Bytes ep_row_bytes(const TpShape& shape, std::int32_t top_k, std::int32_t ep,
                                 TpRecompute recompute);

}  // namespace tessera::graph
