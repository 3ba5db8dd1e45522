// tessera train --dump-routing and tessera routing as a user meets them: the same file on every layout,
// shown, converted and planned with; wrong use is named before a run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "program.h"

namespace tessera::cli {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class RoutingFile : public TinyJob {};

TEST_F(RoutingFile, OfARunIsShownAndDoesNotDependOnTheLayout) {
  const std::string f64 = " --set train.precision=f64";
  const Outcome one =
      run("train job.yaml --dump-routing a/r.safetensors --dump-routing-tokens 200 --show-routing" + f64);
  ASSERT_EQ(one.code, 0) << one.errors;
  EXPECT_THAT(one.output,
              AllOf(HasSubstr("experts, step 3"), HasSubstr("a/r.safetensors"), HasSubstr("eff")));
  const Outcome two =
      run("train job.yaml --dump-routing b.safetensors --dump-routing-tokens 200 --set parallel.tp=1 --set "
          "parallel.pp=1 "
          "--set parallel.dp=1 --set parallel.ep=1 --set checkpoint.folder=other --set output.folder=other" +
          f64);
  ASSERT_EQ(two.code, 0) << two.errors;
  EXPECT_EQ(read("a/r.safetensors"), read("b.safetensors"));

  const Outcome shown = run("routing a/r.safetensors");
  ASSERT_EQ(shown.code, 0) << shown.errors;
  EXPECT_THAT(shown.output,
              HasSubstr("2 MoE layers, 4 experts, top-2, 1536 tokens\ntessera train, model mixtral"));
  EXPECT_THAT(shown.output, AllOf(HasSubstr("every choice of 256 tokens of 8 sequences"),
                                  HasSubstr("max/mean"), HasSubstr("most chosen together")));
  const auto j = nlohmann::json::parse(run("routing a/r.safetensors --json --pairs 1").output);
  EXPECT_EQ(j["layers"].size(), 2U);
  std::int64_t sum = 0;
  for (const std::int64_t n : j["layers"][1]["load"]) sum += n;
  EXPECT_EQ(sum, 2 * 1536);
  EXPECT_EQ(j["layers"][0]["pairs"].size(), 1U);

  std::string last;
  std::istringstream lines(read("run/metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) last = line;
  const auto layer = nlohmann::json::parse(last)["layers"][0];
  EXPECT_GT(layer["effective_experts"].get<double>(), 1.0);
  EXPECT_LE(layer["effective_experts"].get<double>(), 4.0 + 1e-9);
  EXPECT_GT(layer["router_logit_max"].get<double>(), layer["router_logit_rms"].get<double>());
}

TEST_F(RoutingFile, OfAnotherProgramIsConverted) {
  write("topk.csv", "token,layer,expert0,expert1\n0,5,0,1\n1,5,1,2\n2,5,1,0\n");
  const Outcome done = run("routing topk.csv --experts 4 --convert out.safetensors");
  ASSERT_EQ(done.code, 0) << done.errors;
  EXPECT_THAT(done.output,
              AllOf(HasSubstr("csv choices"), HasSubstr("0+1"), HasSubstr("written: out.safetensors")));
  EXPECT_THAT(run("routing out.safetensors").output, HasSubstr("1 MoE layers, 4 experts, top-2, 3 tokens"));
}

TEST_F(RoutingFile, WrongUseIsNamedBeforeTheRun) {
  const Outcome folder = run("train job.yaml --dump-routing .");
  EXPECT_EQ(folder.code, 2);
  EXPECT_THAT(folder.errors, HasSubstr("the routing file is a folder"));
  const Outcome lonely = run("train job.yaml --dump-routing-tokens 5");
  EXPECT_EQ(lonely.code, 2);
  EXPECT_THAT(lonely.errors, HasSubstr("give --dump-routing FILE too"));
  write("x.pt", std::string("PK\x03\x04") + std::string(50, 'x'));
  const Outcome pickle = run("routing x.pt");
  EXPECT_EQ(pickle.code, 1);
  EXPECT_THAT(pickle.errors, HasSubstr("pickle"));
  EXPECT_EQ(run("routing none.json").code, 1);
}

}  // namespace
}  // namespace tessera::cli
