// `tessera train` from the outside: what it refuses before it writes, what it leaves behind, how it goes on.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "base/file.h"
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

void cut_a_file_of(const fs::path& checkpoint) {
  const fs::path file = checkpoint / "rank-000.safetensors";
  fs::resize_file(file, fs::file_size(file) / 2);
}

TEST_F(TinyJob, ABadJobReportsEveryProblemAtOnceAndTouchesNothing) {
  const Outcome outcome = run("train job.yaml --set parallel.tp=3 --set train.stepz=5 --set parallel.ep=3");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("problems)"), HasSubstr("tp=3"), HasSubstr("ep=3"),
                                    HasSubstr("did you mean train.steps?")));
  EXPECT_FALSE(exists("run"));
}

TEST_F(TinyJob, AModelThatCanOnlyBePlannedIsRefusedByNameBeforeAnythingIsWritten) {
  std::string job = read("job.yaml");
  const auto swap = [&](const std::string& from, const std::string& to) {
    ASSERT_NE(job.find(from), std::string::npos) << from;
    job.replace(job.find(from), from.size(), to);
  };
  swap("mixtral", "llama4_text\n  intermediate_size_mlp: 16");
  write("job.yaml", job);
  const Outcome family = run("train job.yaml --set train.precision=bf16");
  EXPECT_EQ(family.code, 2);
  EXPECT_EQ(family.output, "");
  EXPECT_THAT(family.errors, AllOf(HasSubstr("the engine does not train model_type=llama4"),
                                   HasSubstr("  mend: train one of llama, mistral"),
                                   HasSubstr("precision=bf16: the engine computes in f32 and f64"),
                                   HasSubstr("flag train.precision=bf16")));
  EXPECT_FALSE(exists("run"));
  fs::create_directory(folder_ / "hf");
  write("hf/config.json", R"({"model_type": "llama4_text", "num_hidden_layers": 1,
    "hidden_size": 8, "intermediate_size": 8, "intermediate_size_mlp": 8, "num_local_experts": 2,
    "num_experts_per_tok": 1, "num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": 32})");
  for (const char* command :
       {"convert hf out", "generate hf --tokenizer t --prompt a", "eval hf text.txt --tokenizer t"}) {
    const Outcome outcome = run(command);
    EXPECT_EQ(outcome.code, 2) << command;
    EXPECT_THAT(outcome.errors, HasSubstr("the engine does not train model_type=llama4")) << command;
    EXPECT_FALSE(exists("out"));
  }
}

TEST_F(TinyJob, WhatIsWrongWithTheInputIsSaidBeforeAnythingIsWritten) {
  write("broken.yaml", "model: {\n  a: [1\n");
  write("bad.txt", "good line\nbad \xff\xfe line\n");
  write("file", "in the place of a folder");
  const std::pair<const char*, const char*> cases[] = {
      {"train broken.yaml", "broken.yaml:"},
      {"train job.yaml --set train.steps", "not of the form key=value"},
      {"train job.yaml --set data.text=missing.txt", "data.text: missing.txt"},
      {"train job.yaml --set data.text=", "names no data"},
      {"train job.yaml --set data.text= --set data.vocab_size=0 --set data.train=no.bin",
       "data.train: no.bin"},
      {"train job.yaml --set data.vocab_size=0 --set data.tokenizer=no.model", "data.tokenizer: no.model"},
      {"train job.yaml --start-from nowhere", "nowhere"},
      {"train job.yaml --start-from file", "this is a file, not a folder"},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments << "\n" << outcome.errors;
    EXPECT_EQ(outcome.output, "") << arguments;
    EXPECT_THAT(outcome.errors, AllOf(HasSubstr(said), HasSubstr("  mend: "))) << arguments;
    EXPECT_FALSE(exists("run")) << arguments;
  }
  const Outcome bytes = run("train job.yaml --set data.text=bad.txt");
  EXPECT_EQ(bytes.code, 2);
  EXPECT_THAT(bytes.errors,
              AllOf(HasSubstr("not UTF-8: byte 0xFF at offset 14"), HasSubstr("bad.txt, line 2")));
  EXPECT_FALSE(exists("run/tokenizer.model"));
  EXPECT_FALSE(exists("run/tokens.bin"));
}

