// Where the time of a rank's steps goes: every operation of its kernels, timed one by one.
#pragma once
#include <cstdint>
#include <vector>

#include "base/quantity.h"
#include "exec/compute.h"
#include "exec/measure_limits.h"
#include "kernels/profiled.h"
#include "plan/plan.h"

namespace tessera::exec {

struct StepProfile {
  std::vector<kernels::OperatorUse> uses;  // of rank 0, over all steps; longest first
  Seconds step, fastest;                   // the median one and the fastest, not profiled
  DeviceLimits limits;                     // before the steps, in their precision
};

// Trains the plan on random tokens, once plain and once with rank 0 timed, `steps` steps each after one to
// warm up; thread ranks.
[[nodiscard]] StepProfile profile_steps(const plan::Plan& plan, std::int32_t steps, const Compute& compute);

}  // namespace tessera::exec
