// The dense layers beside attention (attention_problems.h) as layer problems: small dims in f64, random
// weights, one to four ranks.
#pragma once
#include <cmath>
#include <map>
#include <memory>
#include <tuple>

#include "nn/layers.h"
#include "support/layer_rig.h"

namespace tessera::test {

inline constexpr std::int64_t kHeads = 4, kHeadDim = 4, kIntermediate = 12, kVocab = 16;
inline constexpr double kEps = 1e-5;

[[nodiscard]] inline LayerProblem residual_problem(std::int64_t microbatches, std::int64_t seq = 6) {
  LayerProblem p;
  p.dims = {.dtype = DType::f64, .batch = 2, .seq = seq, .hidden = 8, .tp = 1};
  for (std::int64_t m = 0; m < microbatches; ++m) {
    p.x.push_back(random(DType::f64, {p.dims.tokens(), p.dims.hidden}, 10 + m));
    p.upstream.push_back(random(DType::f64, {p.dims.tokens(), p.dims.hidden}, 20 + m));
  }
  return p;
}
inline void add_param(LayerProblem& p, std::string name, Shape shape, std::uint64_t seed, double mean = 0) {
  p.params.push_back({std::move(name), random(DType::f64, shape, seed, mean == 0 ? 0.4 : 0.2, mean)});
}

// Angles of pair j at the position of row s of a sequence.
struct Rotary {
  Rotary(DType dtype, std::int64_t seq) : Rotary(dtype, SequenceCut{.length = seq}) {}
  Rotary(DType dtype, const SequenceCut& cut)
      : cos(dtype, {cut.rows(), kHeadDim / 2}), sin(dtype, {cut.rows(), kHeadDim / 2}) {
    for (std::int64_t i = 0; i < cos.tensor().num_elements(); ++i) {
      const double angle =
          static_cast<double>(cut.position(i / 2)) * std::pow(100.0, -static_cast<double>(i % 2) / 2);
      set(cos, i, std::cos(angle));
      set(sin, i, std::sin(angle));
    }
  }
  Owned cos, sin;
};
// Those of every rank of up to 4 that share a sequence.
class Rotaries {
 public:
  explicit Rotaries(std::int64_t seq) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      for (const std::int32_t cp : {1, 2, 4}) {
        for (std::int32_t r = 0; r < cp && (cp == 1 || seq % (2 * cp) == 0); ++r) {
          all_.emplace(std::tuple(dtype, cp, r), Rotary(dtype, SequenceCut{seq, cp, r}));
        }
      }
    }
  }
  [[nodiscard]] const Rotary& of(const nn::Dims& dims, const Place& place) const {
    return all_.at({dims.dtype, dims.cp, place.cp_rank()});
  }

 private:
  std::map<std::tuple<DType, std::int32_t, std::int32_t>, Rotary> all_;
};

// llama: RMSNorm and SwiGLU without biases; gpt2: LayerNorm, GeLU and biases.
enum class MlpForm : std::uint8_t { llama, llama_biased, gpt2 };

