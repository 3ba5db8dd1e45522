// Candidates: their text, their micro-batches, and the way to a job file and back.
#include "cost/candidate.h"

#include <gtest/gtest.h>

#include "graph/block.h"

namespace tessera::cost {
namespace {

spec::ModelSpec dense(std::int32_t layers) {
  return {.family = spec::Family::llama,
          .num_hidden_layers = layers,
          .hidden_size = 1024,
          .intermediate_size = 4096,
          .num_attention_heads = 16,
          .num_key_value_heads = 8,
          .head_dim = 64,
          .vocab_size = 32768,
          .max_position_embeddings = 8192};
}

Setup setup_of(spec::ModelSpec model) {
  Setup s;
  s.model = std::move(model);
  s.work = {.global_batch_size = 128, .sequence_length = 4096, .precision = spec::Precision::fp8};
  return s;
}

TEST(Candidate, IsShortInText) {
  EXPECT_EQ(to_text({.tp = 4, .cp = 2, .dp = 16, .pp = 4, .vpp = 5, .schedule = schedule::Kind::interleaved}),
            "tp 4 cp 2 pp 4 vpp 5 dp 16 mbs 1 zero 1 interleaved");
  EXPECT_EQ(to_text(Candidate{}), "tp 1 pp 1 dp 1 mbs 1 zero 1 1f1b");
  EXPECT_EQ(to_text({.tp = 2,
                     .dp = 8,
                     .ep = 4,
                     .etp = 2,
                     .micro_batch_size = 2,
                     .zero_stage = 3,
                     .recompute = spec::Recompute::selective,
                     .recompute_modules = graph::module_bits({"moe_act", "layernorm"}),
                     .order = AxisOrder::tp_cp_ep_pp_dp,
                     .sequence_parallel = false,
                     .zero_group = 8}),
            "tp 2 pp 1 dp 8 ep 4 etp 2 mbs 2 zero 3 in groups of 8 1f1b recompute layernorm+moe_act no-sp "
            "tp-cp-ep-pp-dp");
  EXPECT_EQ(to_text({.recompute = spec::Recompute::full}), "tp 1 pp 1 dp 1 mbs 1 zero 1 1f1b recompute full");
}

TEST(Candidate, CountsMicroBatchesOfOneReplica) {
  const Workload w{.global_batch_size = 96};
  EXPECT_EQ(num_microbatches(w, {.dp = 8, .micro_batch_size = 2}), 6);
  EXPECT_EQ(num_microbatches(w, {.dp = 64, .micro_batch_size = 1}), 0);
  EXPECT_EQ(num_microbatches(w, {.dp = 192, .micro_batch_size = 1}), 0);
  EXPECT_EQ(num_microbatches(w, {.dp = 1 << 30, .micro_batch_size = 1 << 30}), 0);
}

TEST(Candidate, ComesBackFromItsJob) {
  const cost::Setup setup = setup_of(dense(24));
  std::int32_t n = 0;
  for (const schedule::Kind kind :
       {schedule::Kind::one_f_one_b, schedule::Kind::interleaved, schedule::Kind::zb_v}) {
    for (const spec::Recompute recompute :
         {spec::Recompute::none, spec::Recompute::selective, spec::Recompute::full}) {
      for (const AxisOrder order : {AxisOrder::tp_cp_ep_dp_pp, AxisOrder::tp_cp_ep_pp_dp}) {
        for (std::uint32_t modules = 1; modules < 128; modules += 9) {
          const Candidate c{.tp = 2,
                            .cp = 3,
                            .dp = 4,
                            .pp = 5,
                            .ep = 6,
                            .etp = 2,
                            .vpp = 7,
                            .micro_batch_size = 8,
                            .zero_stage = ++n % 4,
                            .recompute = recompute,
                            .recompute_modules = recompute == spec::Recompute::selective ? modules : 0,
                            .schedule = kind,
                            .order = order,
                            .sequence_parallel = n % 2 == 0};
          EXPECT_EQ(from_job(to_job(setup, c)), c) << to_text(c);
        }
      }
    }
  }
}

TEST(Candidate, GivesTheWorkloadToTheJob) {
  const spec::Job job = to_job(setup_of(dense(24)), {.tp = 2, .dp = 4, .pp = 2, .micro_batch_size = 2});
  EXPECT_EQ(job.model, dense(24));
  EXPECT_EQ(job.train.global_batch_size, 128);
  EXPECT_EQ(job.train.sequence_length, 4096);
  EXPECT_EQ(job.train.micro_batch_size, 2);
  EXPECT_EQ(job.train.precision, spec::Precision::fp8);
  EXPECT_EQ(job.train.zero_stage, 1);
  EXPECT_EQ(job.parallel.order, "tp-cp-ep-dp-pp");
  EXPECT_EQ(job.parallel.schedule, "1f1b");
  EXPECT_TRUE(job.parallel.stage_layers.empty());
}

TEST(Candidate, WritesTheStagesOfUnevenLayers) {
  const spec::Job job =
      to_job(setup_of(dense(126)), {.pp = 8, .vpp = 16, .schedule = schedule::Kind::interleaved});
  EXPECT_TRUE(job.parallel.stage_layers.empty()) << "fewer layers than stages is refused elsewhere";
  const spec::Job uneven = to_job(setup_of(dense(126)), {.pp = 8});
  ASSERT_EQ(uneven.parallel.stage_layers.size(), 8);
  std::int32_t sum = 0;
  for (std::int32_t s = 0; s < 8; ++s) {
    EXPECT_EQ(uneven.parallel.stage_layers[s], StageSplit(dense(126), 8).layers(s)) << s;
    sum += uneven.parallel.stage_layers[s];
  }
  EXPECT_EQ(sum, 126);
  EXPECT_LT(uneven.parallel.stage_layers.back(), 16) << "the stage of the head has fewer";
}

TEST(Candidate, PassesTheJobReader) {
  const spec::Job job = to_job(setup_of(dense(30)), {.tp = 2, .dp = 4, .pp = 4, .micro_batch_size = 2});
  const spec::Job back = spec::parse_job(spec::to_yaml(job), ".", "job.yaml", {});
  EXPECT_EQ(from_job(back), from_job(job));
  EXPECT_EQ(back.parallel.stage_layers, job.parallel.stage_layers);
}

TEST(Candidate, RefusesAnOrderThatItDoesNotKnow) {
  spec::Job job = to_job(setup_of(dense(24)), {});
  job.parallel.order = "pp-dp-tp";
  try {
    (void)from_job(job);
    FAIL() << "taken";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_EQ(e.problems().front().what, "order=pp-dp-tp is not one that can be priced");
    EXPECT_NE(e.problems().front().mend.find("tp-cp-ep-dp-pp or tp-cp-ep-pp-dp"), std::string::npos);
  }
  job.parallel.order = "tp-cp-ep-dp-pp";
  job.train.recompute = spec::Recompute::selective;
  EXPECT_EQ(from_job(job).recompute_modules, graph::module_bits({"layernorm", "moe_act"}));
}

}  // namespace
}  // namespace tessera::cost
