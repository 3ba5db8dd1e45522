// kill -9 of a random process of a training job at a random moment, again and again, under `--restarts`: no
// process outlives the job, no complete checkpoint is lost, and in the end losses and checkpoint are those of
// a run that nobody disturbed, to the bit. A few kills here; ./dev kills does a hundred of each kind.
#include <fmt/format.h>
#include <gmock/gmock.h>

#include <algorithm>
#include <cstdlib>
#include <nlohmann/json.hpp>

#include "ckpt/checkpoint.h"
#include "cli/processes.h"
#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;

int kills_wanted(const char* name, int few) {
  const char* text = std::getenv(name);
  return text == nullptr ? few : std::atoi(text);
}

std::vector<double> losses_in(const fs::path& metrics) {
  std::vector<double> out;
  std::istringstream lines(text_of(metrics));
  for (std::string line; std::getline(lines, line);) {
    const json j = json::parse(line, nullptr, false);  // a kill may have cut the last one
    if (j.is_object()) out.push_back(j["loss"]);
  }
  return out;
}

// Names and bytes of the files of a checkpoint, but for what the job's text says.
std::map<std::string, std::string> weights_of(const fs::path& checkpoint) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::directory_iterator(checkpoint))
    if (entry.path().extension() == ".safetensors") files[entry.path().filename()] = text_of(entry.path());
  return files;
}

struct Tally {
  int kills = 0, in_writes = 0, before_first_step = 0, runs = 0;
  double longest_end = 0.0;    // seconds from a kill until no process of that start is left
  std::int64_t most_lost = 0;  // steps done that the newest checkpoint did not have
  std::int64_t all_lost = 0;
};

class Kills : public Program {
 protected:
  static constexpr std::int64_t kEvery = 2, kSteps = 40;

  // `flags`: of every run; `launch`: how the killed ones are started.
  void kill_until(int wanted, const std::string& flags, const std::string& launch,
                  const std::vector<std::string>& environment) {
    write("job.yaml", kJob);
    write("text.txt", some_text());
    const std::string job = fmt::format(
        "train job.yaml --set train.steps={} --set checkpoint.every={} --set output.sample_prompt= {} ",
        kSteps, kEvery, flags);
    const std::int64_t start = wall_ns();
    const Outcome calm = Running(folder_, job + launch, {.environment = environment}).wait();
    ASSERT_EQ(calm.code, 0) << calm.errors;
    const double one_run = static_cast<double>(wall_ns() - start) * 1e-9;
    want_ = losses_in(folder_ / "run/metrics.jsonl");
    ASSERT_EQ(want_.size(), static_cast<std::size_t>(kSteps));
    weights_ = weights_of(newest()->folder());
    Tally t;
    while (t.kills < wanted && !HasFailure()) {
      fs::remove_all(folder_ / "run/checkpoints");
      fs::remove(folder_ / "run/metrics.jsonl");
      one_job(job + "--restarts 100000 " + launch, environment, one_run, wanted, t);
    }
    fmt::print(
        "{} kills of {} runs: {} while a checkpoint was written, {} before the first step; most steps done "
        "again "
        "{}, on average {:.1f}; longest end of a job {:.2f} s; losses and weights equal in all\n",
        t.kills, t.runs, t.in_writes, t.before_first_step, t.most_lost,
        static_cast<double>(t.all_lost) / std::max(1, t.kills), t.longest_end);
    RecordProperty("kills", t.kills);
  }

 private:
  [[nodiscard]] std::unique_ptr<ckpt::CheckpointReader> newest() const {
    std::vector<std::string> skipped;
    auto reader = ckpt::open_latest_checkpoint(folder_ / "run/checkpoints", &skipped);
    EXPECT_THAT(skipped, ::testing::IsEmpty()) << "a kill damaged a checkpoint";
    return reader;
  }
  [[nodiscard]] std::int64_t newest_step() const {
    if (!fs::is_directory(folder_ / "run/checkpoints")) return 0;
    const auto reader = newest();
    return reader == nullptr ? 0 : reader->meta().step;
  }

