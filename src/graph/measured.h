// A measured operator: what a machine took for an operator as the graph describes it. The workshop measures,
// the drawing office fits its constants to it; neither knows the other.
#pragma once
#include <cstdint>
#include <vector>

#include "base/quantity.h"
#include "graph/graph.h"

namespace tessera::graph {

// op.name says which: "forward", "input gradient", "weight gradient" of products; "attention", "attention
// backward"; the name of a memory-bound kernel; "adamw", "clear", "pack"; "call" for one that does nothing;
// and for collectives op.call with op.bytes_sent.
struct MeasuredOp {
  Op op;
  std::int32_t ranks = 1;  // of the collective
  Seconds seconds;         // of one, the best of many
};

struct MeasuredMachine {
  std::int32_t cores = 1;
  Bytes memory;  // of the whole machine
  FlopsPerSecond fma_f32;
  BytesPerSecond triad;      // of one core alone
  BytesPerSecond triad_all;  // of one core when all run
  std::vector<MeasuredOp> ops;
};

// Between two hosts.
struct MeasuredNetwork {
  std::int32_t hosts = 2;
  std::int32_t ranks_per_host = 1;
  std::vector<MeasuredOp> ops;     // collectives and messages of one rank of a host and one of the next
  double compute_slowdown = 0.0;   // share of a core's compute lost while an all-reduce runs beside it
  double transfer_slowdown = 0.0;  // an all-reduce beside compute takes 1 + so much
  // An all-reduce of all ranks, flat (one ring) and hierarchical (scattered inside of each host, summed
  // across, gathered inside); 0 with one rank a host.
  Bytes reduced;
  Seconds flat_all_reduce, hierarchical_all_reduce;
};

}  // namespace tessera::graph
