// What collectives of one communicator take: all-gather, reduce-scatter, all-reduce, all-to-all and, of two
// ranks, messages, of several sizes.
#pragma once
#include <vector>

#include "comm/communicator.h"
#include "graph/measured.h"

namespace tessera::exec {

struct CollectiveOptions {
  Seconds seconds;                                           // of each size of each collective
  std::vector<std::int64_t> kib = {4, 64, 512, 2048, 8192};  // of the whole tensor
  // Calls in one timing: short ones need several. Across a slow link one, after a moment in which the link
  // rests, as between the layers of a model.
  std::int32_t repeats = 4;
  // A message counts until its receiver has said so, not only until its memory is free (a network's may lie
  // in the buffers of the system).
  bool acknowledged = false;
};
// Collective over `comm`. The best wall time of rank 0, in the order of measuring; the same on every rank.
[[nodiscard]] std::vector<graph::MeasuredOp> measure_collectives(comm::Communicator& comm,
                                                                 const CollectiveOptions& options);

}  // namespace tessera::exec
