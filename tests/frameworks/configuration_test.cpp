// torchtitan and DeepSpeed configurations as people write them, and what is wrong in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "frameworks/plans.h"

namespace tessera::frameworks {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

constexpr const char* kTitan = R"(# torchtitan Config.toml
[job]
dump_folder = "./outputs"

[model]
name = "llama3"
flavor = "70B"

[optimizer]
name = "AdamW"
lr = 1.5e-4

[training]
local_batch_size = 8
seq_len = 8192
steps = 1000
dataset = "c4"

[parallelism]
data_parallel_replicate_degree = 1
data_parallel_shard_degree = -1
tensor_parallel_degree = 8
enable_async_tensor_parallel = true
pipeline_parallel_degree = 1
pipeline_paralel_degree = 4

[activation_checkpoint]
mode = "full"

[compile]
enable = true
)";

constexpr const char* kDeep = R"({
  "train_batch_size": 512,
  "train_micro_batch_size_per_gpu": 2,
  "gradient_accumulation_steps": 4,
  "bf16": {"enabled": true},
  "zero_optimization": {
    "stage": 3,
    "overlap_comm": true,
    "offload_optimizer": {"device": "cpu"},
    "stage3_prefetch_bucket_size": "auto"
  },
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.98]}},
  "steps_per_print": 10,
  "zero_optimisation": {"stage": 2}
})";

Reading titan(const std::string& text, std::int32_t devices = 64) {
  const spec::ModelSpec m = model_of("llama-3-70b");
  return read(text, "c.toml", {.model = &m, .devices = devices});
}
Reading deep(const std::string& text, std::int32_t devices = 64, std::int64_t sequence = 4096) {
  const spec::ModelSpec m = model_of("llama-3-8b");
  return read(text, "ds.json", {.model = &m, .devices = devices, .sequence_length = sequence});
}
template <class F>
std::string errors(const F& f) {
  try {
    f();
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) EXPECT_FALSE(p.mend.empty()) << p.what;
    return e.what();
  }
  return "";
}
std::string with(std::string text, const std::string& from, const std::string& to) {
  const std::size_t at = text.find(from);
  EXPECT_NE(at, std::string::npos) << from;
  return at == std::string::npos ? text : text.replace(at, from.size(), to);
}

TEST(Torchtitan, ReadsDegreesBatchAndSharding) {
  const Reading r = titan(kTitan);
  const spec::Recipe& t = r.launch.job.train;
  EXPECT_EQ(r.framework, Framework::torchtitan);
  EXPECT_EQ(r.launch.job.parallel.tp, 8);
  EXPECT_EQ(r.launch.job.parallel.dp, 8);
  EXPECT_EQ(t.zero_stage, 3);
  EXPECT_EQ(t.micro_batch_size, 8);
  EXPECT_EQ(t.global_batch_size, 64);
  EXPECT_EQ(t.recompute, spec::Recompute::full);
  EXPECT_TRUE(r.launch.practice.compiled);
  EXPECT_TRUE(r.launch.practice.tp_overlap);
  ASSERT_EQ(r.unknown.size(), 1u);
  EXPECT_EQ(r.unknown[0].name, "parallelism.pipeline_paralel_degree");
  EXPECT_EQ(r.unknown[0].near, "parallelism.pipeline_parallel_degree");
  EXPECT_EQ(r.unknown[0].line, 25);
}

TEST(Torchtitan, NamesAnotherModelAndWhatDoesNotDivide) {
  EXPECT_THAT(errors([] { (void)titan(with(kTitan, "70B", "8B")); }),
              HasSubstr("llama3 8B has 32 layers, the model 80"));
  EXPECT_THAT(errors([] { (void)titan(kTitan, 60); }), HasSubstr("= 8 does not divide 60 devices"));
  EXPECT_THAT(errors([] { (void)titan(with(kTitan, "shard_degree = -1", "shard_degree = 4")); }),
              HasSubstr("replicas 1 x shards 4 are not the 8 data-parallel ranks"));
  EXPECT_THAT(errors([] { (void)titan(with(kTitan, "mode = \"full\"", "mode = \"ful\"")); }),
              HasSubstr("did you mean full?"));
  EXPECT_THAT(
      errors([] { (void)titan(with(kTitan, "tensor_parallel_degree = 8", "tensor_parallel_degree = ")); }),
      HasSubstr("c.toml:22"));
}

