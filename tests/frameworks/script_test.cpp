// Launch scripts as people write them, and what is wrong in them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/text.h"
#include "frameworks/plans.h"

namespace tessera::frameworks {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;

// Variables, an array, a string of flags over several lines, comments, both spellings of torchrun.
constexpr const char* kScript = R"(#!/bin/bash
# Pretrains Llama 3 8B.
set -e
export CUDA_DEVICE_MAX_CONNECTIONS=1
GPUS_PER_NODE=8
NUM_NODES=${SLURM_NNODES:-4}
WORLD_SIZE=$(($GPUS_PER_NODE*$NUM_NODES))
TP=4; PP=2
DATA=/data/tokens   # not ours

DISTRIBUTED_ARGS=(
    --nproc_per_node $GPUS_PER_NODE
    --nnodes $NUM_NODES
    --master_addr ${MASTER_ADDR:-localhost}
)
GPT_ARGS=(
    --num-layers 32          # as published
    --hidden-size 4096
    --ffn-hidden-size 14336
    --num-attention-heads 32
    --group-query-attention --num-query-groups 8
    --seq-length 8192
    --max-position-embeddings 8192
    --swiglu
    --untie-embeddings-and-output-weights
)
TRAINING="
    --micro-batch-size 1 \
    --global-batch-size $((WORLD_SIZE * 4)) \
    --bf16
    --lr 3e-4
    --use-distributed-optimizer --overlap-grad-reduce
"
torchrun "${DISTRIBUTED_ARGS[@]}" pretrain_gpt.py \
    ${GPT_ARGS[@]} $TRAINING \
    --tensor-model-parallel-size ${TP} --pipeline-model-parallel-size=$PP \
    --sequence-parallel \
    --num-layers-per-virtual-pipeline-stage 4 \
    --recompute-activations \
    --log-interval 10 --tensorbord-dir /tmp/tb \
    --data-path $DATA --save "$CHECKPOINTS"
)";

class Script : public ::testing::Test {
 protected:
  Script() : model_(model_of("llama-3-8b")) {}
  [[nodiscard]] Reading reading(const std::string& text, std::int32_t devices = 0) const {
    return read(text, "run.sh", {.model = &model_, .devices = devices});
  }
  [[nodiscard]] std::string errors(const std::string& text) const {
    try {
      (void)reading(text);
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::config) << e.what();
      for (const Problem& p : e.problems()) EXPECT_FALSE(p.mend.empty()) << p.what;
      return e.what();
    }
    return "";
  }
  static std::string with(const std::string& from, const std::string& to) {
    std::string text = kScript;
    const std::size_t at = text.find(from);
    EXPECT_NE(at, std::string::npos) << from;
    return at == std::string::npos ? text : text.replace(at, from.size(), to);
  }
  spec::ModelSpec model_;
};

TEST_F(Script, VariablesArraysAndQuotesAreFollowed) {
  const Reading r = reading(kScript);
  const spec::ParallelSpec& p = r.launch.job.parallel;
  const spec::Recipe& t = r.launch.job.train;
  EXPECT_EQ(r.framework, Framework::megatron);
  EXPECT_EQ(r.devices, 32);
  EXPECT_EQ(p.tp, 4);
  EXPECT_EQ(p.pp, 2);
  EXPECT_EQ(p.dp, 4);
  EXPECT_EQ(p.vpp, 4);
  EXPECT_EQ(p.schedule, "interleaved");
  EXPECT_TRUE(p.sequence_parallel);
  EXPECT_EQ(t.global_batch_size, 128);
  EXPECT_EQ(t.sequence_length, 8192);
  EXPECT_EQ(t.zero_stage, 1);
  EXPECT_EQ(t.precision, spec::Precision::bf16);
  EXPECT_EQ(t.recompute, spec::Recompute::selective);
  EXPECT_THAT(t.recompute_modules, ::testing::ElementsAre("core_attn"));
}

TEST_F(Script, SwitchesThatTheFileDoesNotSetAreOff) {
  const Reading r = reading(kScript);
  EXPECT_TRUE(r.launch.practice.grad_overlap);
  EXPECT_FALSE(r.launch.practice.param_overlap);
  EXPECT_FALSE(r.launch.practice.fused_cross_entropy);
  EXPECT_TRUE(r.launch.practice.dropout) << "0.1 is the software's default";
}

