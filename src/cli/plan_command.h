// tessera plan: flags and the command.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cli/commands.h"
#include "graph/practice.h"

namespace tessera::cli {

struct PlanFlags {
  std::string model, cluster;          // shipped ones by name, or config.json and cluster YAML
  std::int32_t devices = 0;            // 0: of the cluster
  std::int64_t global_batch_size = 0;  // 0: about 4 M tokens, a multiple of the devices
  std::int64_t sequence_length = 0;    // 0: what the model was made for, at most 8192
  std::string precision = "bf16";
  double capacity_factor = 0.0;
  std::string practice = graph::kDefaultPractice;
  std::string routing = "balanced";
  std::string placement;          // where experts live; empty: in order
  std::string calibration;        // file instead of the device's shipped one
  std::vector<std::string> pins;  // "tp=8"
  std::int32_t top = 10;
  double memory = 1.0;  // of the usable memory
  std::int32_t threads = 0;
  bool all_choices = false;  // rank every choice for itself, not one a layout
  bool closed_form = false;  // without the simulator
  std::string output;        // plan.json of the best one
  std::string against;       // a layout of the user's: "tp=8,pp=4"
  bool what_if = false;      // the table of single changes
  bool json = false;
};
int plan(const PlanFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
