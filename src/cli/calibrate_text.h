// The tables of tessera calibrate: what was fitted, and predicted steps beside measured ones.
#pragma once
#include <string>
#include <vector>

#include "cli/calibrate_command.h"
#include "cost/machine_fit.h"

namespace tessera::cli {

struct CheckResult {
  std::string name;
  double predicted = 0, measured = 0, median = 0;  // seconds; measured: the fastest step
  double tokens = 0;
  [[nodiscard]] double error() const { return predicted / measured - 1.0; }
};

[[nodiscard]] std::string fit_text(const std::vector<cost::FitRow>& rows, const CalibrateFlags& flags,
                                   const Terminal& terminal);
[[nodiscard]] std::string check_text(const std::vector<CheckResult>& results, const CalibrateFlags& flags,
                                     const Terminal& terminal);

}  // namespace tessera::cli
