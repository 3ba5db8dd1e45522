// tessera plan: flags and the command.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "cli/question.h"

namespace tessera::cli {

struct PlanFlags : QuestionFlags {
  std::int32_t top = 10;
  double memory = 1.0;  // of the usable memory
  std::int32_t threads = 0;
  bool all_choices = false;  // rank every choice for itself, not one a layout
  bool closed_form = false;  // without the simulator
  std::string output;        // plan.json of the best one
  std::string against;       // a layout of the user's: "tp=8,pp=4"
  bool what_if = false;      // the table of single changes
  bool robust = false;       // the choice under scenarios, too
  std::string quantile;      // of it; empty: the default
  std::int32_t scenarios = 64;
  double network_spread = 0.2, routing_excess = 0.7;  // of the scenarios
  std::string from;                                   // a launch file of the user's, to judge
  std::string emit;                                   // the best one as arguments of this framework
  std::string emit_to;                                // into this file; empty: instead of the page
  bool json = false;
};
int plan(const PlanFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
