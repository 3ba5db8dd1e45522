// From measured operators of a machine to the calibration and the cluster that predict it: `tessera
// calibrate`. The constants are those that kernel_time and collective_time read, each fitted by those very
// functions, so what is left is the error of the forms. Small deterministic searches: equal measurements give
// equal files. Pure, thread safe.
//
//   products     efficiency and k_half by least mean |log(predicted / measured)|; of groups the same two
//   attention    rate and the length at which half of it is left, forward and backward
//   memory       bytes of all memory-bound kernels / their seconds (a sum, as in a step, no mean of ratios)
//   optimizer    passes: clear, norm, AdamW and packing of as many weights beside one pass of their bytes
//   step         sustained, by a step of a small model
//   links        latency and bandwidth of all ring collectives; the all-to-all and messages beside them
// Of what a machine of one core cannot show (links), cpu-generic's values stay.
#pragma once
#include <string>
#include <vector>

#include "cost/calibration.h"
#include "cost/engine_step.h"
#include "graph/measured.h"
#include "spec/cluster.h"

namespace tessera::cost {

struct MachineModel {
  Calibration calibration;    // of one core
  spec::ClusterSpec cluster;  // cores in one tier, "threads"
};
// Error{config} when an operator that a constant needs was not measured, or its seconds are no times.
[[nodiscard]] MachineModel fit_machine(const graph::MeasuredMachine& machine, const std::string& name);

// Of a whole step that took `seconds` on one rank: step.sustained, the rate of products inside of training
// beside their benchmark, so that the prediction meets the measurement; from 0.5 to 1. REQUIRES pp = 1.
void fit_sustained(MachineModel& model, const EngineJob& job, double seconds);

// Predicted seconds of a measured operator.
[[nodiscard]] double predicted_seconds(const MachineModel& model, const graph::MeasuredOp& m);

struct FitRow {
  std::string kernel;  // "forward", "attention backward", "all_reduce of 2"
  std::int32_t count = 0;
  double median_error = 0, worst_error = 0;         // |predicted / measured - 1|
  double measured_seconds = 0, fitted_seconds = 0;  // sums
};
// One row a kernel, in the order of the measurements.
[[nodiscard]] std::vector<FitRow> fit_rows(const MachineModel& model, const graph::MeasuredMachine& machine);

}  // namespace tessera::cost
