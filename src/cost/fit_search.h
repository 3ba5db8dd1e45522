// The search behind every fit of constants: deterministic, on the logarithm.
#pragma once
#include <functional>

namespace tessera::cost {

// Sets `value` to that in [low, high] with the least error_now(): a grid on the logarithm, narrowed three
// times.
// REQUIRES low > 0.
void search(double& value, double low, double high, const std::function<double()>& error_now);

// Two constants of one form: the best rate of every length.
void search(double& rate, double low, double high, double& length, double shortest, double longest,
            const std::function<double()>& error_now);

}  // namespace tessera::cost
