// A parent that starts a training run again from its newest checkpoint when it dies. The run is a child of
// its own: `tessera train ...`, or a launcher with it ("mpirun -n 4").
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace tessera::cli {

struct Supervision {
  std::int32_t restarts = 0;           // in all
  std::string launcher;                // empty: none
  std::vector<std::string> arguments;  // of tessera, with or without --restarts and --launch
  std::filesystem::path checkpoints;   // for what is said
};

// Gives the exit code of the last run; 128 + the signal that ended it. Not started again: a run that ended
// well, wrong use, a loss that diverged, a run that was asked to leave. SIGTERM, SIGUSR1 and SIGINT are
// passed on (to a launcher as SIGUSR1, which it gives to all processes; the second as SIGTERM). The child
// ends with this process, however that ends.
[[nodiscard]] int supervise(const Supervision& supervision);

// The words of a command line; quotes keep blanks.
[[nodiscard]] std::vector<std::string> command_words(const std::string& line);

}  // namespace tessera::cli
