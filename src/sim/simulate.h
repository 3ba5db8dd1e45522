// Simulator: one training step of a plan as discrete events. Each pipeline rank has a compute stream, one
// stream for messages to each neighbour, one for gradients and weights; what a stage's actions take comes
// from cost::StepWork. One pipeline stands for all of dp x tp x cp, so the step of 16,384 devices costs no
// more than that of 16.
//
//   const Result r = simulate(plan, StepModel(setup).work(candidate));
//   r.seconds();  r.ranks[3][cost::Part::bubble];  write_chrome("step.json", r.trace);
//
// Time is an integer count of picoseconds; the same input gives the same bytes. Rules:
// - A rank runs its list in order. An action takes the sum of its segments' exposed seconds.
// - A message leaves when its producer ends. Overlapped, it takes the stream to that neighbour, one message
//   at a time; else it also takes the sender's compute stream. The receiver waits for its end.
// - Weights that are gathered under compute come in buckets, in the order of the stages: a bucket of the
//   stage's first forward starts when its weights are here. Gradients leave in buckets while the last
//   micro-batch of the stage runs backward. Without overlap both stand after all compute. ZeRO-2 and 3 do so
//   for every micro-batch; weights then come one bucket ahead. Compute beside them is slower by
//   StepWork::overlap_slowdown; a rank's gathers and reductions share one link.
// - Stragglers: StepWork::jitter_share of the step stands at its end; slow ranks and replicas are options.
// - A gradient bucket is reduced when the slowest replica has it. The optimizer starts when all ranks have
//   their gradients (their norm is global), unless the option says otherwise.
// - Links (Options::shared_links): each rank has one link out and one in (its share of the NIC). Messages and
//   collectives of the axes in link_axes that use a link at once share it evenly (processor sharing); alone,
//   they take the seconds that StepWork gives.
//
// Always checked, Error{internal} when broken: busy + idle = makespan on every rank, the parts of every rank
// sum to it, bytes sent = bytes received on every boundary, memory returns to its start. Pure, thread safe.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "base/ids.h"
#include "base/quantity.h"
#include "cost/step.h"
#include "plan/plan.h"
#include "schedule/simulate.h"
#include "trace/trace.h"

namespace tessera::sim {

using schedule::SimTime;

enum class Detail : std::uint8_t {
  none,      // no trace
  actions,   // one span an action
  segments,  // one span a segment of an action
};

[[nodiscard]] constexpr std::uint32_t axis_bit(graph::Axis axis) {
  return std::uint32_t{1} << static_cast<std::uint32_t>(axis);
}

struct Options {
  // Factors on the compute seconds of each pipeline rank [pp]; empty: 1. A slow device is 1.1.
  std::vector<double> rank_slowdown;
  // Pipelines simulated side by side, each with a factor on all of its compute; empty: one at 1, which stands
  // for all. Results are those of the first, which waits for the slowest.
  std::vector<double> replica_slowdown;
  bool shared_links = false;
  bool replicas_share_links = false;  // the same pipeline ranks of all simulated replicas have one NIC
  std::uint32_t link_axes = axis_bit(graph::Axis::pp) | axis_bit(graph::Axis::dp);
  bool synchronized_optimizer = true;  // false: a rank updates its weights when its own gradients are there
  std::int32_t num_buckets = 16;       // of a rank's gradients and gathered weights, at least one a stage
  Detail detail = Detail::segments;
};

struct MemoryPoint {
  SimTime time;
  double bytes = 0;  // from here to the next point
};

struct RankResult {
  Rank rank;                                       // in the world
  std::array<SimTime, cost::kNumParts> parts{};    // of the compute stream; sum to the makespan
  SimTime busy, idle;                              // busy: compute segments; busy + idle = makespan
  SimTime begin, end;                              // of its first and last action that computes
  std::array<SimTime, graph::kNumAxes> comm{};     // communication, exposed or not
  std::array<SimTime, graph::kNumAxes> exposed{};  // that the compute stream stands still for
  std::array<double, graph::kNumAxes> bytes_sent{}, bytes_received{};
  double flops = 0;
  std::vector<MemoryPoint> memory;  // static bytes, saved bytes of live micro-batches, transients
  double peak_bytes = 0;
  SimTime peak_at;  // first time at the peak
  [[nodiscard]] SimTime operator[](cost::Part p) const { return parts[static_cast<std::size_t>(p)]; }
};

struct Result {
  SimTime makespan;
  double bubble_fraction = 0;     // 1 - sum(busy) / (pp * makespan): all that is no compute
  std::vector<RankResult> ranks;  // [pp]
  trace::Trace trace;             // of one pipeline; nanoseconds from the start of the step
  [[nodiscard]] double seconds() const { return schedule::to_seconds(makespan).value; }
  // Mean over the ranks, seconds; sums to seconds() but for rounding.
  [[nodiscard]] std::array<double, cost::kNumParts> waterfall() const;
  // StepWork's products and attention stand whole in their parts; this takes the useful time of `cost`, the
  // price of the same step, out of them: Part::ideal. The same sum.
  [[nodiscard]] std::array<double, cost::kNumParts> waterfall(const cost::StepCost& cost) const;
};

// Throws Error{config} with all problems: work of another shape than the schedule, seconds or factors that
// are no times, num_buckets outside of [1, 1024].
[[nodiscard]] Result simulate(const plan::Plan& plan, const cost::StepWork& work,
                              const Options& options = {});

// A schedule without a plan, compute-only or lowered: ranks are pipeline ranks.
[[nodiscard]] Result simulate(const schedule::Schedule& schedule, const cost::StepWork& work,
                              const Options& options = {});

// simulate(...).seconds() alone, to the picosecond, without traces or accounts: to rank candidates again.
// Compute-only schedules need no lowering and are quicker.
[[nodiscard]] double makespan(const schedule::Schedule& schedule, const cost::StepWork& work,
                              const Options& options = {});

}  // namespace tessera::sim
