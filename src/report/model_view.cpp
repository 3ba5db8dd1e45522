#include "report/model_view.h"

#include <fmt/format.h>

#include <cmath>
#include <vector>

#include "graph/block.h"
#include "report/numbers.h"
#include "report/page.h"
#include "report/table.h"

namespace tessera::report {

namespace {

using cost::MemoryPart;

constexpr double kGB = 1e9;

std::string gigabytes(double bytes) {
  return fixed(bytes / kGB, 1);
}

// Parameters of the experts of all layers, and of those that one token is sent to.
struct ExpertParams {
  std::int64_t all = 0, used = 0;
};
ExpertParams expert_params(const spec::ModelSpec& m) {
  ExpertParams out;
  if (!m.moe) return out;
  for (std::int32_t i = 0; i < m.num_hidden_layers; ++i) {
    const spec::LayerClass layer = spec::layer_class(m, i);
    if (!layer.moe) continue;
    const std::int64_t all = graph::layer_work(m, layer, {}, {}).params.expert;
    out.all += all;
    out.used += all / m.moe->num_experts * m.moe->num_experts_per_tok;
  }
  return out;
}

std::string parameter_table(const spec::ModelSpec& m, const Style& style) {
  std::int64_t layers = 0;
  for (std::int32_t i = 0; i < m.num_hidden_layers; ++i)
    layers += spec::layer_parameters(m, spec::layer_class(m, i));
  const std::int64_t all = spec::num_parameters(m), active = spec::num_active_parameters(m);
  const ExpertParams experts = expert_params(m);
  Table table({{.header = "parameters", .align = Align::left},
               {.header = "stored"},
               {.header = "share"},
               {.header = "used by a token"}});
  const auto row = [&](const char* what, std::int64_t stored, std::int64_t used) {
    table.add_row({what, grouped(stored), percent(static_cast<double>(stored) / static_cast<double>(all)),
                   grouped(used)});
  };
  row("embedding, head, last norm", all - layers, all - layers);
  row(m.moe ? "layers without experts" : "layers", layers - experts.all, layers - experts.all);
  if (m.moe) {
    row(fmt::format("experts: {} of {} a token", m.moe->num_experts_per_tok, m.moe->num_experts).c_str(),
        experts.all, experts.used);
  }
  table.add_footer({"all", grouped(all), "100.0%", grouped(active)});
  return table.render(style);
}

std::string memory_table(const ModelView& view, const Style& style) {
  const auto all = static_cast<double>(spec::num_parameters(view.setup->model) +
                                       spec::num_mtp_parameters(view.setup->model));
  Table table({{.header = "bytes of training", .align = Align::left},
               {.header = "a parameter"},
               {.header = "GB"},
               {.header = "devices that hold it"}});
  const double usable = static_cast<double>(view.setup->calibration.usable_memory.value);
  double sum = 0;
  const auto devices = [&](double bytes) {
    return grouped(static_cast<std::int64_t>(std::ceil(bytes / usable)));
  };
  for (const MemoryPart part : {MemoryPart::weights, MemoryPart::gradients, MemoryPart::optimizer}) {
    const double bytes = view.memory[part];
    sum += bytes;
    table.add_row({std::string(cost::name(part)), fixed(bytes / all, 1), gigabytes(bytes), devices(bytes)});
  }
  table.add_footer({"all three", fixed(sum / all, 1), gigabytes(sum), devices(sum)});
  return table.render(style);
}

std::string amount(double x) {
  return x < 9.95 ? fixed(x, 1) : fixed(x, 0);
}

std::string roofline_table(const cost::Roofline& r, const Style& style) {
  std::vector<Column> columns = {{.header = "FLOP/byte", .align = Align::left}};
  for (const cost::RooflinePass& pass : r.passes)
    columns.push_back({.header = grouped(pass.tokens) + (pass.tokens == 1 ? " token" : " tokens")});
  Table table(columns);
  for (std::size_t i = 0; i < r.passes.front().ops.size(); ++i) {
    if (!(r.passes.front().ops[i].flops > 0)) continue;  // in the line below
    std::vector<std::string> cells = {r.passes.front().ops[i].name};
    for (const cost::RooflinePass& pass : r.passes) {
      const cost::RooflineOp& op = pass.ops[i];
      cells.push_back(fmt::format("{} {}", amount(op.intensity()), cost::name(op.bound)));
    }
    table.add_row(cells);
  }
  std::vector<std::string> others = {"norms, rope, activations, sums"};
  others.resize(columns.size(), "memory");
  table.add_row(others);
  std::vector<std::string> shares = {"time in compute-bound ones"};
  for (const cost::RooflinePass& pass : r.passes) shares.push_back(percent(pass.share(cost::Bound::compute)));
  table.add_footer(shares);
  return table.render(style);
}

}  // namespace

std::string model_page(const ModelView& view, const Style& style) {
  const cost::Setup& s = *view.setup;
  Page page(style);
  page.title(fmt::format("{}: {} parameters, {} of them used by a token", view.model,
                         quantity(static_cast<double>(spec::num_parameters(s.model))),
                         quantity(static_cast<double>(spec::num_active_parameters(s.model)))));
  page.gap();
  page.block(parameter_table(s.model, page.inner()));
  if (const std::int64_t mtp = spec::num_mtp_parameters(s.model); mtp > 0) {
    page.paragraph(fmt::format("Beside them {} of {} layers that predict further tokens.",
                               quantity(static_cast<double>(mtp)), s.model.num_nextn_predict_layers),
                   Tone::faint);
  }
  page.section("Memory");
  page.block(memory_table(view, page.inner()));
  page.paragraph(
      fmt::format("In {} as {} trains, not sharded; usable: {} GB of a {}. Activations of one sequence of {} "
                  "tokens: {} GB, with full recomputation {} GB, and {} GB for a moment.",
                  spec::name(s.work.precision), s.practice.name,
                  gigabytes(static_cast<double>(s.calibration.usable_memory.value)), s.calibration.name,
                  s.work.sequence_length, gigabytes(view.memory[MemoryPart::activations]),
                  gigabytes(view.memory_recomputed[MemoryPart::activations]),
                  gigabytes(view.memory[MemoryPart::transient])),
      Tone::plain);
  if (view.roofline == nullptr || view.roofline->passes.empty()) return page.text();
  const cost::Roofline& r = *view.roofline;
  page.section("What bounds each operator of a forward pass, by tokens in it");
  page.block(roofline_table(r, page.inner()));
  page.paragraph(
      fmt::format("{} computes {} TFLOP/s in {} and moves {} GB/s: below {} FLOPs a byte memory "
                  "bounds an operator, above it arithmetic. One layer and the head, on one device.",
                  s.calibration.name, fixed(r.peak * 1e-12, 0), spec::name(s.work.precision),
                  fixed(r.bandwidth * 1e-9, 0), fixed(r.ridge(), 0)),
      Tone::plain);
  return page.text();
}

}  // namespace tessera::report
