// Memory of a rank by events over the schedule: static parts to the byte, activations by what backward needs,
// transients, buffers. Allocated is what the framework's tensors take at the peak; reserved adds the caching
// allocator's fragmentation, and the process's context stands beside both. Pure, thread safe.
#pragma once
#include <array>
#include <cstdint>
#include <string_view>

#include "base/quantity.h"
#include "cost/candidate.h"
#include "graph/block.h"

namespace tessera::cost {

enum class MemoryPart : std::uint8_t {
  weights,
  gradients,
  optimizer,
  activations,  // kept between forward and backward, all micro-batches in flight
  transient,    // inside of one operator or block at the peak: logits, gathered inputs
  buffers,      // of communication, gathered weights (ZeRO-3), dummy gradients
};
inline constexpr std::int32_t kNumMemoryParts = 6;
[[nodiscard]] std::string_view name(MemoryPart part);

struct MemoryCost {
  std::array<double, kNumMemoryParts> parts{};  // bytes, of the rank with the largest sum
  std::int32_t pipeline_rank = 0;               // that rank
  [[nodiscard]] double allocated() const;
  [[nodiscard]] double reserved() const;  // allocated / 0.94 (SimuMax)
  [[nodiscard]] double operator[](MemoryPart p) const { return parts[static_cast<std::size_t>(p)]; }
};

// Bytes of one block for one micro-batch: kept from forward to backward, and at the block's own peak beside
// that: its transients, and in backward what recomputation makes again. slowest_rank: rows of the rank's
// experts / mean (LoadFigures).
struct BlockMemory {
  double saved = 0, transient = 0;
};
[[nodiscard]] BlockMemory block_memory(const graph::SavedBytes& saved, Bytes transient_forward,
                                       Bytes transient_backward, spec::Recompute recompute,
                                       std::uint32_t modules, double slowest_rank);
// Of final norm, head and loss at the peak of the loss; with MTP layers theirs stand beside.
[[nodiscard]] double head_peak(const spec::ModelSpec& m, const graph::Cut& cut,
                               const graph::Practice& practice);

// What one pipeline rank holds, summed by the caller over its stages (or by holding()).
struct RankHolding {
  graph::BlockParams params;            // elements
  double saved_per_microbatch = 0;      // bytes, all its stages together, after recomputation
  double saved_in_flight = 0;           // bytes at the peak of the schedule
  double transient = 0;                 // bytes: the largest of a block's own and what recomputation makes
  double largest_layer_params = 0;      // elements of the largest unit that ZeRO-3 gathers
  double head_logits = 0;               // bytes: head_peak; 0 without the head
  double distinct_gradient_shapes = 0;  // elements: one buffer a distinct weight shape (TE)
};

// The holding of a pipeline rank: its layers by their classes, embedding, head and MTP layers where they are.
[[nodiscard]] RankHolding holding(const Setup& setup, const Candidate& c, std::int32_t pipeline_rank);

[[nodiscard]] MemoryCost rank_memory(const Setup& setup, const Candidate& c, const RankHolding& holding,
                                     std::int32_t pipeline_rank);

// The largest over the pipeline ranks.
[[nodiscard]] MemoryCost peak_memory(const Setup& setup, const Candidate& c);

// Micro-batches in flight of `pipeline_rank`, in units of all of its stages together (1F1B: min(m, pp - r);
// interleaved: arXiv 2205.05198 section 4.2.3 and Megatron's warm-up; ZB-H1: min(m, pp); ZB-V: min(m, pp)).
// Equal to the schedule checker's peak_live_rank / vpp, but for ZB-V, whose order may keep one stage's less;
// a test holds it.
[[nodiscard]] double in_flight(schedule::Kind kind, std::int32_t pp, std::int32_t vpp, std::int64_t m,
                               std::int32_t pipeline_rank);

}  // namespace tessera::cost
