// The graph against closed forms: FLOPs against 6 per weight plus attention, bytes per axis against the
// formulas of each axis, conservation of rows and bytes over the world, buckets by hand. That it is what the
// engine does is tested with the engine.
#include "graph/graph.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <numeric>

#include "graph/buckets.h"
#include "graph/closed_forms.h"

namespace tessera::graph {
namespace {

spec::Job job(bool moe) {
  spec::Job j;
  j.model = {.family = moe ? spec::Family::mixtral : spec::Family::llama,
             .num_hidden_layers = 4,
             .hidden_size = 32,
             .intermediate_size = 48,
             .num_attention_heads = 8,
             .num_key_value_heads = 4,
             .head_dim = 4,
             .vocab_size = 96,
             .max_position_embeddings = 64};
  if (moe) j.model.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  j.train.steps = 1;
  j.train.sequence_length = 16;
  j.train.global_batch_size = 16;
  j.train.micro_batch_size = 2;
  return j;
}

layout::Layout layout_of(const spec::Job& j) {
  return layout::make_layout(j.model, j.parallel, layout::Placement::loop);
}
StepGraph graph_of(const spec::Job& j, std::int32_t rank = 0) {
  return build(j, layout_of(j), Rank(rank));
}
double world_flops(const spec::Job& j) {
  double sum = 0.0;
  for (std::int32_t r = 0; r < j.parallel.world_size(); ++r)
    sum += static_cast<double>(graph_of(j, r).flops().value);
  return sum;
}

TEST(Graph, FlopsOfTheWorldAreTheModelFlopsOnEveryLayout) {
  for (const bool moe : {false, true}) {
    spec::Job j = job(moe);
    const double tokens = static_cast<double>(j.train.global_batch_size * j.train.sequence_length);
    const double expected =
        tokens * spec::train_flops_per_token(j.model, j.train.sequence_length, spec::AttentionFlops::causal);
    for (const spec::ParallelSpec& p :
         {spec::ParallelSpec{}, spec::ParallelSpec{.tp = 4}, spec::ParallelSpec{.dp = 4},
          spec::ParallelSpec{.tp = 2, .dp = 2, .pp = 4}}) {
      j.parallel = p;
      EXPECT_EQ(world_flops(j), expected) << moe << p.tp << p.dp << p.pp;
    }
  }
  spec::Job j = job(true);
  const double expected = world_flops(j);
  for (const spec::ParallelSpec& p :
       {spec::ParallelSpec{.tp = 2, .dp = 2, .ep = 4}, spec::ParallelSpec{.tp = 2, .dp = 2, .ep = 2}}) {
    j.parallel = p;
    EXPECT_EQ(world_flops(j), expected);
  }
  // Slices of an expert: every etp rank computes all rows with its share of the width.
  j.parallel = {.tp = 2, .dp = 2, .ep = 2, .etp = 2};
  EXPECT_EQ(world_flops(j), expected);
}

TEST(Graph, RecomputationAddsFlopsThatAreNotModelFlops) {
  spec::Job j = job(true);
  const StepGraph plain = graph_of(j);
  j.train.recompute = spec::Recompute::selective;
  EXPECT_EQ(graph_of(j).flops(), plain.flops());
  j.train.recompute = spec::Recompute::full;
  const StepGraph full = graph_of(j);
  EXPECT_EQ(full.model_flops(), plain.flops());
  // One more forward of the layers, a third of their FLOPs; the head is not run again.
  const std::int64_t tokens = j.train.global_batch_size * j.train.sequence_length;
  const std::int64_t head = 3 * 2 * tokens * j.model.vocab_size * j.model.hidden_size;
  EXPECT_EQ((full.flops() - plain.flops()).value * 3, plain.flops().value - head);
}

TEST(Graph, TensorParallelBytesAreTheClosedForm) {
  for (const auto& [mode, form] : {std::pair{spec::Recompute::none, TpRecompute::none},
                                   std::pair{spec::Recompute::selective, TpRecompute::selective},
                                   std::pair{spec::Recompute::full, TpRecompute::full}}) {
    spec::Job j = job(false);
    j.parallel.tp = 4;
    j.train.recompute = mode;
    const TpShape shape{.tokens = 32, .hidden = 32, .element_bytes = 4, .tp = 4};
    const Bytes micro_batch = 8 * tp_bytes(TpBlock::attention_or_mlp, shape, form) +
                              tp_bytes(TpBlock::embedding, shape, form) +
                              tp_bytes(TpBlock::head, shape, form);
    EXPECT_EQ(graph_of(j).bytes_sent(Axis::tp), 8 * micro_batch);
  }
  // By hand: S = 32 * 32 * 4 = 4096 bytes, 3/4 S = 3072; 4 layers of 8, embedding 2, head 2: 36; and 3 * 3 *
  // 32 * 4.
  spec::Job j = job(false);
  j.parallel.tp = 4;
  EXPECT_EQ(graph_of(j).bytes_sent(Axis::tp), Bytes(8 * (36 * 3072 + 1152)));
}

TEST(Graph, PipelineBytesAreOneStreamAMessage) {
  spec::Job j = job(false);
  j.parallel = {.tp = 2, .pp = 4};
  const TpShape shape{.tokens = 32, .hidden = 32, .element_bytes = 4, .tp = 2};
  for (std::int32_t r = 0; r < 8; ++r) {
    const std::int32_t stage = r / 2;
    const std::int32_t neighbours = stage == 0 || stage == 3 ? 1 : 2;
    EXPECT_EQ(graph_of(j, r).bytes_sent(Axis::pp), 8 * pp_bytes(shape, neighbours));
    EXPECT_EQ(graph_of(j, r).calls(Axis::pp, Call::send), 8 * neighbours);
  }
  EXPECT_EQ(pp_bytes(shape, 1), Bytes(16 * 32 * 4));
}

TEST(Graph, ExpertParallelBytesAreTheClosedFormWhenBalanced) {
  spec::Job j = job(true);
  j.parallel = {.tp = 2, .dp = 2, .ep = 4};
  const TpShape shape{.tokens = 32, .hidden = 32, .element_bytes = 4, .tp = 2};
  const Bytes rows = ep_row_bytes(shape, 2, 4, TpRecompute::none);
  const Bytes counts(3 * 8 * 4);  // every rank sends its counts of 8 experts
  EXPECT_EQ(graph_of(j).bytes_sent(Axis::ep), 8 / 2 * 4 * (rows + counts));  // 4 micro-batches, 4 layers
  EXPECT_EQ(graph_of(j).bytes_sent(Axis::ep, Call::all_to_all_v), 4 * 4 * rows);
  EXPECT_EQ(rows, Bytes(4 * 3 * (16 * 2 / 4) * 32 * 4));
  j.train.recompute = spec::Recompute::full;
  const Bytes again = ep_row_bytes(shape, 2, 4, TpRecompute::full);
  EXPECT_EQ(graph_of(j).bytes_sent(Axis::ep), 4 * 4 * (again + 2 * counts));
}

TEST(Graph, DataParallelBytesAreTwiceTheShareOfAllBuckets) {
  for (const std::int32_t zero : {0, 1}) {
    spec::Job j = job(false);
    j.parallel.dp = 4;
    j.train.zero_stage = zero;
    j.train.bucket_bytes = std::int64_t{1} << 40;
    // One bucket, rounded up to 4 ranks x 64 bytes.
    const std::int64_t elements = spec::num_parameters(j.model);
    EXPECT_EQ(elements % 64, 32);
    const Bytes all((elements + 32) * 4);
    EXPECT_EQ(graph_of(j).bytes_sent(Axis::dp), ring_all_reduce_bytes(all, 4)) << zero;
    EXPECT_EQ(graph_of(j).calls(Axis::dp, Call::all_reduce), zero == 0 ? 1 : 0);
    EXPECT_EQ(graph_of(j).calls(Axis::dp, Call::all_gather), zero == 0 ? 0 : 1);
  }
}

TEST(ClosedForms, RingChunksCoverTheTensorForAnyRankCount) {
  for (const std::int32_t n : {1, 2, 3, 4, 6, 7, 8}) {
    for (const std::int64_t elements : {0, 1, 5, 56, 168, 1000}) {
      std::int64_t sum = 0;
      for (std::int32_t r = 0; r < n; ++r) sum += ring_all_reduce_elements(elements, r, n);
      EXPECT_EQ(sum, 2 * (n - 1) * elements) << n << " " << elements;
      if (elements % n == 0) {
        EXPECT_EQ(ring_all_reduce_elements(elements, 0, n) * 4,
                  ring_all_reduce_bytes(Bytes(elements * 4), n).value);
      }
    }
  }
}

TEST(BalancedRouting, GivesEveryExpertTheSameRowsAndRespectsCapacity) {
  spec::Job j = job(true);
  j.parallel = {.tp = 4, .dp = 2};
  const layout::Layout l = layout_of(j);
  std::vector<std::int64_t> replica(8, 0);
  for (std::int32_t r = 0; r < 4; ++r) {
    const auto rows = balanced_routing(j, l, Rank(r));
    EXPECT_EQ(std::accumulate(rows.begin(), rows.end(), std::int64_t{0}), 16);
    for (std::size_t e = 0; e < 8; ++e) replica[e] += rows[e];
  }
  EXPECT_EQ(replica, std::vector<std::int64_t>(8, 8));
  j.train.moe.capacity_factor = 0.5;  // 4 of 8 rows an expert stay, those of the first tokens
  EXPECT_EQ(balanced_routing(j, l, Rank(0)), std::vector<std::int64_t>(8, 2));
  EXPECT_EQ(balanced_routing(j, l, Rank(1)), std::vector<std::int64_t>(8, 2));
  EXPECT_EQ(balanced_routing(j, l, Rank(2)), std::vector<std::int64_t>(8, 0));
  j.model.moe->num_experts_per_tok =
      3;  // 24 choices on 8 experts from token 0: not divisible by the rank's share
  j.train.moe.capacity_factor = 0.0;
  j.train.sequence_length = 2;
  EXPECT_EQ(balanced_routing(j, l, Rank(0)), (std::vector<std::int64_t>{1, 1, 1, 0, 0, 0, 0, 0}));
  EXPECT_EQ(balanced_routing(j, l, Rank(2)), (std::vector<std::int64_t>{1, 0, 0, 0, 0, 0, 1, 1}));
}

// Skewed counts of every layer and rank.
RoutingCounts skewed(const spec::Job& j) {
  RoutingCounts counts;
  const std::int64_t m = j.train.global_batch_size / j.train.micro_batch_size / j.parallel.dp;
  counts.num_microbatches = static_cast<std::int32_t>(m);
  for (std::int32_t l = 0; l < j.model.num_hidden_layers; ++l) {
    counts.kept.emplace_back();
    for (std::int32_t r = 0; r < j.parallel.world_size(); ++r) {
      std::vector<std::int64_t> rows(8, 0);
      rows[(r + l) % 8] = 5 * m + r;
      rows[(3 * r + 1) % 8] += 7 + l;
      counts.kept.back().push_back(rows);
    }
  }
  return counts;
}

TEST(Graph, RowsSentBetweenExpertRanksAreRowsReceivedForAnyRouting) {
  for (const spec::ParallelSpec& p :
       {spec::ParallelSpec{.dp = 4, .ep = 4}, spec::ParallelSpec{.tp = 2, .dp = 4, .ep = 2, .etp = 2},
        spec::ParallelSpec{.tp = 2, .dp = 2, .ep = 2, .etp = 2}}) {
    spec::Job j = job(true);
    j.parallel = p;
    const RoutingCounts counts = skewed(j);
    std::int64_t there = 0;
    std::int64_t back = 0;
    std::int64_t computed = 0;
    std::int64_t kept = 0;
    for (const auto& layer : counts.kept)
      for (const auto& rank : layer) kept = std::accumulate(rank.begin(), rank.end(), kept);
    for (std::int32_t r = 0; r < p.world_size(); ++r) {
      const StepGraph g = build(j, layout_of(j), Rank(r), counts);
      for (const Op& op : g.stages[0].forward) {
        if (op.name.ends_with("rows there")) there += op.bytes_sent.value * op.count;
        if (op.name.ends_with("rows back")) back += op.bytes_sent.value * op.count;
        if (op.name.ends_with("experts down")) computed += op.flops.value * op.count;
      }
    }
    EXPECT_GT(there, 0);
    EXPECT_EQ(there, back);
    // Each kept row meets one whole expert, over all its slices.
    EXPECT_EQ(computed, kept * 2 * j.model.hidden_size * j.model.intermediate_size);
  }
}

TEST(Graph, RefusesCountsOfTheWrongShape) {
  spec::Job j = job(true);
  j.parallel = {.dp = 2, .ep = 2};
  const auto fails = [&](const RoutingCounts& counts, const char* what, const char* mend) {
    try {
      (void)build(j, layout_of(j), Rank(0), counts);
      ADD_FAILURE() << "accepted: " << what;
    } catch (const Error& e) {
      EXPECT_EQ(e.kind(), ErrorKind::config);
      EXPECT_THAT(e.what(), testing::HasSubstr(what));
      EXPECT_THAT(e.what(), testing::HasSubstr(mend));
    }
  };
  RoutingCounts counts = skewed(j);
  counts.kept.pop_back();
  fails(counts, "3 layers of counts for 4 layers", "every layer");
  counts = skewed(j);
  counts.num_microbatches = 3;
  fails(counts, "counts over 3 micro-batches, a step has 4", "use 1 or 4");
  counts = skewed(j);
  counts.kept[2][1].pop_back();
  fails(counts, "no counts of 8 experts for layer 2, rank 1", "every rank of the expert group");
}

TEST(Graph, FullRecomputationKeepsOnlyTheStreamsBetweenLayers) {
  spec::Job j = job(false);
  const StageGraph plain = graph_of(j).stages[0];
  j.train.recompute = spec::Recompute::full;
  const StageGraph full = graph_of(j).stages[0];
  const std::int64_t stream = 32 * 32 * 4;
  // Five streams; the head: rstd, losses and log-sum-exp (128 bytes each), their sum, normed rows, logits.
  EXPECT_EQ(full.saved_bytes().value, 5 * stream + (3 * 128 + 64 + stream + 32 * 96 * 4));
  EXPECT_GT(plain.saved_bytes(), full.saved_bytes());
  EXPECT_GT(full.deferred_bytes(Backward::fused), plain.deferred_bytes(Backward::fused));
  EXPECT_EQ(plain.discarded_bytes(), Bytes(0));
  // What a layer makes again is what it saved before, less the stream behind it.
  EXPECT_EQ(4 * full.discarded_bytes(), plain.saved_bytes() - full.saved_bytes());
}

TEST(Buckets, CloseAtTheLayerThatReachesTheSizeAndKeepFusedWeightsTogether) {
  spec::Job j = job(false);
  j.model.num_hidden_layers = 2;
  j.model.tie_word_embeddings = true;
  const auto params = layout::parameters(j.model, layout_of(j), Rank(0));
  BucketOptions options{.element_bytes = 4, .bucket_bytes = 1, .tied = true, .dp = 3, .tp_dp = 3, .edp = 1};
  const auto buckets = gradient_buckets(params, options);
  ASSERT_EQ(buckets.size(), 5);  // final norm, head's use, two layers, embedding
  const auto padded = [](std::int64_t n) { return (n + 47) / 48 * 48; };  // 3 ranks x 16 elements
  EXPECT_EQ(buckets[0].num_elements, padded(32));
  EXPECT_TRUE(buckets[1].tied_copy);
  EXPECT_EQ(buckets[1].num_elements, padded(96 * 32));
  EXPECT_EQ(buckets[2].num_elements, padded(2 * 32 + 3 * 32 * 32 + 3 * 32 * 48));
  EXPECT_TRUE(buckets[4].embedding);
  options.bucket_bytes = std::int64_t{1} << 40;
  EXPECT_EQ(gradient_buckets(params, options).size(), 4);  // norm | head | both layers | embedding
  options.tied = false;
  j.model.tie_word_embeddings = false;
  const auto untied = layout::parameters(j.model, layout_of(j), Rank(0));
  EXPECT_EQ(gradient_buckets(untied, options).size(), 1);
}

TEST(Graph, DescribesAStep) {
  spec::Job j = job(false);
  j.parallel = {.tp = 2, .dp = 2};
  const std::string text = describe(graph_of(j));
  EXPECT_THAT(text, testing::StartsWith("rank 0, 4 micro-batches a step\n"));
  EXPECT_THAT(text, testing::HasSubstr("stage 0 F"));
  EXPECT_THAT(text, testing::HasSubstr("once a step"));
  EXPECT_THAT(text, testing::HasSubstr("tp_dp"));
  EXPECT_THAT(text, testing::Not(testing::HasSubstr("edp")));
}

}  // namespace
}  // namespace tessera::graph
