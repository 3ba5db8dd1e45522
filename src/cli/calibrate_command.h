// tessera calibrate: measures this machine, fits a calibration and a cluster to it, and with --check trains
// small models to compare predicted with measured steps; or fits a calibration to runs that were measured.
#pragma once
#include <string>
#include <vector>

#include "cli/commands.h"

namespace tessera::cli {

struct CalibrateFlags {
  std::string output = "machine";     // folder: NAME.yaml and cluster.yaml
  std::string name = "this-machine";  // of the calibration and the cluster
  std::int32_t cores = 0;             // 0: all that this process may use
  bool quick = false;                 // seconds instead of half a minute
  bool check = false;
  std::int32_t check_steps = 6;  // each case, beside one to warm up
  std::string only;              // cases with this in their name
  bool markdown = false;
  bool json = false;
  // Instead of measuring: runs that were measured before.
  std::vector<std::string> from_log, plan;  // a plan a log, or one for all
  std::string from_csv;
  std::string cluster, practice, base;  // beside the plans; base: calibration to start from
  std::vector<std::string> constants;   // to fit; empty: all
  // With several processes: folder of a calibration of one of the machines.
  std::string machine;
  LaunchFlags launch;
};
int calibrate(const CalibrateFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
