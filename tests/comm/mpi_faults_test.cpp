// What mpirun's user sees when a rank leaves out a call, makes another, dies, is stopped or only slow: one
// message that names rank, step, layer, micro-batch and operation, and the job has ended within seconds.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <string>

#include "base/clock.h"

namespace tessera::comm {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

#ifdef TESSERA_FAULTS_PROGRAM
struct Ended {
  int code = -1;
  std::string text;
  double seconds = 0.0;
};

// mpirun of `processes`; each has ended within a minute, or timeout ends it with code 124.
Ended start(int processes, const std::string& arguments) {
  const std::string command =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 timeout 60 " TESSERA_MPIRUN " -n " +
      std::to_string(processes) + " " TESSERA_FAULTS_PROGRAM " " + arguments + " 2>&1";
  Ended ended;
  const std::int64_t begin = wall_ns();
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return ended;
  std::array<char, 4096> part{};
  while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe))
    ended.text.append(part.data(), n);
  const int status = ::pclose(pipe);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  ended.seconds = static_cast<double>(wall_ns() - begin) * 1e-9;
  return ended;
}

std::int64_t count(const std::string& text, const std::string& word) {
  std::int64_t n = 0;
  for (std::size_t at = text.find(word); at != std::string::npos; at = text.find(word, at + 1)) ++n;
  return n;
}

TEST(MpiFaults, WithoutOneAllStepsRun) {
  const Ended e = start(3, "none");
  EXPECT_EQ(e.code, 0) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("all steps done"), Not(HasSubstr("tells"))));
}

TEST(MpiFaults, ASkippedCollectiveIsNamedByStepAndLayerOfBothRanks) {
  const Ended e = start(3, "skip");
  EXPECT_EQ(e.code, 1) << e.text;
  EXPECT_LT(e.seconds, 20.0);
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("calls do not match"), HasSubstr("tp all_reduce #15 (3.91 KiB f32)"),
                            HasSubstr("at step 3, layer 2, micro-batch 0, forward"),
                            HasSubstr("at step 3, layer 3, micro-batch 0, forward"), HasSubstr("rank 1"),
                            HasSubstr("states of the ranks"), HasSubstr("last calls: tp: all_reduce")));
}

TEST(MpiFaults, AnotherSizeIsNamedWithBothSizes) {
  const Ended e = start(3, "size");
  EXPECT_EQ(e.code, 1) << e.text;
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("calls do not match"), HasSubstr("step 3, layer 2")));
}

TEST(MpiFaults, AnErrorOfOneRankEndsAllWithThatError) {
  const Ended e = start(4, "throw");
  EXPECT_EQ(e.code, 1) << e.text;
  EXPECT_LT(e.seconds, 20.0);
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
  EXPECT_THAT(e.text,
              AllOf(HasSubstr("rank 1 failed: no space left on disk"), HasSubstr("mend: free 3 GiB"),
                    HasSubstr("waits in tp all_reduce #15"), HasSubstr("for rank 1 at step 3, layer 2")));
}

TEST(MpiFaults, AStoppedProcessIsReportedAfterTheStatedSilenceWithWhatTheOthersWaitFor) {
  const Ended e = start(3, "stop 2");
  EXPECT_NE(e.code, 0);
  EXPECT_LT(e.seconds, 20.0);
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("the process of rank 1 is stopped (by SIGSTOP or a debugger)"),
                            HasSubstr("its last message to this one: all_reduce #14"),
                            HasSubstr("at step 3, layer 1, micro-batch 0, forward"),
                            HasSubstr("waits in tp all_reduce #15 (3.91 KiB f32) for rank 1"),
                            HasSubstr("start the job again")));
}

TEST(MpiFaults, ASlowRankIsNoFault) {
  const Ended e = start(3, "slow 1");
  EXPECT_EQ(e.code, 0) << e.text;
  EXPECT_THAT(e.text, Not(HasSubstr("tells")));
}

TEST(MpiFaults, ARankSlowerThanTheTimeoutIsNamed) {
  const Ended e = start(3, "slow 2 1");
  EXPECT_EQ(e.code, 1) << e.text;
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("for rank 1 at step 3, layer 2"), HasSubstr("no answer for 1"),
                            HasSubstr("rank 1: outside of communication, at step 3, layer 2"),
                            HasSubstr("raise the timeout")));
}

TEST(MpiFaults, ADeadProcessEndsTheJobAndIsNamed) {
  const Ended e = start(3, "kill 5");
  EXPECT_NE(e.code, 0);
  EXPECT_LT(e.seconds, 20.0);
  EXPECT_THAT(e.text, AllOf(HasSubstr("the process of rank 1 has died"),
                            HasSubstr("its last message to this one: all_reduce #14"),
                            HasSubstr("waits in tp all_reduce #15 (3.91 KiB f32) for rank 1")));
  EXPECT_EQ(count(e.text, "tells:"), 1) << e.text;
}
#endif

}  // namespace
}  // namespace tessera::comm
