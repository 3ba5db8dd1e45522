// Attention and latent attention with the sequences cut over 2 and 4 context-parallel ranks, alone and with
// tensor parallelism, against one rank; gradients of the cut layer against central differences; FLOPs, memory
// and bytes sent against the operators of the engine's graph; the cut itself.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "graph/layers.h"
#include "nn/attention_problems.h"
#include "support/gradient_check.h"

namespace tessera::test {
namespace {

using kernels::RopePairs;
using nn::QkNorm;
using nn::Recompute;

constexpr double kBound = 1e-11;  // of the largest value: sums of a few dozen terms in another order
constexpr std::int64_t kSeq = 16;

struct Form {
  std::string name;
  std::optional<AttentionCase> attention;
  std::optional<LatentCase> latent;
  [[nodiscard]] LayerProblem problem(Recompute recompute) const {
    if (attention) {
      AttentionCase c = *attention;
      c.recompute = recompute;
      c.microbatches = 2;
      c.seq = kSeq;
      return attention_case(c);
    }
    LatentCase c = *latent;
    c.recompute = recompute;
    c.microbatches = 2;
    c.seq = kSeq;
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
      {"one_key_head_norms_by_head",
       AttentionCase{.kv_heads = 1, .bias = true, .qk_norm = QkNorm::per_head},
       {}},
      {"norms_whole_clipped", AttentionCase{.kv_heads = 2, .qk_norm = QkNorm::whole, .clip = 0.7}, {}},
      {"sinks", AttentionCase{.kv_heads = 2, .bias = true, .sinks = true}, {}},
      // Windows of one key, inside of a chunk, over some chunks, over all.
      {"window_1", AttentionCase{.window = 1, .sinks = true}, {}},
      {"window_3", AttentionCase{.kv_heads = 2, .window = 3, .sinks = true}, {}},
      {"window_7", AttentionCase{.window = 7}, {}},
      {"window_100", AttentionCase{.window = 100}, {}},
      {"interleaved_scaled", AttentionCase{.rope = RopePairs::interleaved, .scale = 0.4}, {}},
      {"without_rope", AttentionCase{.norm = nn::NormKind::layer, .bias = true, .rope = std::nullopt}, {}},
      {"latent", {}, LatentCase{}},
      {"latent_without_q_latent", {}, LatentCase{.q_latent = false, .bias = true, .scale = 0.2}},
  };
  return list;
}

class ContextParallelAttention : public ::testing::TestWithParam<Form> {};
INSTANTIATE_TEST_SUITE_P(All, ContextParallelAttention, ::testing::ValuesIn(forms()),
                         [](const auto& info) { return info.param.name; });

std::vector<RankLayout> layouts(const Form& f) {
  std::vector<RankLayout> out = {{.cp = 2}, {.cp = 4}, {.dp = 2, .cp = 2}};
  if (!f.attention || f.attention->kv_heads > 1) out.push_back({.tp = 2, .cp = 2});
  return out;
}

TEST_P(ContextParallelAttention, OnTwoAndFourRanksEqualsOneRank) {
  for (const Recompute mode : {Recompute::none, Recompute::selective}) {
    const LayerProblem p = GetParam().problem(mode);
    const LayerResult one = run_layer(p, {});
    for (const RankLayout& layout : layouts(GetParam())) {
      SCOPED_TRACE(fmt::format("tp={} cp={} dp={}", layout.tp, layout.cp, layout.dp));
      expect_near(p, run_layer(p, layout), one, kBound);
    }
  }
}

TEST_P(ContextParallelAttention, SplitFusedRecomputedAndSelectivePassesGiveTheSameBits) {
  const LayerProblem p = GetParam().problem(Recompute::none);
  for (const std::int32_t cp : {2, 4}) {
    SCOPED_TRACE(fmt::format("cp={}", cp));
    const LayerResult split = run_layer(p, {.cp = cp}, {.order = PassOrder::split});
    expect_same_bits(run_layer(p, {.cp = cp}, {.order = PassOrder::fused}), split);
    expect_same_bits(run_layer(p, {.cp = cp}, {.order = PassOrder::split_with_recompute}), split);
    expect_same_bits(run_layer(GetParam().problem(Recompute::selective), {.cp = cp}), split);
  }
}

TEST_P(ContextParallelAttention, OnTheFastKernelsInF32StaysNearTheReference) {
  const LayerResult want = run_layer(GetParam().problem(Recompute::none), {});
  const LayerProblem p = fast_f32(GetParam().problem(Recompute::none));
  for (const std::int32_t cp : {2, 4}) {
    const LayerResult got = run_layer(p, {.cp = cp});
    EXPECT_TRUE(near("y", got.y, want.y, 5e-6));
    EXPECT_TRUE(near("dx", got.dx, want.dx, 5e-6));
    for (std::size_t i = 0; i < p.params.size(); ++i) {
      EXPECT_TRUE(near("d " + p.params[i].name, got.gradients[i], want.gradients[i], 5e-6));
    }
  }
}

// The loss is that of all ranks, and so are the gradients: what one rank forgets to send shows.
TEST_P(ContextParallelAttention, GradientsOfTwoRanksMatchCentralDifferences) {
  LayerProblem p = GetParam().problem(Recompute::none);
  p.x.resize(1);
  p.upstream.resize(1);
  const LayerResult result = run_layer(p, {.cp = 2});
  const auto loss = [&] { return run_layer(p, {.cp = 2}).loss; };
  const GradientCheck some{.max_coordinates = 24};
  const auto check = [&](const std::string& name, Tensor at, const Values& gradient) {
    Owned want(DType::f64, at.shape());
    set_values(want, gradient);
    EXPECT_TRUE(gradient_matches(name, at, want, loss, some));
  };
  check("x", p.x[0], result.dx);
  for (std::size_t i = 0; i < p.params.size(); ++i) {
    check(p.params[i].name, p.params[i].value, result.gradients[i]);
  }
}

graph::LayerOps operators(const Form& f, const nn::Dims& whole, const RankLayout& layout,
                          std::int32_t cp_rank) {
  graph::Sizes s{.element = 8,
                 .batch = whole.batch,
                 .seq = whole.seq / layout.cp,
                 .hidden = whole.hidden,
                 .tp = layout.tp,
                 .cp = layout.cp,
                 .cp_rank = cp_rank};
  s.heads = kHeads / layout.tp;
  s.num_microbatches = 1;
  graph::AttentionSizes& a = s.attention;
  if (f.attention) {
    const AttentionCase& c = *f.attention;
    s.kv_heads = c.kv_heads / layout.tp;
    s.head_dim = kHeadDim;
    a = {.sinks = c.sinks, .clip = c.clip > 0, .rope = c.rope.has_value(), .window = c.window};
    if (c.qk_norm == QkNorm::per_head) a.qk_norm = graph::QkNorm::per_head;
    if (c.qk_norm == QkNorm::whole) a.qk_norm = graph::QkNorm::whole;
    s.layer_norm = c.norm == nn::NormKind::layer;
    return graph::attention_ops(s, "");
  }
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

TEST_P(ContextParallelAttention, KeepsSendsAndComputesWhatTheGraphSays) {
  LayerProblem p = GetParam().problem(Recompute::none);
  p.x.resize(1);
  p.upstream.resize(1);
  for (RankLayout layout : layouts(GetParam())) {
    if (layout.dp > 1) continue;
    SCOPED_TRACE(fmt::format("tp={} cp={}", layout.tp, layout.cp));
    std::vector<std::int64_t> flops(static_cast<std::size_t>(layout.world()));
    const LayerResult got = run_layer(p, layout, {.inspect = [&](const Place& place, LayerRig& rig) {
                                        flops[static_cast<std::size_t>(place.rank)] =
                                            rig.kernels().flops().value;
                                      }});
    for (std::int32_t rank = 0; rank < layout.world(); ++rank) {
      const auto r = static_cast<std::size_t>(rank);
      const graph::LayerOps ops = operators(GetParam(), p.dims, layout, rank / layout.tp % layout.cp);
      const Totals f(ops.forward), i(ops.backward_input), w(ops.backward_weight);
      EXPECT_EQ(got.bytes[r].forward, f.sent);
      EXPECT_EQ(got.bytes[r].input, i.sent);
      EXPECT_EQ(got.bytes[r].weight, w.sent);
      EXPECT_EQ(got.slot_bytes[r].value, f.kept + i.kept);
      EXPECT_EQ(flops[r], f.flops + i.flops + w.flops);
    }
  }
}

// S = T kv_heads (head_dim + v_dim) b of this rank's tokens.
TEST(ContextParallelBytes, EqualTheClosedForms) {
  for (const std::int32_t cp : {2, 4}) {
    const std::int64_t tokens = 2 * kSeq / cp;
    const std::int64_t s = tokens * 2 * (kHeadDim + kHeadDim) * 8;
    for (const PhaseBytes& got : run_layer(attention_case({.kv_heads = 2, .seq = kSeq}), {.cp = cp}).bytes) {
      EXPECT_EQ(got.forward, (cp - 1) * s);
      EXPECT_EQ(got.input, 2 * (cp - 1) * s);
      EXPECT_EQ(got.weight, 0);
    }
  }
}

TEST(ContextParallelWork, IsEqualOnAllRanksWithFullAttention) {
  for (const std::int32_t cp : {2, 4}) {
    std::vector<std::int64_t> flops(static_cast<std::size_t>(cp));
    (void)run_layer(attention_case({.seq = kSeq}), {.cp = cp},
                    {.inspect = [&](const Place& place, LayerRig& rig) {
                      flops[static_cast<std::size_t>(place.rank)] = rig.kernels().flops().value;
                    }});
    for (const std::int64_t f : flops) EXPECT_EQ(f, flops[0]);
  }
}

TEST(ContextParallelEmbedding, AddsThePositionsThatTheRowsHave) {
  const LayerProblem p = embedding_problem(2, true, kSeq);
  const LayerResult one = run_layer(p, {});
  for (const RankLayout& layout : {RankLayout{.cp = 2}, RankLayout{.cp = 4}, RankLayout{.tp = 4, .cp = 2}}) {
    const LayerResult got = run_layer(p, layout);
    EXPECT_TRUE(near("y", got.y, one.y, kBound));
    EXPECT_TRUE(near("d table", got.gradients[0], one.gradients[0], kBound));
    EXPECT_TRUE(near("d positions", got.gradients[1], one.gradients[1], kBound));
  }
}

TEST(SequenceCut, GivesEveryPositionToOneRankInRunsOfAChunk) {
  for (const std::int32_t cp : {1, 2, 3, 4}) {
    const std::int64_t length = cp == 1 ? 7 : 6 * cp;
    std::set<std::int64_t> seen;
    for (std::int32_t r = 0; r < cp; ++r) {
      const SequenceCut cut{.length = length, .cp = cp, .rank = r};
      for (std::int64_t row = 0; row < cut.rows(); ++row) {
        EXPECT_TRUE(seen.insert(cut.position(row)).second);
        if (cut.run(row) > 1) {
          EXPECT_EQ(cut.position(row + 1), cut.position(row) + 1);
        }
        EXPECT_EQ(cut.token(cut.rows() + row), length + cut.position(row));
      }
    }
    EXPECT_EQ(std::ssize(seen), length);
    EXPECT_EQ(*seen.rbegin(), length - 1);
  }
}

}  // namespace
}  // namespace tessera::test