TEST_F(Script, UnknownFlagsAreListedWithLineAndNearestKnown) {
  const Reading r = reading(kScript);
  ASSERT_EQ(r.unknown.size(), 1u);
  EXPECT_EQ(r.unknown[0].name, "--tensorbord-dir");
  EXPECT_EQ(r.unknown[0].near, "--tensorboard-dir");
  EXPECT_EQ(r.unknown[0].value, "/tmp/tb");
  EXPECT_EQ(r.unknown[0].line, 40);
  std::vector<std::string> names;
  for (const Listed& l : r.not_priced) names.push_back(l.name);
  EXPECT_THAT(names, ::testing::UnorderedElementsAre("--log-interval", "--data-path", "--save"));
}

TEST_F(Script, AValueThatNoLineSetsIsNamedWithItsLine) {
  const std::string text = errors(with("TP=4; PP=2", "PP=2"));
  EXPECT_THAT(text, HasSubstr("--tensor-model-parallel-size is $TP, and no line sets TP"));
  EXPECT_THAT(text, HasSubstr("run.sh:36"));
  EXPECT_THAT(text, HasSubstr("TP=VALUE"));
  EXPECT_THAT(errors(with("PP=2", "PP=$(nproc)")), HasSubstr("$(nproc)"));
}

TEST_F(Script, AllProblemsAreToldAtOnce) {
  std::string text = with("--num-layers 32 ", "--num-layers 33 ");
  const auto swap = [&](const std::string& from, const std::string& to) {
    text.replace(text.find(from), from.size(), to);
  };
  swap("--hidden-size 4096", "--hidden-size 5120");
  swap("--bf16", "--bf16 --fp16");
  swap("--overlap-grad-reduce", "--overlap-param-gather");
  const std::string e = errors(text);
  EXPECT_THAT(e, HasSubstr("--num-layers is 33, the model has 32"));
  EXPECT_THAT(e, HasSubstr("--hidden-size is 5120, the model has 4096"));
  EXPECT_THAT(e, HasSubstr("--bf16 and --fp16 contradict each other"));
  EXPECT_THAT(e, HasSubstr("--overlap-param-gather without --overlap-grad-reduce"));
}

TEST_F(Script, NumbersThatDoNotDivideAreToldWithTheirLines) {
  EXPECT_THAT(errors(with("TP=4", "TP=3")), HasSubstr("tp 3 x cp 1 x pp 2 = 6 does not divide 32 devices"));
  EXPECT_THAT(errors(with("$((WORLD_SIZE * 4))", "126")),
              HasSubstr("micro-batch 1 x dp 4 = 4 does not divide the batch of 126"));
  EXPECT_THAT(errors(with("stage 4", "stage 5")),
              HasSubstr("--num-layers-per-virtual-pipeline-stage 5 x pp 2 does not divide 32 layers"));
}

TEST_F(Script, TheSameFlagTwiceWithTwoValuesIsRefused) {
  const std::string e =
      errors(with("--sequence-parallel", "--sequence-parallel --tensor-model-parallel-size 8"));
  EXPECT_THAT(e, HasSubstr("--tensor-model-parallel-size is 4 on line 36 and 8 on line 37"));
  EXPECT_THAT(e, HasSubstr("keep one of them"));
}

TEST_F(Script, WaysOfVirtualStagesContradictEachOther) {
  EXPECT_THAT(errors(with("--recompute-activations", "--num-virtual-stages-per-pipeline-rank 2")),
              HasSubstr("contradict each other"));
  EXPECT_THAT(errors(with("--recompute-activations", "--recompute-granularity full")),
              HasSubstr("without --recompute-method"));
  EXPECT_THAT(errors(with("--recompute-activations", "--recompute-granularity sellective")),
              HasSubstr("did you mean selective?"));
}

TEST_F(Script, ScriptsWithoutOrWithTwoLaunchesAreRefused) {
  EXPECT_THAT(errors("#!/bin/bash\necho hello\n"), HasSubstr("no line starts a Python program"));
  EXPECT_THAT(errors(std::string(kScript) + "\npython pretrain_gpt.py --num-layers 32 --hidden-size 4096\n"),
              HasSubstr("with different arguments"));
  EXPECT_THAT(errors("#!/bin/bash\nA=(1 2\npython x.py --a 1 --b 2"), HasSubstr("does not end"));
}

