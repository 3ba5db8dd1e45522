#include "exec/profile.h"

#include <algorithm>

#include "base/clock.h"
#include "exec/measure_steps.h"

namespace tessera::exec {

namespace {

// Larger than any cache.
BytesPerSecond measure_copy(const std::shared_ptr<tensor::Memory>& memory) {
  constexpr std::int64_t kBytes = std::int64_t{256} << 20U;
  constexpr int kCopies = 4, kRounds = 4;
  const tensor::Buffer a(memory, Bytes(kBytes), tensor::Reach::own),
      b(memory, Bytes(kBytes), tensor::Reach::own);
  const tensor::Tensor from(a.data(), tensor::DType::u8, {kBytes}, memory->device());
  const tensor::Tensor to(b.data(), tensor::DType::u8, {kBytes}, memory->device());
  double best = 0.0;
  for (int round = 0; round < kRounds; ++round) {
    memory->synchronise();
    const std::int64_t start = wall_ns();
    for (int i = 0; i < kCopies; ++i) memory->copy(to, from);
    memory->synchronise();
    const double seconds = static_cast<double>(wall_ns() - start) * 1e-9;
    best = std::max(best, 2.0 * kCopies * static_cast<double>(kBytes) / seconds);
  }
  return BytesPerSecond(best);
}

}  // namespace

StepProfile profile_steps(const plan::Plan& plan, std::int32_t steps, const Compute& compute) {
  TESSERA_CHECK(steps >= 1, "a profile of at least one step");
  StepProfile out;
  out.copy = measure_copy(kernels_for(Rank(0), compute.kernels)->memory());
  out.step = Seconds(std::ranges::min(measure_steps(plan, steps, {.compute = compute}).seconds));
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
