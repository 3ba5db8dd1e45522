// Attention and latent attention in every form: gradients against central differences, 2 and 4
// tensor-parallel ranks against one, orders of passes, recomputation, and memory, FLOPs and bytes sent
// against the operators of the engine's graph.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "graph/layers.h"
#include "nn/attention_problems.h"
#include "support/layer_gradients.h"

namespace tessera::test {
namespace {

using kernels::RopePairs;
using nn::NormKind;
using nn::QkNorm;
using nn::Recompute;

constexpr double kBound = 1e-11;  // of the largest value: sums of a few dozen terms in another order
constexpr Recompute kModes[] = {Recompute::none, Recompute::selective};

struct Form {
  std::string name;
  std::optional<AttentionCase> attention;
  std::optional<LatentCase> latent;
  // Each rank has a key head.
  [[nodiscard]] std::vector<std::int32_t> tensor_parallel() const {
    if (attention && attention->kv_heads < kHeads) return {2};
    return {2, 4};
  }
  [[nodiscard]] LayerProblem problem(Recompute recompute, std::int64_t microbatches) const {
    if (attention) {
      AttentionCase c = *attention;
      c.recompute = recompute;
      c.microbatches = microbatches;
      return attention_case(c);
    }
    LatentCase c = *latent;
    c.recompute = recompute;
    c.microbatches = microbatches;
    return latent_case(c);
  }
};
void PrintTo(const Form& f, std::ostream* out) {
  *out << f.name;
}

const std::vector<Form>& forms() {
  static const std::vector<Form> list = {
      {"plain", AttentionCase{}, {}},
      {"grouped", AttentionCase{.kv_heads = 2}, {}},
      {"grouped_norms_by_head_clipped",
       AttentionCase{.kv_heads = 2, .bias = true, .qk_norm = QkNorm::per_head, .clip = 0.7},
       {}},
      {"grouped_norms_whole", AttentionCase{.kv_heads = 2, .qk_norm = QkNorm::whole}, {}},
      {"scaled", AttentionCase{.scale = 0.3}, {}},
      {"biased", AttentionCase{.bias = true}, {}},
      {"norms_by_head", AttentionCase{.qk_norm = QkNorm::per_head}, {}},
      {"norms_whole", AttentionCase{.qk_norm = QkNorm::whole}, {}},
      {"clipped", AttentionCase{.clip = 0.7}, {}},
      {"norms_whole_clipped_biased", AttentionCase{.bias = true, .qk_norm = QkNorm::whole, .clip = 0.7}, {}},
      {"norms_by_head_clipped", AttentionCase{.qk_norm = QkNorm::per_head, .clip = 0.7}, {}},
      {"window_and_sinks", AttentionCase{.bias = true, .window = 3, .sinks = true}, {}},
      {"interleaved", AttentionCase{.rope = RopePairs::interleaved}, {}},
      {"layer_norm_without_rope",
       AttentionCase{.norm = NormKind::layer, .bias = true, .rope = std::nullopt},
       {}},
      {"clipped_without_rope", AttentionCase{.clip = 0.7, .rope = std::nullopt}, {}},
      {"everything",
       AttentionCase{.norm = NormKind::layer,
                     .bias = true,
                     .qk_norm = QkNorm::whole,
                     .clip = 0.9,
                     .window = 4,
                     .sinks = true,
                     .rope = RopePairs::interleaved,
                     .scale = 0.4},
       {}},
      {"latent", {}, LatentCase{}},
      {"latent_without_q_latent", {}, LatentCase{.q_latent = false}},
      {"latent_biased", {}, LatentCase{.bias = true, .scale = 0.2}},
      {"latent_without_q_latent_biased", {}, LatentCase{.q_latent = false, .bias = true}},
      {"latent_halves", {}, LatentCase{.pairs = RopePairs::halves}},
  };
  return list;
}

class AttentionForms : public ::testing::TestWithParam<Form> {};
INSTANTIATE_TEST_SUITE_P(All, AttentionForms, ::testing::ValuesIn(forms()),
                         [](const auto& info) { return info.param.name; });

TEST_P(AttentionForms, GradientsMatchCentralDifferences) {
  for (const Recompute mode : kModes) expect_gradients(GetParam().problem(mode, 1));
}

TEST_P(AttentionForms, OnTwoAndFourRanksEqualsOneRank) {
  for (const Recompute mode : kModes) {
    const LayerProblem p = GetParam().problem(mode, 2);
    const LayerResult one = run_layer(p, {});
    for (const std::int32_t tp : GetParam().tensor_parallel()) {
      SCOPED_TRACE(fmt::format("tp={}", tp));
      expect_near(p, run_layer(p, {.tp = tp}), one, kBound);
    }
  }
}

TEST_P(AttentionForms, SplitFusedAndRecomputedPassesGiveTheSameBits) {
  for (const Recompute mode : kModes) {
    const LayerProblem p = GetParam().problem(mode, 2);
    for (const std::int32_t tp : {1, 2}) {
      SCOPED_TRACE(fmt::format("tp={}", tp));
      const LayerResult split = run_layer(p, {.tp = tp}, {.order = PassOrder::split});
      expect_same_bits(run_layer(p, {.tp = tp}, {.order = PassOrder::fused}), split);
      expect_same_bits(run_layer(p, {.tp = tp}, {.order = PassOrder::split_with_recompute}), split);
    }
  }
}

TEST_P(AttentionForms, SelectiveRecomputationChangesNoBits) {
  for (const std::int32_t tp : {1, 2}) {
    expect_same_bits(run_layer(GetParam().problem(Recompute::selective, 2), {.tp = tp}),
                     run_layer(GetParam().problem(Recompute::none, 2), {.tp = tp}));
  }
}

// f32 keeps 24 bits; the losses of rounding add up over three to five linears.
TEST_P(AttentionForms, OnTheFastKernelsInF32StaysNearTheReference) {
  const LayerResult want = run_layer(GetParam().problem(Recompute::none, 1), {});
  const LayerProblem p = fast_f32(GetParam().problem(Recompute::selective, 1));
  for (const std::int32_t tp : {1, 2}) {
    SCOPED_TRACE(fmt::format("tp={}", tp));
    expect_near(p, run_layer(p, {.tp = tp}), want, 5e-6);
  }
}

// --- the graph's operators

graph::QkNorm to_graph(QkNorm n) {
  switch (n) {
    case QkNorm::none:
      return graph::QkNorm::none;
    case QkNorm::per_head:
      return graph::QkNorm::per_head;
    case QkNorm::whole:
      return graph::QkNorm::whole;
  }
  return graph::QkNorm::none;
}

graph::LayerOps operators(const Form& f, const nn::Dims& d, std::int32_t tp, Recompute mode) {
  graph::Sizes s{.element = 8, .batch = d.batch, .seq = d.seq, .hidden = d.hidden, .tp = tp};
  s.heads = kHeads / tp;
  s.selective = mode == Recompute::selective;
  s.num_microbatches = 1;
  graph::AttentionSizes& a = s.attention;
  if (f.attention) {
    const AttentionCase& c = *f.attention;
    s.kv_heads = c.kv_heads / tp;
    s.head_dim = kHeadDim;
    s.layer_norm = c.norm == NormKind::layer;
    a = {.qkv_bias = c.bias,
         .out_bias = c.bias,
         .sinks = c.sinks,
         .clip = c.clip > 0,
         .rope = c.rope.has_value(),
         .qk_norm = to_graph(c.qk_norm),
         .window = c.window};
    return graph::attention_ops(s, "");
  }
  a.qkv_bias = f.latent->bias;
  a.out_bias = f.latent->bias;
  a.q_lora_rank = f.latent->q_latent ? kQLatent : 0;
  a.kv_lora_rank = kKvLatent;
  a.nope_dim = kNope;
  a.rope_dim = kRope;
  a.v_dim = kValue;
  return graph::latent_attention_ops(s, "");
}

struct Totals {
  std::int64_t flops = 0, kept = 0, sent = 0;
  explicit Totals(const graph::OpList& ops) {
    for (const graph::Op& op : ops) {
      flops += op.flops.value;
      kept += op.bytes_kept.value;
      sent += op.bytes_sent.value;
    }
  }
};

TEST_P(AttentionForms, KeepsSendsAndComputesWhatTheGraphSays) {
  for (const Recompute mode : kModes) {
    const LayerProblem p = GetParam().problem(mode, 1);
    for (const std::int32_t tp : {1, 2, 4}) {
      if (tp > GetParam().tensor_parallel().back()) continue;
      SCOPED_TRACE(fmt::format("tp={} selective={}", tp, mode == Recompute::selective));
      const graph::LayerOps ops = operators(GetParam(), p.dims, tp, mode);
      const Totals f(ops.forward), i(ops.backward_input), w(ops.backward_weight);
      std::vector<std::int64_t> flops(tp);
      const LayerResult got = run_layer(p, {.tp = tp}, {.inspect = [&](const Place& place, LayerRig& rig) {
                                          flops[place.rank] = rig.kernels().flops().value;
                                        }});
      for (std::int32_t r = 0; r < tp; ++r) {
        EXPECT_EQ(got.bytes[r].forward, f.sent);
        EXPECT_EQ(got.bytes[r].input, i.sent);
        EXPECT_EQ(got.bytes[r].weight, w.sent);
        EXPECT_EQ(got.slot_bytes[r].value, f.kept + i.kept);
        EXPECT_EQ(flops[r], f.flops + i.flops + w.flops);
      }
    }
  }
}

TEST(LatentAttentionMemory, SelectiveRecomputationKeepsNoQueriesKeysAndValues) {
  const auto saved = [](Recompute mode) {
    const LayerProblem p = latent_case({.recompute = mode});
    RankGroups groups({}, 0, nullptr);
    RankParams params(p.params);
    tensor::Arena counting;
    p.make(groups.place, p.dims, params)->reserve_saved(counting);
    return counting.used().value;
  };
  const std::int64_t tokens = 12;
  const auto bytes = [](std::int64_t elements) { return (elements * 8 + 63) / 64 * 64; };
  EXPECT_EQ(saved(Recompute::none) - saved(Recompute::selective),
            bytes(tokens * kHeads * (2 * (kNope + kRope) + kValue)) + bytes(tokens * 8) +
                bytes(tokens * kQLatent) + bytes(tokens * kKvLatent));
}

// S = T H b: the latents travel, not the rows.
TEST(LatentAttentionBytes, EqualTheClosedForms) {
  for (const bool q_latent : {true, false}) {
    for (const Recompute mode : kModes) {
      const std::int64_t tokens = 12, hidden = 8, tp = 2;
      const std::int64_t latents = (q_latent ? kQLatent : hidden) + kKvLatent + kRope;
      const auto share = [&](std::int64_t columns) { return (tp - 1) * tokens * columns * 8 / tp; };
      const LayerProblem p = latent_case({.q_latent = q_latent, .recompute = mode});
      for (const PhaseBytes& got : run_layer(p, {.tp = tp}).bytes) {
        EXPECT_EQ(got.forward, share(latents) + share(hidden));
        EXPECT_EQ(got.input, share(hidden) + share(latents) * (mode == Recompute::selective ? 2 : 1));
        EXPECT_EQ(got.weight, 0);
      }
    }
  }
}

TEST(AttentionParams, MustFitTheOptions) {
  const LayerProblem p = attention_case({});
  RankParams params(p.params);
  const nn::Param norm = params.add(0), qkv = params.add(1), o = params.add(2);
  const Rotary rotary(DType::f64, p.dims.seq);
  const auto build = [&](const AttentionCase& c) {
    nn::Attention layer(attention_options(c, p.dims), {.norm_H = norm, .qkv = qkv, .o = o}, rotary.cos,
                        rotary.sin);
  };
  EXPECT_NO_THROW(build({}));
  EXPECT_THROW(build({.qk_norm = QkNorm::whole}), Error);
  EXPECT_THROW(build({.norm = NormKind::layer}), Error);
}

}  // namespace
}  // namespace tessera::test
