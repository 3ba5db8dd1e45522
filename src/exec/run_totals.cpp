#include "exec/run_totals.h"

#include <algorithm>
#include <cmath>

namespace tessera::exec {

namespace {

void add_routing(LayerRouting& sum, const LayerRouting& r) {
  sum.layer = r.layer;
  sum.chosen.resize(r.chosen.size());
  sum.dropped.resize(r.dropped.size());
  for (std::size_t e = 0; e < r.chosen.size(); ++e) {
    sum.chosen[e] += r.chosen[e];
    sum.dropped[e] += r.dropped[e];
  }
  sum.tokens += r.tokens;
  sum.entropy += r.entropy * static_cast<double>(r.tokens);
}

void add_router(RoutingFigures& sum, const RoutingFigures& f, double tokens) {
  sum.logit_rms += f.logit_rms * f.logit_rms * tokens;
  sum.logit_max = std::max(sum.logit_max, f.logit_max);
  sum.unserved_rate += f.unserved_rate * tokens;
  sum.bias = f.bias;
}

}  // namespace

void RunTotals::add(const StepMetrics& m, std::int64_t routing_from) {
  if (m.step >= routing_from) {
    routing_.resize(m.result.routing.size());
    routers_.resize(routing_.size());
    for (std::size_t l = 0; l < routing_.size(); ++l) {
      add_routing(routing_[l], m.result.routing[l]);
      add_router(routers_[l], m.routing[l], static_cast<double>(m.result.routing[l].tokens));
    }
  }
  if (steps_ == 0 || (steps_ == 1 && !dropped_first_)) {
    dropped_first_ = steps_ == 1;
    sum_ = {};
    counted_ = 0;
  }
  ++steps_;
  ++counted_;
  sum_.time += m.time;
  sum_.tokens += m.tokens;
  sum_.mfu += m.mfu * m.time.value;
  sum_.mfu_full += m.mfu_full * m.time.value;
  sum_.hfu += m.hfu * m.time.value;
  sum_.bubble += m.bubble;
  sum_.bubble_clock = m.bubble_clock;
  sum_.axes.resize(std::max(sum_.axes.size(), m.axes.size()));
  for (std::size_t a = 0; a < m.axes.size(); ++a) {
    sum_.axes[a].axis = m.axes[a].axis;
    sum_.axes[a].bytes += m.axes[a].bytes;
    sum_.axes[a].total += m.axes[a].total;
    sum_.axes[a].exposed += m.axes[a].exposed;
  }
  sum_.result = m.result;
}

void RunTotals::finish(RunSummary& summary) const {
  summary.mean = sum_;
  if (counted_ == 0) return;
  StepMetrics& m = summary.mean;
  m.step = counted_;
  m.tokens_per_second = static_cast<double>(m.tokens) / m.time.value;
  m.mfu /= m.time.value;
  m.mfu_full /= m.time.value;
  m.hfu /= m.time.value;
  m.bubble /= static_cast<double>(counted_);
  for (AxisUse& u : m.axes) {
    u.bytes = Bytes(u.bytes.value / counted_);
    u.total = Seconds(u.total.value / static_cast<double>(counted_));
    u.exposed = Seconds(u.exposed.value / static_cast<double>(counted_));
  }
  for (std::size_t l = 0; l < routing_.size(); ++l) {
    LayerRouting r = routing_[l];
    const auto tokens = static_cast<double>(std::max<std::int64_t>(1, r.tokens));
    r.entropy /= tokens;
    RoutingFigures f = routing_figures(r);
    f.logit_rms = std::sqrt(routers_[l].logit_rms / tokens);
    f.logit_max = routers_[l].logit_max;
    f.unserved_rate = routers_[l].unserved_rate / tokens;
    f.bias = routers_[l].bias;
    summary.routing.push_back(std::move(f));
  }
}

}  // namespace tessera::exec
