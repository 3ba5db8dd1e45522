// Runs the built program as a user does: in a folder of its own, without a home folder or a terminal, both
// outputs and the exit code apart, stopped when it hangs.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <functional>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/random.h"

namespace tessera::cli {

namespace fs = std::filesystem;

struct Outcome {
  int code = -1;       // exit code; -1 when a signal ended it
  int signal = 0;      // that signal
  std::string output;  // standard output
  std::string errors;  // standard error
};

// "" when it cannot be read, as what /proc says of a process that ends meanwhile.
inline std::string text_of(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}

// The words of a command line; '...' keeps blanks.
inline std::vector<std::string> words_of(const std::string& line) {
  std::vector<std::string> words;
  bool open = false, quoted = false;
  for (const char c : line) {
    if (c == '\'') {
      quoted = !quoted;
      if (quoted && !open) words.emplace_back();
      open = true;
    } else if (c == ' ' && !quoted) {
      open = false;
    } else {
      if (!open) words.emplace_back();
      open = true;
      words.back() += c;
    }
  }
  return words;
}

struct RunOptions {
  std::int64_t file_limit = 0;           // bytes that a file may grow to, as a full disk does; 0: no limit
  std::vector<std::string> environment;  // "NAME=value"
  std::function<bool()> before;          // in the new process; false: it is not started
};

// A running program; its outputs go to files of its folder.
class Running {
 public:
  Running(const fs::path& folder, const std::string& arguments, std::int64_t file_limit = 0)
      : Running(folder, arguments, RunOptions{.file_limit = file_limit}) {}
  Running(const fs::path& folder, const std::string& arguments, const RunOptions& options) : folder_(folder) {
    const std::int64_t file_limit = options.file_limit;
    std::vector<std::string> words = words_of(arguments);
    words.insert(words.begin(), "tessera");
    std::vector<char*> argv;
    for (std::string& w : words) argv.push_back(w.data());
    argv.push_back(nullptr);
    const std::string out = folder / ".out", err = folder / ".err";
    std::vector<std::string> environment = options.environment;
    std::vector<char*> envp;
    for (std::string& e : environment) envp.push_back(e.data());
    envp.push_back(nullptr);
    process_ = ::fork();
    if (process_ == 0) {
      if (::chdir(folder.c_str()) != 0) ::_exit(120);
      redirect("/dev/null", O_RDONLY, STDIN_FILENO);
      redirect(out.c_str(), O_WRONLY | O_CREAT | O_TRUNC, STDOUT_FILENO);
      redirect(err.c_str(), O_WRONLY | O_CREAT | O_TRUNC, STDERR_FILENO);
      if (file_limit > 0) {
        const auto bytes = static_cast<rlim_t>(file_limit);
        const rlimit limit{bytes, bytes};
        ::signal(SIGXFSZ, SIG_IGN);  // write() fails instead
        if (::setrlimit(RLIMIT_FSIZE, &limit) != 0) ::_exit(123);
      }
      if (options.before && !options.before()) ::_exit(124);
      ::execve(TESSERA_PROGRAM, argv.data(), envp.data());
      ::_exit(121);
    }
  }
  void kill(int signal) const { ::kill(process_, signal); }
  [[nodiscard]] pid_t id() const { return process_; }
  // Reaps nothing.
  [[nodiscard]] bool has_ended() const {
    siginfo_t info{};
    return ::waitid(P_PID, static_cast<id_t>(process_), &info, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           info.si_pid == process_;
  }
  Outcome wait() const {
    constexpr double kTimeout = 120.0;
    const std::int64_t start = wall_ns();
    int status = 0;
    while (::waitpid(process_, &status, WNOHANG) == 0) {
      if (static_cast<double>(wall_ns() - start) * 1e-9 > kTimeout) {
        ADD_FAILURE() << "the program hangs";
        kill(SIGKILL);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    Outcome outcome{.output = text_of(folder_ / ".out"), .errors = text_of(folder_ / ".err")};
    if (WIFEXITED(status)) outcome.code = WEXITSTATUS(status);
    if (WIFSIGNALED(status)) outcome.signal = WTERMSIG(status);
    return outcome;
  }

 private:
  static void redirect(const char* path, int flags, int onto) {
    const int file = ::open(path, flags, 0644);
    if (file < 0 || ::dup2(file, onto) < 0) ::_exit(122);
  }
  fs::path folder_;
  pid_t process_ = -1;
};

class Program : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string name = (fs::temp_directory_path() / "tessera-cli-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    folder_ = name;
  }
  void TearDown() override { fs::remove_all(folder_); }

  // Arguments as one would type them.
  [[nodiscard]] Outcome run(const std::string& arguments) const { return Running(folder_, arguments).wait(); }
  void write(const std::string& name, const std::string& content) const {
    std::ofstream(folder_ / name, std::ios::binary) << content;
  }
  [[nodiscard]] std::string read(const std::string& name) const { return text_of(folder_ / name); }
  [[nodiscard]] bool exists(const std::string& name) const { return fs::exists(folder_ / name); }

  fs::path folder_;
};

// Sentences of a few dozen words, different on every line; a form feed parts two documents.
inline std::string some_text() {
  const std::vector<std::string> words = {"the",   "river", "stone", "walks",   "under", "a",     "bright",
                                          "moon",  "and",   "sings", "slowly",  "to",    "every", "sleeping",
                                          "house", "where", "old",   "friends", "wait",  "for",   "rain"};
  std::ostringstream text;
  for (std::uint64_t line = 0; line < 400; ++line) {
    for (std::uint64_t w = 0; w < 12; ++w) {
      text << words[uniform_below(words.size(), 1, line, w)] << (w == 11 ? ".\n" : " ");
    }
    if (line == 199) text << '\f';
  }
  return text.str();
}

inline constexpr const char* kJob = R"(
model:
  model_type: mixtral
  num_hidden_layers: 2
  hidden_size: 32
  intermediate_size: 32
  num_attention_heads: 4
  num_key_value_heads: 2
  vocab_size: 320
  max_position_embeddings: 64
  num_local_experts: 4
  num_experts_per_tok: 2
train: {steps: 6, sequence_length: 32, global_batch_size: 8, micro_batch_size: 2, lr: 3.0e-3}
parallel: {tp: 2, pp: 2, dp: 2, ep: 2, schedule: 1f1b}
data: {text: text.txt, vocab_size: 320, validation_fraction: 0.1}
checkpoint: {folder: run/checkpoints, every: 3}
output: {folder: run, sample_prompt: "the river", sample_tokens: 5, trace_steps: 1}
)";

// A folder with a job and a text.
class TinyJob : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    write("job.yaml", kJob);
    write("text.txt", some_text());
  }
};

// The same, trained: all tests of a suite share one run and work on copies of it.
class TinyRun : public Program {
 protected:
  static void SetUpTestSuite() {
    std::string name = (fs::temp_directory_path() / "tessera-cli-XXXXXX").string();
    ASSERT_NE(::mkdtemp(name.data()), nullptr);
    trained() = name;
    std::ofstream(trained() / "job.yaml") << kJob;
    std::ofstream(trained() / "text.txt") << some_text();
    outcome() = Running(trained(), "train job.yaml").wait();
    ASSERT_EQ(outcome().code, 0) << outcome().errors;
  }
  static void TearDownTestSuite() { fs::remove_all(trained()); }
  void SetUp() override {
    Program::SetUp();
    // Times too: files are made again when the text looks changed.
    const std::string copy = "cp -a '" + trained().string() + "/.' '" + folder_.string() + "/'";
    ASSERT_EQ(std::system(copy.c_str()), 0);
  }
  static fs::path& trained() {
    static fs::path path;
    return path;
  }
  static Outcome& outcome() {
    static Outcome outcome;
    return outcome;
  }
};

}  // namespace tessera::cli
