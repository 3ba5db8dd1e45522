// Learning rate by step. Warm-up is linear from lr / warmup to lr; then
//   constant: lr;   cosine: lr -> min_lr by half a cosine until the last step;
//   wsd (warm-up, stable, decay; arXiv 2404.06395): lr, then linear to min_lr over the last decay_steps.
#pragma once
#include <cstdint>

namespace tessera::optim {

enum class LrDecay : std::uint8_t { constant, cosine, wsd };

struct LrSchedule {
  double lr = 0.0;
  double min_lr = 0.0;
  LrDecay decay = LrDecay::cosine;
  std::int64_t warmup_steps = 0;
  std::int64_t decay_steps = 0;  // wsd only
  std::int64_t total_steps = 1;

  // step counts from 0; steps past the end keep the last value.
  [[nodiscard]] double at(std::int64_t step) const;
};

}  // namespace tessera::optim
