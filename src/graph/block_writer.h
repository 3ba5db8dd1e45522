// Writes the operators of one block: three lists at once, one call a linear layer. Inside of this room.
#pragma once
#include <cstdint>
#include <string>

#include "graph/block.h"

namespace tessera::graph {

// Sizes of one rank's part of a micro-batch. T: tokens after cp; t: of them the part that this rank holds
// between blocks (T / tp with sequence parallelism).
struct RankSizes {
  std::int64_t batch, seq, queries;  // queries: rows of one sequence on this rank
  std::int64_t tokens, local_tokens;
  std::int64_t hidden;
  std::int32_t tp, cp, ep, etp;
  bool sequence_parallel;
};

class BlockWriter {
 public:
  BlockWriter(BlockWork& out, const spec::ModelSpec& model, const Cut& cut, const Practice& practice);

  [[nodiscard]] const RankSizes& sizes() const { return s_; }
  [[nodiscard]] const Practice& practice() const { return practice_; }

  // y = x W of `rows` rows; fp8 recipes quantise its operands. wgrad adds to f32 gradients.
  void linear(const char* name, std::int64_t rows, std::int64_t out, std::int64_t in, std::uint32_t modules,
              bool low_precision = true, std::int64_t groups = 1);
  // Elementwise work: 2-byte elements that forward and backward move; `eager`: the kernels that an unfused
  // implementation launches, each of which reads and writes (fused: one kernel).
  void elementwise(const char* name, std::int64_t forward_elements, std::int64_t backward_elements,
                   bool fused, std::int32_t eager, std::uint32_t modules = 0);
  void norm(const char* name, std::int64_t rows, std::int64_t width, std::uint32_t modules);
  void attention(const AttentionShape& shape, double full_keys);

  // Around the column- and row-parallel linear layers: the input is gathered (sequence parallelism) and the
  // output scattered or summed.
  void enter_tp(std::int64_t width);
  void leave_tp(std::int64_t width);

  void collective(OpList& list, const char* name, Axis axis, Call call, std::int64_t sent, Beside beside,
                  std::uint32_t modules = 0);
  void all_to_all(const char* name, std::int64_t rows, std::int64_t forward_width, Beside beside,
                  std::uint32_t modules);

  OpList& forward() { return out_.ops.forward; }
  OpList& backward_input() { return out_.ops.backward_input; }
  OpList& backward_weight() { return out_.ops.backward_weight; }

 private:
  Op& add(OpList& list, const char* name, OpKind kind, std::uint32_t modules);
  void quantize(OpList& list, std::int64_t elements, std::int64_t groups, std::uint32_t modules);
  [[nodiscard]] bool quantizes() const;

  BlockWork& out_;
  const Practice& practice_;
  spec::NormKind norm_;
  spec::Precision precision_;
  RankSizes s_;
};

}  // namespace tessera::graph
