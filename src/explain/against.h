// Why one candidate is faster than another, and how sure that is: the difference by cause, and for each
// physical coefficient how wrong it must be before the order turns. Pure, thread safe.
#pragma once
#include <string>
#include <vector>

#include "explain/pricing.h"

namespace tessera::explain {

struct Difference {
  cost::Part part{};
  double seconds = 0;  // of the other minus of the chosen: above 0 is what the choice saves
};
// Largest first, by size; they sum to the difference of the steps. Parts that do not differ are left out.
[[nodiscard]] std::vector<Difference> differences(const cost::StepCost& chosen, const cost::StepCost& other);

enum class Coefficient : std::uint8_t {
  gemm,              // rate of matrix products
  attention,         // of attention kernels
  memory_bandwidth,  // of the device
  links,             // bandwidth of the innermost tier
  network,           // of the tiers above
  latency,           // of messages
  launch             // host time of an operator
};
inline constexpr std::int32_t kNumCoefficients = 7;
[[nodiscard]] std::string_view name(Coefficient c);  // "bandwidth of the innermost links"
[[nodiscard]] cost::Setup scaled(const cost::Setup& setup, Coefficient what, double factor);

struct Margin {
  Coefficient coefficient{};
  double factor = 0;  // of the coefficient at which both are equal, nearest to 1; 0: in no direction up to 8x
};
// REQUIRES both valid, `chosen` not slower.
[[nodiscard]] std::vector<Margin> margins(const cost::Setup& setup, const cost::Candidate& chosen,
                                          const cost::Candidate& other);

}  // namespace tessera::explain
