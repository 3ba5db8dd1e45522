// Jobs of several processes: found by what mpirun and srun set in the environment, joined by MPI. Without
// them nothing here is started, and the ranks are threads of this process.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "cli/stop_signals.h"
#include "comm/message/process_world.h"

namespace tessera::cli {

struct LaunchFlags {
  std::int32_t ranks_per_process = 0;  // 0: not given, 1
  bool fast_reductions = false;
  double silence = 20.0;   // seconds after which a process counts as lost
  double timeout = 120.0;  // seconds that one wait may take
};

// Error{config} when srun started several tasks without an MPI plugin: they cannot find each other, and each
// would take itself for the whole job.
void require_joined();
// Started by mpirun, mpiexec or srun.
[[nodiscard]] bool is_launched();
// Not launched, or the first process. For what happens before the processes are joined.
[[nodiscard]] bool is_first();

// Error{config} for a command that would run once in each process, unaware of the others.
void require_one_process(std::string_view command);

// Runs body(world, signals) in every process of the job, whose ranks are job_ranks in all (0: as many as
// there are). Only the first process writes to standard output and standard error. An error in any process
// ends all of them: one tells it, the exit code is 1, and this does not return. A process whose launcher is
// gone ends, too.
int run_launched(const LaunchFlags& flags, std::int32_t job_ranks,
                 const std::function<int(comm::ProcessWorld&, StopSignals&)>& body);

}  // namespace tessera::cli
