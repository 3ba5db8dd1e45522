#include "cost/kernel_time.h"

#include <algorithm>
#include <cmath>

namespace tessera::cost {

namespace {

double ceil_div(double a, double b) {
  return std::ceil(a / b);
}

}  // namespace

Seconds gemm_time(const Calibration& c, const graph::GemmShape& shape, spec::Precision precision) {
  const GemmModel& g = gemm_model(c, precision);
  const auto m = static_cast<double>(shape.m), n = static_cast<double>(shape.n);
  const auto k = static_cast<double>(shape.k), groups = static_cast<double>(shape.groups);
  if (m <= 0.0 || n <= 0.0 || k <= 0.0 || groups <= 0.0) return c.kernel_latency;
  const double tile_m = g.tile_m, tile_n = g.tile_n, processors = c.processors;
  const double tiles = groups * ceil_div(m, tile_m) * ceil_div(n, tile_n);
  const double tile_seconds = 2.0 * tile_m * tile_n * (k + g.k_half) / (g.efficiency * g.peak / processors);
  double compute = ceil_div(tiles, processors) * tile_seconds;
  if (groups > 1.0) compute /= c.grouped_efficiency;
  const double bytes = groups * (g.bytes * (m * k + k * n) + 2.0 * m * n);
  const double memory = bytes / (c.memory_bandwidth * c.memory_efficiency);
  return Seconds(std::max(compute, memory) + c.kernel_latency.value);
}

Seconds attention_time(const Calibration& c, const graph::AttentionShape& shape, bool backward) {
  const double queries = static_cast<double>(shape.batch * shape.heads * shape.queries);
  const double flops = 2.0 * queries * shape.keys * static_cast<double>(shape.qk_dim + shape.v_dim);
  if (flops <= 0.0) return c.kernel_latency;
  const double efficiency = backward ? c.attention_backward : c.attention_forward;
  const auto length = static_cast<double>(shape.queries);
  const double rate = c.bf16.peak * efficiency * length / (length + c.attention_short);
  return Seconds((backward ? 2.5 : 1.0) * flops / rate + c.kernel_latency.value);
}

Seconds memory_time(const Calibration& c, Bytes moved) {
  return Seconds(static_cast<double>(moved.value) / (c.memory_bandwidth * c.memory_efficiency) +
                 c.kernel_latency.value);
}

Seconds kernel_time(const Calibration& c, const graph::Op& op, spec::Precision precision) {
  const bool narrow = precision == spec::Precision::f32 || precision == spec::Precision::f64;
  const spec::Precision wide = narrow ? precision : spec::Precision::bf16;
  switch (op.kind) {
    case graph::OpKind::gemm:
      return gemm_time(c, op.gemm, op.low_precision ? precision : wide);
    case graph::OpKind::attention:
      return attention_time(c, op.attention, op.name.find("backward") != std::string::npos);
    case graph::OpKind::memory:
      return memory_time(c, op.bytes_moved);
    case graph::OpKind::collective:
      return Seconds(0.0);
  }
  return Seconds(0.0);
}

}  // namespace tessera::cost
