#include "cli/launch.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>

#include "cli/report_error.h"
#include "comm/mpi/mpi_wire.h"
#include "comm/tcp/tcp_wire.h"

namespace tessera::cli {

namespace {

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

std::unique_ptr<comm::message::Wire> open_wire(const Launch& launch, const RendezvousFlags& flags) {
  if (launch.by != Launcher::mpi)
    return comm::tcp::open_wire({.host = launch.host,
                                 .port = launch.port,
                                 .process = launch.process,
                                 .processes = launch.processes,
                                 .token = launch.token,
                                 .version = TESSERA_VERSION,
                                 .timeout = Seconds(flags.timeout),
                                 .bind = flags.bind},
                                [](std::int32_t exit_code) { std::_Exit(exit_code); });
  try {
    return comm::mpi::open_wire();
  } catch (const Error& e) {
    // All processes fail alike, and cannot talk about it.
    if (!launch.is_first()) std::exit(kFailed);
    throw;
  }
}

void check_size(const Launch& launch, const LaunchFlags& flags, std::int32_t processes, std::int32_t each,
                std::int32_t job_ranks) {
  if (job_ranks == 0 || processes * each == job_ranks) return;
  std::string mend;
  if (job_ranks % each == 0) {
    mend = fmt::format("start {} processes", job_ranks / each);
    if (launch.by == Launcher::mpi) mend += fmt::format(" (mpirun -n {})", job_ranks / each);
  }
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
      flags.ranks_per_process > 0 ? "--ranks-per-process" : name(launch.by), mend);
}

}  // namespace

void require_one_process(std::string_view command) {
  const Launch launch = find_launch({});
  if (!launch.is_several()) return;
  throw Error(ErrorKind::config,
              fmt::format("tessera {} runs in one process, its ranks are threads", command), name(launch.by),
              fmt::format("start tessera {} without {}", command, name(launch.by)));
}

std::int32_t shift_of_local_ranks(const Launch& launch, const comm::ProcessWorld* world) {
  if (world == nullptr) return 0;
  const auto each = static_cast<std::int32_t>(world->local_ranks().size());
  return launch.local_process.value_or(world->process_on_host()) * each - world->local_ranks().front().value;
}

int run_launched(const Launch& launch, const LaunchFlags& flags, std::int32_t job_ranks,
                 const std::function<int(comm::ProcessWorld&, StopSignals&)>& body) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, SIGTERM);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);  // of all threads to come; the world takes it
  StopSignals signals({.speaks = launch.is_first(),
                       .takes_sigterm = false,
                       .dies_with_parent = launch.by != Launcher::flags});  // a shell may go
  std::unique_ptr<comm::message::Wire> wire = open_wire(launch, flags.rendezvous);
  const std::int32_t processes = wire->processes();
  const std::int32_t each = flags.ranks_per_process > 0 ? flags.ranks_per_process : 1;
  Silence silence(wire->process() != 0);
  comm::ProcessWorld world(std::move(wire), {.ranks_per_process = each,
                                             .timeout = Seconds(flags.timeout),
                                             .silence = Seconds(flags.silence),
                                             .fast_reductions = flags.fast_reductions,
                                             .on_sigterm = [&] { signals.ask(SIGTERM); }});
  try {
    check_size(launch, flags, processes, each, job_ranks);
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
