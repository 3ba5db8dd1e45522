// The tests of a room over MPI: mpirun -n P PROGRAM [--ranks-per-process=R]. All processes run the same tests
// in the same order; each test meets in the one world.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "comm/mpi/mpi_wire.h"
#include "comm/mpi/world.h"

int main(int argc, char** argv) {
  tessera::comm::ProcessWorld::Options options{.timeout = tessera::Seconds(60.0)};
  for (int i = 1; i < argc; ++i) {
    if (std::strncmp(argv[i], "--ranks-per-process=", 20) == 0)
      options.ranks_per_process = std::atoi(argv[i] + 20);
    if (std::strcmp(argv[i], "--fast-reductions") == 0) options.fast_reductions = true;
  }
  auto& world = tessera::comm::mpi_world();
  world = std::make_unique<tessera::comm::ProcessWorld>(tessera::comm::mpi::open_wire(), options);
  if (world->process() != 0) GTEST_FLAG_SET(brief, true);
  ::testing::InitGoogleTest(&argc, argv);
  const int failed = RUN_ALL_TESTS();
  world.reset();
  return failed;
}
