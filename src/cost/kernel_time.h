// Seconds of one operator on one accelerator, alone. Roofline with the two corrections that matter in
// training: whole waves of tiles, and a short k. Pure, thread safe.
#pragma once
#include "cost/calibration.h"
#include "graph/graph.h"

namespace tessera::cost {

// max(FLOPs / rate, bytes / bandwidth) with rate = efficiency x peak x wave fill x k / (k + k_half).
[[nodiscard]] Seconds gemm_time(const Calibration& c, const graph::GemmShape& shape,
                                spec::Precision precision);
// Flash kernels; backward runs 2.5 times the products.
[[nodiscard]] Seconds attention_time(const Calibration& c, const graph::AttentionShape& shape, bool backward);
[[nodiscard]] Seconds memory_time(const Calibration& c, Bytes moved);
// Any operator but a collective. Precision of the recipe: used where op.low_precision, else bf16 (f32, f64
// recipes: f32).
[[nodiscard]] Seconds kernel_time(const Calibration& c, const graph::Op& op, spec::Precision precision);

}  // namespace tessera::cost
