// tessera size as a user calls it: the answers, failures, what a better machine is worth, wrong input.
#include <gmock/gmock.h>

#include <nlohmann/json.hpp>

#include "cli/program.h"

namespace tessera::cli {
namespace {

using nlohmann::json;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr const char* kSmall = "size llama-3-8b dgx-h100 --gbs 512 --seq 8192 --price 2 --max-devices 256";

TEST_F(Program, SizeNamesTheFewestTheCheapestAndTheFastest) {
  const Outcome o = run(std::string(kSmall) + " --tokens 1T --deadline 90");
  ASSERT_EQ(o.code, 0) << o.errors;
  for (const char* part :
       {"llama-3-8b on dgx-h100: 1.00 T tokens", "a device fails every 50,000 hours", "Fewest", "heapest",
        "Fastest: 256 devices", "a checkpoint every", "too late", "What a better machine is worth to",
        "bandwidth of the network x 2", "memory of a device x 1.1", "hours between device failures x 2"}) {
    EXPECT_THAT(o.output, HasSubstr(part));
  }
}

TEST_F(Program, SizeAsJsonIsWhatPlanSaysOfTheSameDevices) {
  const Outcome o = run(std::string(kSmall) + " --tokens 1e12 --devices 64 --mtbf 0 --only-sizes --json");
  ASSERT_EQ(o.code, 0) << o.errors;
  const json size = json::parse(o.output)["sizes"][0];
  EXPECT_EQ(size["devices"], 64);
  EXPECT_EQ(size["goodput"], 1.0);
  const Outcome planned = run("plan llama-3-8b dgx-h100 --devices 64 --gbs 512 --seq 8192 --json --top 1");
  ASSERT_EQ(planned.code, 0) << planned.errors;
  const double step = json::parse(planned.output)["best"][0]["step_seconds"];
  EXPECT_NEAR(size["step_seconds"].get<double>(), step, 0.01 * step);
  const double steps = std::ceil(1e12 / (512 * 8192.0)), seconds = size["step_seconds"];
  EXPECT_NEAR(size["days"].get<double>(), steps * seconds / 86'400, 1e-6 * steps * seconds / 86'400);
  EXPECT_NEAR(size["price"].get<double>(), size["days"].get<double>() * 24 * 64 * 2, 1e-3);
}

TEST_F(Program, SizeThatMeetsNoDeadlineNamesTheNearestAndFails) {
  const Outcome o = run(std::string(kSmall) + " --tokens 100T --deadline 1 --only-sizes");
  EXPECT_EQ(o.code, 1);
  EXPECT_THAT(o.output,
              AllOf(HasSubstr("None of them is done in 1.0 days"), HasSubstr("The nearest: 256 devices in")));
}

TEST_F(Program, SizeRefusesWrongInputWithWhatWhereAndMend) {
  const std::pair<const char*, const char*> cases[] = {
      {"size llama-3-8b dgx-h100", "--tokens is required"},
      {"size llama-3-8b dgx-h100 --tokens 0", "\"0\" is no number of tokens"},
      {"size llama-3-8b dgx-h100 --tokens -3T", "\"-3T\" is no number of tokens"},
      {"size llama-3-8b dgx-h100 --tokens 15X", "15T, 300B or 1.4e12"},
      {"size llama-3-7b dgx-h100 --tokens 1T", "did you mean llama-2-7b?"},
      {"size llama-3-8b dgx-h10 --tokens 1T", "did you mean dgx-h100?"},
      {"size llama-3-8b dgx-h100 --tokens 1T --deadline -1", "--deadline"},
      {"size llama-3-8b dgx-h100 --tokens 1T --price nan", "price is nan"},
      {"size llama-3-8b dgx-h100 --tokens 1T --devices 8,x", "--devices"},
      {"size llama-3.1-405b dgx-h100 --tokens 1T --max-devices 8", "no layout of llama-3.1-405b on 1 to 8"},
      {"size llama-3-8b dgx-h100 --tokens 1T --gbs 7 --devices 100000", "is valid"},
  };
  for (const auto& [arguments, said] : cases) {
    const Outcome o = run(arguments);
    EXPECT_EQ(o.code, 2) << arguments << o.output;
    EXPECT_THAT(o.errors, AllOf(HasSubstr(said), HasSubstr("  where: "), HasSubstr("  mend: "))) << arguments;
  }
}

}  // namespace
}  // namespace tessera::cli
