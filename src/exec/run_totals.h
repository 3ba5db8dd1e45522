// Sums over the steps of a run for its summary: rates, axes, routing.
#pragma once
#include <cstdint>
#include <vector>

#include "exec/metrics.h"
#include "exec/trainer.h"

namespace tessera::exec {

// The first step of a run pays for cold caches and is left out when there are others.
class RunTotals {
 public:
  void add(const StepMetrics& m, std::int64_t routing_from);
  // Bytes and seconds of the axes become means per step.
  void finish(RunSummary& summary) const;

 private:
  StepMetrics sum_;
  std::vector<LayerRouting> routing_;
  // Until finish(): logit_rms is the sum of squares, unserved_rate that of tokens; bias is the last one.
  std::vector<RoutingFigures> routers_;
  std::int64_t steps_ = 0, counted_ = 0;
  bool dropped_first_ = false;
};

}  // namespace tessera::exec
