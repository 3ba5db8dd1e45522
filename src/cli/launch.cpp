#include "cli/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <string_view>

#include "cli/report_error.h"
#include "comm/mpi/mpi_wire.h"

namespace tessera::cli {

namespace {

// Set by Open MPI's mpirun, by MPICH's and Intel's (PMI-1, PMI-2), and by srun with pmix or pmi2.
constexpr std::array<const char*, 3> kRanks = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};

const char* launched_rank() {
  for (const char* name : kRanks)
    if (const char* rank = std::getenv(name)) return rank;
  return nullptr;
}

// Standard output and error of a process whose words would only repeat the first one's.
class Silence {
 public:
  explicit Silence(bool silent) : error_(silent ? ::dup(STDERR_FILENO) : -1) {
    if (error_ < 0) return;
    const int nothing = ::open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nothing < 0) return;
    (void)::dup2(nothing, STDOUT_FILENO);
    (void)::dup2(nothing, STDERR_FILENO);
    ::close(nothing);
  }
  void end() {
    if (error_ >= 0) (void)::dup2(error_, STDERR_FILENO);
  }

 private:
  int error_;
};

std::unique_ptr<comm::message::Wire> open_wire() {
  try {
    return comm::mpi::open_wire();
  } catch (const Error& e) {
    // All processes fail alike, and cannot talk about it.
    if (!is_first()) std::exit(kFailed);
    throw;
  }
}

void check_size(const LaunchFlags& flags, std::int32_t processes, std::int32_t each, std::int32_t job_ranks) {
  if (job_ranks == 0 || processes * each == job_ranks) return;
  std::string mend;
  if (job_ranks % each == 0)
    mend = fmt::format("start {} processes (mpirun -n {})", job_ranks / each, job_ranks / each);
  if (job_ranks % processes == 0)
    mend += fmt::format("{}give --ranks-per-process {}", mend.empty() ? "" : ", or ", job_ranks / processes);
  if (processes == 1)
    mend +=
        "; when more were started, they do not know of each other: use the mpirun of the MPI that this "
        "program was built with, under Slurm srun --mpi=pmix";
  throw Error(
      ErrorKind::config,
      fmt::format("{} process{} of {} rank{} make {} ranks, but the job has {}", processes,
                  processes == 1 ? "" : "es", each, each == 1 ? "" : "s", processes * each, job_ranks),
      flags.ranks_per_process > 0 ? "--ranks-per-process" : "mpirun", mend);
}

}  // namespace

bool is_launched() {
  return launched_rank() != nullptr;
}

void require_joined() {
  if (is_launched()) return;
  const char* tasks = std::getenv("SLURM_STEP_NUM_TASKS");  // srun sets it, a batch script has none
  if (tasks == nullptr || std::string_view(tasks) == "1") return;
  // Each would run the whole job, into the same folders.
  const char* rank = std::getenv("SLURM_PROCID");
  if (rank != nullptr && std::string_view(rank) != "0") std::exit(kWrongUse);
  throw Error(ErrorKind::config, fmt::format("srun started {} tasks that do not know of each other", tasks),
              "srun", "add --mpi=pmix (Open MPI) or --mpi=pmi2 (MPICH) to srun, or start one task");
}

bool is_first() {
  const char* rank = launched_rank();
  return rank == nullptr || std::string_view(rank) == "0";
}

void require_one_process(std::string_view command) {
  require_joined();
  if (!is_launched()) return;
  throw Error(ErrorKind::config,
              fmt::format("tessera {} runs in one process, its ranks are threads", command), "mpirun",
              fmt::format("start tessera {} without mpirun or srun", command));
}

int run_launched(const LaunchFlags& flags, std::int32_t job_ranks,
                 const std::function<int(comm::ProcessWorld&, StopSignals&)>& body) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);  // of all threads to come; the world takes it
  StopSignals signals({.speaks = is_first(), .takes_sigterm = false, .dies_with_parent = true});
  std::unique_ptr<comm::message::Wire> wire = open_wire();
  const std::int32_t processes = wire->processes();
  const std::int32_t each = flags.ranks_per_process > 0 ? flags.ranks_per_process : 1;
  Silence silence(wire->process() != 0);
  comm::ProcessWorld world(std::move(wire), {.ranks_per_process = each,
                                             .timeout = Seconds(flags.timeout),
                                             .silence = Seconds(flags.silence),
                                             .fast_reductions = flags.fast_reductions,
                                             .on_sigterm = [&] { signals.ask(SIGTERM); }});
  try {
    check_size(flags, processes, each, job_ranks);
    return body(world, signals);
  } catch (...) {
    const Error error = as_error(std::current_exception());
    world.fail(error);
    int code = kFailed;
    if (world.speaks()) {
      silence.end();
      std::fflush(stdout);
      code = print_error(error);
    }
    world.end(code);
    std::_Exit(code);
  }
}

}  // namespace tessera::cli
