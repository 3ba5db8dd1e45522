#include "cli/progress_printer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "cli/rebalance.h"
#include "report/progress.h"
#include "report/strip.h"

namespace tessera::cli {

namespace {

constexpr std::int64_t kLinesInAFile = 20;

}  // namespace

std::vector<report::RoutingRow> routing_rows(const std::vector<exec::RoutingFigures>& layers) {
  std::vector<report::RoutingRow> rows;
  for (const exec::RoutingFigures& r : layers) {
    report::RoutingRow row{.layer = r.layer,
                           .load = {r.chosen.begin(), r.chosen.end()},
                           .max_over_mean = r.max_over_mean,
                           .cv = r.cv,
                           .effective = r.effective_experts,
                           .dead = r.dead,
                           .drop_rate = r.drop_rate,
                           .entropy = r.entropy,
                           .logit_rms = r.logit_rms,
                           .logit_max = r.logit_max};
    if (r.bias) {
      row.bias_least = r.bias->least;
      row.bias_most = r.bias->most;
    }
    rows.push_back(std::move(row));
  }
  return rows;
}

ProgressPrinter::ProgressPrinter(const spec::Job& job, const TrainFlags& flags, const Terminal& terminal)
    : job_(job), terminal_(terminal), json_(flags.json), map_(flags.show_routing) {}

ProgressPrinter::~ProgressPrinter() {
  if (open_) std::printf("\n");
  std::fflush(stdout);
}

void ProgressPrinter::show(const std::string& line, bool last) {
  if (terminal_.interactive) {
    std::printf("\r\033[K%s%s", line.c_str(), last ? "\n" : "");
    open_ = !last;
  } else {
    std::printf("%s\n", line.c_str());
  }
  std::fflush(stdout);
}

void ProgressPrinter::step(const exec::StepMetrics& m) {
  const std::int64_t done = m.step + 1;
  const std::int64_t ran = std::max<std::int64_t>(1, done - first_step_);
  const std::int64_t steps = job_.train.steps;
  seconds_ += m.time.value;
  for (const std::string& w : m.warnings) {
    warnings_.push_back(fmt::format("step {}: {}", done, w));
    if (!json_) show("warning, step " + std::to_string(done) + ": " + w, true);
  }
  if (m.moved && !json_) show(fmt::format("after step {}: {}", done, describe(*m.moved)), true);
  if (json_) {
    std::printf("%s\n", exec::to_json(m).c_str());
    std::fflush(stdout);
    return;
  }
  const std::int64_t stride = std::max<std::int64_t>(1, steps / kLinesInAFile);
  if (map_ && !m.routing.empty() && (done % stride == 0 || done == steps)) {
    const std::string map = report::routing_map(routing_rows(m.routing), terminal_.style);
    show(fmt::format("experts, step {}", done), true);
    std::printf("%s", map.c_str());
  }
  if (!terminal_.interactive && done % stride != 0 && done != steps && ran != 1) return;
  report::ProgressState p;
  p.step = done;
  p.steps = steps;
  p.loss = m.result.ce_loss;
  p.tokens_per_s = m.tokens_per_second;
  p.seconds_left = Seconds(seconds_ / static_cast<double>(ran) * static_cast<double>(steps - done));
  p.strip = strip(m);
  p.mfu = m.mfu;
  p.grad_norm = m.result.grad_norm;
  p.lr = m.result.lr;
  show(report::progress_line(p, terminal_.style), done == steps);
}

// Load of the experts, all layers together.
std::string ProgressPrinter::strip(const exec::StepMetrics& m) const {
  if (m.routing.empty()) return {};
  std::vector<double> load(m.routing[0].chosen.size(), 0.0);
  for (const exec::RoutingFigures& r : m.routing) {
    for (std::size_t e = 0; e < load.size(); ++e) load[e] += static_cast<double>(r.chosen[e]);
  }
  return report::heat_strip(load, terminal_.style, 16);
}

}  // namespace tessera::cli
