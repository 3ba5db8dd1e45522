// A row becomes (Setup, Candidate), or is refused with the reason.
#include "validate/mapping.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "graph/block.h"
#include "rows.h"

namespace tessera::validate {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

const Library& library() {
  static const Library shipped = shipped_library();
  return shipped;
}
Case question(const Row& row) {
  Mapped m = to_case(row, library());
  EXPECT_TRUE(m.value.has_value()) << m.reason << " " << m.detail;
  return m.value.value_or(Case{});
}
std::string refusal(const Row& row) {
  const Mapped m = to_case(row, library());
  EXPECT_FALSE(m.value.has_value());
  return m.reason;
}

TEST(Mapping, ACompleteRowAsksExactlyWhatItPrints) {
  const Case c = question(good_row());
  EXPECT_EQ(c.candidate.tp, 4);
  EXPECT_EQ(c.candidate.vpp, 5);
  EXPECT_EQ(c.candidate.schedule, schedule::Kind::interleaved);
  EXPECT_EQ(c.candidate.zero_stage, 1);
  EXPECT_TRUE(c.candidate.sequence_parallel);
  EXPECT_EQ(c.candidate.world_size(), 64);
  EXPECT_EQ(c.setup.cluster.num_devices, 64);
  EXPECT_EQ(c.accelerator, "h100-sxm");
  EXPECT_EQ(c.axes, "tp+pp+dp");
  EXPECT_TRUE(c.setup.model.gated_mlp);
  // As published, and 256 rows of padding in each of the two embeddings (a multiple of 128 x tp).
  EXPECT_EQ(spec::num_parameters(c.setup.model), 70'553'706'496 + 2 * 256 * 8192);
  EXPECT_DOUBLE_EQ(c.step_seconds.value_or(0), 14.66);
  EXPECT_THAT(c.assumptions, IsEmpty());
}

TEST(Mapping, TheStepTimeComesFromTheBestColumn) {
  Row r = good_row();
  std::string origin;
  r.step_time_s.reset();
  r.derived_step_time_s = 15.0;
  EXPECT_DOUBLE_EQ(measured_step(r, origin).value_or(0), 15.0);
  r.derived_step_time_s.reset();
  r.tokens_per_s_per_gpu = 1024.0;
  EXPECT_DOUBLE_EQ(measured_step(r, origin).value_or(0), 128.0 * 8192 / (64 * 1024));
  EXPECT_EQ(origin, "tokens/s");
  r.tokens_per_s_per_gpu.reset();
  r.tflops_per_gpu = 400;  // nobody's convention: not usable
  EXPECT_FALSE(measured_step(r, origin).has_value());
}

// Narayanan et al. 2021: 81.6 s a step give the printed 90 days for 300B tokens.
TEST(Mapping, HardwareFlopsOfThreeSourcesGiveTheStep) {
  Row r;
  r.id = "nar21-t2-0";
  r.layers = 96;
  r.hidden = 12288;
  r.vocab = 51200;
  r.seq_len = 2048;
  r.gbs = 1536;
  r.gpus = 384;
  r.tflops_per_gpu = 144;
  std::string origin;
  const double step = measured_step(r, origin).value_or(0);
  EXPECT_NEAR(step, 81.58, 0.05);
  EXPECT_NEAR(300e9 / (1536.0 * 2048) * step / 86400, 90, 0.5);
}

TEST(Mapping, EmptyDegreesAreOneWhereTheOthersMultiply) {
  Row r = good_row();
  r.cp.reset();
  r.dp.reset();
  EXPECT_EQ(question(r).candidate.dp, 4);
  r.gpus = 72;
  EXPECT_THAT(refusal(r), HasSubstr("does not divide the devices"));
  r = good_row();
  r.dp = 8;
  EXPECT_THAT(refusal(r), HasSubstr("does not multiply"));
  r.tp.reset();
  r.pp.reset();
  r.dp.reset();
  EXPECT_EQ(refusal(r), "layout not printed");
}

TEST(Mapping, WhatCannotBeModelledIsRefusedByName) {
  const auto with = [](auto change) {
    Row r = good_row();
    change(r);
    return refusal(r);
  };
  EXPECT_THAT(with([](Row& r) { r.gpu = "TPU v5e"; }), HasSubstr("no calibration"));
  EXPECT_THAT(with([](Row& r) { r.gpu = "V100"; }), HasSubstr("no calibration"));
  EXPECT_THAT(with([](Row& r) { r.task = "lora"; }), HasSubstr("LoRA"));
  EXPECT_THAT(with([](Row& r) { r.task = "sft"; }), HasSubstr("packed"));
  EXPECT_THAT(with([](Row& r) { r.overlap_notes = "ACTIVATION CPU OFFLOAD 20 layers"; }), HasSubstr("CPU"));
  EXPECT_THAT(with([](Row& r) { r.model = "Nemotron-3-Nano-30B-A3B"; }), HasSubstr("Mamba"));
  EXPECT_THAT(with([](Row& r) { r.framework = "MaxText (JAX)"; }), HasSubstr("JAX"));
  EXPECT_THAT(with([](Row& r) { r.framework = ""; }), HasSubstr("framework not known"));
  EXPECT_THAT(with([](Row& r) { r.recompute = "full, block, 5 layers"; }), HasSubstr("some layers only"));
  EXPECT_THAT(with([](Row& r) { r.overlap_notes = "ZB-2p; microbatches 24"; }), HasSubstr("ZB-2p"));
  EXPECT_THAT(with([](Row& r) { r.seq_len.reset(); }), HasSubstr("sequence length"));
  EXPECT_THAT(with([](Row& r) { r.hidden.reset(); }), HasSubstr("not printed"));
  EXPECT_THAT(with([](Row& r) { r.gbs = 127; }), HasSubstr("whole"));
}

TEST(Mapping, AMissingMicroBatchIsAssumedAndMarked) {
  Row r = good_row();
  r.mbs.reset();
  const Case c = question(r);
  EXPECT_EQ(c.candidate.micro_batch_size, 1);
  EXPECT_TRUE(c.guessed);
  r.overlap_notes = "microbatches 16";
  EXPECT_FALSE(question(r).guessed);
  EXPECT_EQ(question(r).candidate.micro_batch_size, 2);
}

TEST(Mapping, ZeroStagesAndTheirGroupsAreRead) {
  const auto candidate = [](std::string zero) {
    Row r = good_row();
    r.pp = 1;
    r.vpp = 1;
    r.dp = 16;
    r.zero = std::move(zero);
    return question(r).candidate;
  };
  EXPECT_EQ(candidate("none").zero_stage, 0);
  EXPECT_EQ(candidate("ZeRO-0").zero_stage, 0);
  EXPECT_EQ(candidate("FSDP SHARD_GRAD_OP (ZeRO-2)").zero_stage, 2);
  EXPECT_EQ(candidate("FSDP FULL_SHARD (ZeRO-3)").zero_stage, 3);
  EXPECT_EQ(candidate("full").zero_stage, 3);
  EXPECT_EQ(candidate("ZeRO-1 within 8 GPUs").zero_group, 8);
  EXPECT_EQ(candidate("ZeRO-1 over all DP").zero_group, 0);
  EXPECT_EQ(candidate("FSDP2 8").zero_group, 8);
  EXPECT_EQ(candidate("FSDP2 16").zero_group, 0);  // all of dp
}

TEST(Mapping, RecomputedModulesAreMegatronsNames) {
  const auto modules = [](std::string text) {
    Row r = good_row();
    r.recompute = std::move(text);
    return question(r).candidate.recompute_modules;
  };
  const auto bits = [](std::vector<std::string> names) { return graph::module_bits(names); };
  EXPECT_EQ(modules("selective: mla_up_proj,mlp"), bits({"mla_up_proj", "mlp"}));
  EXPECT_EQ(modules("selective: layernorm,moe_act"), bits({"layernorm", "moe_act"}));
  EXPECT_EQ(modules("selective: moe,layernorm,core_attn,moe_act"),
            bits({"moe", "layernorm", "core_attn", "moe_act"}));
  EXPECT_EQ(modules("selective (core attention)"), bits({"core_attn"}));
  EXPECT_EQ(modules("selective: norm,act"), bits({"layernorm", "moe_act"}));
}

TEST(Mapping, TextChangesThePractice) {
  Row r = good_row();
  EXPECT_FALSE(question(r).setup.practice.cuda_graphs);
  r.overlap_notes = "cuda_graph_impl=full_iteration; moe_a2a_overlap=True; no gradient bucketing overlap";
  EXPECT_TRUE(question(r).setup.practice.cuda_graphs);
  EXPECT_TRUE(question(r).setup.practice.ep_overlap);
  EXPECT_FALSE(question(r).setup.practice.grad_overlap);
  r.overlap_notes = "cuda_graph_impl=none";
  EXPECT_FALSE(question(r).setup.practice.cuda_graphs);
}

TEST(Mapping, ThePrintedNetworkReplacesTheUsualOne) {
  Row r = good_row();
  const auto bandwidth = [](const Row& row) {
    return question(row).setup.cluster.tiers.back().bandwidth.value;
  };
  EXPECT_DOUBLE_EQ(bandwidth(r), 50e9);
  r.overlap_notes = "inter-node 800 Gb/s per node";
  EXPECT_DOUBLE_EQ(bandwidth(r), 12.5e9);
  r.overlap_notes = "4x100Gb RoCE per node";
  EXPECT_DOUBLE_EQ(bandwidth(r), 6.25e9);
}

TEST(Mapping, DeepSeekIsTheShippedModelCutToTheLayersPrinted) {
  Row r = good_row();
  r.id = "simumax-0005";
  r.model = "deepseekv3 cut to 4 layers";
  r.notes = "1 dense layer";
  r.gpu = "B200-SXM";
  r.gpus = 8;
  r.layers = 4;
  r.vocab = 129280;
  r.tp = r.pp = r.vpp = 1;
  r.dp = r.ep = 8;
  r.gbs = 32;
  const Case c = question(r);
  ASSERT_TRUE(c.setup.model.mla.has_value());
  EXPECT_EQ(c.setup.model.num_hidden_layers, 4);
  EXPECT_EQ(c.setup.model.moe->first_k_dense_replace, 1);
  EXPECT_EQ(c.setup.model.num_nextn_predict_layers, 0);
  EXPECT_EQ(c.model_class, ModelClass::moe);
  EXPECT_EQ(c.candidate.ep, 8);
}

TEST(Mapping, RowFaultsNameLineAndColumn) {
  Problems problems;
  const std::vector<Row> rows =
      parse_rows("id,model,gpu,layers,step_time_s\na,m,H100,12,fast\na,m,H100,-3,1\n", "runs.csv", problems);
  ASSERT_EQ(problems.list().size(), 3U);
  EXPECT_EQ(problems.list()[0].where, "runs.csv:2: column step_time_s");
  EXPECT_THAT(problems.list()[0].what, HasSubstr("'fast' is not a number"));
  EXPECT_THAT(problems.list()[1].what, HasSubstr("'a' occurs twice"));
  EXPECT_THAT(problems.list()[2].what, HasSubstr("-3 is not above zero"));
  EXPECT_EQ(rows.size(), 2U);
  Problems missing;
  (void)parse_rows("id,modell,gpu\n", "runs.csv", missing);
  ASSERT_EQ(missing.list().size(), 1U);
  EXPECT_THAT(missing.list()[0].mend, HasSubstr("did you mean the column 'modell'"));
}

}  // namespace
}  // namespace tessera::validate
