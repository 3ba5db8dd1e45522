// A plan may hold what the engine does not run: it says so before it builds anything, with every problem.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "exec/generator.h"
#include "exec/trainer.h"
#include "run.h"

namespace tessera::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

spec::Job beyond_the_engine() {
  spec::Job job = small_job({});
  Problems problems;
  job.model = spec::parse_hf_config(R"({"model_type": "gpt_neox", "num_hidden_layers": 4, "hidden_size": 32,
      "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 64, "max_position_embeddings": 64})",
                                    "config.json", problems);
  problems.throw_if_any();
  job.train.precision = spec::Precision::bf16;
  job.parallel = {.tp = 2, .dp = 2, .sequence_parallel = false, .order = "tp-cp-ep-pp-dp"};
  return job;
}

template <class Start>
void expect_refusal(const Start& start) {
  try {
    start();
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_EQ(e.problems().size(), 4U) << e.what();
    EXPECT_THAT(e.what(), AllOf(HasSubstr("the engine does not train model_type=gpt_neox"), HasSubstr("bf16"),
                                HasSubstr("sequence_parallel=false"), HasSubstr("order=tp-cp-ep-pp-dp")));
  }
}

TEST(EngineLimits, AreSaidAtOnceByEveryWayIntoTheEngine) {
  const plan::Plan plan = plan::make_plan(beyond_the_engine());
  expect_refusal([&] { (void)exec::plan_memory(plan); });
  expect_refusal([&] { (void)exec::train(plan, {}, {}); });
  expect_refusal(
      [&] { (void)exec::RankEngine({.plan = &plan, .rank = Rank(0), .kernels = kernels::make_cpu()}); });
}

class NoWeights : public ckpt::WeightSource {
 public:
  [[nodiscard]] std::vector<std::string> names() const override { return {}; }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& /*name*/) const override { return {}; }
  void read(const ckpt::Piece& /*piece*/) const override { ADD_FAILURE() << "weights were read"; }
};

TEST(EngineLimits, HoldForGenerationToo) {
  try {
    const exec::Generator generator(beyond_the_engine().model, NoWeights(), 8);
    ADD_FAILURE() << "accepted";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("the engine does not train model_type=gpt_neox"));
  }
}

}  // namespace
}  // namespace tessera::testing