TEST(Torchtitan, DealsLayersAsItDoesWhenTheEndsCountAsMore) {
  std::string text = with(kTitan, "tensor_parallel_degree = 8", "tensor_parallel_degree = 2");
  text = with(text, "pipeline_parallel_degree = 1", "pipeline_parallel_degree = 4");
  const Reading r = titan(text);
  EXPECT_THAT(r.launch.job.parallel.stage_layers, ::testing::ElementsAre(20, 21, 20, 19));
  EXPECT_EQ(r.launch.job.train.micro_batch_size, 1);
  const Reading two = titan(with(text, "[activation_checkpoint]",
                                 "pipeline_parallel_schedule = \"Interleaved1F1B\"\n"
                                 "pipeline_parallel_layers_per_stage = 10\n"
                                 "pipeline_parallel_first_stage_less_layers = 0\n"
                                 "pipeline_parallel_last_stage_less_layers = 0\n[activation_checkpoint]"));
  EXPECT_EQ(two.launch.job.parallel.vpp, 2);
  EXPECT_TRUE(two.launch.job.parallel.stage_layers.empty());
}

TEST(Torchtitan, HybridShardingIsAGroup) {
  const Reading r = titan(with(with(kTitan, "replicate_degree = 1", "replicate_degree = 2"),
                               "shard_degree = -1", "shard_degree = 4"));
  EXPECT_EQ(r.launch.machine.zero_group, 4);
}

TEST(DeepSpeed, ReadsBatchZeroAndOptimizer) {
  const Reading r = deep(kDeep);
  const spec::Recipe& t = r.launch.job.train;
  EXPECT_EQ(r.framework, Framework::deepspeed);
  EXPECT_EQ(t.zero_stage, 3);
  EXPECT_EQ(t.micro_batch_size, 2);
  EXPECT_EQ(t.global_batch_size, 512);
  EXPECT_EQ(t.precision, spec::Precision::bf16);
  EXPECT_DOUBLE_EQ(t.optimizer.beta2, 0.98);
  EXPECT_EQ(r.launch.job.parallel.dp, 64);
  EXPECT_THAT(r.notes, Contains(HasSubstr("offload_optimizer.device cpu is not priced")));
  std::vector<std::string> names;
  for (const Listed& l : r.not_priced) names.push_back(l.name);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("steps_per_print",
                                                     "zero_optimization.stage3_prefetch_bucket_size"));
  ASSERT_EQ(r.unknown.size(), 1u);
  EXPECT_EQ(r.unknown[0].name, "zero_optimisation.stage");
  EXPECT_EQ(r.unknown[0].near, "zero_optimization.stage");
  EXPECT_EQ(r.unknown[0].line, 14);
}

TEST(DeepSpeed, SaysWhatItNeedsAndWhatContradicts) {
  EXPECT_THAT(errors([] { (void)deep(kDeep, 64, 0); }), HasSubstr("--seq"));
  EXPECT_THAT(errors([] { (void)deep(kDeep, 32); }),
              HasSubstr("train_batch_size 512 is not train_micro_batch_size_per_gpu 2 x "
                        "gradient_accumulation_steps 4 x 32 replicas"));
  EXPECT_THAT(errors([] { (void)deep(with(kDeep, "size\": 512", "size\": \"auto\"")); }),
              HasSubstr("train_batch_size is \"auto\""));
  EXPECT_THAT(errors([] { (void)deep(with(kDeep, "\"stage\": 3", "\"stage\": 4")); }),
              HasSubstr("zero_optimization.stage is 4"));
  EXPECT_THAT(
      errors([] {
        (void)deep(with(kDeep, "{\"enabled\": true}", "{\"enabled\": true}, \"fp16\": {\"enabled\": true}"));
      }),
      HasSubstr("contradict each other"));
  EXPECT_THAT(errors([] { (void)deep("{\"train_batch_size\": "); }), HasSubstr("ds.json"));
}

TEST(Detect, KnowsTheFrameworkByTheFile) {
  EXPECT_EQ(detect("[model]\nname = \"llama3\"", "config"), Framework::torchtitan);
  EXPECT_EQ(detect("{\"a\": 1}", "config"), Framework::deepspeed);
  EXPECT_EQ(detect("torchrun pretrain_gpt.py --num-layers 2", "launch"), Framework::megatron);
  EXPECT_THAT(errors([] { (void)detect("model:\n  num_layers: 3\n", "run.yaml"); }),
              HasSubstr("no launch file that Tessera reads"));
}

}  // namespace
}  // namespace tessera::frameworks
