// ./dev cluster: ranks on network namespaces of this machine.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <array>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int kCannot = 77;

struct Ended {
  int code = -1;
  std::string text;  // both outputs
};

Ended shell(const std::string& command) {
  Ended ended;
  FILE* pipe = ::popen((command + " 2>&1").c_str(), "r");
  if (pipe == nullptr) return ended;
  std::array<char, 4096> part{};
  while (const std::size_t n = std::fread(part.data(), 1, part.size(), pipe))
    ended.text.append(part.data(), n);
  const int status = ::pclose(pipe);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  return ended;
}

Ended cluster(const std::string& arguments) {
  return shell("timeout 100 python3 " TESSERA_SOURCE_DIR "/tools/cluster.py " + arguments);
}

class Cluster : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = fs::temp_directory_path() / ("tessera-cluster-test-" + std::to_string(::getpid()));
    fs::create_directories(folder_);
  }
  void TearDown() override { fs::remove_all(folder_); }
  // A program that says where it runs.
  [[nodiscard]] std::string where() const {
    std::ofstream(folder_ / "where") << "#!/bin/sh\n"
                                        "echo rank $OMPI_COMM_WORLD_RANK is on $(uname -n) $*\n";
    fs::permissions(folder_ / "where", fs::perms::owner_all);
    return " --program " + (folder_ / "where").string();
  }
  fs::path folder_;
};

#ifdef TESSERA_MPIRUN
#define SKIP_WHERE_FORBIDDEN(ended) \
  if ((ended).code == kCannot) GTEST_SKIP() << (ended).text

TEST_F(Cluster, NeighbouringRanksShareANodeOrAreOnDifferentOnes) {
  const Ended slot = cluster("--nodes 2 --ranks-per-node 2 --link 1gbit" + where() + " -- here");
  SKIP_WHERE_FORBIDDEN(slot);
  ASSERT_EQ(slot.code, 0) << slot.text;
  EXPECT_THAT(slot.text, AllOf(HasSubstr("rank 0 is on node0 here"), HasSubstr("rank 1 is on node0 here"),
                               HasSubstr("rank 2 is on node1 here"), HasSubstr("rank 3 is on node1 here")));
  const Ended node = cluster("--nodes 2 --ranks-per-node 2 --link none --map node" + where() + " -- here");
  ASSERT_EQ(node.code, 0) << node.text;
  EXPECT_THAT(node.text, AllOf(HasSubstr("rank 0 is on node0 here"), HasSubstr("rank 1 is on node1 here"),
                               HasSubstr("rank 2 is on node0 here"), HasSubstr("rank 3 is on node1 here")));
  EXPECT_THAT(shell("ip netns list").text, Not(HasSubstr("node0")));
}

TEST_F(Cluster, TrainsAcrossTwoNodesAndSaysSo) {
  std::ofstream text(folder_ / "text.txt");
  for (int i = 0; i < 4000; ++i) text << "word" << i * i % 89 << (i % 9 == 8 ? ".\n" : " ");
  text.close();
  std::ofstream(folder_ / "job.yaml")
      << "model: {model_type: llama, num_hidden_layers: 2, hidden_size: 16, intermediate_size: 16,\n"
         "  num_attention_heads: 4, num_key_value_heads: 4, vocab_size: 280, max_position_embeddings: 32}\n"
         "train: {steps: 2, sequence_length: 8, global_batch_size: 4, micro_batch_size: 1}\n"
         "parallel: {dp: 2}\n"
         "data: {text: text.txt, vocab_size: 280}\n"
         "output: {folder: run}\n";
  const Ended e = shell("cd " + folder_.string() +
                        " && timeout 100 python3 " TESSERA_SOURCE_DIR
                        "/tools/cluster.py --link 200mbit --program " TESSERA_PROGRAM " -- train job.yaml");
  SKIP_WHERE_FORBIDDEN(e);
  ASSERT_EQ(e.code, 0) << e.text;
  EXPECT_THAT(e.text, HasSubstr("2 ranks in 2 processes on 2 hosts"));
}

