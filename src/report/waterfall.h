// Waterfall: from the peak of the devices to the achieved MFU, one bar for each cause of lost time, each
// beginning where the one above ended. The printed shares sum to 100.0% exactly: rounding is dealt out by the
// largest remainder. Pure, thread safe.
//
//   waterfall(cost.parts, {.width = 100})
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cost/step.h"
#include "report/terminal.h"

namespace tessera::report {

using PartSeconds = std::array<double, cost::kNumParts>;

// Parts of no time are left out. "" when the sum is not above 0.
[[nodiscard]] std::string waterfall(const PartSeconds& parts, const Style& style);

// What a part is, for people: "pipeline bubble".
[[nodiscard]] std::string_view describe(cost::Part part);

// Whole numbers that sum to `total` and lie within one of values * total / sum. REQUIRES values >= 0 with a
// sum above 0.
[[nodiscard]] std::vector<std::int64_t> rounded_shares(std::span<const double> values, std::int64_t total);

}  // namespace tessera::report
