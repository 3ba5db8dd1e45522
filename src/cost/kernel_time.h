// Seconds of one operator on one accelerator, alone and busy: gaps between kernels (kernel_latency) and host
// time (launch) are the caller's. Roofline with the corrections that matter in training: waves of tiles and
// a short k for products, short sequences for attention. Pure, thread safe, no allocation.
//
//   gemm_time(c, {.m = 8192, .n = 8192, .k = 8192}, spec::Precision::bf16)   // 1.37 ms on h100-sxm
#pragma once
#include <cstdint>

#include "cost/calibration.h"
#include "graph/graph.h"

namespace tessera::cost {

// max(compute, operands and result once through memory). Compute: the fastest of the tile shapes (the
// calibration's, its halves and quarter, either way round), each
//   waves x 2 tile_m tile_n (k + k_half) / (rate of a processor x small_tile loss),
// waves = tiles / processors, rounded up but for the share `tail`. Groups add their tiles; unless batched
// they also lose grouped_efficiency and take group_latency each.
[[nodiscard]] Seconds gemm_time(const Calibration& c, const graph::GemmShape& shape,
                                spec::Precision precision);

// Flash kernels: 2 queries keys (qk_dim + v_dim) heads at attention_forward x keys / (keys + attention_short)
// of the bf16 peak; backward makes the scores again, 2.5 times the products. Fewer tiles of 128 queries than
// processors leave the rest idle.
enum class Pass : std::uint8_t { forward, backward };
[[nodiscard]] Seconds attention_time(const Calibration& c, const graph::AttentionShape& shape, Pass pass);

[[nodiscard]] Seconds memory_time(const Calibration& c, Bytes moved);

// Any operator but a collective; never less than bytes_moved takes. Precision of the recipe: used where
// op.low_precision, else bf16 (f32, f64 recipes: f32). Attention whose name holds "backward" runs backward.
[[nodiscard]] Seconds kernel_time(const Calibration& c, const graph::Op& op, spec::Precision precision);

}  // namespace tessera::cost
