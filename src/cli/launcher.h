// Who started this process, and as which of how many: flags, or what torchrun, srun and mpirun set in the
// environment. Explicit flags win, then torchrun's variables, MPI's, Slurm's. Nothing is started here.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

namespace tessera::cli {

// Of processes that a user starts by hand.
struct RendezvousFlags {
  std::string endpoint;          // HOST:PORT of process 0
  std::int32_t rank = -1;        // of this process; -1: not given
  std::int32_t world_size = 0;   // processes; 0: not given
  std::int32_t local_rank = -1;  // among those of this host; -1: counted
  std::string id;                // the same in all processes of a job
  std::string bind;              // where process 0 listens; empty: at the endpoint's host
  double timeout = 300.0;        // seconds until all must be there
};

enum class Launcher : std::uint8_t { none, flags, torchrun, mpi, slurm };

struct Launch {
  Launcher by = Launcher::none;               // none: one process, alone
  std::int32_t process = 0;                   // its rank among the processes
  std::int32_t processes = 1;                 // of mpi: not known before it is joined
  std::optional<std::int32_t> local_process;  // its rank among those of its host, where the launcher says it
  // Of the rendezvous over TCP; mpi has its own.
  std::string host;
  std::int32_t port = 0;
  std::string token;

  [[nodiscard]] bool is_several() const { return by != Launcher::none; }
  [[nodiscard]] bool is_first() const { return process == 0; }
};
// Error{config} for what contradicts itself or is incomplete: flags, or variables of a launcher.
[[nodiscard]] Launch find_launch(const RendezvousFlags& flags);

// "mpirun", "torchrun", "srun", "--world-size"; for messages.
[[nodiscard]] std::string name(Launcher by);

// By the environment alone, whatever the flags say; these refuse nothing.
[[nodiscard]] bool has_launcher();
[[nodiscard]] bool seems_first();

// The first host of a Slurm list: "a[01-04,7],b3" has a01. Error{config} for what is none.
[[nodiscard]] std::string first_host(const std::string& list);

}  // namespace tessera::cli