[[nodiscard]] inline LayerProblem mlp_problem(nn::Recompute recompute, std::int64_t microbatches = 1,
                                              MlpForm form = MlpForm::llama) {
  const bool gpt2 = form == MlpForm::gpt2;
  const bool biased = form != MlpForm::llama;
  LayerProblem p = residual_problem(microbatches);
  const std::int64_t h = p.dims.hidden;
  const std::int64_t z = (gpt2 ? 1 : 2) * kIntermediate;
  add_param(p, "norm", {h}, 1, 1.0);
  add_param(p, "up", {z, h}, 2);
  add_param(p, "down", {h, kIntermediate}, 3);
  if (biased) add_param(p, "up bias", {z}, 4);
  if (biased) add_param(p, "down bias", {h}, 5);
  if (gpt2) add_param(p, "norm bias", {h}, 6);
  p.make = [=](const Place& place, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    const std::int64_t share = kIntermediate / place.layout.tp;
    const std::int64_t begin = place.tp->rank() * share;
    std::vector<std::pair<std::int64_t, std::int64_t>> rows{{begin, share}};
    if (!gpt2) rows.emplace_back(kIntermediate + begin, share);
    nn::Mlp::Params parts{.norm_H = params.add(0),
                          .up = params.add(1, {.rows = rows}),
                          .down = params.add(2, {.col_begin = begin, .cols = share})};
    if (biased) parts.up_bias = params.add(3, {.rows = rows});
    if (biased) parts.down_bias = params.add(4);
    if (gpt2) parts.norm_bias_H = params.add(5);
    const auto kind = gpt2 ? kernels::Activation::gelu_tanh : kernels::Activation::swiglu;
    return std::make_unique<nn::Mlp>(nn::Mlp::Options{.dims = dims,
                                                      .intermediate = share,
                                                      .activation = {.kind = kind},
                                                      .norm_eps = kEps,
                                                      .recompute = recompute,
                                                      .norm = gpt2 ? nn::NormKind::layer : nn::NormKind::rms},
                                     parts);
  };
  return p;
}

[[nodiscard]] inline LayerProblem embedding_problem(std::int64_t microbatches = 1, bool positions = false,
                                                    std::int64_t seq = 6) {
  LayerProblem p = residual_problem(microbatches, seq);
  add_param(p, "table", {kVocab, p.dims.hidden}, 1);
  if (positions) add_param(p, "positions", {p.dims.seq + 3, p.dims.hidden}, 2);
  for (std::int64_t m = 0; m < microbatches; ++m) {
    p.ids.push_back(random_ids(DType::i32, {p.dims.tokens()}, 30 + m, 0, kVocab));
  }
  p.make = [=](const Place& place, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    const std::int64_t share = kVocab / place.layout.tp;
    const std::int64_t begin = place.tp->rank() * share;
    nn::Embedding::Params parts{.table_VH = params.add(0, {.rows = {{begin, share}}})};
    if (positions) parts.position_PH = params.add(1);
    return std::make_unique<nn::Embedding>(dims, parts, begin);
  };
  return p;
}

// Tokens 2 and 7 of every micro-batch are ignored.
[[nodiscard]] inline LayerProblem head_problem(std::int64_t microbatches = 1, bool layer_norm = false) {
  LayerProblem p = residual_problem(microbatches);
  add_param(p, "norm", {p.dims.hidden}, 1, 1.0);
  add_param(p, "head", {kVocab, p.dims.hidden}, 2);
  if (layer_norm) add_param(p, "norm bias", {p.dims.hidden}, 3);
  for (std::int64_t m = 0; m < microbatches; ++m) {
    p.targets.push_back(random_ids(DType::i32, {p.dims.tokens()}, 30 + m, 0, kVocab));
    set(p.targets.back(), 2, -1);
    set(p.targets.back(), 7, -100);
  }
  p.weights.ce = 1.0 / static_cast<double>(microbatches * (p.dims.tokens() - 2));
  p.has_output = false;
  p.sum_loss = false;
  p.make = [=](const Place& place, const nn::Dims& dims, RankParams& params) -> std::unique_ptr<nn::Layer> {
    const std::int64_t share = kVocab / place.layout.tp;
    const std::int64_t begin = place.tp->rank() * share;
    nn::Head::Params parts{.norm_H = params.add(0), .head_VH = params.add(1, {.rows = {{begin, share}}})};
    if (layer_norm) parts.norm_bias_H = params.add(2);
    return std::make_unique<nn::Head>(
        nn::Head::Options{.dims = dims,
                          .vocab = share,
                          .vocab_begin = begin,
                          .norm_eps = kEps,
                          .norm = layer_norm ? nn::NormKind::layer : nn::NormKind::rms},
        parts);
  };
  p.extra_loss = [](nn::Layer& layer, std::int32_t slots) {
    double sum = 0;
    for (std::int32_t i = 0; i < slots; ++i) sum += dynamic_cast<nn::Head&>(layer).loss(i);
    return sum;
  };
  return p;
}

}  // namespace tessera::test
