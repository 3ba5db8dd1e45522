// What the network between the processes of a job takes: collectives and messages between a rank of one host
// and a rank of the next, alone and beside compute.
#pragma once
#include <vector>

#include "comm/world.h"
#include "graph/measured.h"

namespace tessera::exec {

struct NetworkOptions {
  Seconds seconds = Seconds(0.25);  // of each size of each collective
};
// Collective over all processes; the one with rank 0 has the operators. REQUIRES: equally many ranks on every
// host, in order, on two
// hosts or more.
[[nodiscard]] graph::MeasuredNetwork measure_network(comm::World& world, std::int32_t hosts,
                                                     const NetworkOptions& options);

}  // namespace tessera::exec
