#include "cli/launcher.h"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cstdlib>
#include <limits>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "comm/mpi/mpi_wire.h"

namespace tessera::cli {

namespace {

// Set by Open MPI's mpirun, by MPICH's and Intel's (PMI-1, PMI-2), and by srun with pmix or pmi2.
constexpr std::array<const char*, 3> kMpiRanks = {"OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK"};
constexpr std::array<const char*, 3> kMpiLocalRanks = {"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID",
                                                       "SLURM_LOCALID"};
// Ports of Slurm's jobs, which have no word for one.
constexpr std::int64_t kFirstPort = 20000;
constexpr std::int64_t kPorts = 20000;
constexpr const char* kPortVariable = "TESSERA_MASTER_PORT";

using Variable = std::pair<const char*, std::string>;  // its name and value

std::optional<Variable> get(const char* name) {
  const char* value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return Variable{name, value};
}

template <std::size_t N>
std::optional<Variable> first_of(const std::array<const char*, N>& names) {
  for (const char* name : names)
    if (auto v = get(name)) return v;
  return std::nullopt;
}

[[noreturn]] void refuse(std::string what, std::string where, std::string mend) {
  throw Error(ErrorKind::config, std::move(what), std::move(where), std::move(mend));
}

std::int64_t number_of(const std::string& text, const std::string& where, std::int64_t most) {
  std::int64_t value = 0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (code != std::errc() || end != text.data() + text.size() || value < 0 || value > most)
    refuse(fmt::format("\"{}\" is no number from 0 to {}", text, most), where,
           "see what sets it, or unset it");
  return value;
}

std::int32_t number_of(const Variable& v, std::int64_t most = std::numeric_limits<std::int32_t>::max()) {
  return static_cast<std::int32_t>(number_of(v.second, v.first, most));
}

Variable required(const char* name, const char* with, const char* mend) {
  auto v = get(name);
  if (!v) refuse(fmt::format("{} is set, but {} is not", with, name), name, mend);
  return *v;
}

// srun sets the number of a step's tasks, a batch script has none.
std::optional<Variable> slurm_step() {
  auto tasks = get("SLURM_STEP_NUM_TASKS");
  return tasks && tasks->second != "1" ? tasks : std::nullopt;
}

std::optional<Variable> mpi_rank() {
  auto rank = first_of(kMpiRanks);
  // Without MPI in this build the tasks of srun --mpi=pmix still find each other by Slurm's own variables.
  return rank && !comm::mpi::is_built_in() && slurm_step() ? std::nullopt : rank;
}

void check_rank(Launch& launch, const std::string& rank, const std::string& size) {
  if (launch.process < launch.processes) return;
  refuse(fmt::format("{}={} of {}={}", rank, launch.process, size, launch.processes), rank,
         fmt::format("ranks count from 0 to {}", launch.processes - 1));
}

std::pair<std::string, std::int32_t> split_endpoint(const std::string& text) {
  const std::string where = "--rdzv-endpoint " + text;
  const std::size_t colon = text.rfind(':');
  if (colon == std::string::npos || colon == 0)
    refuse(fmt::format("\"{}\" is no HOST:PORT", text), where, "give one, as in node1:29500 or [::1]:29500");
  std::string host = text.substr(0, colon);
  if (host.front() == '[' && host.back() == ']') host = host.substr(1, host.size() - 2);
  return {host, static_cast<std::int32_t>(number_of(text.substr(colon + 1), where, 65535))};
}

Launch by_flags(const RendezvousFlags& f) {
  std::string missing;
  const auto need = [&](bool given, const char* flag) {
    if (!given) missing += (missing.empty() ? "" : ", ") + std::string(flag);
  };
  need(!f.endpoint.empty(), "--rdzv-endpoint HOST:PORT");
  need(f.rank >= 0, "--rank R");
  need(f.world_size > 0, "--world-size N");
  if (!missing.empty())
    refuse("a process that is started by hand needs its rank, their number and where they meet",
           "missing: " + missing,
           "give all three in each process: --rdzv-endpoint node1:29500 --world-size 2 --rank 0");
  Launch launch{.by = Launcher::flags, .process = f.rank, .processes = f.world_size};
  check_rank(launch, "--rank", "--world-size");
  if (f.local_rank >= 0) launch.local_process = f.local_rank;
  std::tie(launch.host, launch.port) = split_endpoint(f.endpoint);
  return launch;
}

// Where two launchers tell a process different ranks, one of them was not meant. torchrun itself may well be
// a task of srun or mpirun, one a host.
void check_against(const Variable& rank, const std::optional<Variable>& other) {
  if (!other || get("TORCHELASTIC_RUN_ID") || number_of(*other) == number_of(rank)) return;
  refuse(
      fmt::format("RANK is {}, but {} is {}", rank.second, other->first, other->second), "RANK",
      "unset RANK and WORLD_SIZE to be started by srun or mpirun, or set them to the rank that is meant in "
      "each process");
}

Launch by_torchrun(const Variable& rank) {
  constexpr const char* kMend = "start with torchrun, which sets all of them, or unset RANK";
  const Variable size = required("WORLD_SIZE", "RANK", kMend);
  Launch launch{.by = Launcher::torchrun, .process = number_of(rank), .processes = number_of(size)};
  check_rank(launch, "RANK", "WORLD_SIZE");
  check_against(rank, first_of(kMpiRanks));
  if (slurm_step()) check_against(rank, get("SLURM_PROCID"));
  if (launch.processes == 1) return {};
  if (const auto local = get("LOCAL_RANK")) launch.local_process = number_of(*local);
  launch.host = required("MASTER_ADDR", "RANK", kMend).second;
  if (const auto port = get(kPortVariable)) {
    launch.port = number_of(*port, 65535);
  } else {
    launch.port = number_of(required("MASTER_PORT", "RANK", kMend), 65535);
    // torchrun's own store listens there.
    const auto store = get("TORCHELASTIC_USE_AGENT_STORE");
    if (store && store->second == "True") launch.port += 1;
  }
  const auto id = get("TORCHELASTIC_RUN_ID");
  const auto restart = get("TORCHELASTIC_RESTART_COUNT");
  if (id) launch.token = fmt::format("torchrun {} {}", id->second, restart ? restart->second : "0");
  return launch;
}

Launch by_slurm(const Variable& tasks) {
  constexpr const char* kMend = "start with srun, which sets all of them, or unset SLURM_STEP_NUM_TASKS";
  const Variable rank = required("SLURM_PROCID", tasks.first, kMend);
  Launch launch{.by = Launcher::slurm, .process = number_of(rank), .processes = number_of(tasks)};
  check_rank(launch, "SLURM_PROCID", tasks.first);
  if (const auto local = get("SLURM_LOCALID")) launch.local_process = number_of(*local);
  const Variable list = required("SLURM_STEP_NODELIST", tasks.first, kMend);
  launch.host = first_host(list.second);
  const Variable job = required("SLURM_JOB_ID", tasks.first, kMend);
  const auto id = number_of(job.second, job.first, std::numeric_limits<std::int64_t>::max());
  const auto port = get(kPortVariable);
  launch.port = port ? number_of(*port, 65535) : static_cast<std::int32_t>(kFirstPort + id % kPorts);
  const auto step = get("SLURM_STEP_ID");
  launch.token = fmt::format("slurm {} {}", id, step ? step->second : "");
  return launch;
}

Launch by_environment() {
  if (const auto rank = get("RANK")) return by_torchrun(*rank);
  if (const auto rank = mpi_rank()) {
    Launch launch{.by = Launcher::mpi, .process = number_of(*rank)};
    if (const auto local = first_of(kMpiLocalRanks)) launch.local_process = number_of(*local);
    return launch;
  }
  if (const auto tasks = slurm_step()) return by_slurm(*tasks);
  const auto size = get("WORLD_SIZE");
  if (size && number_of(*size) > 1)
    refuse(fmt::format("WORLD_SIZE is {}, but RANK is not set", size->second), "WORLD_SIZE",
           "start with torchrun, which sets both, or unset WORLD_SIZE");
  return {};
}

}  // namespace

Launch find_launch(const RendezvousFlags& flags) {
  const bool by_hand = !flags.endpoint.empty() || flags.rank >= 0 || flags.world_size > 0;
  Launch launch = by_hand ? by_flags(flags) : by_environment();
  if (!flags.id.empty()) launch.token = flags.id;
  if (launch.by == Launcher::flags && launch.processes == 1) return {};
  return launch;
}

std::string name(Launcher by) {
  switch (by) {
    case Launcher::none:
      return "one process";
    case Launcher::flags:
      return "--world-size";
    case Launcher::torchrun:
      return "torchrun";
    case Launcher::mpi:
      return "mpirun";
    case Launcher::slurm:
      return "srun";
  }
  return "";
}

bool has_launcher() {
  const auto size = get("WORLD_SIZE");
  return first_of(kMpiRanks) || slurm_step() || (get("RANK") && size && size->second != "1");
}

bool seems_first() {
  std::optional<Variable> rank = get("RANK");
  if (!rank) rank = first_of(kMpiRanks);
  if (!rank && slurm_step()) rank = get("SLURM_PROCID");
  return !rank || rank->second == "0";
}

std::string first_host(const std::string& list) {
  std::string host;
  std::size_t at = 0;
  const auto bad = [&] {
    refuse(fmt::format("\"{}\" is no list of hosts", list), "SLURM_STEP_NODELIST",
           "expected is one as a[01-04,7],b3");
  };
  while (at < list.size() && list[at] != ',') {
    if (list[at] != '[') {
      host += list[at++];
      continue;
    }
    const std::size_t close = list.find(']', at);
    const std::size_t end = list.find_first_of(",-]", at);
    if (close == std::string::npos || end == at + 1) bad();
    const std::string number = list.substr(at + 1, end - at - 1);
    if (number.find_first_not_of("0123456789") != std::string::npos) bad();
    host += number;
    at = close + 1;
  }
  if (host.empty() || host.find(']') != std::string::npos) bad();
  return host;
}

}  // namespace tessera::cli
