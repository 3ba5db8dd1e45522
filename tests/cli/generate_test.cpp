// tessera generate and eval as a user runs them: several prompts, stop texts, ranks, files of prompts,
// refusals.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class Generate : public TinyRun {
 protected:
  static std::vector<json> lines(const Outcome& o) {
    std::vector<json> out;
    std::istringstream in(o.output);
    for (std::string line; std::getline(in, line);) out.push_back(json::parse(line));
    return out;
  }
  const std::string base_ = "generate run/checkpoints --tokenizer run/tokenizer.model --max-new-tokens 8 ";
};

TEST_F(Generate, PromptsOfFlagsAndFilesGiveTheSameTextsOnAnyRanks) {
  write("prompts.txt", "the river\n\nand so\n");
  write("prompts.jsonl", "{\"prompt\": \"the river\"}\n{\"prompt\": \"and so\"}\n");
  const Outcome flags = run(base_ + "--prompt 'the river' --prompt 'and so' --json --top-p 0.9 --top-k 0");
  ASSERT_EQ(flags.code, 0) << flags.errors;
  const std::vector<json> want = lines(flags);
  ASSERT_EQ(want.size(), 3U) << "two texts and a summary";
  EXPECT_EQ(want[1]["prompt"], "and so");
  EXPECT_EQ(want[2]["summary"]["decode_tokens"], 16);
  EXPECT_GT(want[2]["summary"]["decode_tokens_per_s"].get<double>(), 0.0);
  for (const std::string how :
       {"--prompts prompts.txt", "--prompts prompts.jsonl --batch 1", "--prompts prompts.txt --tp 2"}) {
    const Outcome o = run(base_ + how + " --json --top-p 0.9 --top-k 0");
    ASSERT_EQ(o.code, 0) << o.errors;
    const std::vector<json> got = lines(o);
    EXPECT_EQ(got.at(0), want[0]) << how;
    EXPECT_EQ(got.at(1), want[1]) << how;
  }
}

TEST_F(Generate, AStopTextEndsAndIsCutOff) {
  const std::string flags = base_ + "--prompt 'the river' --temperature 0 --json ";
  const std::string whole = lines(run(flags)).at(0)["text"];
  ASSERT_GE(whole.size(), 4U);
  const std::string stop = whole.substr(2, 2);
  const json j = lines(run(flags + "--stop '" + stop + "'")).at(0);
  EXPECT_EQ(j["finish"], "stop");
  EXPECT_EQ(j["text"], whole.substr(0, whole.find(stop)));
}

TEST_F(Generate, TextGoesToOutputAndSpeedToErrors) {
  const Outcome o = run(base_ + "--prompt 'the river'");
  EXPECT_THAT(o.output, AllOf(HasSubstr("the river"), Not(HasSubstr("tokens/s"))));
  EXPECT_THAT(o.errors, AllOf(HasSubstr("prefill"), HasSubstr("decode 8 tokens"), HasSubstr("tokens/s")));
}

TEST_F(Generate, AFullContextEndsTheTextAndSaysSo) {
  const Outcome o = run(base_ + "--prompt 'the river' --context 6 --json");
  EXPECT_EQ(lines(o).at(0)["finish"], "context");
  EXPECT_THAT(o.errors, HasSubstr("the context of 6 tokens is full"));
  EXPECT_EQ(lines(run(base_ + "--prompt 'the river' --context 6 --slide --json")).at(0)["finish"], "length");
}

TEST_F(Generate, RefusesAllBadFlagsAtOnce) {
  const Outcome o =
      run(base_ + "--temperature -1 --top-p 0 --top-k -2 --chunk 0 --tp 0 --prompts missing.txt");
  EXPECT_EQ(o.code, 2);
  for (const char* text :
       {"6 problems", "temperature -1", "--top-p", "top-k -2", "--chunk", "--tp", "missing.txt", "mend:"})
    EXPECT_THAT(o.errors, HasSubstr(text));
  const Outcome ranks = run(base_ + "--prompt a --tp 3");
  EXPECT_EQ(ranks.code, 2);
  EXPECT_THAT(ranks.errors, AllOf(HasSubstr("--tp"), HasSubstr("tp=3")));
  EXPECT_THAT(run(base_).errors, HasSubstr("there is no prompt"));
  EXPECT_THAT(run("generate run/checkpoints --prompt a").errors, HasSubstr("the folder holds no tokenizer"));
  write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"text\": \"b\"}\n");
  EXPECT_THAT(run(base_ + "--prompts bad.jsonl").errors, HasSubstr("bad.jsonl, line 2"));
}

