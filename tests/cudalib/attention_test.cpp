// Attention as cuDNN compiles it for an H100, without one: a plan for every shape of the shipped models, the
// kernel it chose, its workspace, and that the mask's numbers reach the kernel. Nothing runs: no value is
// checked here.
#include <dlfcn.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <tuple>

#include "base/error.h"
#include "base/file.h"
#include "cudalib/attention_graph.h"
#include "spec/presets.h"

namespace tessera::cudalib {
namespace {
using kernels::AttentionShape;
using ::testing::HasSubstr;

constexpr std::int64_t kSeq = 4096;

DeviceProperties h100() {
  return DeviceProperties::from_json(read_text(std::string(TESSERA_SOURCE_DIR) + "/tests/cudalib/h100.json"));
}

// Empty where plans can be built: cuDNN is there and a driver's library, real or this test's.
std::string why_no_plans() {
  if (!is_built_in()) return "built without the CUDA toolkit and cuDNN";
  if (dlopen("libcuda.so.1", RTLD_LAZY) == nullptr)
    return "no libcuda.so.1: run by ctest, which adds the one of the tests";
  return "";
}
#define NEEDS_PLANS() \
  if (const std::string why = why_no_plans(); !why.empty()) GTEST_SKIP() << why

std::string text(const AttentionShape& s) {
  return std::to_string(s.heads) + "/" + std::to_string(s.kv_heads) + " heads of " +
         std::to_string(s.head_dim) + "/" + std::to_string(s.v_dim()) + ", window " +
         std::to_string(s.window) + ", seq " + std::to_string(s.seq);
}

// The shapes of the models on one rank. What differs only in how many kv heads there are shares one entry,
// with one head of k and v for grouped heads and two for others.
std::map<std::string, AttentionShape> zoo() {
  std::map<std::string, AttentionShape> shapes;
  for (const auto& preset : spec::model_presets()) {
    const spec::ModelSpec a = spec::model_preset(preset.name);
    const std::int64_t group = a.mla ? 1 : a.num_attention_heads / a.num_key_value_heads;
    AttentionShape s{.batch = 2,
                     .seq = kSeq,
                     .heads = group == 1 ? 2 : group,
                     .kv_heads = group == 1 ? 2 : 1,
                     .head_dim = a.mla ? a.mla->qk_nope_head_dim + a.mla->qk_rope_head_dim : a.head_dim,
                     .scale = 0.125,
                     .v_head_dim = a.mla ? a.mla->v_head_dim : 0,
                     .window = a.sliding_window < kSeq ? a.sliding_window : 0};
    shapes.emplace(text(s), s);
  }
  return shapes;
}

std::int64_t scores_bytes(const AttentionShape& s) {
  return 2 * s.batch * s.heads * s.seq * s.seq;
}
// Of the whole heads' dk and dv before the groups are summed.
std::int64_t group_bytes(const AttentionShape& s) {
  return s.heads == s.kv_heads ? 0 : 2 * s.batch * s.heads * s.seq * (s.head_dim + s.v_dim());
}

TEST(AttentionPlans, EveryShapeOfTheShippedModelsHasHopperKernelsWithinTheWorkspaceBudget) {
  NEEDS_PLANS();
  const auto shapes = zoo();
  EXPECT_GE(shapes.size(), 15U);
  std::int64_t largest = 0;
  for (const auto& [name, s] : shapes) {
    SCOPED_TRACE(name);
    const auto forward = AttentionPlan::build(s, {.pass = AttentionPass::forward}, h100());
    EXPECT_THAT(forward.kernel_name(), HasSubstr("sm90_flash_fprop_wgmma"));
    EXPECT_LE(forward.workspace().value, 256);
    EXPECT_EQ(forward.scratch().value, 256);
    const auto backward = AttentionPlan::build(s, {.pass = AttentionPass::backward}, h100());
    EXPECT_THAT(backward.kernel_name(), HasSubstr("sm90_flash_bprop_wgmma"));
    EXPECT_LE(backward.workspace().value, 256 + group_bytes(s));
    const std::int64_t rows = s.batch * s.heads * s.seq;
    EXPECT_LE(backward.scratch().value, 512 + group_bytes(s) + rows * 4 * (1 + s.head_dim));
    largest = std::max(largest, backward.workspace().value);
  }
  std::printf("%zu shapes, %zu plans; largest workspace of a backward pass %ld bytes\n", shapes.size(),
              2 * shapes.size(), static_cast<long>(largest));
}

TEST(AttentionPlans, MaskAndScaleAreParametersOfTheKernel) {
  NEEDS_PLANS();
  const AttentionShape s{
      .batch = 1, .seq = 1024, .heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0.125, .window = 100};
  for (const auto pass : {AttentionPass::inference, AttentionPass::forward, AttentionPass::backward}) {
    const auto plan = AttentionPlan::build(s, {.pass = pass}, h100());
    std::vector<std::string> names;
    for (const GraphScalar& scalar : plan.scalars()) {
      names.push_back(scalar.name);
      if (scalar.name == "one") continue;
      EXPECT_THAT(plan.kernels().front().uids, ::testing::Contains(scalar.uid)) << scalar.name;
    }
    EXPECT_THAT(names, ::testing::IsSupersetOf({"scale", "mask value", "window"}));
  }
}

TEST(AttentionPlans, WindowOfTheWholeSequenceIsNoWindow) {
  NEEDS_PLANS();
  AttentionShape s{
      .batch = 1, .seq = 256, .heads = 2, .kv_heads = 2, .head_dim = 64, .scale = 1, .window = 256};
  const auto names = [&] {
    std::string all;
    const auto plan = AttentionPlan::build(s, {.pass = AttentionPass::inference}, h100());
    for (const GraphScalar& scalar : plan.scalars()) all += scalar.name + ";";
    return all;
  };
  EXPECT_EQ(names(), "scale;mask value;");
  s.window = 255;
  EXPECT_EQ(names(), "scale;mask value;window;");
}

TEST(AttentionPlans, SequencesThatAreNoMultipleOfATileHavePlans) {
  NEEDS_PLANS();
  for (const std::int64_t seq : {1000, 2047}) {
    const AttentionShape s{.batch = 1, .seq = seq, .heads = 4, .kv_heads = 4, .head_dim = 128, .scale = 1};
    for (const auto pass : {AttentionPass::forward, AttentionPass::backward})
      EXPECT_THAT(AttentionPlan::build(s, {.pass = pass}, h100()).kernel_name(), HasSubstr("wgmma")) << seq;
  }
}

TEST(AttentionPlans, FixedOrderStoresTheScoresGradientAndTheLimitCutsTheBatch) {
  NEEDS_PLANS();
  AttentionPlanOptions options{.pass = AttentionPass::backward, .dq_sum = DqSum::fixed_order};
  for (const AttentionShape& s :
       {AttentionShape{.batch = 6, .seq = 1024, .heads = 8, .kv_heads = 8, .head_dim = 128, .scale = 1},
        AttentionShape{.batch = 6,
        .seq = 1024,
        .heads = 4,
        .kv_heads = 4,
        .head_dim = 192,
        .scale = 1,
        .v_head_dim = 128}}) {
    options.workspace_limit = Bytes(0);
    const auto whole = AttentionPlan::build(s, options, h100());
    EXPECT_THAT(whole.kernel_name(), HasSubstr("sm90_flash_bprop_wgmma"));
    EXPECT_GE(whole.workspace().value, scores_bytes(s));
    EXPECT_LE(whole.workspace().value, scores_bytes(s) + 4096);
    // A third of it and a bit: 4 sequences would be too many and 2 divide the batch.
    options.workspace_limit = Bytes(scores_bytes(s) / 6 * 5 / 2);
    const auto cut = AttentionPlan::build(s, options, h100());
    EXPECT_EQ(cut.runs(), 3);
    EXPECT_EQ(cut.sequences_per_run(), 2);
    EXPECT_LE(cut.workspace().value, scores_bytes(s) / 3 + 4096);
  }
}

TEST(AttentionPlans, StoredPlanIsRestoredWithItsKernelAndWorkspace) {
  NEEDS_PLANS();
  const AttentionShape s{.batch = 1, .seq = 512, .heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0.125};
  const AttentionPlanOptions options{.pass = AttentionPass::backward};
  const auto built = AttentionPlan::build(s, options, h100());
  const auto restored = AttentionPlan::restore(s, options, h100(), built.json());
  EXPECT_EQ(restored.kernel_name(), built.kernel_name());
  EXPECT_EQ(restored.workspace(), built.workspace());
  EXPECT_EQ(restored.scratch(), built.scratch());
  try {
    (void)AttentionPlan::restore(s, options, h100(), "{}");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), HasSubstr("delete the stored plan"));
  }
}

