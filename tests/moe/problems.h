// The mixture of experts as a layer problem: 4 micro-batches of 12 tokens, 4 experts, in f64; with every
// form of routing and of experts.
#pragma once
#include <algorithm>
#include <memory>
#include <mutex>

#include "moe/moe_layer.h"
#include "support/layer_rig.h"

namespace tessera::test {

inline constexpr std::int32_t kExperts = 4;
inline constexpr std::int64_t kExpertWidth = 6;  // FFN width of a whole expert
inline constexpr std::int64_t kSharedWidth = 8;  // of a whole shared expert
inline constexpr double kNormEps = 1e-5;

struct MoeCase {
  std::int32_t top_k = 2;
  kernels::RouterScore score = kernels::RouterScore::softmax_then_topk;
  bool renormalise = true;
  nn::Recompute recompute = nn::Recompute::none;
  moe::BalanceUnit unit = moe::BalanceUnit::micro_batch;
  double aux = 0, z = 0;
  double capacity = 0;
  moe::DropPolicy drops = moe::DropPolicy::position;
  std::int64_t microbatches = 4;
  double upstream = 1;      // factor; 0 leaves the balancing terms alone in the loss
  bool one_expert = false;  // every token's first choice is expert 1
  std::uint64_t seed = 1;
  double scale = 1;  // routed_scaling_factor
  std::int32_t n_group = 1, topk_group = 1;
  kernels::GroupScore group_score = kernels::GroupScore::max;
  bool correction = false;  // of the choice, fixed numbers
  bool router_bias = false, expert_bias = false;
  kernels::ActivationOptions activation = {.kind = kernels::Activation::swiglu};
  enum class Shared : std::uint8_t { none, plain, gated } shared = Shared::none;
  moe::Choice choice = moe::Choice::scores;
  moe::Padding padding = moe::Padding::none;
  double jitter = 0;
  moe::DispatchForm dispatch = moe::DispatchForm::all_to_all;
};

[[nodiscard]] inline moe::ExpertGroups expert_groups(const Place& place) {
  return {*place.ep, *place.etp, place.across, place.inside};
}

inline constexpr double kCorrection[kExperts] = {0.25, -0.2, 0.1, -0.15};

[[nodiscard]] inline moe::Options moe_options(const MoeCase& c, const nn::Dims& dims,
                                              const RankLayout& layout) {
  return {.dims = dims,
          .num_experts = kExperts,
          .intermediate = kExpertWidth / layout.etp,
          .router = {.top_k = c.top_k,
                     .score = c.score,
                     .renormalise = c.renormalise,
                     .scale = c.scale,
                     .n_group = c.n_group,
                     .topk_group = c.topk_group,
                     .group_score = c.group_score},
          .norm_eps = kNormEps,
          .recompute = c.recompute,
          .unit = c.unit,
          .aux_loss_coef = c.aux,
          .z_loss_coef = c.z,
          .capacity_factor = c.capacity,
          .drop_policy = c.drops,
          .units_in_group = std::max(1, layout.ep * layout.etp / (layout.tp * layout.cp)),
          .activation = c.activation,
          .shared_intermediate = c.shared == MoeCase::Shared::none ? 0 : kSharedWidth / layout.tp,
          .choice = c.choice,
          .padding = c.padding,
          .dispatch = c.dispatch,
          .router_jitter = c.jitter,
          .seed = 7,
          .layer = 3};
}

// Positions of the parameters: norm, router, then gate_up and down of each expert; then, where the case has
// them, the router's bias, the biases of each expert, the shared expert. A rank holds E / ep experts, 1 / etp
// of each.
struct MoeParams {
  std::size_t router_bias = 0, expert_bias = 0, shared = 0, shared_gate = 0;
};
[[nodiscard]] inline MoeParams positions_of(const MoeCase& c) {
  MoeParams at;
  std::size_t next = 2 + 2 * kExperts;
  at.router_bias = next;
  at.expert_bias = next += c.router_bias ? 1 : 0;
  at.shared = next += c.expert_bias ? 2 * kExperts : 0;
  at.shared_gate = at.shared + 2;
  return at;
}

// The parameters of one rank; those of the layer begin at `first` of the problem's.
[[nodiscard]] inline moe::Params moe_params(const MoeCase& c, const Place& place, RankParams& params,
                                            std::size_t first = 0) {
  const RankLayout& l = place.layout;
  const MoeParams at = positions_of(c);
  const std::int64_t width = kExpertWidth / l.etp;
  const std::int64_t begin = place.etp->rank() * width;
  const std::int32_t local = kExperts / l.ep;
  const std::int64_t gates = c.activation.gated() ? 2 : 1;
  const auto fused = [&](std::int64_t whole, std::int64_t first, std::int64_t count) {
    Part part{.rows = {{first, count}}};
    if (gates == 2) part.rows.emplace_back(whole + first, count);
    return part;
  };
  moe::Params list{.norm_H = params.add(first + 0), .router_EH = params.add(first + 1)};
  for (std::int32_t i = 0; i < local; ++i) {
    const auto expert = static_cast<std::size_t>(place.ep->rank() * local + i);
    moe::ExpertParams p;
    p.gate_up = params.add(first + 2 + 2 * expert, fused(kExpertWidth, begin, width));
    p.down = params.add(first + 3 + 2 * expert, {.col_begin = begin, .cols = width});
    if (c.expert_bias) {
      p.gate_up_bias_Z = params.add(first + at.expert_bias + 2 * expert, fused(kExpertWidth, begin, width));
      p.down_bias_H =
          params.add(first + at.expert_bias + 2 * expert + 1, {.counted = place.etp->rank() == 0});
    }
    list.experts.push_back(p);
  }
  if (c.router_bias) list.router_bias_E = params.add(first + at.router_bias);
  if (c.shared != MoeCase::Shared::none) {
    const std::int64_t share = kSharedWidth / l.tp;
    list.shared.gate_up = params.add(first + at.shared, fused(kSharedWidth, place.tp->rank() * share, share));
    list.shared.down =
        params.add(first + at.shared + 1, {.col_begin = place.tp->rank() * share, .cols = share});
    if (c.shared == MoeCase::Shared::gated) list.shared.gate_1H = params.add(first + at.shared_gate);
  }
  return list;
}

[[nodiscard]] inline LayerProblem moe_problem(const MoeCase& c) {
  LayerProblem p;
  p.dims = {.dtype = DType::f64, .batch = 2, .seq = 6, .hidden = 8, .tp = 1};
  const std::int64_t h = p.dims.hidden;
  for (std::int64_t m = 0; m < c.microbatches; ++m) {
    p.x.push_back(random(DType::f64, {p.dims.tokens(), h}, 100 * c.seed + m));
    p.upstream.push_back(random(DType::f64, {p.dims.tokens(), h}, 100 * c.seed + 20 + m, c.upstream));
    p.ids.push_back(Owned(DType::i32, {p.dims.tokens()}));
    for (std::int64_t t = 0; t < p.dims.tokens(); ++t) {
      set(p.ids.back(), t, static_cast<double>((7 * m + 5 * t + t * t) % 23));
    }
  }
  const auto add = [&](std::string name, Shape shape, double spread, double mean) {
    const auto seed = 100 * c.seed + 50 + p.params.size();
    p.params.push_back({std::move(name), random(DType::f64, shape, seed, spread, mean)});
  };
  add("norm", {h}, 0.2, 1.0);
  add("router", {kExperts, h}, 0.6, 0);
  const std::int64_t gates = c.activation.gated() ? 2 : 1;
  for (std::int32_t e = 0; e < kExperts; ++e) {
    add("gate_up " + std::to_string(e), {gates * kExpertWidth, h}, 0.5, 0);
    add("down " + std::to_string(e), {h, kExpertWidth}, 0.5, 0);
  }
  if (c.router_bias) add("router bias", {kExperts}, 0.4, 0);
  for (std::int32_t e = 0; e < kExperts && c.expert_bias; ++e) {
    add("gate_up bias " + std::to_string(e), {gates * kExpertWidth}, 0.5, 0);
    add("down bias " + std::to_string(e), {h}, 0.5, 0);
  }
  if (c.shared != MoeCase::Shared::none) {
    add("shared gate_up", {gates * kSharedWidth, h}, 0.5, 0);
    add("shared down", {h, kSharedWidth}, 0.5, 0);
    if (c.shared == MoeCase::Shared::gated) add("shared gate", {1, h}, 0.5, 0);
  }
  if (c.one_expert) {  // the first feature is large and positive everywhere and pulls towards expert 1
    for (const Owned& x : p.x) {
      for (std::int64_t t = 0; t < p.dims.tokens(); ++t) set(x, t * h, 4.0);
    }
    const Tensor router = p.params[1].value;
    for (std::int64_t i = 0; i < kExperts * h; ++i) set(router, i, 0.3 * get(router, i));
    for (std::int32_t e = 0; e < kExperts; ++e) set(router, e * h, e == 1 ? 0.8 : 0.0);
  }
  const auto units = static_cast<double>(c.microbatches * (c.unit == moe::BalanceUnit::sequence ? 2 : 1));
  p.weights.aux_unit = c.unit == moe::BalanceUnit::global_batch ? 1.0 : 1.0 / units;
  p.weights.z_token = 1.0 / static_cast<double>(c.microbatches * p.dims.tokens());

  const auto correction = std::make_shared<Owned>(DType::f64, Shape{kExperts});
  set_values(*correction, kCorrection);
  p.make = [c, correction](const Place& place, const nn::Dims& dims,
                           RankParams& params) -> std::unique_ptr<nn::Layer> {
    moe::Params list = moe_params(c, place, params);
    if (c.correction) list.correction_E.weight.value_NK = correction->tensor();
    auto layer = std::make_unique<moe::MoeLayer>(moe_options(c, dims, place.layout), std::move(list),
                                                 expert_groups(place));
    if (c.unit == moe::BalanceUnit::global_batch) {
      const double frequency[kExperts] = {0.4, 0.1, 0.2, 0.3};
      layer->set_global_frequency(frequency);
    }
    return layer;
  };
  p.extra_loss = [](nn::Layer& layer, std::int32_t /*slots*/) {
    auto& moe = dynamic_cast<moe::MoeLayer&>(layer);
    return moe.stats().aux_loss + moe.stats().z_loss;
  };
  return p;
}

// Gradient checks run forward again and again: count each run alone.
[[nodiscard]] inline LayerProblem counting_each_run(LayerProblem p) {
  p.extra_loss = [](nn::Layer& layer, std::int32_t /*slots*/) {
    auto& moe = dynamic_cast<moe::MoeLayer&>(layer);
    const double loss = moe.stats().aux_loss + moe.stats().z_loss;
    moe.reset_stats();
    return loss;
  };
  return p;
}

// Statistics of all ranks together.
struct WorldStats {
  moe::Stats sum;
  void add(const moe::Stats& s) {
    const std::lock_guard lock(mutex_);
    sum.chosen.resize(s.chosen.size());
    sum.dropped.resize(s.dropped.size());
    for (std::size_t e = 0; e < s.chosen.size(); ++e) {
      sum.chosen[e] += s.chosen[e];
      sum.dropped[e] += s.dropped[e];
    }
    sum.tokens += s.tokens;
    sum.aux_loss += s.aux_loss;
    sum.z_loss += s.z_loss;
    sum.entropy += s.entropy;
    sum.unserved += s.unserved;
    sum.logit_squares += s.logit_squares;
    sum.max_abs_logit = std::max(sum.max_abs_logit, s.max_abs_logit);
    sum.received_rows += s.received_rows;
  }
  [[nodiscard]] std::int64_t total(const std::vector<std::int64_t>& counts) const {
    std::int64_t n = 0;
    for (const std::int64_t c : counts) n += c;
    return n;
  }

 private:
  std::mutex mutex_;
};

[[nodiscard]] inline LayerResult run_moe(const LayerProblem& p, const RankLayout& layout, WorldStats& stats,
                                         PassOrder order = PassOrder::split) {
  return run_layer(p, layout, {.order = order, .inspect = [&](const Place&, LayerRig& rig) {
                                 stats.add(dynamic_cast<const moe::MoeLayer&>(rig.layer()).stats());
                               }});
}

}  // namespace tessera::test
