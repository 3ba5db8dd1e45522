// What the world around a training job can do to it: a disk that fills up, folders that cannot be written, a
// checkpoint that is damaged, a clock that jumps. Root may write everywhere, so file systems of their own are
// mounted, for the program alone; where the kernel forbids that, a test is skipped and says so.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <sched.h>
#include <sys/mount.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "ckpt/checkpoint.h"
#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

std::vector<double> losses_in(const fs::path& metrics) {
  std::vector<double> out;
  std::istringstream lines(text_of(metrics));
  for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line)["loss"]);
  return out;
}

// A process that holds a mount namespace of its own until it is killed; `make` mounts in it.
class Mounts {
 public:
  explicit Mounts(const std::function<bool()>& make) {
    int pipe[2] = {-1, -1};
    if (::pipe2(pipe, O_CLOEXEC) != 0) return;
    holder_ = ::fork();
    if (holder_ == 0) {
      const bool made = ::unshare(CLONE_NEWNS) == 0 &&
                        ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr) == 0 && make();
      const char word = made ? 'y' : 'n';
      if (::write(pipe[1], &word, 1) != 1) ::_exit(1);
      while (true) ::pause();
    }
    ::close(pipe[1]);
    char word = 'n';
    good_ = ::read(pipe[0], &word, 1) == 1 && word == 'y';
    ::close(pipe[0]);
  }
  ~Mounts() {
    if (holder_ <= 0) return;
    ::kill(holder_, SIGKILL);
    ::waitpid(holder_, nullptr, 0);
  }
  Mounts(const Mounts&) = delete;
  Mounts& operator=(const Mounts&) = delete;

  [[nodiscard]] bool good() const { return good_; }
  // For RunOptions::before.
  [[nodiscard]] std::function<bool()> enter(const fs::path& folder) const {
    return [this, folder] {
      const int file = ::open(fmt::format("/proc/{}/ns/mnt", holder_).c_str(), O_RDONLY | O_CLOEXEC);
      return file >= 0 && ::setns(file, CLONE_NEWNS) == 0 && ::chdir(folder.c_str()) == 0;
    };
  }
  // What the program sees under that path.
  [[nodiscard]] fs::path inside(const fs::path& path) const {
    return fmt::format("/proc/{}/root{}", holder_, path.string());
  }

 private:
  pid_t holder_ = -1;
  bool good_ = false;
};

constexpr const char* kForbidden = "the kernel gives no mount namespace here (needs root)";

class Faults : public TinyJob {};

TEST_F(Faults, ADiskThatFillsUpEndsTheRunAndEveryCheckpointBeforeItIsGood) {
  fs::create_directory(folder_ / "small");
  const Mounts mounts(
      [&] { return ::mount("tmpfs", (folder_ / "small").c_str(), "tmpfs", 0, "size=2m") == 0; });
  if (!mounts.good()) GTEST_SKIP() << kForbidden;
  const std::string job =
      "train job.yaml --set train.steps=60 --set checkpoint.every=1 --set output.sample_prompt= "
      "--set checkpoint.folder=small/checkpoints ";
  const Outcome full =
      Running(folder_, job + "--set checkpoint.keep=100", {.before = mounts.enter(folder_)}).wait();
  EXPECT_EQ(full.code, 1) << full.output;
  EXPECT_THAT(full.errors, AllOf(HasSubstr("No space left on device"), HasSubstr("small/checkpoints/step-"),
                                 HasSubstr("mend: free some disk space; earlier checkpoints are untouched")));
  std::vector<std::string> skipped;
  const fs::path checkpoints = mounts.inside(folder_ / "small/checkpoints");
  std::int64_t good = 0;
  for (const auto& entry : fs::directory_iterator(checkpoints)) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << "left behind: " << entry.path();
    EXPECT_NO_THROW(ckpt::CheckpointReader{entry.path()}) << entry.path();
    ++good;
  }
  ASSERT_GE(good, 2);
  // On a larger disk it goes on, to the bits of a run that never stood.
  fs::create_directory(folder_ / "large");
  fs::copy(checkpoints, folder_ / "large/checkpoints", fs::copy_options::recursive);
  const Outcome on = run(job + "--set checkpoint.folder=large/checkpoints");
  ASSERT_EQ(on.code, 0) << on.errors;
  EXPECT_THAT(on.output, HasSubstr(fmt::format("resumed after step {}", good)));
  ASSERT_EQ(run("train job.yaml --set train.steps=60 --set checkpoint.every=0 --set output.sample_prompt= "
                "--set output.folder=calm --set checkpoint.folder=calm/checkpoints")
                .code,
            0);
  EXPECT_EQ(losses_in(folder_ / "run/metrics.jsonl"), losses_in(folder_ / "calm/metrics.jsonl"));
}

