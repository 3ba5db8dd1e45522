// What `tessera plan` prints: the best layouts with every choice, their time and memory by cause, then for
// the best one the bottleneck in a sentence and the waterfall, and why the others were rejected. Pure
// functions of a search's result, thread safe.
//
//   plan_page({.setup = &setup, .result = &result, .error_band = 0.08}, {.width = 120})
#pragma once
#include <string>
#include <vector>

#include "cost/candidate.h"
#include "report/terminal.h"
#include "search/search.h"

namespace tessera::report {

struct PlanView {
  const cost::Setup* setup = nullptr;
  const search::Result* result = nullptr;
  std::string model;        // as the user named it
  double error_band = 0.0;  // fraction: mean error of published runs of this kind; 0: not known
};

[[nodiscard]] std::string plan_page(const PlanView& view, const Style& style);

// The tables of the page, a line a layout.
[[nodiscard]] std::string layout_table(const PlanView& view, const Style& style);
[[nodiscard]] std::string layout_legend(const PlanView& view);                     // what its columns mean
[[nodiscard]] std::string time_table(const PlanView& view, const Style& style);    // ms of a step by cause
[[nodiscard]] std::string memory_table(const PlanView& view, const Style& style);  // GB of a device by cause
[[nodiscard]] std::string rejection_table(const PlanView& view, const Style& style);

// "Bottleneck: the pipeline bubble takes 0.52 s of 5.21 s (10.0%): ...".
[[nodiscard]] std::string bottleneck(const cost::Setup& setup, const search::Ranked& best);
// Of a rejection: what it means, and the nearest miss with its numbers.
[[nodiscard]] std::string describe(const search::Rejection& rejection);

[[nodiscard]] double tokens_per_device_second(const cost::Setup& setup, const cost::StepCost& cost);
// Of 10^9 tokens; 0 when the cluster has no price.
[[nodiscard]] double price_of_billion_tokens(const cost::Setup& setup, const cost::StepCost& cost);

// "none", "norm+act", "full": the modules that a candidate recomputes.
[[nodiscard]] std::string recompute_text(const cost::Candidate& c);

}  // namespace tessera::report
