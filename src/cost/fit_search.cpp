#include "cost/fit_search.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace tessera::cost {

void search(double& value, double low, double high, const std::function<double()>& error_now) {
  constexpr std::int32_t kPoints = 24;
  for (std::int32_t round = 0; round < 4; ++round) {
    double best = value, least = error_now();
    const double step = std::log(high / low) / kPoints;
    for (std::int32_t i = 0; i <= kPoints; ++i) {
      value = std::min(high, low * std::exp(step * i));  // not above by rounding
      const double e = error_now();
      if (e < least) least = e, best = value;
    }
    value = best;
    low = std::max(low, best * std::exp(-step));
    high = std::min(high, best * std::exp(step));
  }
}

void search(double& rate, double low, double high, double& length, double shortest, double longest,
            const std::function<double()>& error_now) {
  const auto best_rate = [&] {
    search(rate, low, high, error_now);
    return error_now();
  };
  search(length, shortest, longest, best_rate);
  (void)best_rate();
}

}  // namespace tessera::cost