TEST_F(Faults, AReadOnlyFolderIsRefusedBeforeTheFirstStepByItsKey) {
  for (const auto& [key, name] : {std::pair("output.folder", "out"), {"checkpoint.folder", "ckpt"}}) {
    const fs::path there = folder_ / name;
    fs::create_directory(there);
    const Mounts mounts([&] {
      return ::mount(there.c_str(), there.c_str(), nullptr, MS_BIND, nullptr) == 0 &&
             ::mount(nullptr, there.c_str(), nullptr, MS_BIND | MS_REMOUNT | MS_RDONLY, nullptr) == 0;
    });
    std::function<bool()> before = mounts.good() ? mounts.enter(folder_) : std::function<bool()>();
    if (!mounts.good()) {
      if (::geteuid() == 0) GTEST_SKIP() << kForbidden;
      fs::permissions(there, fs::perms::owner_read | fs::perms::owner_exec);
    }
    const Outcome outcome =
        Running(folder_, fmt::format("train job.yaml --set {}={}", key, name), {.before = before}).wait();
    fs::permissions(there, fs::perms::owner_all);
    EXPECT_EQ(outcome.code, 1) << outcome.output;
    EXPECT_THAT(outcome.errors, AllOf(HasSubstr(fmt::format("{}: {}", key, name)),
                                      HasSubstr("cannot write into the folder"), HasSubstr("  mend: ")));
    EXPECT_THAT(outcome.output, Not(HasSubstr("step ")));
  }
}

TEST_F(Faults, ACheckpointWhosePlaceIsTakenIsNamedAndNothingElseIsTouched) {
  fs::create_directories(folder_ / "run/checkpoints");
  write("run/checkpoints/step-00000003", "no folder");
  const Outcome outcome = run("train job.yaml");
  EXPECT_EQ(outcome.code, 1) << outcome.output;
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("run/checkpoints/step-00000003"), HasSubstr("  mend: ")));
  EXPECT_EQ(read("run/checkpoints/step-00000003"), "no folder");
  fs::remove(folder_ / "run/checkpoints/step-00000003");
  EXPECT_EQ(run("train job.yaml").code, 0);
}

// Under a supervisor, too: the damaged one is named, the one before is taken.
TEST_F(Faults, ARestartFallsBackFromADamagedCheckpointByName) {
  ASSERT_EQ(run("train job.yaml --set checkpoint.every=2 --set train.steps=4").code, 0);
  const fs::path newest = folder_ / "run/checkpoints/step-00000004";
  for (const auto& entry : fs::directory_iterator(newest)) {
    if (entry.path().extension() != ".safetensors") continue;
    fs::resize_file(entry.path(), fs::file_size(entry.path()) - 3);
    break;
  }
  const Outcome outcome = run("train job.yaml --restarts 1 --set checkpoint.every=2 --set train.steps=8");
  EXPECT_EQ(outcome.code, 0);
  EXPECT_THAT(outcome.errors, HasSubstr("skipped a damaged checkpoint: run/checkpoints/step-00000004"));
  EXPECT_THAT(outcome.output, HasSubstr("resumed after step 2 from run/checkpoints/step-00000002"));
}

TEST_F(Faults, AClockThatJumpsByHoursChangesNothing) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "a sanitizer must be loaded before everything else";
#endif
  const std::string job =
      "train job.yaml --set train.steps=20 --set checkpoint.every=5 --set output.sample_prompt= ";
  ASSERT_EQ(run(job + "--set output.folder=calm --set checkpoint.folder=calm/checkpoints").code, 0);
  const std::int64_t start = wall_ns();
  const Outcome outcome =
      Running(folder_, job, {.environment = {"LD_PRELOAD=" TESSERA_JUMPING_CLOCK}}).wait();
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_LT(static_cast<double>(wall_ns() - start) * 1e-9, 60.0);
  EXPECT_EQ(losses_in(folder_ / "run/metrics.jsonl"), losses_in(folder_ / "calm/metrics.jsonl"));
  std::istringstream lines(read("run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const double seconds = json::parse(line)["step_time_s"];
    EXPECT_TRUE(seconds > 0.0 && seconds < 60.0) << seconds;
  }
}

}  // namespace
}  // namespace tessera::cli
