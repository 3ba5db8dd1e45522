#include "cost/kernel_time.h"

#include <algorithm>
#include <array>
#include <cmath>

namespace tessera::cost {

namespace {

constexpr double kBackwardProducts = 2.5;  // scores again, then four products of the same size
constexpr double kQueriesPerTile = 128.0;  // of one processor in a flash kernel
constexpr double kHeadDim = 128.0;         // that attention_forward and _backward are of
// Of heads half as wide: the exponentials are as many for half of the products (arXiv 2205.14135, 2307.08691
// figures 4 and 5, 2407.08608 figures 5 and 6: 0.7 to 0.9 on A100 and H100).
constexpr double kNarrowHeads = 0.8;
constexpr double kOutputBytes = 2.0;

double ceil_div(double a, double b) {
  return std::ceil(a / b);
}

// Waves of `tiles` over the processors, a part of the last one's idle ones being used.
double waves(const Calibration& c, const GemmModel& g, double tiles) {
  const double even = tiles / c.processors;
  return (1.0 - g.tail) * std::ceil(even) + g.tail * std::max(1.0, even);
}

double moving(const Calibration& c, double bytes) {
  return bytes / (c.memory_bandwidth * c.memory_efficiency);
}

// Rate of a head dimension beside that of 128.
double head_factor(const Calibration& c, const graph::AttentionShape& s) {
  const auto dim = static_cast<double>(s.qk_dim);
  if (dim < kHeadDim) return std::max(0.25, 1.0 - 2.0 * (1.0 - kNarrowHeads) * (1.0 - dim / kHeadDim));
  return dim > kHeadDim ? c.attention_wide : 1.0;
}

bool ragged(const graph::GemmShape& s) {
  return s.groups > 1 && !s.batched;
}

// Seconds of the products themselves; groups' latency apart.
double compute_time(const Calibration& c, const GemmModel& g, const graph::GemmShape& shape) {
  const auto m = static_cast<double>(shape.m), n = static_cast<double>(shape.n);
  const auto groups = static_cast<double>(shape.groups);
  const double half = std::exp2(-g.small_tile);
  const double tm = g.tile_m, tn = g.tile_n;
  struct Tile {
    double m, n, efficiency;
  };
  const std::array<Tile, 7> tiles = {{{tm, tn, 1.0},
                                      {tn, tm, 1.0},
                                      {tm, tn / 2.0, half},
                                      {tm / 2.0, tn, half},
                                      {tn, tm / 2.0, half},
                                      {tm / 2.0, tn / 2.0, half * half},
                                      {tn / 2.0, tm / 2.0, half * half}}};
  double work = 0.0;  // elements of the output on each processor, of the fastest tile
  for (const Tile& t : tiles) {
    const double count = groups * ceil_div(m, t.m) * ceil_div(n, t.n);
    const double w = waves(c, g, count) * t.m * t.n / t.efficiency;
    if (work == 0.0 || w < work) work = w;
  }
  const double rate = g.efficiency * g.peak / c.processors * (ragged(shape) ? c.grouped_efficiency : 1.0);
  return 2.0 * work * (static_cast<double>(shape.k) + g.k_half) / rate;
}

// Groups start one after another, whether arithmetic or memory bounds them.
Seconds product_time(const Calibration& c, const graph::GemmShape& s, spec::Precision precision,
                     double bytes_moved) {
  if (s.m <= 0 || s.n <= 0 || s.k <= 0 || s.groups <= 0) return Seconds(0.0);
  const GemmModel& g = gemm_model(c, precision);
  const auto m = static_cast<double>(s.m), n = static_cast<double>(s.n), k = static_cast<double>(s.k);
  const double once = static_cast<double>(s.groups) * (g.bytes * (m * k + k * n) + kOutputBytes * m * n);
  const double starts = ragged(s) ? static_cast<double>(s.groups) * c.group_latency.value : 0.0;
  return Seconds(std::max(compute_time(c, g, s), moving(c, std::max(once, bytes_moved))) + starts);
}

}  // namespace

Seconds gemm_time(const Calibration& c, const graph::GemmShape& shape, spec::Precision precision) {
  return product_time(c, shape, precision, 0.0);
}

Seconds attention_time(const Calibration& c, const graph::AttentionShape& s, Pass pass) {
  const bool backward = pass == Pass::backward;
  const auto heads = static_cast<double>(s.batch * s.heads);
  const auto dims = static_cast<double>(s.qk_dim + s.v_dim);
  const auto queries = static_cast<double>(s.queries);
  const double flops = 2.0 * heads * queries * s.keys * dims * (backward ? kBackwardProducts : 1.0);
  if (!(flops > 0.0)) return Seconds(0.0);
  const double best = backward ? c.attention_backward : c.attention_forward;
  const double half = backward ? c.attention_short_backward : c.attention_short;
  const double fill = std::min(1.0, heads * ceil_div(queries, kQueriesPerTile) / c.processors);
  return Seconds(flops / (c.bf16.peak * best * head_factor(c, s) * fill * s.keys / (s.keys + half)));
}

Seconds memory_time(const Calibration& c, Bytes moved) {
  return Seconds(moving(c, static_cast<double>(moved.value)));
}

Seconds kernel_time(const Calibration& c, const graph::Op& op, spec::Precision precision) {
  const bool full = precision == spec::Precision::f32 || precision == spec::Precision::f64;
  const Seconds memory = memory_time(c, op.bytes_moved);
  switch (op.kind) {
    case graph::OpKind::gemm:
      return product_time(c, op.gemm, op.low_precision || full ? precision : spec::Precision::bf16,
                          static_cast<double>(op.bytes_moved.value));
    case graph::OpKind::attention:
      return std::max(memory, attention_time(c, op.attention,
                                             op.name.find("backward") == std::string::npos ? Pass::forward
                                                                                           : Pass::backward));
    case graph::OpKind::memory:
      return memory;
    case graph::OpKind::collective:
      return Seconds(0.0);
  }
  return Seconds(0.0);
}

}  // namespace tessera::cost
