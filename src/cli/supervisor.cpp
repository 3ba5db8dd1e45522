#include "cli/supervisor.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "base/error.h"
#include "ckpt/step_folder.h"
#include "cli/report_error.h"
#include "cli/stop_signals.h"

namespace tessera::cli {

namespace {

constexpr int kNotStarted = 127;

// Without the flags of the supervisor itself.
std::vector<std::string> for_child(const std::vector<std::string>& arguments) {
  std::vector<std::string> kept;
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const std::string& a = arguments[i];
    if (a == "--restarts" || a == "--launch") {
      ++i;
    } else if (!a.starts_with("--restarts=") && !a.starts_with("--launch=")) {
      kept.push_back(a);
    }
  }
  return kept;
}

std::vector<std::string> command_of(const Supervision& s, bool again) {
  std::error_code code;
  const std::filesystem::path self = std::filesystem::read_symlink("/proc/self/exe", code);
  if (code)
    throw Error(ErrorKind::io, code.message(), "/proc/self/exe", "mount /proc, or leave out --restarts");
  std::vector<std::string> words = command_words(s.launcher);
  words.push_back(self.string());
  for (std::string& a : for_child(s.arguments)) words.push_back(std::move(a));
  // The first run may refuse a folder with checkpoints; the next ones go on from them.
  if (again) words.insert(words.end(), {"--set", "checkpoint.resume=true"});
  return words;
}

[[noreturn]] void become(const std::vector<std::string>& words, bool launcher, const sigset_t& mask,
                         pid_t parent) {
  std::vector<char*> argv;
  for (const std::string& w : words) argv.push_back(const_cast<char*>(w.c_str()));
  argv.push_back(nullptr);
  ::prctl(PR_SET_PDEATHSIG, launcher ? SIGTERM : SIGKILL);
  if (::getppid() != parent) ::_exit(kNotStarted);  // it died before
  if (launcher) {
    // A terminal's Ctrl-C is the supervisor's alone: a launcher would end all processes by it.
    ::setpgid(0, 0);
    const int nothing = ::open("/dev/null", O_RDONLY | O_CLOEXEC);
    if (nothing >= 0) ::dup2(nothing, STDIN_FILENO);
  }
  ::sigprocmask(SIG_SETMASK, &mask, nullptr);
  ::execvp(argv[0], argv.data());
  ::_exit(kNotStarted);
}

// One run and the signals that come meanwhile.
class Watch {
 public:
  explicit Watch(bool launcher) : launcher_(launcher) {
    sigemptyset(&set_);
    for (const int signal : {SIGTERM, SIGUSR1, SIGINT, SIGCHLD}) sigaddset(&set_, signal);
    ::sigprocmask(SIG_BLOCK, &set_, &before_);
  }
  ~Watch() { ::sigprocmask(SIG_SETMASK, &before_, nullptr); }
  Watch(const Watch&) = delete;
  Watch& operator=(const Watch&) = delete;

  [[nodiscard]] int asked() const { return asked_; }  // to leave, so many times

  // The status of waitpid.
  int run(const std::vector<std::string>& words) {
    const pid_t parent = ::getpid();
    const pid_t child = ::fork();
    if (child < 0)
      throw Error(ErrorKind::io, fmt::format("cannot start a process: {}", std::strerror(errno)),
                  words.front(), "raise the limit of processes (ulimit -u)");
    if (child == 0) become(words, launcher_, before_, parent);
    int status = 0;
    constexpr timespec kPatience{.tv_sec = 0, .tv_nsec = 200'000'000};
    while (true) {
      siginfo_t info{};
      const int signal = ::sigtimedwait(&set_, &info, &kPatience);
      if (::waitpid(child, &status, WNOHANG) == child) return status;
      if (signal > 0 && signal != SIGCHLD) pass_on(signal, info, child);
    }
  }

 private:
  void pass_on(int signal, const siginfo_t& info, pid_t child) {
    ++asked_;
    if (launcher_) {
      ::kill(child, asked_ == 1 ? SIGUSR1 : SIGTERM);
    } else if (signal != SIGINT || info.si_code <= 0) {  // a terminal gives SIGINT to the child itself
      ::kill(child, signal);
    }
  }

  bool launcher_;
  sigset_t set_{}, before_{};
  int asked_ = 0;
};

std::string how_it_ended(int status) {
  if (WIFSIGNALED(status)) return fmt::format("was killed by {}", signal_name(WTERMSIG(status)));
  const int code = WEXITSTATUS(status);
  if (code > 128 && code < 128 + 32) return fmt::format("was killed by {}", signal_name(code - 128));
  return fmt::format("failed with exit code {}", code);
}

std::string where_it_goes_on(const std::filesystem::path& folder) {
  const std::vector<ckpt::StepFolder> steps = ckpt::step_folders(folder);
  return steps.empty() ? "from its beginning: there is no checkpoint yet"
                       : "from " + steps.front().path.string();
}

}  // namespace

std::vector<std::string> command_words(const std::string& line) {
  std::vector<std::string> words;
  char quote = 0;
  bool open = false;
  for (const char c : line) {
    if (quote == 0 && (c == '\'' || c == '"')) {
      quote = c;
      if (!open) words.emplace_back();
      open = true;
    } else if (c == quote) {
      quote = 0;
    } else if (quote == 0 && (c == ' ' || c == '\t' || c == '\n')) {
      open = false;
    } else {
      if (!open) words.emplace_back();
      open = true;
      words.back() += c;
    }
  }
  return words;
}

int supervise(const Supervision& s) {
  Watch watch(!s.launcher.empty());
  for (std::int32_t done = 0;; ++done) {
    const std::vector<std::string> words = command_of(s, done > 0);
    const int status = watch.run(words);
    const int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    if (code == kNotStarted)
      throw Error(ErrorKind::config, fmt::format("cannot start \"{}\"", words.front()),
                  s.launcher.empty() ? "tessera" : "--launch " + s.launcher,
                  "give a command that is in PATH, as in --launch 'mpirun -n 4'");
    if (code == 0 || code == kWrongUse || code == kDiverged || code == kLeft) return code;
    if (watch.asked() > 0 || s.restarts == 0) return code;
    std::fflush(stdout);
    if (done == s.restarts) {
      std::fputs(fmt::format("tessera: the run {}; it was restarted {} times, and no more (--restarts)\n",
                             how_it_ended(status), done)
                     .c_str(),
                 stderr);
      return code;
    }
    std::fputs(fmt::format("tessera: the run {}; restart {} of {}, {}\n", how_it_ended(status), done + 1,
                           s.restarts, where_it_goes_on(s.checkpoints))
                   .c_str(),
               stderr);
  }
}

}  // namespace tessera::cli