TEST_F(TinyJob, AFolderThatCannotBeWrittenIsAFailureThatNamesItsKey) {
  write("file", "in the place of a folder");
  const Outcome output = run("train job.yaml --set output.folder=file/x");
  EXPECT_EQ(output.code, 1);
  EXPECT_THAT(output.errors, AllOf(HasSubstr("output.folder: file/x"), HasSubstr("Not a directory")));
  const Outcome checkpoint = run("train job.yaml --set checkpoint.folder=file");
  EXPECT_EQ(checkpoint.code, 1);
  EXPECT_THAT(checkpoint.errors, HasSubstr("checkpoint.folder: file"));
  EXPECT_FALSE(exists("run/plan.json"));
}

TEST_F(TinyJob, AFullDiskIsSaidInAFewLinesAndLeavesNoHalfCheckpoint) {
  const Outcome outcome = Running(folder_, "train job.yaml", 64 << 10).wait();
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("tessera: io"), HasSubstr("cannot write: File too large"),
                                    HasSubstr("mend: free some disk space")));
  EXPECT_LE(std::count(outcome.errors.begin(), outcome.errors.end(), '\n'), 6) << outcome.errors;
  for (const auto& entry : fs::directory_iterator(folder_ / "run/checkpoints")) {
    ADD_FAILURE() << "left behind: " << entry.path();
  }
}

TEST_F(TinyJob, TokensBeyondTheModelsVocabularyAreRefused) {
  ASSERT_EQ(run("tokenize text.txt --vocab-size 350 --tokenizer big.model --output big").code, 0);
  const Outcome tokenizer = run("train job.yaml --set data.vocab_size=0 --set data.tokenizer=big.model");
  EXPECT_EQ(tokenizer.code, 2);
  EXPECT_THAT(tokenizer.errors, HasSubstr("the tokenizer has 350 ids but the model only 320"));
  EXPECT_FALSE(exists("run"));
  const Outcome tokens =
      run("train job.yaml --set data.text= --set data.vocab_size=0 --set data.train=big.bin "
          "--set output.sample_prompt=");
  EXPECT_EQ(tokens.code, 2);
  EXPECT_THAT(tokens.errors, AllOf(HasSubstr("outside the vocabulary of 320"), HasSubstr("big.bin")));
}

TEST_F(TinyJob, PrintConfigReadsBackToTheSameConfig) {
  const Outcome first = run("train job.yaml --set train.steps=9 --print-config");
  ASSERT_EQ(first.code, 0) << first.errors;
  EXPECT_THAT(first.output, HasSubstr("steps: 9"));
  write("printed.yaml", first.output);
  EXPECT_EQ(run("train printed.yaml --print-config").output, first.output);
  const Outcome machine = run("train printed.yaml --print-config --json");
  ASSERT_TRUE(json::accept(machine.output));
  EXPECT_EQ(json::parse(machine.output)["train"]["steps"], 9);
}

