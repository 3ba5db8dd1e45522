#include "exec/profile.h"

#include <algorithm>

#include "exec/measure_steps.h"
#include "exec/rank_engine.h"

namespace tessera::exec {

StepProfile profile_steps(const plan::Plan& plan, std::int32_t steps, const Compute& compute) {
  TESSERA_CHECK(steps >= 1, "a profile of at least one step");
  StepProfile out;
  out.limits = measure_limits(*kernels_for(Rank(0), compute.kernels), dtype_of(plan.job.train.precision));
  std::vector<double> seconds = measure_steps(plan, steps, {.compute = compute}).seconds;
  std::ranges::sort(seconds);
  out.step = Seconds(seconds[seconds.size() / 2]);
  out.fastest = Seconds(seconds.front());
  kernels::Profile profile;
  StepsOptions timed{.compute = compute};
  timed.compute.kernels = [&](Rank rank) {
    std::unique_ptr<kernels::Kernels> kernels = kernels_for(rank, compute.kernels);
    return rank.value == 0 ? kernels::make_profiled(std::move(kernels), profile) : std::move(kernels);
  };
  timed.warm = [&](Rank rank) {
    if (rank.value == 0) profile.clear();
  };
  (void)measure_steps(plan, steps, timed);
  out.uses = profile.uses();
  return out;
}

}  // namespace tessera::exec
