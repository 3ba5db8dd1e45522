// What rows are priced with: calibrations, clusters and models by name, read once. Read-only afterwards:
// threads may share it.
#pragma once
#include <functional>
#include <map>
#include <string>

#include "cost/calibration.h"
#include "spec/cluster.h"
#include "spec/model.h"

namespace tessera::validate {

using Calibrations = std::map<std::string, cost::Calibration, std::less<>>;

struct Library {
  Calibrations calibrations;
  std::map<std::string, spec::ClusterSpec, std::less<>> clusters;
  std::map<std::string, spec::ModelSpec, std::less<>> models;
};
[[nodiscard]] Library shipped_library();

}  // namespace tessera::validate
