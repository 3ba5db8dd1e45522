#include "graph/graph.h"

#include <algorithm>
#include <map>

namespace tessera::graph {

std::string_view name(OpKind kind) {
  switch (kind) {
    case OpKind::gemm:
      return "gemm";
    case OpKind::attention:
      return "attention";
    case OpKind::memory:
      return "memory";
    case OpKind::collective:
      return "collective";
  }
  return "unknown";
}

std::string_view name(Axis axis) {
  switch (axis) {
    case Axis::tp:
      return "tp";
    case Axis::cp:
      return "cp";
    case Axis::pp:
      return "pp";
    case Axis::dp:
      return "dp";
    case Axis::tp_dp:
      return "tp_dp";
    case Axis::edp:
      return "edp";
    case Axis::ep:
      return "ep";
    case Axis::ep_inter:
      return "ep_inter";
    case Axis::ep_intra:
      return "ep_intra";
    case Axis::etp:
      return "etp";
    case Axis::tie:
      return "tie";
    case Axis::world:
      return "world";
  }
  return "unknown";
}

std::string_view name(Call call) {
  switch (call) {
    case Call::all_reduce:
      return "all_reduce";
    case Call::all_reduce_direct:
      return "all_reduce_direct";
    case Call::reduce_scatter:
      return "reduce_scatter";
    case Call::all_gather:
      return "all_gather";
    case Call::all_gather_v:
      return "all_gather_v";
    case Call::reduce_scatter_v:
      return "reduce_scatter_v";
    case Call::all_to_all_v:
      return "all_to_all_v";
    case Call::send:
      return "send";
  }
  return "unknown";
}

namespace {

Bytes kept_of(const OpList& ops) {
  Bytes sum;
  for (const Op& op : ops) sum += op.bytes_kept;
  return sum;
}

template <class F>
void for_each_op(const StepGraph& g, F&& f) {
  for (const StageGraph& s : g.stages) {
    for (const OpList* list : {&s.forward, &s.backward_input, &s.backward_weight})
      for (const Op& op : *list) f(op);
  }
  for (const Op& op : g.step) f(op);
}

bool is_call(const Op& op, Axis axis) {
  return op.kind == OpKind::collective && op.axis == axis;
}

}  // namespace

Bytes StageGraph::saved_bytes() const {
  return kept_of(forward);
}

Bytes StageGraph::deferred_bytes(Backward backward) const {
  std::map<std::int32_t, Bytes> by_unit;
  for (const Op& op : backward_input) by_unit[op.unit] += op.bytes_kept;
  Bytes sum;
  Bytes most;
  for (const auto& [unit, bytes] : by_unit) {
    sum += bytes;
    most = std::max(most, bytes);
  }
  switch (backward) {
    case Backward::fused:
      return most;
    case Backward::split:
      return sum;
  }
  return sum;
}

Bytes StageGraph::discarded_bytes() const {
  std::map<std::int32_t, Bytes> by_unit;
  for (const Op& op : backward_input)
    if (op.recomputed) by_unit[op.unit] += op.bytes_kept;
  Bytes most;
  for (const auto& [unit, bytes] : by_unit) most = std::max(most, bytes);
  return most;
}

Flops StepGraph::flops() const {
  Flops sum;
  for_each_op(*this, [&](const Op& op) { sum += op.flops * op.count; });
  return sum;
}
Flops StepGraph::model_flops() const {
  Flops sum;
  for_each_op(*this, [&](const Op& op) { sum += op.recomputed ? Flops(0) : op.flops * op.count; });
  return sum;
}
Bytes StepGraph::bytes_sent(Axis axis) const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) { sum += is_call(op, axis) ? op.bytes_sent * op.count : Bytes(0); });
  return sum;
}
Bytes StepGraph::bytes_sent(Axis axis, Call call) const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) {
    if (is_call(op, axis) && op.call == call) sum += op.bytes_sent * op.count;
  });
  return sum;
}
std::int64_t StepGraph::calls(Axis axis, Call call) const {
  std::int64_t sum = 0;
  for_each_op(*this, [&](const Op& op) { sum += is_call(op, axis) && op.call == call ? op.calls : 0; });
  return sum;
}
Bytes StepGraph::bytes_moved() const {
  Bytes sum;
  for_each_op(*this, [&](const Op& op) { sum += op.bytes_moved * op.count; });
  return sum;
}

}  // namespace tessera::graph