  // The same by the names alone: while the job runs, older ones may vanish.
  [[nodiscard]] std::int64_t newest_name() const {
    std::int64_t step = 0;
    std::error_code code;
    for (const auto& entry : fs::directory_iterator(folder_ / "run/checkpoints", code)) {
      const std::string name = entry.path().filename();
      if (name.find(".tmp") == std::string::npos)
        step = std::max<std::int64_t>(step, std::stoll(name.substr(5)));
    }
    return step;
  }

  // One job until it is done, killed on the way.
  void one_job(const std::string& command, const std::vector<std::string>& environment, double one_run,
               int wanted, Tally& t) {
    const Running running(folder_, command, {.environment = environment});
    ++t.runs;
    while (!HasFailure()) {
      const double pause = 1.2 * one_run * uniform(11, 1, static_cast<std::uint64_t>(draws_++));
      const std::int64_t until = wall_ns() + static_cast<std::int64_t>(pause * 1e9);
      while (!running.has_ended() && (wall_ns() < until || t.kills >= wanted))
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
      if (running.has_ended()) break;
      kill_one(running.id(), t);
    }
    const Outcome end = running.wait();
    ASSERT_EQ(end.code, 0) << end.errors;
    EXPECT_EQ(losses_in(folder_ / "run/metrics.jsonl"), want_);
    EXPECT_TRUE(weights_of(newest()->folder()) == weights_) << "other weights";
  }

  void kill_one(pid_t supervisor, Tally& t) {
    const std::vector<Process> all = processes_below(supervisor);
    if (all.empty()) return;  // between two runs
    const std::int64_t before = newest_name();
    const Process& victim = all[uniform_below(all.size(), 12, 1, static_cast<std::uint64_t>(draws_++))];
    const std::int64_t killed = wall_ns();
    if (::kill(victim.id, SIGKILL) != 0) return;
    ++t.kills;
    bool writing = false;
    if (fs::is_directory(folder_ / "run/checkpoints"))
      for (const auto& entry : fs::directory_iterator(folder_ / "run/checkpoints"))
        writing = writing || entry.path().string().find(".tmp") != std::string::npos;
    t.in_writes += writing ? 1 : 0;
    const auto left = [&] {
      return std::ranges::any_of(all, [](const Process& p) { return is_running(p.id); });
    };
    while (left() && wall_ns() - killed < 30'000'000'000)
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    ASSERT_FALSE(left()) << "a process outlives the kill of " << victim.name;
    t.longest_end = std::max(t.longest_end, static_cast<double>(wall_ns() - killed) * 1e-9);
    const auto done = std::ssize(losses_in(folder_ / "run/metrics.jsonl"));
    const std::int64_t after = newest_step();
    ASSERT_GE(after, before) << "a complete checkpoint was lost";
    t.before_first_step += done == 0 ? 1 : 0;
    const std::int64_t lost = std::max<std::int64_t>(0, done - after);
    t.most_lost = std::max(t.most_lost, lost);
    t.all_lost += lost;
    // One checkpoint may be on its way to the disk while the steps up to the next are done.
    ASSERT_LE(lost, 2 * kEvery);
  }

  std::vector<double> want_;
  std::map<std::string, std::string> weights_;
  std::int64_t draws_ = 0;
};

TEST_F(Kills, OfAJobOfThreadsCostTheStepsSinceTheLastCheckpointAndChangeNoBit) {
  kill_until(kills_wanted("TESSERA_KILLS", 10), "", "", {});
}

#ifdef TESSERA_MPIRUN
TEST_F(Kills, OfAProcessUnderMpirunLikewise) {
  const char* path = std::getenv("PATH");
  kill_until(kills_wanted("TESSERA_KILLS_MPI", 3), "--ranks-per-process 4",
             "--launch '" TESSERA_MPIRUN " -n 2'",
             {fmt::format("PATH={}", path == nullptr ? "" : path), "HOME=/tmp", "OMPI_ALLOW_RUN_AS_ROOT=1",
              "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"});
}
#endif

}  // namespace
}  // namespace tessera::cli