TEST_F(Script, AskedDevicesMustBeThoseOfTheFile) {
  EXPECT_EQ(reading(kScript, 32).devices, 32);
  try {
    (void)reading(kScript, 64);
    FAIL();
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("the file starts 32 ranks, asked is for 64"));
  }
}

TEST_F(Script, UnevenStagesAreReadFromEachWayOfSayingThem) {
  const std::string flag = "--num-layers-per-virtual-pipeline-stage 4";
  const auto layers = [&](const std::string& to) {
    return reading(with(flag, to)).launch.job.parallel.stage_layers;
  };
  using ::testing::ElementsAre;
  EXPECT_THAT(layers("--pipeline-model-parallel-layout 'Et*15|t*17,L'"), ElementsAre(15, 17));
  EXPECT_THAT(layers("--decoder-first-pipeline-num-layers 14"), ElementsAre(14, 18));
  EXPECT_THAT(layers("--decoder-last-pipeline-num-layers 12"), ElementsAre(20, 12));
  EXPECT_THAT(layers("--account-for-embedding-in-pipeline-split --account-for-loss-in-pipeline-split"),
              ElementsAre());
  const Reading four = reading(with(flag, "--pipeline-model-parallel-layout 'E|(t*11|)*2,t*10L'"));
  EXPECT_EQ(four.launch.job.parallel.vpp, 2);
  EXPECT_THAT(four.launch.job.parallel.stage_layers, ElementsAre(0, 11, 11, 10));
  EXPECT_THAT(errors(with(flag, "--pipeline-model-parallel-layout 'Et*15|t*16,L'")),
              HasSubstr("the layout has 31 layers, the model 32"));
  EXPECT_THAT(errors(with(flag, "--pipeline-model-parallel-layout 'Et*15|(t*16,L'")),
              HasSubstr("cannot be read"));
}

TEST_F(Script, CommandsInQuotesAndHereDocumentsAreFollowed) {
  const std::string text = R"(
cat > note.txt << 'END'
torchrun other.py --num-layers 1 --hidden-size 2
END
ARGS="--num-layers 32 --hidden-size 4096 --micro-batch-size 2 --seq-length 4096 --bf16"
mpirun -n 2 bash -c "torchrun --nproc-per-node 8 --nnodes 2 pretrain_gpt.py $ARGS --global-batch-size 64"
)";
  const Reading r = read(text, "job.sbatch", {.model = &model_});
  EXPECT_EQ(r.devices, 16);
  EXPECT_EQ(r.launch.job.train.micro_batch_size, 2);
  EXPECT_EQ(r.launch.job.train.global_batch_size, 64);
}

TEST_F(Script, SidesOfABranchMayDifferInWhatIsNotPricedAndInNothingElse) {
  const std::string branch = R"(
EXTRA=()
if [[ "$DATA" == MOCK ]]; then
  EXTRA+=("--mock-data" "--tokenizer-type NullTokenizer")
else
  EXTRA+=("--tokenizer-type HuggingFaceTokenizer" "--SIDE 2")
fi
)";
  std::string text = with("--save \"$CHECKPOINTS\"", "${EXTRA[@]}");
  text.insert(text.find("torchrun"), branch);
  const auto side = [&](const std::string& flag) {
    std::string out = text;
    return out.replace(out.find("SIDE"), 4, flag);
  };
  EXPECT_EQ(reading(side("num-workers")).devices, 32);
  EXPECT_THAT(errors(side("micro-batch-size")), HasSubstr("--micro-batch-size is 1 on line"));
}

TEST_F(Script, BranchesAndArgumentsFromOutsideAreTold) {
  const Reading r = reading(with("set -e", "if [ -z \"$X\" ]; then Y=1; fi"));
  EXPECT_THAT(r.notes, Contains(HasSubstr("line 3: branches and loops are read as if all")));
  const Reading extra = reading(with("--save \"$CHECKPOINTS\"", "--save x $EXTRA_ARGS"));
  EXPECT_THAT(extra.notes, Contains(HasSubstr("$EXTRA_ARGS is set nowhere in the file")));
}

}  // namespace
}  // namespace tessera::frameworks
