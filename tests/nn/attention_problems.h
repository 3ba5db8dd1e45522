// Attention and latent attention as layer problems with every option, in f64 with small dims; the residual
// stream of problems.h.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nn/attention.h"
#include "nn/latent_attention.h"
#include "nn/problems.h"

namespace tessera::test {

// The parameters of one rank by name. What a problem has no parameter for is left out.
class NamedParams {
 public:
  void add(LayerProblem& p, const std::string& name, Shape shape, double mean = 0) {
    names_.push_back(name);
    add_param(p, name, shape, 100 + names_.size(), mean);
  }
  [[nodiscard]] std::optional<std::size_t> find(const std::string& name) const {
    for (std::size_t i = 0; i < names_.size(); ++i) {
      if (names_[i] == name) return i;
    }
    return std::nullopt;
  }
  [[nodiscard]] std::optional<nn::Param> take(RankParams& params, const std::string& name,
                                              Part part = {}) const {
    const auto at = find(name);
    if (!at) return std::nullopt;
    return params.add(*at, std::move(part));
  }

 private:
  std::vector<std::string> names_;
};

struct AttentionCase {
  std::int64_t kv_heads = kHeads;
  nn::Recompute recompute = nn::Recompute::none;
  nn::NormKind norm = nn::NormKind::rms;
  bool bias = false;  // of q, k, v and o
  nn::QkNorm qk_norm = nn::QkNorm::none;
  double clip = 0;
  std::int64_t window = 0;
  bool sinks = false;
  std::optional<kernels::RopePairs> rope = kernels::RopePairs::halves;
  double scale = 0;
  std::int64_t microbatches = 1;
  std::int64_t seq = 6;
};

// Rows of q|k|v that a rank holds.
[[nodiscard]] inline Part qkv_part(const Place& place, std::int64_t q, std::int64_t kv) {
  const std::int64_t tp = place.layout.tp;
  const std::int64_t r = place.tp->rank();
  return {.rows = {{r * q / tp, q / tp}, {q + r * kv / tp, kv / tp}, {q + kv + r * kv / tp, kv / tp}}};
}
[[nodiscard]] inline Part share_of_rows(const Place& place, std::int64_t rows) {
  const std::int64_t tp = place.layout.tp;
  return {.rows = {{place.tp->rank() * rows / tp, rows / tp}}};
}
[[nodiscard]] inline Part share_of_columns(const Place& place, std::int64_t columns) {
  const std::int64_t tp = place.layout.tp;
  return {.col_begin = place.tp->rank() * columns / tp, .cols = columns / tp};
}

[[nodiscard]] inline nn::Attention::Options attention_options(const AttentionCase& c, const nn::Dims& dims) {
  return {.dims = dims,
          .heads = kHeads / dims.tp,
          .kv_heads = c.kv_heads / dims.tp,
          .head_dim = kHeadDim,
          .norm_eps = kEps,
          .recompute = c.recompute,
          .norm = c.norm,
          .scale = c.scale,
          .window = c.window,
          .rope = c.rope,
          .qk_norm = c.qk_norm,
          .clip_qkv = c.clip};
}

[[nodiscard]] inline LayerProblem attention_case(const AttentionCase& c) {
  LayerProblem p = residual_problem(c.microbatches, c.seq);
  const std::int64_t h = p.dims.hidden;
  const std::int64_t q = kHeads * kHeadDim;
  const std::int64_t kv = c.kv_heads * kHeadDim;
  const bool whole = c.qk_norm == nn::QkNorm::whole;
  NamedParams names;
  names.add(p, "norm", {h}, 1.0);
  if (c.norm == nn::NormKind::layer) names.add(p, "norm bias", {h});
  names.add(p, "qkv", {q + 2 * kv, h});
  if (c.bias) names.add(p, "qkv bias", {q + 2 * kv});
  if (c.qk_norm != nn::QkNorm::none) {
    names.add(p, "q norm", {whole ? q : kHeadDim}, 1.0);
    names.add(p, "k norm", {whole ? kv : kHeadDim}, 1.0);
  }
  if (c.sinks) names.add(p, "sinks", {kHeads});
  names.add(p, "o", {h, q});
  if (c.bias) names.add(p, "o bias", {h});
  const auto rotaries = std::make_shared<Rotaries>(p.dims.seq);
  p.make = [=](const Place& place, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    const Part heads = whole ? share_of_rows(place, q) : Part{};
    const Part kv_heads = whole ? share_of_rows(place, kv) : Part{};
    nn::Attention::Params w{.norm_H = *names.take(params, "norm"),
                            .qkv = *names.take(params, "qkv", qkv_part(place, q, kv)),
                            .o = *names.take(params, "o", share_of_columns(place, q))};
    w.norm_bias_H = names.take(params, "norm bias");
    w.qkv_bias = names.take(params, "qkv bias", qkv_part(place, q, kv));
    w.q_norm = names.take(params, "q norm", heads);
    w.k_norm = names.take(params, "k norm", kv_heads);
    w.sinks_h = names.take(params, "sinks", share_of_rows(place, kHeads));
    w.o_bias = names.take(params, "o bias");
    const Rotary& rotary = rotaries->of(dims, place);
    return std::make_unique<nn::Attention>(attention_options(c, dims), w, rotary.cos, rotary.sin);
  };
  return p;
}

// Columns of a head: q and k have 6 + 4 (the rope part as wide as kHeadDim), v has 5.
inline constexpr std::int64_t kNope = 6, kRope = kHeadDim, kValue = 5, kQLatent = 7, kKvLatent = 9;

struct LatentCase {
  bool q_latent = true;
  bool bias = false;
  nn::Recompute recompute = nn::Recompute::none;
  kernels::RopePairs pairs = kernels::RopePairs::interleaved;
  double scale = 0;
  std::int64_t microbatches = 1;
  std::int64_t seq = 6;
};

[[nodiscard]] inline LayerProblem latent_case(const LatentCase& c) {
  LayerProblem p = residual_problem(c.microbatches, c.seq);
  const std::int64_t h = p.dims.hidden;
  const std::int64_t q = kHeads * (kNope + kRope);
  const std::int64_t kv = kHeads * (kNope + kValue);
  NamedParams names;
  names.add(p, "norm", {h}, 1.0);
  if (c.q_latent) {
    names.add(p, "q_a", {kQLatent, h});
    if (c.bias) names.add(p, "q_a bias", {kQLatent});
    names.add(p, "q_a norm", {kQLatent}, 1.0);
  }
  names.add(p, "q", {q, c.q_latent ? kQLatent : h});
  names.add(p, "kv_a", {kKvLatent + kRope, h});
  if (c.bias) names.add(p, "kv_a bias", {kKvLatent + kRope});
  names.add(p, "kv_a norm", {kKvLatent}, 1.0);
  names.add(p, "kv_b", {kv, kKvLatent});
  names.add(p, "o", {h, kHeads * kValue});
  if (c.bias) names.add(p, "o bias", {h});
  const auto rotaries = std::make_shared<Rotaries>(p.dims.seq);
  p.make = [=](const Place& place, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    nn::LatentAttention::Params w{.norm_H = *names.take(params, "norm"),
                                  .q = *names.take(params, "q", share_of_rows(place, q)),
                                  .kv_a = *names.take(params, "kv_a"),
                                  .kv_a_norm = *names.take(params, "kv_a norm"),
                                  .kv_b = *names.take(params, "kv_b", share_of_rows(place, kv)),
                                  .o = *names.take(params, "o", share_of_columns(place, kHeads * kValue))};
    w.q_a = names.take(params, "q_a");
    w.q_a_norm = names.take(params, "q_a norm");
    w.q_a_bias = names.take(params, "q_a bias");
    w.kv_a_bias = names.take(params, "kv_a bias");
    w.o_bias = names.take(params, "o bias");
    const Rotary& rotary = rotaries->of(dims, place);
    return std::make_unique<nn::LatentAttention>(
        nn::LatentAttention::Options{.dims = dims,
                                     .heads = kHeads / dims.tp,
                                     .nope_dim = kNope,
                                     .rope_dim = kRope,
                                     .v_dim = kValue,
                                     .q_lora_rank = c.q_latent ? kQLatent : 0,
                                     .kv_lora_rank = kKvLatent,
                                     .norm_eps = kEps,
                                     .recompute = c.recompute,
                                     .scale = c.scale,
                                     .pairs = c.pairs},
        w, rotary.cos, rotary.sin);
  };
  return p;
}

}  // namespace tessera::test
