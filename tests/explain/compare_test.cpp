// Comparisons: the dense partner is equal in what it says, serving is bytes by hand, a side is what the plan
// costs, and the verdict follows from the numbers.
#include "explain/compare.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "base/error.h"
#include "explain/dense_partner.h"
#include "explain/pricing.h"
#include "explain/routing_draw.h"
#include "explain/sizing.h"
#include "spec/presets.h"

namespace tessera::testing {
namespace {

using explain::Against;
using explain::CompareOptions;
using explain::Equal;
using explain::MixtureVerdict;
using explain::Side;
using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;

TEST(DensePartner, HasTheActiveParametersAndFlopsOfTheMixture) {
  for (const char* name : {"mixtral-8x7b", "deepseek-v3", "qwen3-30b-a3b", "qwen1.5-moe-a2.7b",
                           "gpt-oss-120b", "llama-4-scout", "olmoe-1b-7b"}) {
    SCOPED_TRACE(name);
    const spec::ModelSpec mixture = spec::model_preset(name);
    const spec::ModelSpec dense = explain::dense_partner(mixture, Equal::active_compute);
    EXPECT_FALSE(dense.moe);
    const auto active = static_cast<double>(spec::num_active_parameters(mixture));
    EXPECT_NEAR(static_cast<double>(spec::num_parameters(dense)), active, 0.015 * active);
    const double flops = spec::train_flops_per_token(mixture, 4096, spec::AttentionFlops::causal);
    EXPECT_NEAR(spec::train_flops_per_token(dense, 4096, spec::AttentionFlops::causal), flops, 0.015 * flops);
    EXPECT_EQ(dense.num_hidden_layers, mixture.num_hidden_layers);
    EXPECT_EQ(dense.hidden_size, mixture.hidden_size);
  }
}

TEST(DensePartner, HasAllParametersOfTheMixtureAndDegreesThatDivide) {
  for (const char* name : {"mixtral-8x7b", "mixtral-8x22b", "deepseek-v3", "qwen3-30b-a3b", "olmoe-1b-7b"}) {
    SCOPED_TRACE(name);
    const spec::ModelSpec mixture = spec::model_preset(name);
    const spec::ModelSpec dense = explain::dense_partner(mixture, Equal::total_memory);
    const auto total = static_cast<double>(spec::num_parameters(mixture));
    EXPECT_NEAR(static_cast<double>(spec::num_parameters(dense)), total, 0.005 * total);
    EXPECT_EQ(dense.num_hidden_layers % 4, 0);
    EXPECT_EQ(dense.num_attention_heads % 8, 0);
    EXPECT_EQ(dense.hidden_size % 256, 0);
    EXPECT_EQ(dense.intermediate_size % 256, 0);
    EXPECT_EQ(dense.num_attention_heads % dense.num_key_value_heads, 0);
    EXPECT_GT(dense.num_hidden_layers, mixture.num_hidden_layers);
  }
}

TEST(DensePartner, IsRefusedToADenseModel) {
  EXPECT_THROW((void)explain::dense_partner(spec::model_preset("llama-3-8b"), Equal::active_compute), Error);
}

TEST(Serving, BytesAreThoseOfTheModel) {
  const cost::Calibration h100 = cost::calibration("h100-sxm");
  const spec::ModelSpec m = spec::model_preset("llama-3-8b");
  const explain::Serving s = explain::serving(m, h100, 80e9, {.batch = 16, .context = 4096});
  EXPECT_EQ(s.cache_of_token, 32 * 2 * 8 * 128 * 2.0);  // layers, k and v, heads, width, bf16
  EXPECT_EQ(s.cache_bytes, s.cache_of_token * 4096 * 16);
  EXPECT_EQ(s.devices, 1);
  const double table = 2.0 * 128'256 * 4096;  // not read
  EXPECT_NEAR(s.read_alone, s.weight_bytes - table + s.cache_of_token * 4096, 1.0);
  EXPECT_NEAR(s.seconds_batch, s.read_batch / h100.memory_bandwidth, 1e-12);
}

TEST(Serving, AMixtureReadsItsActiveWeightsAloneAndAllOfThemInALargeBatch) {
  const cost::Calibration h100 = cost::calibration("h100-sxm");
  const spec::ModelSpec m = spec::model_preset("mixtral-8x7b");
  const explain::Serving one = explain::serving(m, h100, 80e9, {.batch = 1, .context = 1});
  EXPECT_NEAR(one.read_batch, one.read_alone, 1.0);
  EXPECT_NEAR(one.experts_touched, 2.0, 1e-9);
  const explain::Serving many = explain::serving(m, h100, 80e9, {.batch = 512, .context = 1});
  EXPECT_NEAR(many.experts_touched, 8.0, 1e-6);
  const double table = 2.0 * 32'000 * 4096;
  EXPECT_NEAR(many.read_batch - many.cache_bytes, many.weight_bytes - table, 1e-4 * many.weight_bytes);
  // DeepSeek's latent: 512 + 64 numbers a layer and token.
  const explain::Serving mla =
      explain::serving(spec::model_preset("deepseek-v3"), h100, 80e9, {.batch = 1, .context = 1});
  EXPECT_EQ(mla.cache_of_token, 61 * (512 + 64) * 2.0);
}

TEST(RoutingDraw, TheBusiestExpertGetsWhatWasAsked) {
  const spec::ModelSpec m = spec::model_preset("mixtral-8x7b");
  const cost::RoutingLoad load = explain::draw_routing(m, {.excess = 0.7});
  EXPECT_EQ(load.num_layers, 16);
  for (std::int32_t l = 0; l < load.num_layers; ++l) {
    const std::vector<double> rows = cost::expert_loads(load, 8, 2, l);
    double sum = 0.0;
    for (const double r : rows) sum += r;
    EXPECT_NEAR(sum, 8.0, 1e-9);
    EXPECT_NEAR(*std::ranges::max_element(rows), 1.7, 1e-9);
  }
  EXPECT_EQ(load, explain::draw_routing(m, {.excess = 0.7}));
  EXPECT_NE(load, explain::draw_routing(m, {.excess = 0.7, .index = 1}));
}

cost::Setup setup_of(const char* model, const char* cluster, std::int32_t devices) {
  cost::Setup s;
  s.model = spec::find_model(model);
  s.cluster = spec::with_devices(spec::find_cluster(cluster), devices);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-bridge-2026");
  s.work = {.global_batch_size = 256, .sequence_length = 4096};
  return s;
}

struct Pair {
  Side mixture, dense;
};
Pair pair_of(const cost::Setup& setup, const CompareOptions& o) {
  cost::Setup dense = setup;
  dense.model = explain::dense_partner(setup.model, Equal::active_compute);
  return {explain::planned_side("mixture", setup, {}, o), explain::planned_side("dense", dense, {}, o)};
}

TEST(Compare, ASideIsThePriceOfItsLayout) {
  const CompareOptions o{.tokens = 1e12, .price_per_device_hour = 2.0};
  const Side s = explain::planned_side("a", setup_of("mixtral-8x7b", "dgx-h100", 64), {}, o);
  ASSERT_TRUE(s.found);
  EXPECT_EQ(explain::price(s.setup, s.candidate).seconds(), s.cost.seconds());
  EXPECT_EQ(s.even_seconds, s.cost.seconds());
  EXPECT_GT(s.uneven_seconds, s.even_seconds);
  EXPECT_GT(s.power_seconds, s.uneven_seconds);
  EXPECT_LE(s.network_seconds, s.cost.seconds());
  const double days = std::ceil(1e12 / (256 * 4096.0)) * s.cost.seconds() / 86'400;
  EXPECT_NEAR(s.days, days, 1e-9 * days);
  EXPECT_NEAR(s.price, days * 24 * 64 * 2.0, 1e-6 * s.price);
}

TEST(Compare, TheVerdictIsTheRatioOfCostsAgainstTheGain) {
  CompareOptions o{.gain = 3.0};
  const Pair p = pair_of(setup_of("qwen3-30b-a3b", "dgx-h100", 64), o);
  const MixtureVerdict v = explain::mixture_verdict(p.mixture, p.dense, o);
  EXPECT_EQ(v.mixture, 0);
  EXPECT_NEAR(v.cost_ratio, p.mixture.token_cost() / p.dense.token_cost(), 1e-12);
  EXPECT_GT(v.cost_ratio, 1.0);
  EXPECT_TRUE(v.pays);
  o.gain = v.cost_ratio * 0.99;
  const MixtureVerdict other = explain::mixture_verdict(p.mixture, p.dense, o);
  EXPECT_FALSE(other.pays);
  EXPECT_THAT(other.against, Contains(Against::cost));
  // The other way round it is the same.
  const MixtureVerdict swapped = explain::mixture_verdict(p.dense, p.mixture, o);
  EXPECT_EQ(swapped.mixture, 1);
  EXPECT_EQ(swapped.cost_ratio, other.cost_ratio);
}

TEST(Compare, AStarvedNetworkIsNamedAndARichOneIsNot) {
  const CompareOptions o{.gain = 3.0};
  cost::Setup rich = setup_of("qwen3-30b-a3b", "dgx-h100", 64);
  rich.work.global_batch_size = 2048;
  cost::Setup starved = rich;
  for (spec::TierSpec& t : starved.cluster.tiers) t.bandwidth = BytesPerSecond(1.25e9);
  const Pair poor = pair_of(starved, o), well = pair_of(rich, o);
  const MixtureVerdict v = explain::mixture_verdict(poor.mixture, poor.dense, o);
  const MixtureVerdict w = explain::mixture_verdict(well.mixture, well.dense, o);
  EXPECT_THAT(v.against, Contains(Against::network));
  EXPECT_THAT(w.against, Not(Contains(Against::network)));
  EXPECT_GT(v.cost_ratio, w.cost_ratio);
  EXPECT_LT(v.network_cost_ratio, v.cost_ratio);
}

TEST(Compare, SmallScaleIsNamedWhereOnlyTheDenseOneFits) {
  const CompareOptions o;
  const Pair p = pair_of(setup_of("mixtral-8x7b", "dgx-h100", 8), o);
  EXPECT_FALSE(p.mixture.found);
  EXPECT_TRUE(p.dense.found);
  EXPECT_THAT(p.mixture.why, HasSubstr("memory"));
  EXPECT_THAT(explain::mixture_verdict(p.mixture, p.dense, o).against, Contains(Against::no_layout));
}

}  // namespace
}  // namespace tessera::testing
