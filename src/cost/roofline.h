// Roofline: which operators of a model the accelerator's arithmetic bounds and which its memory, by how many
// tokens a pass has. An operator of f FLOPs that moves b bytes needs at least max(f / peak, b / bandwidth);
// which of the two is larger says what bounds it (Williams et al. 2009, doi 10.1145/1498765.1498785).
//
//   const Roofline r = roofline({.model = m, .calibration = c, .tokens = {1, 4096}});
//   r.ridge();              // FLOPs a byte at which both bounds meet: 295 of h100-sxm in bf16
//   r.passes[0].ops[2].bound == Bound::memory
//
// Forward of one transformer layer (the last one: with experts where the model has any) and of the head, on
// one device that holds them whole, operators as the practice launches them, every operand moved once. Not
// here: the key-value cache of generation. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cost/calibration.h"
#include "graph/practice.h"
#include "spec/model.h"

namespace tessera::cost {

enum class Bound : std::uint8_t { compute, memory };
[[nodiscard]] std::string_view name(Bound bound);

struct RooflineOp {
  std::string name;  // "qkv", "attention", "experts up"
  double flops = 0, bytes = 0;
  double seconds = 0;  // kernel_time: what the model of kernels says, above the roofline
  Bound bound = Bound::memory;
  [[nodiscard]] double intensity() const { return bytes > 0 ? flops / bytes : 0.0; }
};

struct RooflinePass {
  std::int64_t tokens = 0;
  std::vector<RooflineOp> ops;  // the same operators in every pass
  // Share of the pass's seconds in operators that `bound` bounds.
  [[nodiscard]] double share(Bound bound) const;
};

struct Roofline {
  double peak = 0, bandwidth = 0;  // FLOP/s and bytes/s of the data sheet
  std::vector<RooflinePass> passes;
  [[nodiscard]] double ridge() const { return peak / bandwidth; }
};

struct RooflineQuestion {
  spec::ModelSpec model;
  Calibration calibration;
  graph::Practice practice;
  spec::Precision precision = spec::Precision::bf16;
  std::vector<std::int64_t> tokens;     // of each pass, above 0
  std::int64_t sequence_length = 4096;  // a pass of more tokens has several sequences (rounded down to whole
                                        // ones)
};
[[nodiscard]] Roofline roofline(const RooflineQuestion& question);

}  // namespace tessera::cost
