#include "optim/lr_schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera::optim {

double LrSchedule::at(std::int64_t step) const {
  step = std::min(step, total_steps - 1);
  if (step < warmup_steps) return lr * static_cast<double>(step + 1) / static_cast<double>(warmup_steps);
  switch (decay) {
    case LrDecay::constant:
      return lr;
    case LrDecay::cosine: {
      const auto span = static_cast<double>(std::max<std::int64_t>(1, total_steps - 1 - warmup_steps));
      const double x = std::min(1.0, static_cast<double>(step - warmup_steps) / span);
      return min_lr + (lr - min_lr) * 0.5 * (1.0 + std::cos(std::numbers::pi * x));
    }
    case LrDecay::wsd: {
      const std::int64_t left = total_steps - 1 - step;
      if (decay_steps <= 0 || left >= decay_steps) return lr;
      return min_lr + (lr - min_lr) * static_cast<double>(left) / static_cast<double>(decay_steps);
    }
  }
  return lr;
}

}  // namespace tessera::optim
