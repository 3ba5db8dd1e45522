// What `tessera plan --robust` adds: the layouts under seeded scenarios, and whether the choice changes.
// Pure, thread safe.
#pragma once
#include <array>
#include <span>
#include <string>

#include "explain/robust.h"
#include "report/terminal.h"

namespace tessera::report {

struct RobustView {
  std::span<const cost::Candidate> candidates;  // fastest first, as planned
  std::span<const explain::Robust> times;       // parallel
  const explain::RobustOptions* options = nullptr;
  std::int32_t shown = 10;  // lines of the table; the choice is always there
  // explain::price_of_each of the fastest and of the choice.
  std::array<double, explain::kNumDisturbances> price_of_first{}, price_of_choice{};
};

[[nodiscard]] std::string_view name(explain::Disturbance d);  // "slow nodes"
[[nodiscard]] std::string quantile_name(double quantile);     // "p90"
[[nodiscard]] std::string robust_table(const RobustView& view, const Style& style);
// Whether the choice changes, by how much, and which disturbance is why.
[[nodiscard]] std::string robust_sentence(const RobustView& view);

}  // namespace tessera::report