TEST_F(Cluster, CalibrateMeasuresTheLinkAndPredictsAStepOverIt) {
  const std::string go = "cd " + folder_.string() + " && timeout 200 ";
  const Ended tried = cluster("--link 1gbit" + where() + " -- here");
  SKIP_WHERE_FORBIDDEN(tried);
  const Ended machine = shell(go + TESSERA_PROGRAM " calibrate --quick --output machine");
  ASSERT_EQ(machine.code, 0) << machine.text;
  const Ended e =
      shell(go + "python3 " TESSERA_SOURCE_DIR "/tools/cluster.py --link 400mbit --program " TESSERA_PROGRAM
                 " -- calibrate --machine machine --name two --output two --quick --check "
                 "--check-steps 1 --check-only 'ZeRO-1;MoE, dp 2, ep 2'");
  ASSERT_EQ(e.code, 0) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("dense, dp 2, ZeRO-1"), HasSubstr("MoE, dp 2, ep 2"),
                            HasSubstr("wrote two/two.yaml and two/cluster.yaml")));
  const std::size_t at = e.text.find("network: ");
  ASSERT_NE(at, std::string::npos) << e.text;
  const double rate = std::stod(e.text.substr(at + 9));  // MB/s
  EXPECT_GT(rate, 25.0) << e.text;
  EXPECT_LT(rate, 60.0) << e.text;
}

TEST_F(Cluster, NothingIsLeftWhenItIsKilled) {
  // The pause of a rank is a number that no other program waits for.
  const std::string pause = "31415" + std::to_string(::getpid());
  const Ended e = shell("python3 " TESSERA_SOURCE_DIR "/tools/cluster.py --program /bin/sleep -- " + pause +
                        " & cluster=$!; for i in $(seq 100); do sleep 0.1; pgrep -f '[s]leep " + pause +
                        "' >/dev/null && break; done; pgrep -fc '[s]leep " + pause +
                        "'; kill -9 $cluster; "
                        "wait $cluster; code=$?; sleep 1; pgrep -fc '[s]leep " +
                        pause + "'; exit $code");
  SKIP_WHERE_FORBIDDEN(e);
  EXPECT_EQ(e.code, 137) << e.text;
  EXPECT_TRUE(e.text.ends_with("\n0\n")) << e.text;
}
#endif

TEST_F(Cluster, WhatIsWrongIsToldWithTheMend) {
  const Ended rate = cluster("--link fast -- train job.yaml");
  EXPECT_EQ(rate.code, 2);
  EXPECT_THAT(rate.text, AllOf(HasSubstr("--link fast is no rate"), HasSubstr("200mbit")));
  const Ended nothing = cluster("--nodes 2");
  EXPECT_EQ(nothing.code, 2);
  EXPECT_THAT(nothing.text, HasSubstr("./dev cluster -- train job.yaml"));
}

TEST_F(Cluster, UsersWithoutRightsAreToldAndSkipped) {
  if (::geteuid() != 0) {
    const Ended e = cluster("-- train job.yaml");
    EXPECT_EQ(e.code, kCannot) << e.text;
    EXPECT_THAT(e.text, HasSubstr("need root"));
    return;
  }
  const Ended e = shell("setpriv --reuid 65534 --clear-groups /usr/bin/python3 " TESSERA_SOURCE_DIR
                        "/tools/cluster.py -- train job.yaml");
  if (e.code == 126 || e.code == 127 || e.text.find("can't open file") != std::string::npos)
    GTEST_SKIP() << "another user cannot start it: " << e.text;
  EXPECT_EQ(e.code, kCannot) << e.text;
  EXPECT_THAT(e.text, AllOf(HasSubstr("skipped: network namespaces need root"), HasSubstr("sudo")));
}

}  // namespace
}  // namespace tessera::cli
