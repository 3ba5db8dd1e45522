// Every argument that is written is one of the framework's own list.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "base/text.h"
#include "frameworks/arguments.h"
#include "frameworks/plans.h"

namespace tessera::frameworks {
namespace {

constexpr Framework kAll[] = {Framework::megatron, Framework::megatron_bridge, Framework::torchtitan,
                              Framework::deepspeed, Framework::nemo};

// Names in a written file, read by nothing of the room but the configuration parsers.
std::set<std::string> names_in(Framework f, const std::string& text) {
  std::set<std::string> names;
  std::string table;
  for (const std::string& line : split(text, '\n')) {
    const std::string row(trim(line));
    if (f == Framework::megatron && row.starts_with("--") && !row.starts_with("--master"))
      names.insert(row.substr(2, row.find(' ') == std::string::npos ? row.npos : row.find(' ') - 2));
    if (f == Framework::nemo && row.starts_with("recipe.")) names.insert(row.substr(7, row.find(" = ") - 7));
    if (f == Framework::torchtitan && row.starts_with("[") && row.ends_with("]"))
      table = row.substr(1, row.size() - 2);
    if (f == Framework::torchtitan && !row.starts_with("#") && row.find(" = ") != std::string::npos)
      names.insert(table + "." + row.substr(0, row.find(" = ")));
  }
  if (f == Framework::deepspeed || f == Framework::megatron_bridge) {
    Arguments leaves("", "");
    add_leaves(spec::parse_yaml(text, "file"), "", leaves);
    for (const Argument& a : leaves.list()) {
      if (!a.name.starts_with("tessera.")) names.insert(a.name);
    }
  }
  return names;
}

TEST(Names, EveryArgumentThatIsWrittenIsInTheFrameworksList) {
  const std::vector<Launch> plans = drawn_plans(180);
  for (const Framework f : kAll) {
    const ArgumentList list = argument_list(f);
    std::set<std::string> seen;
    for (const Launch& plan : plans) {
      for (const std::string& n : names_in(f, write(f, plan, {}).text)) seen.insert(n);
    }
    for (const std::string& n : seen) EXPECT_TRUE(list.has(n)) << name(f) << " does not know " << n;
    EXPECT_GT(seen.size(), f == Framework::deepspeed ? 12u : 30u) << name(f);
  }
}

TEST(Names, EveryListSaysItsVersionAndSource) {
  for (const Framework f : kAll) {
    const ArgumentList list = argument_list(f);
    EXPECT_FALSE(list.version.empty()) << name(f);
    EXPECT_GT(list.names.size(), 90u) << name(f);
    EXPECT_EQ(std::set<std::string>(list.names.begin(), list.names.end()).size(), list.names.size())
        << name(f);
  }
  EXPECT_GT(argument_list(Framework::megatron).names.size(), 500u);
}

TEST(Names, AListKnowsWhatStandsBelowAStar) {
  const ArgumentList list = argument_list(Framework::deepspeed);
  EXPECT_TRUE(list.has("optimizer.params.betas"));
  EXPECT_TRUE(list.has("zero_optimization.offload_optimizer.device"));
  EXPECT_FALSE(list.has("zero_optimization.stages"));
}

TEST(Names, EveryDegreeOfALayoutIsNamed) {
  Launch plan;
  plan.job.model = model_of("deepseek-v3");
  spec::ParallelSpec& p = plan.job.parallel;
  p.tp = 2, p.cp = 2, p.pp = 4, p.dp = 8, p.ep = 8, p.etp = 1;
  plan.job.train.sequence_length = 4096;
  plan.job.train.micro_batch_size = 1;
  plan.job.train.global_batch_size = 64;
  plan.job.train.steps = 1;
  plan.job.train.precision = spec::Precision::bf16;
  plan = launch_of(plan.job, graph::practice("megatron-core"), {});
  for (const Framework f : {Framework::megatron, Framework::megatron_bridge, Framework::nemo}) {
    std::string text = write(f, plan, {}).text;
    std::ranges::replace(text, '_', '-');
    for (const char* word :
         {"tensor-model-parallel-size", "pipeline-model-parallel-size", "context-parallel-size",
          "expert-model-parallel-size", "expert-tensor-parallel-size", "sequence-parallel",
          "micro-batch-size", "global-batch-size", "seq-length", "moe-router-topk",
          "moe-token-dispatcher-type", "bf16", "overlap-grad-reduce", "num-layers", "hidden-size",
          "kv-lora-rank"})
      EXPECT_THAT(text, ::testing::HasSubstr(word)) << name(f);
  }
}

}  // namespace
}  // namespace tessera::frameworks
