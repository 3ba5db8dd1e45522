// Blocks of every family: FLOPs add up to those of the model, bytes on the wire to the closed forms, layers
// cut over ranks to whole ones.
#include "graph/block.h"

#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "graph/closed_forms.h"
#include "spec/presets.h"

namespace tessera::graph {
namespace {

double flops(const OpList& ops, OpKind kind) {
  double sum = 0;
  for (const Op& op : ops)
    if (op.kind == kind) sum += static_cast<double>(op.flops.value);
  return sum;
}
double products(const BlockWork& w) {
  return flops(w.ops.forward, OpKind::gemm) + flops(w.ops.backward_input, OpKind::gemm) +
         flops(w.ops.backward_weight, OpKind::gemm);
}
std::int64_t sent(const OpList& ops, Axis axis) {
  std::int64_t sum = 0;
  for (const Op& op : ops)
    if (op.kind == OpKind::collective && op.axis == axis) sum += op.bytes_sent.value;
  return sum;
}

Cut cut_of(std::int64_t seq) {
  Cut c;
  c.sequence_length = seq;
  return c;
}

// Forward and backward of all blocks; attention's recomputed products (2.5 for 2) taken out.
double model_flops(const spec::ModelSpec& m, std::int64_t seq) {
  const Practice p = practice("megatron-core");
  const Cut cut = cut_of(seq);
  double sum = products(embedding_work(m, cut, p)) + products(head_work(m, cut, p));
  for (std::int32_t l = 0; l < m.num_hidden_layers; ++l) {
    const BlockWork w = layer_work(m, spec::layer_class(m, l), cut, p);
    sum += products(w) + 3.0 * flops(w.ops.forward, OpKind::attention);
  }
  return sum;
}

TEST(Block, FlopsOfAllBlocksAreTheModels) {
  for (const char* name : {"llama-2-7b", "llama-3-70b", "mixtral-8x7b", "qwen3-30b-a3b", "gpt2",
                           "deepseek-v2-lite", "olmoe-1b-7b", "falcon-7b", "bloom-7b1", "mpt-7b"}) {
    spec::ModelSpec m = spec::model_preset(name);
    m.num_nextn_predict_layers = 0;
    constexpr std::int64_t kSeq = 2048;
    const double expected = spec::train_flops_per_token(m, kSeq, spec::AttentionFlops::causal) * kSeq;
    const double blocks = model_flops(m, kSeq);
    EXPECT_TRUE(std::abs(blocks / expected - 1.0) <= 0.003) << name << ": " << blocks << " of " << expected;
  }
}

TEST(Block, TensorParallelRanksShareTheProducts) {
  const spec::ModelSpec m = spec::model_preset("llama-3-70b");
  const Practice p = practice("megatron-core");
  Cut cut = cut_of(4096);
  const spec::LayerClass layer = spec::layer_class(m, 0);
  const double whole = products(layer_work(m, layer, cut, p));
  for (const std::int32_t tp : {2, 4, 8}) {
    cut.tp = tp;
    EXPECT_DOUBLE_EQ(tp * products(layer_work(m, layer, cut, p)), whole) << "tp " << tp;
  }
  cut.tp = 1;
  cut.cp = 4;
  EXPECT_DOUBLE_EQ(4 * products(layer_work(m, layer, cut, p)), whole);
}

// 2 gathers and 2 scatters forward, the same backward, and the input gathered again for the weight gradient
// (arXiv 2205.05198 section 4.2.2).
TEST(Block, TensorParallelBytesAreTheClosedForms) {
  const spec::ModelSpec m = spec::model_preset("llama-3-70b");
  Practice p = practice("megatron-core");
  Cut cut = cut_of(4096);
  cut.tp = 4;
  const std::int64_t part = 3 * (4096 / 4) * m.hidden_size * 2;  // (tp-1)/tp of the stream
  const BlockWork sp = layer_work(m, spec::layer_class(m, 0), cut, p);
  EXPECT_EQ(sent(sp.ops.forward, Axis::tp), 4 * part);
  EXPECT_EQ(sent(sp.ops.backward_input, Axis::tp), 6 * part);
  cut.sequence_parallel = false;
  const BlockWork sums = layer_work(m, spec::layer_class(m, 0), cut, p);
  EXPECT_EQ(sent(sums.ops.forward, Axis::tp), 2 * 2 * part);
  EXPECT_EQ(sent(sums.ops.backward_input, Axis::tp), 2 * 2 * part);
}

TEST(Block, ContextRanksPassKeysRoundOrSwapHeadsForSequence) {
  const spec::ModelSpec m = spec::model_preset("llama-3-70b");  // 64 heads, 8 kv heads of 128
  Practice p = practice("megatron-core");
  Cut cut = cut_of(8192);
  cut.cp = 4;
  const spec::LayerClass layer = spec::layer_class(m, 0);
  const std::int64_t tokens = 8192 / 4;
  const BlockWork ring = layer_work(m, layer, cut, p);
  EXPECT_EQ(sent(ring.ops.forward, Axis::cp), 3 * tokens * 2 * 8 * 128 * 2);
  EXPECT_EQ(sent(ring.ops.backward_input, Axis::cp), 2 * sent(ring.ops.forward, Axis::cp));
  p.cp_all_to_all = true;
  const BlockWork swap = layer_work(m, layer, cut, p);
  EXPECT_EQ(sent(swap.ops.forward, Axis::cp), tokens * 3 / 4 * (2 * 64 + 2 * 8) * 128 * 2);
  EXPECT_EQ(sent(swap.ops.backward_input, Axis::cp), sent(swap.ops.forward, Axis::cp));
}

TEST(Block, ExpertRowsTravelThereAndBackInBothPasses) {
  const spec::ModelSpec m = spec::model_preset("qwen3-30b-a3b");
  Cut cut = cut_of(4096);
  cut.ep = 8;
  const BlockWork w = layer_work(m, spec::layer_class(m, 0), cut, practice("megatron-core"));
  const std::int64_t rows = 4096 * m.moe->num_experts_per_tok;
  EXPECT_EQ(sent(w.ops.forward, Axis::ep), 2 * rows * 7 / 8 * m.hidden_size * 2);
  EXPECT_EQ(sent(w.ops.backward_input, Axis::ep), 2 * rows * 7 / 8 * m.hidden_size * 2);
}

TEST(Block, RecomputationRunsForwardAgainWholeOrByModules) {
  const spec::ModelSpec m = spec::model_preset("llama-3-70b");
  const BlockWork w = layer_work(m, spec::layer_class(m, 0), cut_of(4096), practice("megatron-core"));
  EXPECT_TRUE(recomputed(w, spec::Recompute::none, 0).empty());
  EXPECT_EQ(recomputed(w, spec::Recompute::full, 0).size(), w.ops.forward.size());
  const OpList norms = recomputed(w, spec::Recompute::selective, module_bits({"layernorm"}));
  ASSERT_EQ(norms.size(), 2U);
  for (const Op& op : norms) EXPECT_TRUE(op.recomputed) << op.name;
  EXPECT_EQ(flops(norms, OpKind::gemm), 0.0);
  const OpList mlp = recomputed(w, spec::Recompute::selective, module_bits({"mlp"}));
  EXPECT_DOUBLE_EQ(flops(mlp, OpKind::gemm),
                   2.0 * 4096 * 3 * static_cast<double>(m.hidden_size * m.intermediate_size));
}

TEST(Block, SlidingLayersSeeTheirWindow) {
  const spec::ModelSpec m = spec::model_preset("gpt-oss-20b");
  const Practice p = practice("megatron-core");
  double keys[2] = {0, 0};
  for (std::int32_t l = 0; l < 2; ++l) {
    for (const Op& op : layer_work(m, spec::layer_class(m, l), cut_of(4096), p).ops.forward)
      if (op.kind == OpKind::attention) keys[l] = op.attention.keys;
  }
  EXPECT_NEAR(std::max(keys[0], keys[1]), 2048.5, 1e-9);
  EXPECT_NEAR(std::min(keys[0], keys[1]), 128.0 - 128.0 * 127.0 / 2.0 / 4096.0, 1e-9);
}

TEST(Practice, NamesAreKnownAndNearOnesOffered) {
  for (const std::string& name : practice_names()) EXPECT_EQ(practice(name).name, name);
  EXPECT_FALSE(practice("megatron-core").cp_all_to_all);
  EXPECT_TRUE(practice("megatron-core+ulysses").cp_all_to_all);
  EXPECT_EQ(practice("megatron-core+ulysses").name, "megatron-core+ulysses");
  try {
    (void)practice("megatron-cor");
    FAIL() << "an unknown practice was accepted";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("did you mean megatron-core?"), std::string::npos) << e.what();
  }
}

}  // namespace
}  // namespace tessera::graph
