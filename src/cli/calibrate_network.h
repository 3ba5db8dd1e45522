// tessera calibrate in several processes: measures the network between hosts, adds it to a machine's files,
// and with
// --check trains small models over it.
#pragma once
#include "cli/calibrate_command.h"

namespace tessera::cli {

int calibrate_network(const Launch& launch, const CalibrateFlags& flags, const Terminal& terminal);

}  // namespace tessera::cli
