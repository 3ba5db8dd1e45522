// Training that is asked to leave: SIGTERM, SIGUSR1 and SIGINT, once and twice, to one process, to a
// supervisor and to one of several processes; and how it goes on, on the same ranks and on others.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "cli/processes.h"
#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Leaving : public TinyJob {
 protected:
  [[nodiscard]] std::vector<double> losses(const std::string& run) const {
    std::vector<double> out;
    std::istringstream lines(read(run + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) {
      const json j = json::parse(line, nullptr, false);
      if (j.is_object()) out.push_back(j["loss"]);
    }
    return out;
  }
  // Until so many steps are done.
  void await_steps(std::size_t steps) const {
    const std::int64_t start = wall_ns();
    while (losses("run").size() < steps && wall_ns() - start < 60'000'000'000)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  void await_words(const std::string& words) const {
    const std::int64_t start = wall_ns();
    while (read(".err").find(words) == std::string::npos && wall_ns() - start < 60'000'000'000)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  // That the one checkpoint holds all steps done and no more, and that the job goes on from it.
  void expect_left(const Outcome& outcome, const std::string& by) const {
    EXPECT_EQ(outcome.code, 75) << outcome.errors;
    const std::size_t steps = losses("run").size();
    EXPECT_THAT(outcome.errors,
                AllOf(HasSubstr(by + ": leaving after this step"),
                      HasSubstr(fmt::format("left after step {} by {}", steps, by)),
                      HasSubstr(fmt::format("goes on from run/checkpoints/step-{:08}", steps))));
    EXPECT_TRUE(exists(fmt::format("run/checkpoints/step-{:08}", steps)));
    EXPECT_THAT(outcome.output, Not(HasSubstr("Sample")));
  }
  static constexpr const char* kLong = "train job.yaml --set train.steps=100000 --set checkpoint.every=0 ";
};

TEST_F(Leaving, AnySignalWritesACheckpointOfTheStepAndTheRunGoesOnAsIfNothingHadBeen) {
  std::size_t steps = 0;
  for (const auto& [signal, name] :
       {std::pair(SIGTERM, "SIGTERM"), {SIGUSR1, "SIGUSR1"}, {SIGINT, "SIGINT"}}) {
    const Running running(folder_, kLong);
    await_steps(steps + 2);
    running.kill(signal);
    expect_left(running.wait(), name);
    EXPECT_GE(losses("run").size(), steps + 2);
    steps = losses("run").size();
  }
  // train.steps is part of the learning rate; so the undisturbed run has the numbers of each part, too.
  write("flat.yaml", read("job.yaml"));
  const std::string flat = " --set train.lr_decay=constant --set output.folder=run --set checkpoint.every=0 ";
  fs::remove_all(folder_ / "run");
  const Running running(folder_, kLong + flat);
  await_steps(3);
  running.kill(SIGTERM);
  ASSERT_EQ(running.wait().code, 75);
  const std::size_t left = losses("run").size();
  ASSERT_EQ(run(fmt::format("train job.yaml --set train.steps={} {}", left + 2, flat)).code, 0);
  const std::vector<double> resumed = losses("run");
  ASSERT_EQ(run(fmt::format("train job.yaml --set train.steps={} {} --set output.folder=calm "
                            "--set checkpoint.folder=calm/checkpoints",
                            left + 2, flat))
                .code,
            0);
  EXPECT_EQ(losses("calm"), resumed);
}

TEST_F(Leaving, TheSecondSignalEndsItAtOnce) {
  // Steps of a second or so, of which the first is under way.
  const Running running(folder_, std::string(kLong) + "--set train.global_batch_size=2048 --json");
  const std::int64_t start = wall_ns();
  Outcome outcome;
  while (wall_ns() - start < 60'000'000'000 && !exists("run/metrics.jsonl"))
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  running.kill(SIGTERM);
  await_words("leaving after this step");
  running.kill(SIGTERM);
  outcome = running.wait();
  EXPECT_EQ(outcome.signal, SIGTERM) << outcome.errors;
  EXPECT_FALSE(fs::exists(folder_ / "run/checkpoints/step-00000001"));
}

TEST_F(Leaving, WithoutACheckpointFolderItSaysThatNothingIsKept) {
  const Running running(folder_, std::string(kLong) + "--set checkpoint.folder= --set output.sample_prompt=");
  await_steps(2);
  running.kill(SIGTERM);
  const Outcome outcome = running.wait();
  EXPECT_EQ(outcome.code, 75);
  EXPECT_THAT(outcome.errors, HasSubstr("nothing is kept, as the job has no checkpoint.folder"));
}

TEST_F(Leaving, ASupervisorPassesTheSignalOnAndDoesNotRestart) {
  const Running running(folder_, std::string(kLong) + "--restarts 5");
  await_steps(2);
  running.kill(SIGTERM);
  const Outcome outcome = running.wait();
  expect_left(outcome, "SIGTERM");
  EXPECT_THAT(outcome.errors, Not(HasSubstr("restart 1")));
}

TEST_F(Leaving, TheChildOfAKilledSupervisorDoesNotOutliveIt) {
  const Running running(folder_, std::string(kLong) + "--restarts 5");
  await_steps(2);
  const std::vector<Process> below = processes_below(running.id());
  ASSERT_EQ(below.size(), 1U);
  running.kill(SIGKILL);
  EXPECT_EQ(running.wait().signal, SIGKILL);
  const std::int64_t start = wall_ns();
  while (is_running(below[0].id) && wall_ns() - start < 5'000'000'000)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  EXPECT_FALSE(is_running(below[0].id));
}

TEST_F(Leaving, ASupervisorRestartsWhatDiesSoOftenAndNotWhatIsWrong) {
  // A loss that diverges, wrong use: the same again would end the same way.
  const Outcome diverged = run("train job.yaml --set train.lr=1.0e+30 --restarts 3");
  EXPECT_EQ(diverged.code, 3) << diverged.errors;
  EXPECT_THAT(diverged.errors, Not(HasSubstr("restart 1")));
  EXPECT_EQ(run("train job.yaml --set train.stepz=3 --restarts 3").code, 2);
  const Outcome no_folder =
      run("train job.yaml --set checkpoint.folder= --set checkpoint.every=0 --restarts 3");
  EXPECT_EQ(no_folder.code, 2);
  EXPECT_THAT(no_folder.errors, HasSubstr("a restart would begin again"));
  // A full disk stays full.
  fs::remove_all(folder_ / "run");
  const Outcome full = Running(folder_, "train job.yaml --restarts 2", 64 << 10).wait();
  EXPECT_EQ(full.code, 1);
  EXPECT_THAT(full.errors,
              AllOf(HasSubstr("the run failed with exit code 1; restart 1 of 2, from its beginning"),
                    HasSubstr("restart 2 of 2"), HasSubstr("it was restarted 2 times, and no more")));
  const Outcome none = run("train job.yaml --launch no-such-launcher");
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.errors, HasSubstr("cannot start \"no-such-launcher\""));
}

TEST_F(Leaving, AJobGoesOnOnFewerAndOnMoreRanksOfAnotherLayout) {
  // f64, so that only the order of the sums is left to differ.
  const std::string job = "train job.yaml --set train.precision=f64 --set output.sample_prompt= ";
  ASSERT_EQ(run(job + "--set train.steps=12 --set output.folder=calm --set checkpoint.folder=calm/c").code,
            0);
  const Running killed(folder_, job + "--set train.steps=12 --set checkpoint.every=1");
  await_steps(4);
  killed.kill(SIGKILL);
  EXPECT_EQ(killed.wait().signal, SIGKILL);
  const std::string one = "--set parallel.tp=1 --set parallel.pp=1 --set parallel.dp=1 --set parallel.ep=1 ";
  const std::string other =
      "--set parallel.tp=1 --set parallel.pp=2 --set parallel.dp=4 --set parallel.ep=4 "
      "--set train.zero_stage=1 ";
  const Running fewer(folder_, job + one + "--set train.steps=12 --set checkpoint.every=1");
  await_steps(8);
  fewer.kill(SIGTERM);
  const Outcome left = fewer.wait();
  ASSERT_TRUE(left.code == 75 || left.code == 0) << left.errors;
  const Outcome more = run(job + other + "--set train.steps=12");
  ASSERT_EQ(more.code, 0) << more.errors;
  const std::vector<double> want = losses("calm"), got = losses("run");
  ASSERT_EQ(got.size(), 12U);
  ASSERT_EQ(want.size(), 12U);
  for (std::size_t i = 0; i < want.size(); ++i)
    EXPECT_TRUE(std::abs(got[i] - want[i]) <= 1e-9 * want[i]) << i << ": " << got[i] << " " << want[i];
}

#ifdef TESSERA_MPIRUN
class LeavingProcesses : public Leaving {
 protected:
  [[nodiscard]] static RunOptions environment() {
    const char* path = std::getenv("PATH");
    return {.environment = {fmt::format("PATH={}", path == nullptr ? "" : path), "HOME=/tmp",
                            "OMPI_ALLOW_RUN_AS_ROOT=1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"}};
  }
  [[nodiscard]] static std::vector<Process> named(pid_t root, const std::string& name) {
    std::vector<Process> found;
    for (const Process& p : processes_below(root))
      if (p.name.find(name) == 0) found.push_back(p);
    return found;
  }
  static bool any_runs(const std::vector<Process>& all) {
    return std::ranges::any_of(all, [](const Process& p) { return is_running(p.id); });
  }
  static void await_end(const std::vector<Process>& all, double seconds) {
    const std::int64_t start = wall_ns();
    while (any_runs(all) && static_cast<double>(wall_ns() - start) * 1e-9 < seconds)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_FALSE(any_runs(all));
  }
  static constexpr const char* kLaunch = "--ranks-per-process 2 --launch '" TESSERA_MPIRUN " -n 4'";
};

TEST_F(LeavingProcesses, OneSignalledProcessTakesAllOfThemOutAfterTheSameStep) {
  const Running running(folder_, std::string(kLong) + kLaunch, environment());
  await_steps(2);
  const std::vector<Process> ranks = named(running.id(), "tessera");
  ASSERT_EQ(ranks.size(), 4U);
  ASSERT_EQ(::kill(ranks[2].id, SIGUSR1), 0);
  const Outcome outcome = running.wait();
  EXPECT_EQ(outcome.code, 75) << outcome.errors;
  const std::size_t steps = losses("run").size();
  EXPECT_THAT(outcome.errors, HasSubstr(fmt::format("left after step {} by SIGUSR1", steps)));
  EXPECT_TRUE(exists(fmt::format("run/checkpoints/step-{:08}", steps)));
  EXPECT_FALSE(any_runs(ranks));
}

TEST_F(LeavingProcesses, ASupervisorAsksThroughTheLauncher) {
  const Running running(folder_, std::string(kLong) + kLaunch + " --restarts 3", environment());
  await_steps(2);
  running.kill(SIGTERM);
  const Outcome outcome = running.wait();
  EXPECT_EQ(outcome.code, 75) << outcome.errors;
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("left after step"), Not(HasSubstr("restart 1"))));
}

TEST_F(LeavingProcesses, AKilledProcessEndsTheJobWithinSecondsAndSparesTheCheckpoint) {
  const Running running(folder_, std::string(kLong) + "--set checkpoint.every=2 " + kLaunch, environment());
  await_steps(5);
  const std::vector<Process> all = processes_below(running.id());
  const std::vector<Process> ranks = named(running.id(), "tessera");
  ASSERT_EQ(ranks.size(), 4U);
  ASSERT_EQ(::kill(ranks[3].id, SIGKILL), 0);
  await_end(all, 10.0);
  EXPECT_NE(running.wait().code, 0);
  const Outcome again = run("train job.yaml --set train.steps=2");
  EXPECT_EQ(again.code, 0);
  EXPECT_THAT(again.output, HasSubstr("resumed after step "));
}

TEST_F(LeavingProcesses, NoProcessOutlivesItsKilledLauncher) {
  const Running running(folder_, std::string(kLong) + kLaunch, environment());
  await_steps(2);
  const std::vector<Process> all = processes_below(running.id());
  const std::vector<Process> ranks = named(running.id(), "tessera");
  ASSERT_EQ(ranks.size(), 4U);
  for (const Process& p : all)
    if (p.name.find("tessera") != 0) ::kill(p.id, SIGKILL);
  await_end(all, 10.0);
  (void)running.wait();
}

TEST_F(LeavingProcesses, AProcessUnderMpirunCannotSupervise) {
  write("start.sh", "exec " TESSERA_MPIRUN " -n 2 " TESSERA_PROGRAM " train job.yaml --restarts 2\n");
  const std::string command = "cd " + folder_.string() +
                              " && OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 sh start.sh "
                              "> out 2>&1";
  EXPECT_NE(std::system(command.c_str()), 0);
  EXPECT_THAT(read("out"), HasSubstr("--launch 'mpirun -n 4'"));
}
#endif

}  // namespace
}  // namespace tessera::cli
