// tessera train under mpirun, as a user starts it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

namespace tessera::cli {
namespace {

#ifdef TESSERA_MPIRUN
namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

struct Ended {
  int code = -1;
  std::string text;  // both outputs
};

class Mpi : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("tessera-mpi-" + std::to_string(::getpid()));
    fs::remove_all(folder_);
    fs::create_directories(folder_);
    std::ofstream text(folder_ / "text.txt");
    for (int i = 0; i < 4000; ++i) text << "word" << i * i % 89 << (i % 9 == 8 ? ".\n" : " ");
    text.close();
    std::ofstream(folder_ / "job.yaml")
        << "model: {model_type: mixtral, num_hidden_layers: 2, hidden_size: 16, intermediate_size: 16,\n"
           "  num_attention_heads: 4, num_key_value_heads: 4, vocab_size: 280, max_position_embeddings: 32,\n"
           "  num_local_experts: 4, num_experts_per_tok: 2}\n"
           "train: {steps: 4, sequence_length: 8, global_batch_size: 8, micro_batch_size: 1}\n"
           "parallel: {tp: 1, pp: 2, dp: 2, ep: 2}\n"
           "data: {text: text.txt, vocab_size: 280}\n"
           "checkpoint: {folder: run/checkpoints, every: 2}\n"
           "output: {folder: run, trace_steps: 1}\n";
  }
  void TearDown() override { fs::remove_all(folder_); }

  Ended start(const std::string& before, const std::string& arguments,
              const std::string& command_line = "train job.yaml") const {
    const std::string command = "cd " + folder_.string() +
                                " && OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 100 " +
                                before + " " TESSERA_PROGRAM " " + command_line + " " + arguments + " 2>&1";
    Ended ended;
    FILE* pipe = ::popen(command.c_str(), "r");
    if (pipe == nullptr) return ended;
    std::array<char, 4096> part{};
    while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe))
      ended.text.append(part.data(), n);
    const int status = ::pclose(pipe);
    ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
    return ended;
  }
  std::vector<double> losses(const std::string& run) const {
    std::ifstream file(folder_ / run / "metrics.jsonl");
    std::vector<double> out;
    for (std::string line; std::getline(file, line);) out.push_back(nlohmann::json::parse(line).at("loss"));
    return out;
  }
  fs::path folder_;
};

TEST_F(Mpi, FourProcessesTrainAsFourThreadsDoAndResumeFromTheirCheckpoint) {
  const Ended threads = start("", "--set output.folder=threads --set checkpoint.folder=threads/checkpoints");
  ASSERT_EQ(threads.code, 0) << threads.text;
  const Ended four = start(TESSERA_MPIRUN " -n 4", "");
  ASSERT_EQ(four.code, 0) << four.text;
  EXPECT_THAT(four.text, HasSubstr("4 ranks in 4 processes on 1 host"));
  EXPECT_EQ(four.text.find('\033'), std::string::npos) << "no colours for the pipe of mpirun";
  ASSERT_EQ(losses("run").size(), 4U);
  EXPECT_EQ(losses("run"), losses("threads"));
  EXPECT_TRUE(fs::exists(folder_ / "run/trace.json"));
  for (const char* rank : {"rank-000", "rank-001", "rank-002", "rank-003"})
    EXPECT_TRUE(
        fs::exists(folder_ / "run/checkpoints/step-00000004" / (std::string(rank) + ".safetensors")) ||
        !fs::exists(folder_ / "threads/checkpoints/step-00000004" / (std::string(rank) + ".safetensors")))
        << rank;

  // Two processes of two ranks go on from it; so do threads from theirs.
  const Ended two = start(TESSERA_MPIRUN " -n 2", "--ranks-per-process 2 --set train.steps=6");
  ASSERT_EQ(two.code, 0) << two.text;
  EXPECT_THAT(two.text, HasSubstr("resumed after step 4"));
  const Ended again = start(
      "", "--set train.steps=6 --set output.folder=threads --set checkpoint.folder=threads/checkpoints");
  ASSERT_EQ(again.code, 0) << again.text;
  ASSERT_EQ(losses("run").size(), 6U);
  EXPECT_EQ(losses("run"), losses("threads"));
}

TEST_F(Mpi, ProcessesThatDoNotMakeTheJobsRanksAreRefusedOnce) {
  const Ended e = start(TESSERA_MPIRUN " -n 3", "");
  EXPECT_NE(e.code, 0);
  EXPECT_THAT(e.text, AllOf(HasSubstr("3 processes of 1 rank make 3 ranks, but the job has 4"),
                            HasSubstr("start 4 processes (mpirun -n 4)")));
  EXPECT_EQ(e.text.find("but the job has 4"), e.text.rfind("but the job has 4"));
}

TEST_F(Mpi, CommandsOfOneProcessSaySoOnce) {
  const Ended e = start(TESSERA_MPIRUN " -n 2", "", "generate run/checkpoints --prompt a");
  EXPECT_NE(e.code, 0);
  EXPECT_THAT(e.text, HasSubstr("tessera generate runs in one process, its ranks are threads"));
  EXPECT_EQ(e.text.find("runs in one process"), e.text.rfind("runs in one process"));
}

TEST_F(Mpi, AWrongJobIsToldOnce) {
  const Ended e = start(TESSERA_MPIRUN " -n 4", "--set train.stepz=4");
  EXPECT_NE(e.code, 0);
  EXPECT_NE(e.text.find("stepz"), std::string::npos) << e.text;
  EXPECT_EQ(e.text.find("tessera: config"), e.text.rfind("tessera: config")) << e.text;
}
#endif

}  // namespace
}  // namespace tessera::cli
