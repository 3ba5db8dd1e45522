// From what the network between two hosts was measured at to the cluster and calibration that predict jobs on
// it: the machine's own files with a tier "network" above. As everywhere in the fit, the constants are those
// that collective_time reads, found by that very function. Pure, thread safe.
//
//   network       bandwidth and latency of the ring collectives; nics: 1, the ranks of a host share it
//   links         all_to_all_efficiency where a host has one rank (else it is that of threads)
//   step          overlap_slowdown: of compute beside a reduction over the network; sustained_network: rate
//   of
//                 the reduction there beside its own benchmark
#pragma once
#include <string>
#include <vector>

#include "cost/machine_fit.h"
#include "graph/measured.h"

namespace tessera::cost {

// Error{config} when the network was not measured or its times are none.
[[nodiscard]] MachineModel fit_network(const MachineModel& machine, const graph::MeasuredNetwork& network,
                                       const std::string& name);

[[nodiscard]] std::vector<FitRow> fit_rows(const MachineModel& model, const graph::MeasuredNetwork& network);

}  // namespace tessera::cost
