// Pipeline degrees, virtual stages and layers of each from Megatron-LM's arguments. Inside of this room.
#pragma once
#include <algorithm>
#include <functional>

#include "frameworks/internal.h"

namespace tessera::frameworks {

// REQUIRES in.launch.job.parallel.pp set. Sets vpp, stage_layers (empty: even) and schedule.
void read_megatron_stages(Arguments& args, Interpretation& in);

}  // namespace tessera::frameworks
