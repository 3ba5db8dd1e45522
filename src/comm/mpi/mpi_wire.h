// The wire over MPI. The only place that knows MPI; builds without it have absent.cpp instead.
#pragma once
#include <memory>

#include "comm/message/wire.h"

namespace tessera::comm::mpi {

[[nodiscard]] bool is_built_in();

// Starts MPI: once in a process. Error{unsupported} in a build without MPI, Error{comm} when MPI cannot
// start.
[[nodiscard]] std::unique_ptr<message::Wire> open_wire();

}  // namespace tessera::comm::mpi
