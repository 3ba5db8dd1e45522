// How the program is called: help, exit codes, and what it says to wrong use.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr const char* kCommands[] = {"train",    "profile",  "generate", "eval",      "convert",
                                     "tokenize", "schedule", "validate", "calibrate", "plan",
                                     "simulate", "size",     "compare"};

TEST_F(Program, HelpListsEveryCommandAndIsGood) {
  const Outcome help = run("--help");
  EXPECT_EQ(help.code, 0);
  for (const char* command : kCommands) EXPECT_THAT(help.output, HasSubstr(command));
  EXPECT_THAT(help.output,
              HasSubstr("Exit codes: 0 good, 1 failed, 2 wrong use; of train also 3 diverged, 75 "));
  EXPECT_EQ(help.errors, "");
  EXPECT_EQ(run("--version").code, 0);
}

TEST_F(Program, EveryCommandHasHelpWithAnExample) {
  for (const char* command : kCommands) {
    const Outcome help = run(std::string(command) + " --help");
    EXPECT_EQ(help.code, 0) << command;
    EXPECT_THAT(help.output, HasSubstr("Example:\n  tessera " + std::string(command)));
    EXPECT_THAT(help.output, HasSubstr("--json"));
    EXPECT_THAT(help.output, HasSubstr("Usage: tessera " + std::string(command)));
  }
}

TEST_F(Program, WrongUseExitsWithTwoAndSaysWhatWhereAndMend) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "no command is given"},
      {"dance", "there is no command or flag \"dance\""},
      {"trainn job.yaml", "did you mean train?"},
      {"train", "job is required"},
      {"train a.yaml b.yaml", "one argument too many: \"b.yaml\""},
      {"train job.yaml --dry-runn", "did you mean --dry-run?"},
      {"train job.yaml --set", "--set"},
      {"schedule --pp x", "--pp"},
      {"schedule --pp 0", "--pp: Value 0 not in range"},
      {"schedule --microbatches -3", "--microbatches"},
      {"generate only-a-folder", "there is no prompt"},
      {"generate x --tokenizer t --prompt a --max-new-tokens -1", "--max-new-tokens"},
      {"generate x --tokenizer t --prompt a --temperature nan", "--temperature"},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_EQ(outcome.output, "") << arguments;
    EXPECT_THAT(outcome.errors, AllOf(HasSubstr(said), HasSubstr("  where: "), HasSubstr("  mend: ")))
        << arguments;
  }
}

TEST_F(Program, FilesThatAreNotThereAreWrongUse) {
  const std::pair<const char*, const char*> cases[] = {
      {"train no-such-job.yaml", "no-such-job.yaml"},
      {"train .", "there is no such job file"},
      {"tokenize no.txt --tokenizer t.model --output t", "no.txt"},
      {"convert no-folder to", "no-folder"},
      {"generate no-folder --tokenizer t --prompt a", "no-folder"},
      {"eval no-folder text --tokenizer t", "no-folder"},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome outcome = run(arguments);
    EXPECT_EQ(outcome.code, 2) << arguments;
    EXPECT_THAT(outcome.errors, AllOf(HasSubstr(said), HasSubstr("  mend: "))) << arguments;
  }
}

// Bubbles of 4 ranks, 8 micro-batches and equal times of F, I and W: (p-1)(F+B) over the whole and so on.
TEST_F(Program, ScheduleGivesTheClosedFormOfEveryKind) {
  const std::pair<const char*, double> cases[] = {
      {"naive", 3.0 / 4.0},  {"gpipe", 3.0 / 11.0},       {"1f1b", 3.0 / 11.0},
      {"zb-h1", 3.0 / 27.0}, {"interleaved", 4.5 / 28.5},
  };
  for (const auto& [kind, bubble] : cases) {
    const Outcome outcome = run(std::string("schedule --pp 4 --microbatches 8 --json --kind ") + kind);
    ASSERT_EQ(outcome.code, 0) << outcome.errors;
    const double got = json::parse(outcome.output)["bubble"].get<double>();
    EXPECT_TRUE(std::abs(got - bubble) <= 1e-9) << kind << ": " << got << ", not " << bubble;
  }
}

TEST_F(Program, ScheduleDrawsALineARankWithinTheWidth) {
  for (const char* kind : {"naive", "gpipe", "1f1b", "interleaved", "zb-h1", "zb-v"}) {
    const Outcome outcome = run(std::string("schedule --kind ") + kind);
    ASSERT_EQ(outcome.code, 0) << outcome.errors;
    for (const char* rank : {"rank 0 |", "rank 1 |", "rank 2 |", "rank 3 |", "bubble "}) {
      EXPECT_THAT(outcome.output, HasSubstr(rank)) << kind;
    }
    std::istringstream lines(outcome.output);
    for (std::string line; std::getline(lines, line);) EXPECT_LE(line.size(), 100U) << kind << ": " << line;
    EXPECT_THAT(outcome.output, Not(HasSubstr("\033"))) << "colour without a terminal";
  }
}

TEST_F(Program, ScheduleTextNamesTheFormatAndShowsMessagesWhenLowered) {
  const Outcome plain = run("schedule --pp 2 --microbatches 2 --text");
  EXPECT_THAT(plain.output, HasSubstr("tessera-schedule 1: kind=1f1b pp=2 vpp=1 m=2"));
  EXPECT_THAT(plain.output, Not(HasSubstr("SEND")));
  EXPECT_THAT(run("schedule --pp 2 --microbatches 2 --text --lowered").output, HasSubstr("0SEND_F0"));
}

TEST_F(Program, ScheduleListsTheKindsItKnows) {
  const Outcome outcome = run("schedule --kind 1f1c");
  EXPECT_EQ(outcome.code, 2);
  EXPECT_THAT(outcome.errors, AllOf(HasSubstr("unknown schedule '1f1c'"), HasSubstr("zb-h1")));
  const Outcome stages = run("schedule --kind 1f1b --vpp 3");
  EXPECT_EQ(stages.code, 2);
  EXPECT_THAT(stages.errors, HasSubstr("vpp=3"));
}

}  // namespace
}  // namespace tessera::cli
