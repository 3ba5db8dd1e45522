#include "base/text.h"

#include <fmt/format.h>

#include <array>

#include "graph/graph.h"

namespace tessera::graph {

namespace {

struct Row {
  std::string name;
  double flops = 0.0;
  double moved = 0.0;
  std::array<std::int64_t, kNumAxes> sent{};
};

void add(Row& row, const OpList& ops) {
  for (const Op& op : ops) {
    row.flops += static_cast<double>(op.flops.value) * static_cast<double>(op.count);
    row.moved += static_cast<double>(op.bytes_moved.value) * static_cast<double>(op.count);
    if (op.kind == OpKind::collective)
      row.sent[static_cast<std::size_t>(op.axis)] += op.bytes_sent.value * op.count;
  }
}

}  // namespace

std::string describe(const StepGraph& graph) {
  std::vector<Row> rows;
  for (const StageGraph& s : graph.stages) {
    const auto phase = [&](const char* phase_name, const OpList& ops) {
      Row row{.name = fmt::format("stage {} {}", s.stage.value, phase_name)};
      add(row, ops);
      rows.push_back(row);
    };
    phase("F", s.forward);
    phase("I", s.backward_input);
    phase("W", s.backward_weight);
  }
  Row once{.name = "once a step"};
  add(once, graph.step);
  rows.push_back(once);
  Row total{.name = "step"};
  for (const Row& r : rows) {
    total.flops += r.flops;
    total.moved += r.moved;
    for (std::size_t a = 0; a < r.sent.size(); ++a) total.sent[a] += r.sent[a];
  }
  rows.push_back(total);
  std::string out = fmt::format("rank {}, {} micro-batches a step\n{:>12} {:>10} {:>11}", graph.rank.value,
                                graph.num_microbatches, "", "FLOPs", "moved");
  std::vector<std::size_t> axes;
  for (std::size_t a = 0; a < total.sent.size(); ++a)
    if (total.sent[a] != 0) axes.push_back(a);
  for (const std::size_t a : axes) out += fmt::format(" {:>11}", name(static_cast<Axis>(a)));
  out += '\n';
  for (const Row& r : rows) {
    out += fmt::format("{:>12} {:>10} {:>11}", r.name, human_count(r.flops),
                       human(Bytes(static_cast<std::int64_t>(r.moved))));
    for (const std::size_t a : axes) out += fmt::format(" {:>11}", human(Bytes(r.sent[a])));
    out += '\n';
  }
  return out;
}

}  // namespace tessera::graph
