// StepModel: what one training step costs under a candidate: seconds by cause, memory, and the work of each
// stage as segments, which the simulator plays. Everything comes from graph's blocks; layer costs are cached
// by their cut, so that a search composes them at some microseconds a candidate.
//
//   StepModel model(setup);
//   const StepCost cost = model.predict(candidate);
//   cost.seconds(); cost[Part::bubble]; cost.memory.allocated();
//
// A StepModel belongs to one thread (the cache); make one a thread.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"
#include "cost/candidate.h"
#include "cost/memory.h"
#include "schedule/schedule.h"

namespace tessera::cost {

// Where a second of the step goes; the parts sum to the step exactly.
enum class Part : std::uint8_t {
  ideal,         // model FLOPs / peak: what MFU calls useful
  gemm,          // matrix products above that
  attention,     // attention kernels above that
  memory_bound,  // norms, activations, rope, softmax, loss, permutation
  launch,        // gaps between kernels and host time
  recompute,     // forward run again
  imbalance,     // waiting for the most loaded expert rank
  tp,            // exposed communication of each axis
  cp,
  ep,
  pp,
  bubble,  // pipeline idle, uneven stages included
  dp,      // gradients and weights
  optimizer,
  jitter,  // stragglers among many devices
};
inline constexpr std::int32_t kNumParts = 15;
[[nodiscard]] std::string_view name(Part part);
[[nodiscard]] Part part_of(graph::Axis axis);  // of its exposed communication

struct StepCost {
  std::array<double, kNumParts> parts{};  // seconds
  MemoryCost memory;
  double model_flops = 0;       // of the step, per device, causal attention halved
  double model_flops_full = 0;  // attention not halved
  double hardware_flops = 0;    // recomputation included
  double peak = 0;              // FLOP/s of the device in the recipe's precision
  double compute_seconds = 0;   // busy time of the most loaded pipeline rank
  double bubble_fraction = 0;
  std::array<double, graph::kNumAxes> comm_seconds{};  // of a rank, exposed or not
  std::array<double, graph::kNumAxes> bytes_sent{};
  double num_microbatches = 0;

  [[nodiscard]] double seconds() const;
  [[nodiscard]] double operator[](Part p) const { return parts[static_cast<std::size_t>(p)]; }
  [[nodiscard]] double mfu() const { return model_flops / (seconds() * peak); }
  [[nodiscard]] double mfu_full() const { return model_flops_full / (seconds() * peak); }
  [[nodiscard]] double hfu() const { return hardware_flops / (seconds() * peak); }
};

// A piece of a stage's action on one stream, in order. Segments of the compute stream run one after another;
// a communication segment with overlap > 0 hides that share of its time under compute.
struct Segment {
  std::string name;  // "layers.attention", "tp gather"
  Part part = Part::ideal;
  graph::Axis axis = graph::Axis::tp;  // of communication
  bool communication = false;
  double seconds = 0;  // of the stream
  double exposed = 0;  // that the action is longer for it
  double flops = 0;
  double bytes_sent = 0;
};
struct StageWork {
  std::vector<Segment> forward, backward_input, backward_weight;
  double forward_seconds = 0, backward_input_seconds = 0, backward_weight_seconds = 0;  // sums of exposed
  double saved_bytes = 0;                                                               // of one micro-batch
  double p2p_seconds = 0;  // message to the next stage
  double p2p_bytes = 0;
  double transient_bytes = 0;
};
struct StepWork {
  std::vector<StageWork> stages;     // [pp * vpp]
  std::vector<double> static_bytes;  // [pp] weights, gradients, optimizer, buffers
  std::vector<double> grad_seconds;  // [pp] reductions of the rank's gradients, all of the step
  std::vector<double> grad_bytes;
  std::vector<double> param_seconds;  // [pp] ZeRO gathers
  std::vector<double> param_bytes;
  std::vector<double> optimizer_seconds;  // [pp]
  double jitter_share = 0;                // of the whole step, added to it
  double overlap_slowdown = 0;            // of compute beside a reduction
  std::int64_t num_microbatches = 0;
  bool p2p_overlapped = false;
  bool grad_overlapped = false, param_overlapped = false;
  // In how many equal shares the seconds above come. grad: 1 after the last micro-batch; m after each
  // (ZeRO-2,
  // 3). param: 1 before the first forward; m before each (ZeRO-3); 2 m before each backward, too.
  std::int64_t grad_repeats = 1, param_repeats = 1;
};

// Times of one micro-batch, for generators and timers of schedules.
[[nodiscard]] schedule::StageCosts stage_costs(const StepWork& work);

class StepModel {
 public:
  explicit StepModel(Setup setup);
  ~StepModel();
  StepModel(StepModel&&) noexcept;
  StepModel& operator=(StepModel&&) noexcept;

  [[nodiscard]] const Setup& setup() const;
  // REQUIRES a valid candidate (why_invalid empty).
  [[nodiscard]] StepCost predict(const Candidate& c);
  [[nodiscard]] MemoryCost memory(const Candidate& c);  // cheaper: for pruning first
  // Seconds that predict() never falls below: busy time alone, no bubble, no reductions. For pruning.
  [[nodiscard]] double lower_bound(const Candidate& c);
  // The same for every recomputation and order of axes at once: without all-to-all. Looser, and one table a
  // cut.
  [[nodiscard]] double lowest_bound(const Candidate& c);
  // The same step as pieces, for the simulator. `stage_layers`: of a plan that cuts its stages its own way;
  // empty: StageSplit.
  [[nodiscard]] StepWork work(const Candidate& c, std::span<const std::int32_t> stage_layers = {});

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Empty when the candidate is valid; else what does not divide, with the numbers. Cheap.
[[nodiscard]] std::string why_invalid(const Setup& setup, const Candidate& c);

}  // namespace tessera::cost
