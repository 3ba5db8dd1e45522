#include "cli/stop_signals.h"

#include <fmt/format.h>
#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

namespace tessera::cli {

namespace {

sigset_t signals_of(const StopSignals::Options& options) {
  sigset_t set;
  sigemptyset(&set);
  const auto take = [&](int signal) {
    struct sigaction now {};
    const bool ignored = ::sigaction(signal, nullptr, &now) == 0 && now.sa_handler == SIG_IGN;
    if (!ignored) sigaddset(&set, signal);  // a shell's background job ignores SIGINT
  };
  take(SIGINT);
  take(SIGUSR1);
  if (options.takes_sigterm) take(SIGTERM);
  return set;
}

}  // namespace

std::string signal_name(int signal) {
  const char* name = ::sigabbrev_np(signal);
  return name != nullptr ? fmt::format("SIG{}", name) : fmt::format("signal {}", signal);
}

void end_by(int signal) {
  sigset_t set;
  sigemptyset(&set);
  sigaddset(&set, signal);
  ::signal(signal, SIG_DFL);
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
  ::raise(signal);
  std::_Exit(128 + signal);
}

StopSignals::StopSignals(const Options& options) : options_(options), parent_(::getppid()) {
  const sigset_t set = signals_of(options_);
  ::pthread_sigmask(SIG_BLOCK, &set, nullptr);  // of all threads to come
  thread_ = std::jthread([this](const std::stop_token& stop) { loop(stop); });
}

StopSignals::~StopSignals() {
  thread_.request_stop();
  thread_.join();
  const sigset_t set = signals_of(options_);
  ::pthread_sigmask(SIG_UNBLOCK, &set, nullptr);
}

void StopSignals::ask(int signal) {
  int none = 0;
  if (!armed_ || !asked_.compare_exchange_strong(none, signal)) {
    if (options_.speaks && ::isatty(STDOUT_FILENO) == 1) {
      std::fputs("\n", stdout);  // a progress line may stand open
      std::fflush(stdout);
    }
    end_by(signal);
  }
  if (!options_.speaks) return;
  std::fflush(stdout);
  std::fputs(
      fmt::format("tessera: {}: leaving after this step, with a checkpoint where the job has a folder for "
                  "them; once more ends at once\n",
                  signal_name(signal))
          .c_str(),
      stderr);
}

void StopSignals::loop(const std::stop_token& stop) {
  const sigset_t set = signals_of(options_);
  constexpr timespec kPatience{.tv_sec = 0, .tv_nsec = 50'000'000};
  while (!stop.stop_requested()) {
    const int signal = ::sigtimedwait(&set, nullptr, &kPatience);
    if (signal > 0) ask(signal);
    // The launcher is gone: nobody else would end this process.
    if (options_.dies_with_parent && ::getppid() != parent_) end_by(SIGKILL);
  }
}

}  // namespace tessera::cli
