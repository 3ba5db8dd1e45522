// Several processes without MPI: started as torchrun, srun or a user's shells start them, that is with their
// environment or flags and nothing else. They train what threads train, to the bit; one that dies is named
// and ends all; what contradicts itself is refused.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>

#include <deque>
#include <nlohmann/json.hpp>

#include "cli/processes.h"
#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

// A port that is free now; those that are given out by themselves lie above.
std::int32_t free_port() {
  static std::int32_t next = 12000 + ::getpid() % 8000;
  for (;; ++next) {
    const int s = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in a{};
    a.sin_family = AF_INET;
    a.sin_port = htons(static_cast<std::uint16_t>(next));
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    const bool free = ::bind(s, reinterpret_cast<const sockaddr*>(&a), sizeof a) == 0;
    ::close(s);
    if (free) return next++;
  }
}

using Environment = std::vector<std::string>;

Environment torchrun(std::int32_t rank, std::int32_t size, std::int32_t port) {
  return {fmt::format("RANK={}", rank),
          fmt::format("WORLD_SIZE={}", size),
          fmt::format("LOCAL_RANK={}", rank),
          fmt::format("LOCAL_WORLD_SIZE={}", size),
          "GROUP_RANK=0",
          "MASTER_ADDR=127.0.0.1",
          fmt::format("MASTER_PORT={}", port),
          "TORCHELASTIC_RUN_ID=none",
          "TORCHELASTIC_RESTART_COUNT=0",
          "TORCHELASTIC_USE_AGENT_STORE=True"};
}

Environment srun(std::int32_t rank, std::int32_t size, std::int32_t job) {
  return {fmt::format("SLURM_PROCID={}", rank),
          fmt::format("SLURM_NTASKS={}", size),
          fmt::format("SLURM_STEP_NUM_TASKS={}", size),
          fmt::format("SLURM_LOCALID={}", rank),
          "SLURM_STEP_NODELIST=127.0.0.[1-2],other",
          fmt::format("SLURM_JOB_ID={}", job),
          "SLURM_STEP_ID=0"};
}

