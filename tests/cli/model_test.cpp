// Commands around a trained model: generate, eval, convert, tokenize, and the way back into training.
#include <gmock/gmock.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

class Model : public TinyRun {};

TEST_F(Model, ConvertsThereAndBackToTheSameBytes) {
  ASSERT_EQ(run("convert run/checkpoints hf").code, 0);
  ASSERT_EQ(run("convert hf new/back").code, 0);
  ASSERT_EQ(run("convert new/back new/hf2").code, 0);
  EXPECT_FALSE(read("hf/model.safetensors").empty());
  EXPECT_EQ(read("hf/model.safetensors"), read("new/hf2/model.safetensors"));
  EXPECT_EQ(read("hf/config.json"), read("new/hf2/config.json"));
  const std::string flags =
      " --tokenizer run/tokenizer.model --prompt 'the river' --max-new-tokens 6 --seed 3 --context 32";
  const Outcome a = run("generate run/checkpoints" + flags);
  ASSERT_EQ(a.code, 0) << a.errors;
  EXPECT_THAT(a.output, HasSubstr("the river"));
  EXPECT_EQ(run("generate hf" + flags).output, a.output);
  EXPECT_EQ(run("generate new/back" + flags).output, a.output);
  const Outcome twice = run("convert hf new/back");
  EXPECT_EQ(twice.code, 2);
  EXPECT_THAT(twice.errors, HasSubstr("exists already"));
}

TEST_F(Model, TrainingStartsFromAHuggingFaceFolderAndFromACheckpointAlike) {
  ASSERT_EQ(run("convert run/checkpoints hf").code, 0);
  const std::string job =
      "train job.yaml --json --set train.steps=2 --set checkpoint.every=0 --set checkpoint.folder= --set "
      "output.folder=";
  const auto first_loss = [&](const std::string& from, const std::string& out) {
    const Outcome outcome = run(job + out + from);
    EXPECT_EQ(outcome.code, 0) << outcome.errors;
    return json::parse(outcome.output.substr(0, outcome.output.find('\n')))["loss"].get<double>();
  };
  const double afresh = first_loss("", "a");
  const double from_hf = first_loss(" --start-from hf", "b");
  EXPECT_LT(from_hf, afresh);
  EXPECT_EQ(first_loss(" --start-from run/checkpoints", "c"), from_hf);
}

TEST_F(Model, AFolderWithoutAllTensorsIsRefusedBeforeAnythingIsWritten) {
  ASSERT_EQ(run("convert run/checkpoints hf").code, 0);
  // One layer more than there are weights for.
  json config = json::parse(read("hf/config.json"));
  config["num_hidden_layers"] = 3;
  write("hf/config.json", config.dump());
  const Outcome outcome =
      run("train job.yaml --start-from hf --set output.folder=x --set checkpoint.folder=x/c");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("model.layers.2."), HasSubstr("mend:")));
  EXPECT_FALSE(exists("x"));
  const Outcome convert = run("convert hf y");
  EXPECT_EQ(convert.code, 2);
  EXPECT_FALSE(exists("y"));
}

TEST_F(Model, OfAnotherShapeIsNoStartForAJob) {
  const Outcome outcome = run(
      "train job.yaml --start-from run/checkpoints --set model.intermediate_size=64 --set output.folder=x "
      "--set checkpoint.every=0 --set checkpoint.folder=");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, HasSubstr("intermediate_size is 32, not 64"));
  EXPECT_FALSE(exists("x"));
}

TEST_F(Model, GenerateIsRepeatableAndRefusesWhatItCannotUse) {
  const std::string base = "generate run/checkpoints --tokenizer run/tokenizer.model --max-new-tokens 4";
  const Outcome outcome = run(base + " --prompt 'the river' --json --seed 5");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  const auto first_line = [](const Outcome& o) { return o.output.substr(0, o.output.find('\n')); };
  const json j = json::parse(first_line(outcome));
  EXPECT_EQ(j["prompt"], "the river");
  EXPECT_LE(j["tokens"].size(), 4U);
  EXPECT_EQ(first_line(run(base + " --prompt 'the river' --json --seed 5")), first_line(outcome));
  EXPECT_EQ(run(base + " --prompt ''").code, 2);
  const Outcome far = run(base + " --prompt a --context 65");
  EXPECT_EQ(far.code, 2);
  EXPECT_THAT(far.errors, HasSubstr("65 tokens is longer than the model's 64 positions"));
  ASSERT_EQ(run("tokenize text.txt --vocab-size 350 --tokenizer big.model --output big").code, 0);
  const Outcome big = run("generate run/checkpoints --tokenizer big.model --prompt a");
  EXPECT_EQ(big.code, 2);
  EXPECT_THAT(big.errors, HasSubstr("the tokenizer has 350 ids but the model only 320"));
  const Outcome text = run("generate run/checkpoints --tokenizer text.txt --prompt a");
  EXPECT_EQ(text.code, 1);
  EXPECT_THAT(text.errors, HasSubstr("not a sentencepiece model"));
}

