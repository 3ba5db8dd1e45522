// Balancing beside the per-layer loss: all layers together (two layers one after the other), and the bias of
// the choice.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include "moe/correction.h"
#include "moe/problems.h"
#include "support/layer_gradients.h"

namespace tessera::test {
namespace {

using moe::BalanceUnit;
using moe::CorrectionMean;

// --- all layers together

// Two mixtures of experts as one layer, with a loss over both.
class TwoMixtures : public nn::Layer {
 public:
  TwoMixtures(const std::function<std::unique_ptr<nn::Layer>(moe::LayerCounts*)>& make, std::int64_t width)
      : counts_(2, width) {
    for (auto& layer : layers_) layer = make(&counts_);
  }
  void reserve_saved(tensor::Arena& arena) override {
    mid_.emplace_back();
    for (auto& layer : layers_) layer->reserve_saved(arena);
  }
  void reserve_deferred(tensor::Arena& arena) override {
    for (auto& layer : layers_) layer->reserve_deferred(arena);
  }
  void measure_scratch(tensor::Arena& counting) const override { layers_[0]->measure_scratch(counting); }
  void forward(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, Tensor x, Tensor y,
               nn::Pass pass) override {
    auto& mid = mid_.at(static_cast<std::size_t>(slots.saved));
    if (!mid) mid = std::make_unique<Owned>(x.dtype(), x.shape());
    layers_[0]->forward(ctx, slots, mb, x, *mid, pass);
    layers_[1]->forward(ctx, slots, mb, *mid, y, pass);
  }
  void backward_input(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb, Tensor g) override {
    layers_[1]->backward_input(ctx, slots, mb, g);
    layers_[0]->backward_input(ctx, slots, mb, g);
  }
  void backward_weight(nn::Context& ctx, nn::Slots slots, const nn::Microbatch& mb) override {
    layers_[1]->backward_weight(ctx, slots, mb);
    layers_[0]->backward_weight(ctx, slots, mb);
  }
  [[nodiscard]] moe::MoeLayer& at(std::size_t i) { return dynamic_cast<moe::MoeLayer&>(*layers_[i]); }