class Tcp : public TinyJob {
 protected:
  // What a process writes lies in a folder of its own.
  const Running& start(const std::string& arguments, const Environment& environment) {
    const fs::path own = folder_ / fmt::format("process-{}", running_.size());
    fs::create_directories(own);
    return running_.emplace_back(own,
                                 "train " + (folder_ / "job.yaml").string() +
                                     " --set data.text=" + (folder_ / "text.txt").string() + " " + arguments,
                                 RunOptions{.environment = environment});
  }
  static std::string into(const fs::path& run) {
    return fmt::format(" --set output.folder={0} --set checkpoint.folder={0}/checkpoints ", run.string());
  }
  [[nodiscard]] std::vector<double> losses(const std::string& run) const {
    std::vector<double> out;
    std::istringstream lines(read(run + "/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line)["loss"]);
    return out;
  }
  std::vector<Outcome> wait_all() {
    std::vector<Outcome> outcomes;
    for (const Running& r : running_) outcomes.push_back(r.wait());
    running_.clear();
    return outcomes;
  }
  void expect_good(const std::vector<Outcome>& all, const std::string& run) {
    for (const Outcome& o : all) EXPECT_EQ(o.code, 0) << o.errors;
    ASSERT_EQ(losses(run).size(), 6U);
    EXPECT_EQ(losses(run), losses("threads"));
  }
  void train_threads() {
    const Environment none;
    start(into(folder_ / "threads"), none);
    ASSERT_EQ(wait_all()[0].code, 0);
  }
  void await_steps(const std::string& run, int steps) const {
    const std::int64_t start = wall_ns();
    while (wall_ns() - start < 60'000'000'000) {
      const std::string text = read(run + "/metrics.jsonl");
      if (std::count(text.begin(), text.end(), '\n') >= steps) return;
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    FAIL() << "no step is done";
  }
  [[nodiscard]] Outcome alone(const std::string& arguments, const Environment& environment) const {
    return Running(folder_, "train job.yaml " + arguments, {.environment = environment}).wait();
  }

  std::deque<Running> running_;
};

TEST_F(Tcp, ProcessesOfTorchrunOfSrunAndOfShellsTrainAsThreadsDo) {
  train_threads();
  // TinyJob has 8 ranks.
  const std::int32_t port = free_port();
  for (const int rank : {2, 1, 3, 0})
    start("--ranks-per-process 2" + into(folder_ / "torchrun"), torchrun(rank, 4, port - 1));
  const std::vector<Outcome> four = wait_all();
  expect_good(four, "torchrun");
  EXPECT_THAT(four[3].output, HasSubstr("8 ranks in 4 processes on 1 host"));
  for (const int p : {0, 1, 2}) EXPECT_EQ(four[p].output + four[p].errors, "") << "only the first one speaks";

  const std::int32_t job = 20000 + free_port();  // meets at 20000 + job % 20000
  for (const int rank : {0, 1}) start("--ranks-per-process 4" + into(folder_ / "srun"), srun(rank, 2, job));
  expect_good(wait_all(), "srun");

  const std::int32_t by_hand = free_port();
  for (const int rank : {1, 0})
    start(fmt::format("--rdzv-endpoint localhost:{} --world-size 2 --rank {} --ranks-per-process 4", by_hand,
                      rank) +
              into(folder_ / "shells"),
          {});
  expect_good(wait_all(), "shells");
}

TEST_F(Tcp, AKilledProcessIsNamedAndAllEndWithinSeconds) {
  const std::int32_t port = free_port();
  for (const int rank : {0, 1, 2, 3})
    start("--ranks-per-process 2 --set train.steps=100000 --set checkpoint.every=0" + into(folder_ / "run"),
          torchrun(rank, 4, port - 1));
  await_steps("run", 3);
  const std::int64_t killed = wall_ns();
  running_[2].kill(SIGKILL);
  const std::string pid = fmt::format("pid {}", running_[2].id());
  const std::vector<Outcome> all = wait_all();
  EXPECT_LT(static_cast<double>(wall_ns() - killed) * 1e-9, 10.0);
  EXPECT_EQ(all[2].signal, SIGKILL);
  for (const int p : {0, 1, 3}) EXPECT_EQ(all[p].code, 1) << p << ": " << all[p].errors;
  EXPECT_THAT(all[0].errors,
              AllOf(HasSubstr("the process of ranks 4 to 5 has died (process 2, " + pid + " on "),
                    HasSubstr("states of the ranks"), HasSubstr("start the job again")));
  for (const int p : {1, 3}) EXPECT_EQ(all[p].errors, "") << "one tells it";
}

TEST_F(Tcp, WhenTheFirstProcessIsKilledAnotherOneTellsIt) {
  const std::int32_t port = free_port();
  for (const int rank : {0, 1})
    start("--ranks-per-process 4 --set train.steps=100000 --set checkpoint.every=0" + into(folder_ / "run"),
          torchrun(rank, 2, port - 1));
  await_steps("run", 3);
  running_[0].kill(SIGKILL);
  const std::int64_t killed = wall_ns();
  const std::vector<Outcome> all = wait_all();
  EXPECT_LT(static_cast<double>(wall_ns() - killed) * 1e-9, 15.0);
  EXPECT_EQ(all[1].code, 1);
  EXPECT_THAT(all[1].errors, HasSubstr("the process of ranks 0 to 3 has died (process 0, pid "));
}

TEST_F(Tcp, AnErrorBeforeTheFirstStepIsToldOnceAndEndsAll) {
  const std::int32_t port = free_port();
  for (const int rank : {0, 1}) start(into(folder_ / "run"), torchrun(rank, 2, port - 1));
  const std::vector<Outcome> all = wait_all();
  EXPECT_EQ(all[0].code, 2);
  EXPECT_EQ(all[1].code, 2);
  EXPECT_THAT(all[0].errors, AllOf(HasSubstr("2 processes of 1 rank make 2 ranks, but the job has 8"),
                                   HasSubstr("start 8 processes, or give --ranks-per-process 4")));
  EXPECT_EQ(all[1].errors, "");
}

TEST_F(Tcp, WhoDoesNotComeIsNamed) {
  const std::string where =
      fmt::format("--rdzv-endpoint 127.0.0.1:{} --world-size 3 --rdzv-timeout 5", free_port());
  start(where + " --rank 0", {});
  start(where + " --rank 2", {});
  for (const Outcome& o : wait_all()) {
    EXPECT_EQ(o.code, 1);
    EXPECT_THAT(o.errors, HasSubstr("1 of 3 processes did not come within 5.0 s: rank 1"));
  }
}

TEST_F(Tcp, EnvironmentsThatContradictThemselvesAreRefused) {
  const auto refused = [&](const Environment& environment, const std::string& what,
                           const std::string& where) {
    const Outcome o = alone("--set output.folder=never", environment);
    EXPECT_EQ(o.code, 2) << o.errors;
    EXPECT_THAT(o.errors, AllOf(HasSubstr(what), HasSubstr("where: " + where), HasSubstr("mend: ")));
    EXPECT_FALSE(exists("never"));
  };
  const Environment meeting = {"MASTER_ADDR=127.0.0.1", "MASTER_PORT=29500"};
  const auto with = [&](Environment more) {
    more.insert(more.end(), meeting.begin(), meeting.end());
    return more;
  };
  refused(with({"RANK=1"}), "RANK is set, but WORLD_SIZE is not", "WORLD_SIZE");
  refused(with({"WORLD_SIZE=2"}), "WORLD_SIZE is 2, but RANK is not set", "WORLD_SIZE");
  refused(with({"RANK=2", "WORLD_SIZE=2"}), "RANK=2 of WORLD_SIZE=2", "RANK");
  refused(with({"RANK=one", "WORLD_SIZE=2"}), "\"one\" is no number", "RANK");
  refused(with({"RANK=-1", "WORLD_SIZE=2"}), "\"-1\" is no number", "RANK");
  refused(with({"RANK=0", "WORLD_SIZE=2x"}), "\"2x\" is no number", "WORLD_SIZE");
  refused({"RANK=0", "WORLD_SIZE=2", "MASTER_PORT=29500"}, "RANK is set, but MASTER_ADDR is not",
          "MASTER_ADDR");
  refused({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a"}, "RANK is set, but MASTER_PORT is not", "MASTER_PORT");
  refused({"RANK=0", "WORLD_SIZE=2", "MASTER_ADDR=a", "MASTER_PORT=70000"},
          "\"70000\" is no number from 0 to 65535", "MASTER_PORT");
  refused(with({"RANK=0", "WORLD_SIZE=2", "SLURM_PROCID=1", "SLURM_STEP_NUM_TASKS=2"}),
          "RANK is 0, but SLURM_PROCID is 1", "RANK");
  refused(with({"RANK=0", "WORLD_SIZE=2", "OMPI_COMM_WORLD_RANK=1"}),
          "RANK is 0, but OMPI_COMM_WORLD_RANK is 1", "RANK");
  refused({"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=2", "SLURM_JOB_ID=1"},
          "SLURM_STEP_NUM_TASKS is set, but SLURM_STEP_NODELIST is not", "SLURM_STEP_NODELIST");
  refused({"SLURM_STEP_NUM_TASKS=2"}, "SLURM_STEP_NUM_TASKS is set, but SLURM_PROCID is not", "SLURM_PROCID");
  refused({"SLURM_PROCID=2", "SLURM_STEP_NUM_TASKS=2"}, "SLURM_PROCID=2 of SLURM_STEP_NUM_TASKS=2",
          "SLURM_PROCID");
  for (const char* list : {"", ",b", "a[", "a[]", "a[x-y]", "a]"})
    refused({"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=2", "SLURM_JOB_ID=1",
             std::string("SLURM_STEP_NODELIST=") + list},
            fmt::format("\"{}\" is no list of hosts", list), "SLURM_STEP_NODELIST");
}

TEST_F(Tcp, TheFirstHostOfSlurmsListIsWhereTheyMeet) {
  const auto met_at = [&](const std::string& list) {
    Environment environment = srun(1, 2, 5);
    environment[4] = "SLURM_STEP_NODELIST=" + list;
    const Outcome o = alone("--rdzv-timeout 0.1", environment);
    const std::size_t at = o.errors.find("the host \"");
    return at == std::string::npos ? o.errors
                                   : o.errors.substr(at + 10, o.errors.find('"', at + 10) - at - 10);
  };
  EXPECT_EQ(met_at("a.invalid,b.invalid"), "a.invalid");
  EXPECT_EQ(met_at("a[01-04,7].invalid,b3"), "a01.invalid");
  EXPECT_EQ(met_at("r[2,5-6]n[10-12].invalid"), "r2n10.invalid");
  const Outcome o = alone("--rdzv-timeout 0.1", srun(1, 2, 100'003));
  EXPECT_THAT(o.errors, HasSubstr("127.0.0.1:20003"));
}

TEST_F(Tcp, ExplicitFlagsWinAndAreCheckedTogether) {
  const Outcome o = alone("--rdzv-endpoint nowhere.invalid:5 --world-size 2 --rank 1", torchrun(0, 4, 29500));
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.errors, HasSubstr("nowhere.invalid"));
  EXPECT_THAT(alone("--rank 1", {}).errors, HasSubstr("missing: --rdzv-endpoint HOST:PORT, --world-size N"));
  EXPECT_THAT(alone("--rdzv-endpoint here --world-size 2 --rank 1", {}).errors,
              HasSubstr("\"here\" is no HOST:PORT"));
  EXPECT_THAT(alone("--rdzv-endpoint here:1 --world-size 2 --rank 2", {}).errors,
              HasSubstr("--rank=2 of --world-size=2"));
}

TEST_F(Tcp, OneProcessOfOneAndABatchScriptAreNotJoined) {
  const std::string two = "--set train.steps=2 --set checkpoint.every=0 --set output.sample_prompt= ";
  EXPECT_EQ(alone(two, {"RANK=0", "WORLD_SIZE=1"}).code, 0);
  EXPECT_EQ(
      alone(two, {"SLURM_JOB_ID=1", "SLURM_PROCID=0", "SLURM_NTASKS=4", "SLURM_JOB_NODELIST=a[1-2]"}).code,
      0);
  EXPECT_EQ(alone(two, {"SLURM_PROCID=0", "SLURM_STEP_NUM_TASKS=1"}).code, 0);
}

TEST_F(Tcp, CommandsOfOneProcessAndRestartsSaySo) {
  const Outcome g = Running(folder_, "generate x --prompt a", {.environment = torchrun(0, 2, 29500)}).wait();
  EXPECT_EQ(g.code, 2);
  EXPECT_THAT(g.errors, AllOf(HasSubstr("tessera generate runs in one process"), HasSubstr("torchrun")));
  EXPECT_THAT(alone("--restarts 2", torchrun(0, 2, 29500)).errors,
              HasSubstr("one process of several cannot start the others again"));
}

}  // namespace
}  // namespace tessera::cli
