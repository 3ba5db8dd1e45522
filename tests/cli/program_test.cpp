// The program from the outside: exit codes, help, messages, and a tiny model trained, resumed, converted and
// asked for text.
#include "cli/program.h"

#include <gmock/gmock.h>

#include <nlohmann/json.hpp>
#include <sstream>
#include <vector>

#include "base/random.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kCommands[] = {"train", "generate", "convert", "tokenize", "schedule"};

TEST_F(Program, HelpListsEveryCommandAndIsGood) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.code, 0);
  for (const char* command : kCommands) EXPECT_THAT(help.output, HasSubstr(command));
  EXPECT_EQ(run("--version").code, 0);
}

TEST_F(Program, EveryCommandHasHelpWithAnExample) {
  for (const char* command : kCommands) {
    const Outcome help = run(std::string(command) + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_THAT(help.output, HasSubstr("Example:\n  tessera " + std::string(command)));
    EXPECT_THAT(help.output, HasSubstr("--json"));
  }
}

TEST_F(Program, WrongUseExitsWithTwo) {
  for (const char* arguments : {"", "dance", "train", "schedule --pp x", "generate only-a-folder"}) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_NE(outcome.errors, "") << arguments;
  }
}

TEST_F(Program, AMissingJobFileIsAnErrorWithItsPathAndMend) {
  const Outcome outcome = run("train no-such-job.yaml");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("no-such-job.yaml"));
  EXPECT_THAT(outcome.errors, HasSubstr("mend:"));
}

TEST_F(Program, ScheduleGivesTheClosedFormOfTheBubble) {
  const Outcome outcome = run("schedule --kind 1f1b --pp 4 --microbatches 8 --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_NEAR(json::parse(outcome.output)["bubble"].get<double>(), 3.0 / 11.0, 1e-12);
}

TEST_F(Program, ScheduleNamesTheNearestKind) {
  const Outcome outcome = run("schedule --kind 1f1c");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, HasSubstr("1f1b"));
}

constexpr const char* kJob = R"(
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
data: {text: text.txt, vocab_size: 320}
checkpoint: {folder: run/checkpoints, every: 3}
output: {folder: run, sample_prompt: "the river", sample_tokens: 5, trace_steps: 1}
)";

// Sentences of a few dozen words, different on every line.
std::string some_text() {
  const std::vector<std::string> words = {"the",   "river", "stone", "walks",   "under", "a",     "bright",
                                          "moon",  "and",   "sings", "slowly",  "to",    "every", "sleeping",
                                          "house", "where", "old",   "friends", "wait",  "for",   "rain"};
  std::ostringstream text;
  for (std::uint64_t line = 0; line < 400; ++line) {
    for (std::uint64_t w = 0; w < 12; ++w) {
      text << words[uniform_below(words.size(), 1, line, w)] << (w == 11 ? ".\n" : " ");
    }
  }
  return text.str();
}

class TinyRun : public Program {
 protected:
  void SetUp() override {
    Program::SetUp();
    write("job.yaml", kJob);
    write("text.txt", some_text());
  }
  // The losses of metrics.jsonl.
  [[nodiscard]] std::vector<double> losses() const {
    std::vector<double> out;
    std::istringstream lines(text_of("run/metrics.jsonl"));
    for (std::string line; std::getline(lines, line);) out.push_back(json::parse(line)["loss"]);
    return out;
  }
};

TEST_F(TinyRun, ABadJobReportsEveryProblemAtOnceAndTouchesNothing) {
  const Outcome outcome = run("train job.yaml --set parallel.tp=3 --set train.stepz=5 --set parallel.ep=3");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, HasSubstr("problems)"));
  EXPECT_THAT(outcome.errors, HasSubstr("tp=3"));
  EXPECT_THAT(outcome.errors, HasSubstr("did you mean train.steps?"));
  EXPECT_THAT(outcome.errors, HasSubstr("ep=3"));
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(TinyRun, PrintConfigReadsBackToTheSameConfig) {
  const Outcome first = run("train job.yaml --print-config");
  ASSERT_EQ(first.code, 0) << first.errors;
  write("printed.yaml", first.output);
  EXPECT_EQ(run("train printed.yaml --print-config").output, first.output);
}