TEST_F(TinyJob, DryRunShowsPlanAndMemoryAndWritesNothing) {
  // The job behind --set: a flag takes one value, not all that follow.
  const Outcome outcome = run("train --dry-run --set train.steps=9 job.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, AllOf(HasSubstr("1f1b"), HasSubstr("8 ranks"), HasSubstr("rank")));
  EXPECT_EQ(json::parse(run("train --dry-run --json job.yaml").output)["format"], "tessera-plan");
  EXPECT_FALSE(exists("run"));
}

TEST_F(TinyJob, JsonOutputIsOneObjectALine) {
  const Outcome outcome = run("train job.yaml --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  std::istringstream lines(outcome.output);
  std::vector<json> objects;
  for (std::string line; std::getline(lines, line);) {
    ASSERT_TRUE(json::accept(line)) << line;
    objects.push_back(json::parse(line));
  }
  ASSERT_EQ(objects.size(), 7U);
  for (std::size_t i = 0; i < 6; ++i) EXPECT_EQ(objects[i]["step"], i);
  EXPECT_EQ(objects[6]["summary"]["steps"], 6);
  EXPECT_EQ(objects[6]["summary"]["final_loss"], objects[5]["loss"]);
}

TEST_F(TinyJob, ADenseModelOnOneAndOnTwoRanksLeavesOutWhatItDoesNotHave) {
  const std::string dense =
      "model: {model_type: llama, num_hidden_layers: 2, hidden_size: 16, intermediate_size: 32,\n"
      "  num_attention_heads: 2, num_key_value_heads: 2, vocab_size: 320, max_position_embeddings: 64}\n"
      "train: {steps: 3, sequence_length: 16, global_batch_size: 4, micro_batch_size: 1, lr: 1.0e-3}\n"
      "data: {text: text.txt}\noutput: {folder: run}\n";
  write("dense.yaml", dense);
  const Outcome one = run("train dense.yaml");
  ASSERT_EQ(one.code, 0) << one.errors;
  EXPECT_THAT(one.output,
              AllOf(HasSubstr("1 thread rank\n"), HasSubstr("MFU"), HasSubstr("Memory per rank")));
  for (const char* absent :
       {"Experts", "Pipeline", "Communication", "checkpoint  ", "Sample", "nan ", "\033"}) {
    EXPECT_THAT(one.output, Not(HasSubstr(absent)));
  }
  const Outcome two = run("train dense.yaml --set parallel.pp=2");
  ASSERT_EQ(two.code, 0) << two.errors;
  EXPECT_THAT(two.output,
              AllOf(HasSubstr("2 thread ranks"), HasSubstr("bubble"), HasSubstr("Communication")));
  EXPECT_THAT(two.output, Not(HasSubstr("Experts")));
}

TEST_F(TinyJob, AValidationTextTooShortForOnePassIsAWarning) {
  const Outcome o = run(
      "train job.yaml --set train.steps=1 --set train.global_batch_size=64 --set train.micro_batch_size=32");
  EXPECT_EQ(o.code, 0) << o.errors;
  EXPECT_THAT(o.output, HasSubstr("no validation loss"));
  EXPECT_THAT(o.output, HasSubstr("data.validation_fraction"));
}

TEST_F(TinyJob, AKillInTheMiddleLeavesACheckpointToGoOnFrom) {
  const std::string job = "train job.yaml --set train.steps=100000 --set checkpoint.every=2";
  const Running running(folder_, job);
  const std::int64_t start = wall_ns();
  while (!exists("run/checkpoints/step-00000004") && wall_ns() - start < 60'000'000'000) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  running.kill(SIGKILL);
  EXPECT_EQ(running.wait().signal, SIGKILL);
  const Outcome again = run("train job.yaml --set train.steps=2");
  ASSERT_EQ(again.code, 0) << again.errors;
  EXPECT_THAT(again.output, HasSubstr("resumed after step "));
}

TEST_F(TinyJob, TokensAreMadeAgainWhenTheVocabularyOrTheTextChanges) {
  const std::string job =
      "train job.yaml --set train.steps=1 --set checkpoint.every=0 --set checkpoint.folder=";
  ASSERT_EQ(run(job).code, 0);
  const std::string tokens = read("run/tokens.bin");
  ASSERT_EQ(run(job).code, 0);
  EXPECT_EQ(read("run/tokens.bin"), tokens);
  ASSERT_EQ(run(job + " --set data.vocab_size=290").code, 0);
  EXPECT_NE(read("run/tokens.bin"), tokens);
  ASSERT_EQ(run(job).code, 0);
  EXPECT_EQ(read("run/tokens.bin"), tokens);
  // An older file in its place, as `cp -p` or another data.text gives.
  write("other.txt", some_text() + "the moon\n");
  fs::last_write_time(folder_ / "other.txt",
                      fs::last_write_time(folder_ / "text.txt") - std::chrono::hours(1));
  ASSERT_EQ(run(job + " --set data.text=other.txt").code, 0);
  EXPECT_NE(read("run/tokens.bin"), tokens);
}

TEST_F(TinyJob, ALossThatIsNotANumberStopsTheRunAndKeepsTheGoodCheckpoint) {
  ASSERT_EQ(run("train job.yaml --set train.steps=3").code, 0);
  const Outcome outcome = run("train job.yaml --set train.steps=9 --set train.lr=1.0e+30");
  EXPECT_EQ(outcome.code, 3);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("tessera: training"), HasSubstr("is not finite"),
                                    HasSubstr("mend: lower train.lr (1e+30)"),
                                    HasSubstr("goes on from run/checkpoints/step-00000003")));
  EXPECT_TRUE(exists("run/checkpoints/step-00000003"));
  EXPECT_FALSE(exists("run/checkpoints/step-00000006"));
  const Outcome again = run("train job.yaml");
  EXPECT_EQ(again.code, 0) << again.errors;
  EXPECT_THAT(again.output, HasSubstr("resumed after step 3"));
}

TEST_F(TinyRun, LeavesMetricsTracePlanAndCheckpointsAndSaysWhere) {
  for (const char* file : {"run/metrics.jsonl", "run/trace.json", "run/plan.json", "run/tokenizer.model",
                           "run/checkpoints/step-00000006"}) {
    EXPECT_TRUE(exists(file)) << file;
    EXPECT_THAT(outcome().output, HasSubstr(file));
  }
  for (const char* section : {"unigram entropy", "validation loss", "MFU", "Communication", "bubble",
                              "Experts", "Memory per rank", "Sample from the trained model"}) {
    EXPECT_THAT(outcome().output, HasSubstr(section));
  }
  const std::vector<double> losses = losses_in(folder_ / "run/metrics.jsonl");
  ASSERT_EQ(losses.size(), 6U);
  EXPECT_LT(losses.back(), losses.front());
  EXPECT_TRUE(json::accept(read("run/trace.json")));
  EXPECT_EQ(json::parse(read("run/plan.json"))["format"], "tessera-plan");
}

TEST_F(TinyRun, AResumedRunGoesOnWithTheBitsOfAnUninterruptedOne) {
  const std::vector<double> whole = losses_in(folder_ / "run/metrics.jsonl");
  fs::remove_all(folder_ / "run/checkpoints/step-00000006");
  const Outcome resumed = run("train job.yaml");
  ASSERT_EQ(resumed.code, 0) << resumed.errors;
  EXPECT_THAT(resumed.output, HasSubstr("resumed after step 3 from run/checkpoints/step-00000003"));
  EXPECT_EQ(losses_in(folder_ / "run/metrics.jsonl"), whole) << "each step once, with the same bits";
}

TEST_F(TinyRun, AResumedRunMayCutItsSequencesOverRanks) {
  const std::vector<double> whole = losses_in(folder_ / "run/metrics.jsonl");
  fs::remove_all(folder_ / "run/checkpoints/step-00000006");
  const Outcome resumed = run("train job.yaml --set parallel.cp=2 --set parallel.tp=1");
  ASSERT_EQ(resumed.code, 0) << resumed.errors;
  EXPECT_THAT(resumed.output, AllOf(HasSubstr("resumed after step 3"), HasSubstr("cp 2")));
  const std::vector<double> losses = losses_in(folder_ / "run/metrics.jsonl");
  ASSERT_EQ(losses.size(), whole.size());
  for (std::size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(losses[i], whole[i], 1e-4);
}

TEST_F(TinyRun, ADamagedCheckpointIsNamedAndTheOneBeforeIsUsed) {
  cut_a_file_of(folder_ / "run/checkpoints/step-00000006");
  const Outcome text =
      run("generate run/checkpoints --tokenizer run/tokenizer.model --prompt river --max-new-tokens 2");
  EXPECT_EQ(text.code, 0);
  EXPECT_THAT(text.errors, AllOf(HasSubstr("skipped a damaged checkpoint: run/checkpoints/step-00000006"),
                                 HasSubstr("used instead: run/checkpoints/step-00000003")));
  const Outcome resumed = run("train job.yaml");
  ASSERT_EQ(resumed.code, 0) << resumed.errors;
  EXPECT_THAT(resumed.errors, HasSubstr("skipped a damaged checkpoint: run/checkpoints/step-00000006"));
  EXPECT_THAT(resumed.output, AllOf(HasSubstr("resumed after step 3 from run/checkpoints/step-00000003"),
                                    HasSubstr("1 warning"), HasSubstr("skipped a damaged checkpoint")));
}

TEST_F(TinyRun, WhenEveryCheckpointIsDamagedItStopsRatherThanBeginAgain) {
  cut_a_file_of(folder_ / "run/checkpoints/step-00000006");
  cut_a_file_of(folder_ / "run/checkpoints/step-00000003");
  const std::string metrics = read("run/metrics.jsonl");
  const Outcome outcome = run("train job.yaml");
  EXPECT_EQ(outcome.code, 1);
  EXPECT_THAT(outcome.errors, HasSubstr("all 2 checkpoints of the folder are damaged"));
  EXPECT_EQ(read("run/metrics.jsonl"), metrics);
}

TEST_F(TinyRun, AnotherModelThanTheCheckpointsIsRefusedAndNothingIsOverwritten) {
  const std::string plan = read("run/plan.json"), metrics = read("run/metrics.jsonl");
  const Outcome outcome = run("train job.yaml --set model.intermediate_size=64");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("intermediate_size is 32, not 64"),
                                    HasSubstr("run/checkpoints/step-00000006"), HasSubstr("mend:")));
  EXPECT_EQ(read("run/plan.json"), plan);
  EXPECT_EQ(read("run/metrics.jsonl"), metrics);
  const Outcome afresh = run("train job.yaml --set checkpoint.resume=false");
  EXPECT_EQ(afresh.code, 2);
  EXPECT_THAT(afresh.errors, HasSubstr("holds checkpoints of another run"));
}

TEST_F(TinyRun, AnotherConstantOfTheModelIsAWarning) {
  const Outcome outcome = run("train job.yaml --set model.rope_theta=500000.0 --set train.steps=7");
  EXPECT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.errors, HasSubstr("rope_theta is 1000000.0, not 500000.0"));
}

TEST_F(TinyRun, AFinishedRunSaysSoAndKeepsItsFiles) {
  const std::string trace = read("run/trace.json"), metrics = read("run/metrics.jsonl");
  const Outcome outcome = run("train job.yaml");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output,
              AllOf(HasSubstr("nothing to train: the checkpoint has done 6 steps and train.steps is 6"),
                    HasSubstr("validation loss"), Not(HasSubstr("MFU")), Not(HasSubstr("bubble  ")),
                    Not(HasSubstr(" nan"))));
  EXPECT_EQ(read("run/trace.json"), trace);
  EXPECT_EQ(read("run/metrics.jsonl"), metrics);
  const Outcome machine = run("train job.yaml --json --set train.steps=4");
  ASSERT_EQ(machine.code, 0) << machine.errors;
  EXPECT_EQ(json::parse(machine.output)["summary"]["steps"], 0);
}

}  // namespace
}  // namespace tessera::cli
