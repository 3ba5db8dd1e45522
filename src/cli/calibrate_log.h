// tessera calibrate --from-log, --from-csv: the calibration that meets runs which the user has measured.
#pragma once
#include "cli/calibrate_command.h"

namespace tessera::cli {

// REQUIRES from_log or from_csv.
int calibrate_from_runs(const CalibrateFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
