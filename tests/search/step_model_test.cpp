// The search over the real cost model: the list of brute force, what the search requires of the model, and
// the simulator behind it.
#include <gtest/gtest.h>

#include "base/random.h"
#include "search/brute_force.h"
#include "search/refine.h"
#include "search/walk.h"
#include "spec/presets.h"

namespace tessera::search {
namespace {

cost::Setup setup_of(const char* model, const char* cluster, std::int32_t devices, std::int64_t batch) {
  cost::Setup s;
  s.model = spec::model_preset(model);
  s.cluster = spec::with_devices(spec::cluster_preset(cluster), devices);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-core");
  s.work = {.global_batch_size = batch, .sequence_length = 4096};
  return s;
}

TEST(SearchOfStepModel, FindsTheListOfBruteForceExactly) {
  const std::vector<cost::Setup> setups = {setup_of("llama-2-7b", "dgx-a100", 8, 12),
                                           setup_of("olmoe-1b-7b", "dgx-a100", 4, 8),
                                           setup_of("deepseek-v2-lite", "h800", 8, 2)};
  for (const cost::Setup& setup : setups) {
    expect_brute_force(setup, closed_form(setup));
  }
}

// Calls f(candidate) for `count` valid candidates, drawn evenly over the axes.
template <class F>
void for_random_candidates(const cost::Setup& setup, std::uint64_t count, const F& f) {
  const std::vector<RecomputeChoice> recompute = default_recompute(setup.model, setup.practice);
  std::uint64_t found = 0;
  for (std::uint64_t i = 0; found < count && i < 1000 * count; ++i) {
    std::uint64_t draw = 0;
    const auto below = [&](std::uint64_t n) {
      return static_cast<std::int32_t>(uniform_below(n, 7, i, draw++));
    };
    cost::Candidate c;
    c.tp = 1 << below(5);
    c.cp = 1 << below(4);
    c.pp = 1 << below(6);
    c.ep = setup.model.moe ? 1 << below(7) : 1;
    c.etp = setup.model.moe ? 1 << below(3) : 1;
    const std::int32_t rest = c.tp * c.cp * c.pp;
    if (setup.cluster.num_devices % rest != 0) continue;
    c.dp = setup.cluster.num_devices / rest;
    c.micro_batch_size = 1 << below(4);
    c.sequence_parallel = c.tp > 1;
    const std::vector<Pipeline> all = pipelines(setup, {}, c.pp);
    const Pipeline& p = all[static_cast<std::size_t>(below(all.size()))];
    c.schedule = p.kind;
    c.vpp = p.vpp;
    c.zero_stage = below(4);
    const RecomputeChoice& r = recompute[static_cast<std::size_t>(below(recompute.size()))];
    c.recompute = r.mode;
    c.recompute_modules = r.modules;
    c.order = below(2) == 0 ? cost::AxisOrder::tp_cp_ep_dp_pp : cost::AxisOrder::tp_cp_ep_pp_dp;
    if (!cost::why_invalid(setup, c).empty()) continue;
    ++found;
    f(c);
  }
  ASSERT_EQ(found, count);
}

// What search.h requires of a cost model.
TEST(SearchOfStepModel, MayPruneByItsBoundsAndItsLeanestChoices) {
  const std::vector<cost::Setup> setups = {
      setup_of("llama-3-70b", "dgx-h100", 512, 1024), setup_of("gpt3-175b", "dgx-a100", 512, 1024),
      setup_of("mixtral-8x7b", "dgx-h100", 256, 512), setup_of("deepseek-v3", "h800", 512, 1024)};
  for (const cost::Setup& setup : setups) {
    cost::StepModel model(setup);
    for_random_candidates(setup, 1500, [&](const cost::Candidate& c) {
      SCOPED_TRACE(cost::to_text(c));
      const cost::StepCost cost = model.predict(c);
      EXPECT_TRUE(std::isfinite(cost.seconds()));
      EXPECT_LE(model.lower_bound(c), cost.seconds() * (1 + 1e-9));
      EXPECT_LE(model.lowest_bound(c), model.lower_bound(c) * (1 + 1e-9));
      const double reserved = model.memory(c).reserved();
      EXPECT_EQ(cost.memory.reserved(), reserved);
      cost::Candidate other = c;
      other.order = cost::AxisOrder::tp_cp_ep_dp_pp;
      EXPECT_EQ(model.memory(other).reserved(), reserved);
      other = c;
      other.recompute = spec::Recompute::full;
      other.recompute_modules = 0;
      EXPECT_LE(model.memory(other).reserved(), reserved * (1 + 1e-9));
      other = c;
      other.micro_batch_size = 2 * c.micro_batch_size;
      if (cost::why_invalid(setup, other).empty()) {
        EXPECT_GE(model.memory(other).reserved(), reserved * (1 - 1e-9));
      }
    });
  }
}

TEST(SearchOfStepModel, TimesTheBestWithTheSimulator) {
  const cost::Setup setup = setup_of("llama-3-8b", "dgx-h100", 32, 64);
  const Result r = search(setup, {}, {.top = 5, .threads = 2, .refine = simulated(setup), .refined = 16});
  ASSERT_EQ(r.best.size(), 5U);
  cost::StepModel model(setup);
  for (const Ranked& x : r.best) {
    EXPECT_NEAR(x.cost.seconds(), model.predict(x.candidate).seconds(), 0.1 * x.cost.seconds());
    for (const double part : x.cost.parts) EXPECT_GE(part, 0.0);
  }
}

}  // namespace
}  // namespace tessera::search
