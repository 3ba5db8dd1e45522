// Jobs of several processes: joined by MPI where mpirun or srun with its plugin started them, else over TCP.
// A process that is alone starts nothing here, and its ranks are threads.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cli/launcher.h"
#include "cli/stop_signals.h"
#include "comm/message/process_world.h"

namespace tessera::cli {

struct LaunchFlags {
  std::int32_t ranks_per_process = 0;  // 0: not given, 1
  bool fast_reductions = false;
  double silence = 20.0;   // seconds after which a process counts as lost
  double timeout = 120.0;  // seconds that one wait may take
  RendezvousFlags rendezvous;
};

// Error{config} for a command that would run once in each process, unaware of the others.
void require_one_process(std::string_view command);

// Runs body(world, signals) in every process of the job, whose ranks are job_ranks in all (0: as many as
// there are). Only the first process writes to standard output and standard error. An error in any process
// ends all of them: one tells it, the exit code is 1, and this does not return. A process whose launcher is
// gone ends, too.
int run_launched(const Launch& launch, const LaunchFlags& flags, std::int32_t job_ranks,
                 const std::function<int(comm::ProcessWorld&, StopSignals&)>& body);

// What is to be added to a rank of this process, so that the ranks of its host count from 0 without a gap:
// for the choice of a GPU. Null world: 0.
[[nodiscard]] std::int32_t shift_of_local_ranks(const Launch& launch, const comm::ProcessWorld* world);

}  // namespace tessera::cli