TEST(AttentionPlans, KeyNamesEverythingThatAPlanDependsOn) {
  NEEDS_PLANS();
  const AttentionShape s{.batch = 1, .seq = 512, .heads = 4, .kv_heads = 2, .head_dim = 64, .scale = 0.125};
  const std::string key = attention_plan_key(s, {}, h100());
  EXPECT_THAT(key, HasSubstr("gpu=\"NVIDIA H100 80GB HBM3\" sms=132"));
  AttentionShape other = s;
  other.window = 64;
  EXPECT_NE(attention_plan_key(other, {}, h100()), key);
  EXPECT_NE(attention_plan_key(s, {.pass = AttentionPass::backward}, h100()), key);
}

TEST(AttentionPlans, RefusesHeadsThatDoNotDivideAndRowsThatAreNotAligned) {
  if (!is_built_in()) GTEST_SKIP() << "built without the CUDA toolkit and cuDNN";
  try {
    (void)AttentionPlan::build({.batch = 1, .seq = 64, .heads = 6, .kv_heads = 4, .head_dim = 60, .scale = 1},
                               {}, h100());
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), HasSubstr("kv_heads=4 does not divide heads=6"));
    EXPECT_THAT(e.what(), HasSubstr("head_dim=60 is not a multiple of 8"));
    EXPECT_THAT(e.what(), HasSubstr("use a multiple of 8"));
  }
}

TEST(DevicePropertiesText, NamesEachMissingKey) {
  EXPECT_EQ(h100().sm_count, 132);
  EXPECT_EQ(h100().compute, 900);
  try {
    (void)DeviceProperties::from_json(R"({"deviceName":"x"})");
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.problems().size(), 22U);
    EXPECT_THAT(e.what(), HasSubstr("the key multiProcessorCount is missing"));
  }
}

TEST(AbsentLibraries, SayWhatToInstall) {
  if (is_built_in()) GTEST_SKIP() << "built with the CUDA toolkit and cuDNN";
  try {
    (void)DeviceProperties::of_device(0);
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
    EXPECT_THAT(e.what(), HasSubstr("install the CUDA toolkit, cuDNN and NCCL and configure again"));
  }
}

}  // namespace
}  // namespace tessera::cudalib