TEST_F(Model, EvalAgreesWithTheLossOfTheLastSteps) {
  const Outcome outcome = run("eval run/checkpoints text.txt --tokenizer run/tokenizer.model --json");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  const json j = json::parse(outcome.output);
  const double nats = j["nats_per_token"];
  std::istringstream lines(read("run/metrics.jsonl"));
  std::string last;
  for (std::string line; std::getline(lines, line);) last = line;
  // The last step's loss is of 256 other tokens and one update earlier: close, not equal.
  EXPECT_TRUE(std::abs(nats - json::parse(last)["loss"].get<double>()) <= 0.3) << nats;
  EXPECT_TRUE(std::abs(j["perplexity"].get<double>() - std::exp(nats)) <= 1e-9 * std::exp(nats));
  const double bytes = static_cast<double>(fs::file_size(folder_ / "text.txt"));
  const double tokens = json::parse(
      run("tokenize text.txt --tokenizer run/tokenizer.model --output t --json").output)["tokens"];
  EXPECT_TRUE(std::abs(j["bits_per_byte"].get<double>() - nats * tokens / bytes / std::log(2.0)) <= 1e-3);
  EXPECT_EQ(j["tokens"].get<double>(), tokens - 1);
  EXPECT_GT(j["tokens_per_s"].get<double>(), 0.0);
  EXPECT_THAT(run("eval run/checkpoints text.txt --tokenizer run/tokenizer.model").output,
              AllOf(HasSubstr("perplexity"), HasSubstr("bits per byte")));
}

TEST_F(Model, EvalRefusesATextThatItCannotScore) {
  write("bad.txt", "a good document\fa bad \xff one");
  const Outcome bad = run("eval run/checkpoints bad.txt --tokenizer run/tokenizer.model");
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.errors, AllOf(HasSubstr("not UTF-8: byte 0xFF"), HasSubstr("bad.txt, document 2")));
  write("short.txt", "");
  const Outcome few = run("eval run/checkpoints short.txt --tokenizer run/tokenizer.model");
  EXPECT_EQ(few.code, 2);
  EXPECT_THAT(few.errors, HasSubstr("the text has 0 tokens"));
}

TEST_F(Model, TokenizeWritesATokenFileThatAJobReads) {
  const Outcome outcome = run("tokenize text.txt --vocab-size 320 --tokenizer t.model --output tokens");
  ASSERT_EQ(outcome.code, 0) << outcome.errors;
  EXPECT_THAT(outcome.output, HasSubstr("2 documents"));
  EXPECT_TRUE(exists("tokens.idx"));
  EXPECT_EQ(read("tokens.bin"), read("run/tokens.bin")) << "the same as training makes itself";
  const Outcome trained = run(
      "train job.yaml --set data.text= --set data.train=tokens.bin --set data.vocab_size=0 "
      "--set data.tokenizer=t.model --set train.steps=2 --set checkpoint.every=0 --set checkpoint.folder=");
  EXPECT_EQ(trained.code, 0) << trained.errors;
}

TEST_F(Model, TokenizeLeavesNothingBehindWhenItFails) {
  write("bad.txt", "good line\nbad \xff line\n");
  EXPECT_EQ(run("tokenize bad.txt --vocab-size 300 --tokenizer b.model --output b").code, 2);
  const Outcome large = run("tokenize text.txt --vocab-size 100000 --tokenizer b.model --output b");
  EXPECT_EQ(large.code, 2);
  EXPECT_THAT(large.errors, HasSubstr("100000"));
  for (const char* file : {"b.model", "b.bin", "b.idx"}) EXPECT_FALSE(exists(file)) << file;
}

}  // namespace
}  // namespace tessera::cli
