// Schedule, virtual stages and layers of each in torchtitan's keys. Inside of this room.
#pragma once
#include "frameworks/internal.h"

namespace tessera::frameworks {

void write_torchtitan_stages(const Launch& l, Settings& out);
// REQUIRES in.launch.job.parallel.pp set.
void read_torchtitan_stages(Arguments& args, Interpretation& in);

}  // namespace tessera::frameworks