TEST_F(Generate, EvalScoresTheSameOnRanksAndBetterWithAPast) {
  const std::string base =
      "eval run/checkpoints text.txt --tokenizer run/tokenizer.model --json --context 8 ";
  const Outcome one = run(base);
  ASSERT_EQ(one.code, 0) << one.errors;
  const double nats = json::parse(one.output)["nats_per_token"];
  const double ranks = json::parse(run(base + "--tp 2 --batch 2").output)["nats_per_token"];
  EXPECT_TRUE(std::abs(nats - ranks) <= 1e-4 * nats);
  EXPECT_LT(json::parse(run(base + "--stride 2").output)["nats_per_token"].get<double>(), nats);
  const Outcome bad = run(base + "--stride 9");
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.errors, AllOf(HasSubstr("stride=9"), HasSubstr("--stride")));
}

TEST_F(Generate, BF16IsOfGpusAlone) {
  const Outcome o = run(base_ + "--prompt a --precision bf16");
  EXPECT_EQ(o.code, 2);
  EXPECT_THAT(o.errors, AllOf(HasSubstr("bf16 is computed on GPUs alone"), HasSubstr("--device cuda")));
  const Outcome f64 = run(base_ + "--prompt 'the river' --precision f64 --temperature 0 --json");
  const Outcome f32 = run(base_ + "--prompt 'the river' --temperature 0 --json");
  EXPECT_EQ(lines(f64).at(0)["text"], lines(f32).at(0)["text"]);
}

// Nothing falls back on the CPU, and nothing is written.
TEST_F(Generate, WithoutAGpuEveryCommandSaysWhyAndWhatToDo) {
  if (fs::exists("/dev/nvidiactl")) GTEST_SKIP() << "this machine has a GPU";
  for (const std::string& command :
       {base_ + "--prompt a --device cuda",
        std::string("eval run/checkpoints text.txt --tokenizer run/tokenizer.model --device cuda"),
        std::string("train job.yaml --set output.folder=other --set train.precision=bf16 --device cuda")}) {
    const Outcome o = run(command);
    EXPECT_EQ(o.code, 1) << command;
    EXPECT_EQ(o.output, "") << command;
    EXPECT_THAT(o.errors, AllOf(HasSubstr("there is no GPU: "), HasSubstr("where: --device cuda"),
                                HasSubstr("mend: run on a machine with an NVIDIA GPU")))
        << command;
  }
  EXPECT_FALSE(fs::exists(folder_ / "other"));
  const Outcome both = run(base_ + "--prompt a --device cuda --bandwidth");
  EXPECT_EQ(both.code, 2);
  EXPECT_THAT(both.errors, HasSubstr("--bandwidth"));
}

TEST_F(Generate, ProfileTimesEveryOperationOfAStep) {
  const Outcome o = run("profile job.yaml --steps 1");
  ASSERT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, AllOf(HasSubstr("linear_wgrad"), HasSubstr("attention_backward"), HasSubstr("adamw"),
                              HasSubstr("a step takes"), HasSubstr("FMA peak"), HasSubstr("GB/s of a copy")));
  const json j = json::parse(run("profile job.yaml --steps 1 --json").output);
  EXPECT_GE(j["step_s"].get<double>(), j["fastest_step_s"].get<double>());
  for (const char* key : {"fastest_step_s", "tokens_per_s", "mfu", "product_flops_per_s", "launch_s"})
    EXPECT_GT(j[key].get<double>(), 0.0) << key;
  EXPECT_GT(j["mfu_full"].get<double>(), j["mfu"].get<double>());
  double seconds = 0.0;
  for (const json& op : j["operations"]) {
    seconds += op["time_s"].get<double>();
    EXPECT_GT(op["bytes"].get<double>(), 0.0) << op;
  }
  EXPECT_GT(seconds, 0.0);
  EXPECT_THAT(run("profile missing.yaml").errors, HasSubstr("missing.yaml"));
}

}  // namespace
}  // namespace tessera::cli