TEST_F(TinyRun, DryRunShowsPlanAndMemoryAndWritesNothing) {
  const Outcome outcome = run("train job.yaml --dry-run");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("1f1b"));
  EXPECT_FALSE(fs::exists(folder_ / "run"));
}

TEST_F(TinyRun, TrainsOnEightRanksAndSaysWhereEachFileLies) {
  const Outcome outcome = run("train job.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  for (const char* file : {"run/metrics.jsonl", "run/trace.json", "run/plan.json", "run/tokenizer.model"}) {
    EXPECT_TRUE(fs::exists(folder_ / file)) << file;
    EXPECT_THAT(outcome.output, HasSubstr(file));
  }
  EXPECT_THAT(outcome.output, HasSubstr("unigram entropy"));
  ASSERT_EQ(losses().size(), 6U);
  EXPECT_LT(losses().back(), losses().front());
  EXPECT_TRUE(json::accept(text_of("run/trace.json")));
}

TEST_F(TinyRun, AResumedRunGoesOnWithTheBitsOfAnUninterruptedOne) {
  ASSERT_EQ(run("train job.yaml").code, 0);
  const std::vector<double> whole = losses();
  fs::remove_all(folder_ / "run" / "checkpoints" / "step-00000006");
  const Outcome resumed = run("train job.yaml");
  ASSERT_EQ(resumed.code, 0) << resumed.errors;
  EXPECT_THAT(resumed.output, HasSubstr("resumed after step 3"));
  const std::vector<double> again = losses();
  ASSERT_GE(again.size(), 3U);
  EXPECT_EQ(std::vector<double>(again.end() - 3, again.end()),
            std::vector<double>(whole.end() - 3, whole.end()));
}

TEST_F(TinyRun, ConvertsThereAndBackAndGeneratesTheSameTextFromAll) {
  ASSERT_EQ(run("train job.yaml").code, 0);
  ASSERT_EQ(run("convert run/checkpoints hf").code, 0);
  const Outcome back = run("convert hf tessera");
  ASSERT_EQ(back.code, 0) << back.errors;
  const std::string flags =
      " --tokenizer run/tokenizer.model --prompt 'the river' --max-new-tokens 6 --seed 3 --context 32";
  const Outcome a = run("generate run/checkpoints" + flags);
  const Outcome b = run("generate hf" + flags);
  const Outcome c = run("generate tessera" + flags);
  ASSERT_EQ(a.code, 0) << a.errors;
  EXPECT_EQ(b.code, 0) << b.errors;
  EXPECT_EQ(c.code, 0) << c.errors;
  EXPECT_THAT(a.output, HasSubstr("the river"));
  EXPECT_EQ(b.output, a.output);
  EXPECT_EQ(c.output, a.output);
  const Outcome twice = run("convert hf tessera");
  EXPECT_EQ(twice.code, 2);
  EXPECT_THAT(twice.errors, HasSubstr("exists already"));
}

TEST_F(TinyRun, TokenizeWritesATokenFileThatAJobReads) {
  const Outcome outcome = run("tokenize text.txt --vocab-size 320 --tokenizer t.model --output tokens");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_TRUE(fs::exists(folder_ / "tokens.idx"));
  const Outcome trained =
      run("train job.yaml --set data.text= --set data.train=tokens.bin --set data.vocab_size=0 "
          "--set data.tokenizer=t.model --set train.steps=2");
  EXPECT_EQ(trained.code, 0) << trained.errors;
}

TEST_F(TinyRun, JsonOutputIsOneObjectALine) {
  const Outcome outcome = run("train job.yaml --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  std::istringstream lines(outcome.output);
  std::string line;
  std::string last;
  while (std::getline(lines, line)) {
    EXPECT_TRUE(json::accept(line)) << line;
    last = line;
  }
  EXPECT_TRUE(json::parse(last).contains("summary"));
}

}  // namespace
}  // namespace tessera::cli
