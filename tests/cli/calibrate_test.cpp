// tessera calibrate: the files that it writes are read back by the rest of the program, whole or not at all.
#include <gmock/gmock.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;

TEST_F(Program, CalibrateWritesACalibrationAndAClusterThatAPlanIsSimulatedOn) {
  const Outcome made = run("calibrate --quick --cores 1 --output machine --name box --json");
  ASSERT_EQ(made.code, 0) << made.errors;
  const json j = json::parse(made.output);
  EXPECT_EQ(j["calibration"], "machine/box.yaml");
  EXPECT_EQ(j["cluster"], "machine/cluster.yaml");
  EXPECT_GT(j["peak"].get<double>(), 1e9);
  EXPECT_GT(j["memory_bandwidth"].get<double>(), 1e8);
  EXPECT_GT(j["kernels"].size(), 20U);
  for (const json& kernel : j["kernels"]) EXPECT_GT(kernel["measured_seconds"].get<double>(), 0.0) << kernel;
  // Nothing but the two files: no temporary is left.
  std::vector<std::string> names;
  for (const auto& e : fs::directory_iterator(folder_ / "machine")) names.push_back(e.path().filename());
  std::ranges::sort(names);
  EXPECT_EQ(names, (std::vector<std::string>{"box.yaml", "cluster.yaml"}));
  EXPECT_THAT(read("machine/cluster.yaml"), HasSubstr("threads"));

  write("job.yaml", R"(
model: {model_type: llama, num_hidden_layers: 2, hidden_size: 32, intermediate_size: 64, num_attention_heads: 4,
  num_key_value_heads: 4, vocab_size: 320, max_position_embeddings: 64}
train: {steps: 1, sequence_length: 32, global_batch_size: 2, micro_batch_size: 1}
data: {text: text.txt, vocab_size: 320}
checkpoint: {folder: run/checkpoints}
output: {folder: run}
)");
  write("text.txt", some_text());
  const Outcome played =
      run("simulate job.yaml --cluster machine/cluster.yaml --calibration machine/box.yaml --json");
  ASSERT_EQ(played.code, 0) << played.errors;
}

TEST_F(Program, CalibrateRefusesWrongUseBeforeItMeasures) {
  const Outcome many = run("calibrate --cores 100000 --output machine");
  EXPECT_EQ(many.code, 2);
  EXPECT_THAT(many.errors, HasSubstr("cores=100000 but this process may use"));
  EXPECT_THAT(many.errors, HasSubstr("mend: use fewer"));
  EXPECT_FALSE(exists("machine"));
  for (const char* name : {"a/b", "../x", "cluster", "''"}) {
    const Outcome named = run(std::string("calibrate --output machine --name ") + name);
    EXPECT_EQ(named.code, 2) << name;
    EXPECT_THAT(named.errors, HasSubstr("--name")) << name;
  }
  write("machine", "a file");
  const Outcome file = run("calibrate --quick --output machine");
  EXPECT_NE(file.code, 0);
  EXPECT_THAT(file.errors, HasSubstr("machine"));
  EXPECT_EQ(read("machine"), "a file");
}

}  // namespace
}  // namespace tessera::cli
