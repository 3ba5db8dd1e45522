// SIGTERM, SIGUSR1 (Slurm's warning) and SIGINT while a job trains: the first one asks it to leave after the
// running step, with a checkpoint; the second ends the process at once. Before training they end it at once,
// as without this.
//
//   StopSignals signals;        // in main's thread, before any other thread is started
//   signals.arm();  train({.leave = &signals.asked()});  signals.disarm();
#pragma once
#include <sys/types.h>

#include <atomic>
#include <string>
#include <thread>

namespace tessera::cli {

class StopSignals {
 public:
  struct Options {
    bool speaks = true;         // says on standard error what a signal does
    bool takes_sigterm = true;  // false: somebody else takes it, and calls ask()
    bool dies_with_parent = false;
  };
  explicit StopSignals(const Options& options);
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  void arm() { armed_ = true; }
  void disarm() { armed_ = false; }
  [[nodiscard]] const std::atomic<int>& asked() const { return asked_; }  // the signal; 0: none
  void ask(int signal);  // as if it had come. Does not return when it ends the process

 private:
  void loop(const std::stop_token& stop);

  Options options_;
  pid_t parent_;
  std::atomic<bool> armed_ = false;
  std::atomic<int> asked_ = 0;
  std::jthread thread_;  // last: it uses all of the above
};

[[nodiscard]] std::string signal_name(int signal);  // "SIGTERM"

// Ends this process by the signal, as if nobody had listened for it.
[[noreturn]] void end_by(int signal);

}  // namespace tessera::cli
