// What one training step looked like: numbers for metrics.jsonl, the progress line and the summary.
// docs/formats/metrics.md.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "exec/rank_engine.h"
#include "exec/rebalancer.h"
#include "exec/routing_watch.h"
#include "plan/plan.h"

namespace tessera::exec {

// With more ranks than cores a rank's wall clock runs while others compute; then the bubble is replayed from
// the CPU time of each action.
enum class BubbleClock : std::uint8_t { wall, cpu };

struct AxisUse {  // one axis, all ranks together
  std::string_view axis;
  Bytes bytes;      // sent to other ranks
  Seconds total;    // inside calls, waiting included, summed over ranks
  Seconds exposed;  // the part that the rank's own thread stood still for
};

struct StepMetrics {
  std::int64_t step = 0;
  StepResult result;
  Seconds time;
  std::int64_t tokens = 0;
  double tokens_per_second = 0.0;
  double model_flops = 0.0;  // of all ranks, causal attention counted once
  double mfu = 0.0;          // causal attention counted once (half the square)
  double mfu_full = 0.0;     // the un-halved figure that PaLM, nanoGPT and others print
  double hfu = 0.0;          // FLOPs really executed, recomputation included
  double bubble = 0.0;
  BubbleClock bubble_clock = BubbleClock::wall;
  std::vector<AxisUse> axes;
  std::vector<RoutingFigures> routing;
  std::vector<std::string> warnings;
  int leave = 0;                    // the largest number that a rank gave gather()
  std::int64_t batch = -1;          // of the data, where it is not the step's; -1: the step's
  std::optional<ExpertMove> moved;  // after the step
  std::string diverged;             // why the step's update was left out; empty: it was made
};

// What every rank tells about a step, as one row of numbers; gathered over the world.
class StepGatherer {
 public:
  StepGatherer(const plan::Plan& plan, std::int32_t cores, FlopsPerSecond peak_per_core);
  // Collective over engine.comms().world. wall: of this rank's step. Returns the metrics (the same on every
  // rank but for warnings, which are new ones only). leave: a number that all ranks learn of (m.leave).
  [[nodiscard]] StepMetrics gather(RankEngine& engine, std::int64_t step, Seconds wall, int leave = 0);

 private:
  void put_row(RankEngine& engine, Seconds wall);
  void put_routers(RankEngine& engine);
  void fill_routers(StepMetrics& m) const;
  [[nodiscard]] const std::int64_t* row(std::int32_t rank) const;
  void fill_axes(StepMetrics& m) const;
  [[nodiscard]] double bubble() const;
  [[nodiscard]] double bubble_by_wall(const std::vector<Rank>& pipeline) const;
  [[nodiscard]] double bubble_by_cpu(const std::vector<Rank>& pipeline) const;

  const plan::Plan& plan_;
  RoutingWatch watch_;
  FlopsPerSecond peak_;  // of all cores in use
  BubbleClock clock_;
  std::int64_t width_;
  std::int64_t max_actions_;
  std::vector<std::int32_t> moe_layers_;
  std::int64_t routers_ = 0;  // first column of the routers
  tensor::Buffer buffer_;
  Tensor mine_, all_;
};

// One line of metrics.jsonl, without the newline.
[[nodiscard]] std::string to_json(const StepMetrics& m);

}  // namespace tessera::exec
