// `--robust` of plan. Inside of this room.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "explain/robust.h"
#include "report/terminal.h"
#include "search/search.h"

namespace tessera::cli {

// So many of the fastest are timed under the scenarios.
inline constexpr std::int32_t kRobustCandidates = 24;

// "" (the default), "0.95", "95" or "p95". Error{config} on what is no quantile.
[[nodiscard]] double parse_quantile(const std::string& text);

struct RobustPlan {
  std::vector<cost::Candidate> candidates;
  std::vector<explain::Robust> times;
  explain::RobustOptions options;
  bool has_experts = false;
  std::int32_t choice = 0;
  std::array<double, explain::kNumDisturbances> price_of_first{}, price_of_choice{};
};
[[nodiscard]] RobustPlan robust_plan(const cost::Setup& setup, const search::Result& result,
                                     const explain::RobustOptions& options);

// Table and sentence; JSON text.
[[nodiscard]] std::string robust_text(const RobustPlan& plan, std::int32_t shown, const report::Style& style);
[[nodiscard]] std::string robust_json(const RobustPlan& plan);

}  // namespace tessera::cli
