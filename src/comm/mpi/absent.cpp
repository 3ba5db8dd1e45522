#include "base/error.h"
#include "comm/mpi/mpi_wire.h"

namespace tessera::comm::mpi {

bool is_built_in() {
  return false;
}

std::unique_ptr<message::Wire> open_wire() {
  throw Error(
      ErrorKind::unsupported, "this build of Tessera has no MPI", "tessera",
      "install MPI (Debian: libopenmpi-dev openmpi-bin) and build again, or start by torchrun, srun or "
      "with --rdzv-endpoint, which need no MPI");
}

}  // namespace tessera::comm::mpi
