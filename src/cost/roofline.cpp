#include "cost/roofline.h"

#include <algorithm>

#include "base/error.h"
#include "cost/kernel_time.h"
#include "graph/block.h"

namespace tessera::cost {
namespace {

double peak_of(const Calibration& c, const graph::Op& op, spec::Precision precision) {
  const bool full = precision == spec::Precision::f32 || precision == spec::Precision::f64;
  return gemm_model(c, op.low_precision || full ? precision : spec::Precision::bf16).peak;
}

RooflineOp priced(const RooflineQuestion& q, const graph::Op& op) {
  RooflineOp out{.name = op.name,
                 .flops = static_cast<double>(op.flops.value),
                 .bytes = static_cast<double>(op.bytes_moved.value),
                 .seconds = kernel_time(q.calibration, op, q.precision).value};
  const double compute = out.flops / peak_of(q.calibration, op, q.precision);
  const double memory = out.bytes / q.calibration.memory_bandwidth;
  out.bound = compute > memory ? Bound::compute : Bound::memory;
  return out;
}

}  // namespace

std::string_view name(Bound bound) {
  switch (bound) {
    case Bound::compute:
      return "compute";
    case Bound::memory:
      return "memory";
  }
  return "?";
}

double RooflinePass::share(Bound bound) const {
  double all = 0, of_bound = 0;
  for (const RooflineOp& op : ops) {
    all += op.seconds;
    if (op.bound == bound) of_bound += op.seconds;
  }
  return all > 0 ? of_bound / all : 0.0;
}

Roofline roofline(const RooflineQuestion& q) {
  Roofline out{.peak = gemm_model(q.calibration, q.precision).peak,
               .bandwidth = q.calibration.memory_bandwidth,
               .passes = {}};
  const spec::LayerClass layer = spec::layer_class(q.model, q.model.num_hidden_layers - 1);
  for (const std::int64_t tokens : q.tokens) {
    TESSERA_CHECK(tokens > 0 && q.sequence_length > 0, "a pass has tokens");
    const std::int64_t length = std::min(tokens, q.sequence_length);
    const graph::Cut cut{
        .micro_batch_size = tokens / length, .sequence_length = length, .precision = q.precision};
    RooflinePass pass{.tokens = cut.micro_batch_size * length, .ops = {}};
    for (const graph::BlockWork& work :
         {graph::layer_work(q.model, layer, cut, q.practice), graph::head_work(q.model, cut, q.practice)}) {
      for (const graph::Op& op : work.ops.forward) {
        if (op.kind != graph::OpKind::collective) pass.ops.push_back(priced(q, op));
      }
    }
    out.passes.push_back(std::move(pass));
  }
  return out;
}

}  // namespace tessera::cost
