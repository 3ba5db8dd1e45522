// What `tessera simulate` prints of one step: the plan in two lines, speed, the waterfall from peak to MFU, a
// timeline of every pipeline rank, its memory over time, and the bottleneck in a sentence. Times of the
// waterfall are means over the pipeline ranks, those of a rank its own. Pure, thread safe.
//
//   simulation_page({.setup = &setup, .candidate = &candidate, .schedule = &plan.schedule, .work = &work,
//                    .result = &result, .cost = priced(result, cost)}, {.width = 120})
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "cost/step.h"
#include "report/terminal.h"
#include "schedule/schedule.h"
#include "sim/simulate.h"

namespace tessera::report {

struct SimulationView {
  const cost::Setup* setup = nullptr;
  const cost::Candidate* candidate = nullptr;
  const schedule::Schedule* schedule = nullptr;
  const cost::StepWork* work = nullptr;
  const sim::Result* result = nullptr;       // its trace has the timeline; without one there are no strips
  cost::StepCost cost;                       // with the simulator's parts: simulated_cost
  std::string model;                         // as the user named it
  std::vector<std::int32_t> stage_layers;    // [stages]
  std::optional<double> closed_form;         // seconds of the step, by StepModel::predict
  std::optional<double> without_stragglers;  // seconds, when stragglers were asked for
  std::vector<double> rank_slowdown;         // as simulated; empty: none
};

// `cost` with the parts of the simulated step.
[[nodiscard]] cost::StepCost simulated_cost(const sim::Result& result, const cost::StepCost& cost);

// What a rank holds at its peak; sums to RankResult::peak_bytes.
struct PeakParts {
  double fixed = 0;        // weights, gradients, optimizer, buffers
  double activations = 0;  // of the micro-batches in flight
  double transient = 0;    // inside of the action that runs
};
[[nodiscard]] PeakParts peak_parts(const schedule::Schedule& schedule, const cost::StepWork& work,
                                   std::int32_t rank, const sim::RankResult& result);
// Bytes that the process of a rank takes with so many allocated.
[[nodiscard]] double reserved_bytes(double allocated);

// Shares of a rank's step; they sum to 1.
struct RankShares {
  double busy = 0, exposed = 0, idle = 0;  // computes; stands still for communication; waits
};
[[nodiscard]] RankShares rank_shares(const sim::RankResult& result);

// `width` cells from the start of the step to its end, each with what most of it is: busy (full block),
// exposed communication (shaded), idle (dot).
[[nodiscard]] std::string rank_strip(const sim::Result& result, std::int32_t rank, std::int32_t width);
// The most that each cell of the same time axis holds, 0 to `top` bytes.
[[nodiscard]] std::string memory_strip(const sim::RankResult& rank, sim::SimTime makespan, double top,
                                       std::int32_t width);

// "Bottleneck: ...": the largest cause of lost time, why, and the rank that holds the others up.
[[nodiscard]] std::string simulation_bottleneck(const SimulationView& view);
[[nodiscard]] std::string simulation_page(const SimulationView& view, const Style& style);

}  // namespace tessera::report
