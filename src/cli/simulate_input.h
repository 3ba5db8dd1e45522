// What `tessera simulate` is asked to play: a plan file, a job file, or a model with a layout from flags; the
// cluster; how the software works. Inside of this room.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cost/candidate.h"
#include "plan/plan.h"

namespace tessera::cli {

struct SimulateInput {
  cost::Setup setup;  // its cluster has as many devices as the plan has ranks
  cost::Candidate candidate;
  std::string model;                       // as the user named it
  std::optional<plan::Plan> plan;          // there once read
  bool keeps_schedule = false;             // from a plan file: its order of actions is the user's
  std::vector<std::int32_t> stage_layers;  // [stages]
  std::vector<double> rank_slowdown;       // [pp]; empty: none
};

// Throws Error{config} with every problem of flags and files.
[[nodiscard]] SimulateInput read_simulate_input(const SimulateFlags& flags);

}  // namespace tessera::cli