 private:
  moe::LayerCounts counts_;
  std::unique_ptr<nn::Layer> layers_[2];
  std::vector<std::unique_ptr<Owned>> mid_;
};

// c E sum_e f_e P_e written out, f and P over the tokens of both layers of one unit; one rank.
double value_by_hand(TwoMixtures& layers, std::int32_t slot, const MoeCase& c, const nn::LossWeights& w) {
  const std::int64_t units = c.unit == BalanceUnit::sequence ? 2 : 1;
  const std::int64_t tokens = 12 / units;
  double value = 0;
  for (std::int64_t u = 0; u < units; ++u) {
    double f[kExperts] = {}, p[kExperts] = {};
    for (std::size_t l = 0; l < 2; ++l) {
      const Values probs = values(layers.at(l).probs_tE(slot));
      const Values chosen = values(layers.at(l).chosen_tK(slot));
      for (std::int64_t t = u * tokens; t < (u + 1) * tokens; ++t) {
        for (std::int32_t k = 0; k < c.top_k; ++k) {
          f[static_cast<std::size_t>(chosen[static_cast<std::size_t>(t * c.top_k + k)])] +=
              1.0 / (2.0 * tokens);
        }
        for (std::size_t e = 0; e < kExperts; ++e) {
          p[e] += probs[static_cast<std::size_t>(t * kExperts) + e] / (2.0 * tokens);
        }
      }
    }
    for (std::size_t e = 0; e < kExperts; ++e) value += w.aux_unit * c.aux * kExperts * f[e] * p[e];
  }
  return value;
}

LayerProblem joined_problem(const MoeCase& c) {
  LayerProblem p = moe_problem(c);
  const std::size_t once = p.params.size();
  LayerProblem second = moe_problem([&] {
    MoeCase other = c;
    other.seed += 1;
    return other;
  }());
  for (GlobalParam& param : second.params) {
    param.name += " of layer 2";
    p.params.push_back(std::move(param));
  }
  p.make = [c, once](const Place& place, const nn::Dims& dims,
                     RankParams& params) -> std::unique_ptr<nn::Layer> {
    std::size_t first = 0;
    const auto make = [&](moe::LayerCounts* counts) -> std::unique_ptr<nn::Layer> {
      moe::Options o = moe_options(c, dims, place.layout);
      o.joined = counts;
      auto layer =
          std::make_unique<moe::MoeLayer>(o, moe_params(c, place, params, first), expert_groups(place));
      first += once;
      return layer;
    };
    return std::make_unique<TwoMixtures>(make, (c.unit == BalanceUnit::sequence ? 2 : 1) * kExperts);
  };
  p.extra_loss = [c, w = p.weights](nn::Layer& layer, std::int32_t slots) {
    double sum = 0;
    for (std::int32_t s = 0; s < slots; ++s) sum += value_by_hand(dynamic_cast<TwoMixtures&>(layer), s, c, w);
    return sum;
  };
  return p;
}

TEST(JoinedBalancing, GradientsMatchCentralDifferencesOfTheFormula) {
  for (const BalanceUnit unit : {BalanceUnit::micro_batch, BalanceUnit::sequence}) {
    for (const double upstream : {0.0, 1.0}) {
      SCOPED_TRACE(fmt::format("unit {}, upstream {}", static_cast<int>(unit), upstream));
      expect_gradients(joined_problem({.unit = unit, .aux = 1.5, .microbatches = 2, .upstream = upstream}),
                       CheckInput::yes, {.max_coordinates = 60});
    }
  }
}

TEST(JoinedBalancing, ReportsTheValueOfTheFormulaAfterBackward) {
  const MoeCase c{.aux = 0.7, .microbatches = 3};
  const LayerProblem p = joined_problem(c);
  (void)run_layer(p, {}, {.inspect = [&](const Place&, LayerRig& rig) {
                    auto& both = dynamic_cast<TwoMixtures&>(rig.layer());
                    double want = 0;
                    for (std::int32_t s = 0; s < 3; ++s) want += value_by_hand(both, s, c, p.weights);
                    EXPECT_TRUE(near("value", {both.at(0).stats().aux_loss + both.at(1).stats().aux_loss},
                                     {want}, 1e-14));
                    EXPECT_GT(want, 1.3) << "k times the coefficient at balance, never far below it";
                  }});
}

TEST(JoinedBalancing, IsEqualOnEveryLayout) {
  for (const BalanceUnit unit : {BalanceUnit::micro_batch, BalanceUnit::sequence}) {
    LayerProblem p = joined_problem({.unit = unit, .aux = 0.7});
    p.extra_loss = [](nn::Layer&, std::int32_t) { return 0.0; };
    const auto aux_of = [](double& sum, std::mutex& mutex) {
      return [&](const Place&, LayerRig& rig) {
        auto& both = dynamic_cast<TwoMixtures&>(rig.layer());
        const std::lock_guard lock(mutex);
        sum += both.at(0).stats().aux_loss + both.at(1).stats().aux_loss;
      };
    };
    std::mutex mutex;
    double want_aux = 0;
    const LayerResult want = run_layer(p, {}, {.inspect = aux_of(want_aux, mutex)});
    for (const RankLayout& layout :
         {RankLayout{.tp = 2}, RankLayout{.dp = 2, .ep = 2}, RankLayout{.tp = 2, .dp = 2, .ep = 2, .etp = 2},
          RankLayout{.tp = 4, .ep = 4}}) {
      for (const PassOrder order : {PassOrder::fused, PassOrder::split_with_recompute}) {
        double aux = 0;
        expect_near(p, run_layer(p, layout, {.order = order, .inspect = aux_of(aux, mutex)}), want, 1e-12);
        EXPECT_TRUE(near("aux", {aux}, {want_aux}, 1e-12));
      }
    }
  }
}

TEST(JoinedBalancing, OfOneLayerIsTheLayersOwnLossTimesTopK) {
  const MoeCase own{.aux = 0.6, .microbatches = 1, .upstream = 0};
  const LayerResult want = run_layer(moe_problem(own), {});
  LayerProblem p = moe_problem(own);
  const auto counts = std::make_shared<moe::LayerCounts>(1, kExperts);
  p.make = [counts](const Place& place, const nn::Dims& dims,
                    RankParams& params) -> std::unique_ptr<nn::Layer> {
    const MoeCase half{.aux = 0.3};  // top-2
    moe::Options o = moe_options(half, dims, place.layout);
    o.joined = counts.get();
    return std::make_unique<moe::MoeLayer>(o, moe_params(half, place, params), expert_groups(place));
  };
  p.extra_loss = [](nn::Layer&, std::int32_t) { return 0.0; };
  const LayerResult got = run_layer(p, {});
  EXPECT_TRUE(near("router", got.gradients[1], want.gradients[1], 1e-13));
}

TEST(JoinedBalancing, RefusesABackwardBeforeAllLayersHaveRun) {
  moe::LayerCounts counts(3, 2);
  const std::int32_t some[2] = {1, 2};
  counts.add(0, some);
  counts.add(0, some);
  EXPECT_THROW((void)counts.totals(0), Error);
  counts.add(0, some);
  EXPECT_EQ(counts.totals(0)[1], 6);
  counts.add(0, some);  // the next step
  EXPECT_THROW((void)counts.totals(0), Error);
}

// --- the bias of the choice

TEST(Correction, RisesForIdleExpertsAndFallsForBusyOnes) {
  const Owned bias = tensor_of(DType::f64, {4}, {0.5, 0, 0, -0.25});
  const std::int64_t chosen[4] = {9, 5, 5, 1};  // mean 5
  moe::move_correction(bias, chosen, 0.125, CorrectionMean::uncentred);
  EXPECT_EQ(values(bias), (Values{0.375, 0, 0, -0.125}));
  const std::int64_t skewed[4] = {17, 1, 1, 1};  // three below the mean, one above
  moe::move_correction(bias, skewed, 0.125, CorrectionMean::uncentred);
  EXPECT_EQ(values(bias), (Values{0.25, 0.125, 0.125, 0}));
}

TEST(Correction, CentredKeepsTheSumOfTheBiases) {
  for (const DType dtype : {DType::f64, DType::f32}) {
    const Owned bias = tensor_of(dtype, {4}, {0.5, 0, 0, -0.25});
    const std::int64_t skewed[4] = {17, 1, 1, 1};
    moe::move_correction(bias, skewed, 0.25, CorrectionMean::centred);
    EXPECT_EQ(values(bias), (Values{0.125, 0.125, 0.125, -0.125})) << "steps -1, 1, 1, 1 less their mean 1/2";
  }
}

// A router that sends every token to one expert: the bias spreads them, the loss plays no part.
TEST(Correction, CuresACollapsedRouter) {
  MoeCase c{.top_k = 1,
            .score = kernels::RouterScore::sigmoid,
            .renormalise = false,
            .microbatches = 1,
            .one_expert = true};
  const LayerProblem p = moe_problem(c);
  RankGroups groups({}, 0, nullptr);
  const auto kernels = kernels::make_reference();
  RankParams params(p.params);
  moe::Params list = moe_params(c, groups.place, params);
  const Owned bias = tensor_of(DType::f64, {kExperts}, {0, 0, 0, 0});
  list.correction_E.weight.value_NK = bias;
  moe::MoeLayer layer(moe_options(c, p.dims, {}), std::move(list), {*groups.place.ep, *groups.place.etp});
  tensor::Arena slots(Bytes(1 << 20)), scratch(Bytes(1 << 20));
  layer.reserve_saved(slots);
  nn::Context ctx{.kernels = *kernels, .tp = *groups.place.tp, .scratch = scratch, .weights = p.weights};
  const Owned y(DType::f64, {12, 8});
  std::vector<std::int64_t> first, last;
  for (std::int32_t step = 0; step < 200; ++step) {
    layer.reset_stats();
    layer.forward(ctx, {0, 0}, {.ids_T = p.ids[0]}, p.x[0], y, nn::Pass::forward);
    last = layer.stats().chosen;
    if (step == 0) first = last;
    moe::move_correction(bias, last, 0.01, CorrectionMean::centred);
  }
  EXPECT_EQ(first, (std::vector<std::int64_t>{0, 12, 0, 0}));
  for (const std::int64_t n : last) {
    EXPECT_GE(n, 1);
    EXPECT_LE(n, 6);
  }
}

}  // namespace
}  // namespace tessera::test
