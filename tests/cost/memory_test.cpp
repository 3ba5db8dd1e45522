// Memory of a rank: static parts to the byte for each ZeRO stage, micro-batches in flight against the checker
// of schedules, the cached composition against the plain one, published peaks.
#include "cost/memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cost/step.h"
#include "graph/block_size.h"
#include "schedule/check.h"
#include "spec/presets.h"

namespace tessera::cost {
namespace {

constexpr double kGib = 1024.0 * 1024.0 * 1024.0;

Setup setup_of(spec::ModelSpec model, std::int64_t sequence_length, std::int64_t global_batch,
               std::string_view practice) {
  cost::Setup s;
  s.model = std::move(model);
  s.cluster = spec::cluster_preset("dgx-b200");
  s.calibration = calibration("b200-sxm");
  s.practice = graph::practice(practice);
  s.work = {.global_batch_size = global_batch, .sequence_length = sequence_length};
  return s;
}

// Of `elements` dense and `experts` expert parameters, and nothing else.
MemoryCost bare(const Setup& setup, const Candidate& c, std::int64_t elements, std::int64_t experts) {
  RankHolding h;
  h.params = {.dense = elements, .replicated = 0, .expert = experts};
  return rank_memory(setup, c, h, 0);
}

TEST(RankMemory, HoldsWeightsGradientsAndOptimizerToTheByte) {
  const cost::Setup s = setup_of(spec::model_preset("llama3-8b"), 8192, 64, "megatron-core-plain");
  constexpr std::int64_t kDense = 1'280'000, kExpert = 640'000;
  const std::array<std::array<double, 3>, 4> want{{
      {2.0 * (kDense + kExpert), 4.0 * (kDense + kExpert), 12.0 * (kDense + kExpert)},
      {2.0 * (kDense + kExpert), 4.0 * (kDense + kExpert), 12.0 * (kDense / 16 + kExpert / 4)},
      {2.0 * (kDense + kExpert), 4.0 * (kDense / 16 + kExpert / 4), 12.0 * (kDense / 16 + kExpert / 4)},
      {0.0, 4.0 * (kDense / 16 + kExpert / 4), 12.0 * (kDense / 16 + kExpert / 4)},
  }};
  for (std::int32_t zero = 0; zero < 4; ++zero) {
    // dp x cp = 16, edp = tp x cp x dp / (ep x etp) = 32 / 8 = 4.
    const Candidate c{.tp = 2, .cp = 2, .dp = 8, .ep = 8, .zero_stage = zero};
    const MemoryCost cost = bare(s, c, kDense, kExpert);
    const auto& row = want[static_cast<std::size_t>(zero)];
    EXPECT_EQ(cost[MemoryPart::weights], row[0]) << zero;
    EXPECT_EQ(cost[MemoryPart::gradients], row[1]) << zero;
    EXPECT_EQ(cost[MemoryPart::optimizer], row[2]) << zero;
    EXPECT_EQ(cost.allocated(), row[0] + row[1] + row[2]) << zero;
  }
}

TEST(RankMemory, ShardsOverTheZeroGroup) {
  const cost::Setup s = setup_of(spec::model_preset("llama3-8b"), 8192, 64, "megatron-core-plain");
  const Candidate all{.dp = 64};
  const Candidate node{.dp = 64, .zero_group = 8};
  EXPECT_EQ(bare(s, all, 6400, 0)[MemoryPart::optimizer], 12.0 * 100);
  EXPECT_EQ(bare(s, node, 6400, 0)[MemoryPart::optimizer], 12.0 * 800);
}

TEST(RankMemory, HoldsNoSecondCopyOfAnF32Model) {
  cost::Setup s = setup_of(spec::model_preset("llama3-8b"), 8192, 64, "tessera");
  s.work.precision = spec::Precision::f32;
  const MemoryCost cost = bare(s, Candidate{.dp = 4, .zero_stage = 0}, 1000, 0);
  EXPECT_EQ(cost[MemoryPart::weights], 4000.0);
  EXPECT_EQ(cost[MemoryPart::gradients], 4000.0);
  EXPECT_EQ(cost[MemoryPart::optimizer], 8000.0);  // two moments
}

TEST(RankMemory, GathersTwoUnitsOfAShardedModelAtATime) {
  const cost::Setup s = setup_of(spec::model_preset("llama3-8b"), 8192, 64, "fsdp2");
  RankHolding h;
  h.largest_layer_params = 1000;
  const MemoryCost cost = rank_memory(s, Candidate{.dp = 64, .zero_stage = 3}, h, 0);
  EXPECT_EQ(cost[MemoryPart::buffers], 2.0 * 2000 + 2000);  // two of weights, one of gradients
}

TEST(InFlight, IsWhatTheScheduleCheckerCounts) {
  using schedule::Kind;
  struct Form {
    Kind kind;
    std::int32_t vpp;
  };
  for (const Form f :
       {Form{Kind::naive, 1}, Form{Kind::gpipe, 1}, Form{Kind::one_f_one_b, 1}, Form{Kind::interleaved, 2},
        Form{Kind::interleaved, 3}, Form{Kind::interleaved, 5}, Form{Kind::zb_h1, 1}, Form{Kind::zb_v, 2}}) {
    for (const std::int32_t pp : {1, 2, 3, 4, 6, 8}) {
      for (const std::int32_t m : {1, 2, 3, 4, 5, 7, 8, 12, 16, 17}) {
        const schedule::CheckReport report = schedule::checked(
            schedule::generate({.kind = f.kind, .pp = pp, .vpp = f.vpp, .num_microbatches = m}));
        for (std::int32_t r = 0; r < pp; ++r) {
          const double live = report.peak_live_rank[static_cast<std::size_t>(r)];
          const double formula = in_flight(f.kind, pp, f.vpp, m, r) * f.vpp;
          if (f.kind == Kind::zb_v) {  // its order may keep less on some ranks, never on all
            EXPECT_GE(formula, live);
            EXPECT_EQ(formula, std::ranges::max(report.peak_live_rank)) << "pp " << pp << " m " << m;
          } else {
            EXPECT_DOUBLE_EQ(formula, live)
                << schedule::name(f.kind) << " pp " << pp << " m " << m << " rank " << r;
          }
        }
      }
    }
  }
}

// The StepModel adds up cached blocks; holding() adds them up plainly.
TEST(PeakMemory, IsTheSameFromTheCacheOfTheStepModel) {
  struct Case {
    std::string model, practice;
    Candidate c;
  };
  const std::uint32_t norm_and_act = graph::module_bits({"layernorm", "moe_act"});
  const std::vector<Case> cases{
      {"llama3-8b", "megatron-core", {.tp = 2, .dp = 4}},
      {"llama3-8b", "nanotron", {.tp = 4, .dp = 2, .pp = 4, .sequence_parallel = true}},
      {"llama3-8b", "fsdp2-compile", {.dp = 8, .zero_stage = 3, .recompute = spec::Recompute::full}},
      {"llama3-70b",
       "megatron-core",
       {.tp = 4, .cp = 2, .dp = 2, .pp = 4, .vpp = 5, .schedule = schedule::Kind::interleaved}},
      {"deepseek-v3",
       "megatron-bridge",
       {.dp = 64,
        .pp = 4,
        .ep = 64,
        .recompute = spec::Recompute::selective,
        .recompute_modules = norm_and_act}},
      {"mixtral-8x7b", "megatron-core", {.tp = 2, .dp = 8, .pp = 2, .ep = 8}},
      {"llama3-8b", "megatron-core", {.dp = 8, .pp = 4, .schedule = schedule::Kind::gpipe}},
      {"llama3-8b", "megatron-core", {.dp = 8, .pp = 2, .vpp = 2, .schedule = schedule::Kind::zb_v}},
  };
  for (const Case& x : cases) {
    cost::Setup s = setup_of(spec::model_preset(x.model), 4096, 512, x.practice);
    s.routing = {.kind = LoadKind::power_law, .alpha = 1.2, .histogram = {}};
    s.cluster = spec::with_devices(s.cluster, x.c.world_size());
    StepModel model(s);
    const MemoryCost cached = model.memory(x.c);
    const MemoryCost plain = peak_memory(s, x.c);
    for (std::size_t p = 0; p < cached.parts.size(); ++p)
      EXPECT_NEAR(cached.parts[p], plain.parts[p], 1e-9 * plain.allocated())
          << x.model << " " << to_text(x.c) << " " << name(static_cast<MemoryPart>(p));
  }
}

TEST(PeakMemory, GrowsWithTheRowsOfTheMostLoadedExpertRank) {
  cost::Setup s = setup_of(spec::model_preset("mixtral-8x7b"), 4096, 64, "megatron-core");
  const Candidate c{.dp = 8, .ep = 8};
  const double balanced = peak_memory(s, c)[MemoryPart::activations];
  s.routing = {.kind = LoadKind::power_law, .alpha = 1.2, .histogram = {}};
  EXPECT_GT(peak_memory(s, c)[MemoryPart::activations], 1.2 * balanced);
}

TEST(PeakMemory, TakesWhatRecomputationMakesAgainAsTransient) {
  const cost::Setup s = setup_of(spec::model_preset("llama3-70b"), 8192, 16, "megatron-core");
  const Candidate none{.tp = 8, .dp = 1};
  Candidate full = none;
  full.recompute = spec::Recompute::full;
  const MemoryCost a = peak_memory(s, none), b = peak_memory(s, full);
  const double layer = a[MemoryPart::activations] / 80;
  EXPECT_LT(b[MemoryPart::activations], 0.1 * a[MemoryPart::activations]);
  EXPECT_GT(b[MemoryPart::transient], 0.8 * layer);
}

// Published peaks of torch's allocator (SimuMax, 8 B200, Megatron-Core with TransformerEngine, fused loss:
// DeepSeek V2 and V3 cut to four layers, one of them dense): GiB on each pipeline rank.
TEST(PeakMemory, IsWithinTwoPercentOfPublishedPeaks) {
  struct Published {
    std::string model;
    std::int32_t pp;
    std::vector<double> gib;
  };
  for (const Published& x :
       {Published{"deepseek-v2", 1, {45.63}}, Published{"deepseek-v2", 2, {31.6, 44.7}},
        Published{"deepseek-v3", 1, {104.3}}, Published{"deepseek-v3", 2, {71.2, 114.0}}}) {
    spec::ModelSpec m = spec::model_preset(x.model);
    m.num_hidden_layers = 4;
    m.num_nextn_predict_layers = 0;
    m.moe->first_k_dense_replace = 1;
    const std::int32_t dp = 8 / x.pp;
    const cost::Setup s = setup_of(m, 4096, 4 * dp, "megatron-core-plain");
    const Candidate c{.dp = dp, .pp = x.pp, .ep = dp, .sequence_parallel = false};
    for (std::int32_t r = 0; r < x.pp; ++r) {
      const double got = rank_memory(s, c, holding(s, c, r), r).allocated() / kGib;
      const double want = x.gib[static_cast<std::size_t>(r)];
      EXPECT_TRUE(std::abs(got / want - 1.0) <= 0.02)
          << x.model << " rank " << r << ": " << got << ", " << want;
    }
  }
}

std::vector<std::int32_t> layers_of(const StageSplit& split) {
  std::vector<std::int32_t> out;
  for (std::int32_t s = 0; s < split.num_stages(); ++s) out.push_back(split.layers(s));
  return out;
}

TEST(StageSplit, LeavesALayerOffTheFirstAndTheLastStage) {
  spec::ModelSpec m = spec::model_preset("llama3-8b");
  m.num_hidden_layers = 22;
  EXPECT_EQ(layers_of(StageSplit(m, 8)), (std::vector<std::int32_t>{2, 3, 3, 3, 3, 3, 3, 2}));
}

// 16 layers of 4 h^2 + 3 h f and a head of V h, four of them, in stages of a share each.
TEST(StageSplit, EndsAStageWithTheLayerThatReachesItsShareOfTheFlops) {
  spec::ModelSpec m = spec::model_preset("llama3-8b");
  m.num_hidden_layers = 16;
  m.hidden_size = 2048;
  m.intermediate_size = 8192;
  m.num_attention_heads = m.num_key_value_heads = 32;
  m.head_dim = 64;
  m.vocab_size = 131072;
  EXPECT_EQ(layers_of(StageSplit(m, 2, true)), (std::vector<std::int32_t>{10, 6}));
  EXPECT_EQ(layers_of(StageSplit(m, 4, true)), (std::vector<std::int32_t>{5, 5, 5, 1}));
  EXPECT_EQ(layers_of(StageSplit(m, 8, true)), (std::vector<std::int32_t>{3, 2, 3, 2, 3, 2, 1, 0}));
}

TEST(MemoryCost, ReservesMoreThanItAllocates) {
  MemoryCost cost;
  cost.parts[0] = 94.0;
  EXPECT_DOUBLE_EQ(cost.reserved(), 100.0);
}

}  // namespace
}  // namespace tessera::cost
