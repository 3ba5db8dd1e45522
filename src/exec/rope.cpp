#include "exec/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace tessera::exec {

namespace {

constexpr double kTurn = 2.0 * std::numbers::pi;

double llama3(const spec::RopeScaling& r, double f) {
  const double turns = static_cast<double>(r.original_max_position_embeddings) * f / kTurn;
  if (turns < r.low_freq_factor) return f / r.factor;
  if (turns > r.high_freq_factor) return f;
  const double t = (turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
  return (1.0 - t) * f / r.factor + t * f;
}

// Where YaRN's ramp begins and ends, in pairs.
struct Ramp {
  double low, high;
};
Ramp yarn_ramp(const spec::ModelSpec& m, double d) {
  const spec::RopeScaling& r = m.rope_scaling;
  const auto old =
      static_cast<double>(r.original_max_position_embeddings > 0 ? r.original_max_position_embeddings
                                                                 : m.max_position_embeddings);
  const auto pair = [&](double turns) {
    return d / 2.0 * std::log(old / (kTurn * turns)) / std::log(m.rope_theta);
  };
  Ramp ramp{pair(r.beta_fast), pair(r.beta_slow)};
  if (r.truncate) ramp = {std::floor(ramp.low), std::ceil(ramp.high)};
  ramp = {std::max(ramp.low, 0.0), std::min(ramp.high, d - 1.0)};
  constexpr double kNoDivisionByZero = 0.001;  // of the published code
  if (ramp.low == ramp.high) ramp.high += kNoDivisionByZero;
  return ramp;
}

double yarn_mscale(double factor, double a) {
  return factor <= 1.0 ? 1.0 : 0.1 * a * std::log(factor) + 1.0;
}

double theta_of(const spec::ModelSpec& m, double d, std::int64_t seq) {
  const spec::RopeScaling& r = m.rope_scaling;
  if (r.kind != spec::RopeKind::dynamic || seq <= m.max_position_embeddings) return m.rope_theta;
  const double longer = static_cast<double>(seq) / static_cast<double>(m.max_position_embeddings);
  return m.rope_theta * std::pow(r.factor * longer - (r.factor - 1.0), d / (d - 2.0));
}

}  // namespace

std::vector<double> rope_frequencies(const spec::ModelSpec& model, std::int64_t seq) {
  const spec::RopeScaling& r = model.rope_scaling;
  const std::int64_t pairs = model.rotated_dim() / 2;
  const double d = 2.0 * static_cast<double>(pairs);
  const double theta = theta_of(model, d, seq);
  const Ramp ramp = r.kind == spec::RopeKind::yarn ? yarn_ramp(model, d) : Ramp{0.0, 1.0};
  std::vector<double> f;
  for (std::int64_t j = 0; j < pairs; ++j) {
    double x = std::pow(theta, -2.0 * static_cast<double>(j) / d);
    switch (r.kind) {
      case spec::RopeKind::none:
      case spec::RopeKind::dynamic:
        break;
      case spec::RopeKind::linear:
        x /= r.factor;
        break;
      case spec::RopeKind::llama3:
        x = llama3(r, x);
        break;
      case spec::RopeKind::yarn: {
        const double t = std::clamp((static_cast<double>(j) - ramp.low) / (ramp.high - ramp.low), 0.0, 1.0);
        x = (1.0 - t) * x + t * x / r.factor;
        break;
      }
    }
    f.push_back(x);
  }
  return f;
}

double rope_magnitude(const spec::ModelSpec& model) {
  const spec::RopeScaling& r = model.rope_scaling;
  if (r.kind != spec::RopeKind::yarn) return 1.0;
  if (r.attention_factor > 0.0) return r.attention_factor;
  if (r.mscale != 0.0 && r.mscale_all_dim != 0.0)
    return yarn_mscale(r.factor, r.mscale) / yarn_mscale(r.factor, r.mscale_all_dim);
  return yarn_mscale(r.factor, 1.0);
}

double attention_scale(const spec::ModelSpec& model, std::int32_t layer) {
  double scale = 1.0 / std::sqrt(static_cast<double>(model.head_dim));
  const spec::RopeScaling& r = model.rope_scaling;
  if (model.mla && r.kind != spec::RopeKind::none && r.mscale_all_dim != 0.0) {
    const double m = yarn_mscale(r.factor, r.mscale_all_dim);
    scale *= m * m;
  }
  return model.scale_attn_by_inverse_layer_idx ? scale / (layer + 1) : scale;
}

namespace {
template <class T>
void fill(const std::vector<double>& f, double magnitude, const SequenceCut& cut, tensor::Tensor cos,
          tensor::Tensor sin) {
  T* c = cos.as<T>();
  T* s = sin.as<T>();
  for (std::int64_t row = 0; row < cos.rows(); ++row) {
    for (const double frequency : f) {
      const double angle = static_cast<double>(cut.position(row)) * frequency;
      *c++ = static_cast<T>(magnitude * std::cos(angle));
      *s++ = static_cast<T>(magnitude * std::sin(angle));
    }
  }
}
}  // namespace

void fill_rope_tables(const spec::ModelSpec& model, const SequenceCut& cut, tensor::Tensor cos_SP,
                      tensor::Tensor sin_SP, tensor::Memory& memory) {
  if (model.rotated_dim() == 0) return;
  TESSERA_CHECK_EQ(cos_SP.rows(), cut.rows(), "a row of the tables for each row of a sequence");
  const std::vector<double> f = rope_frequencies(model, cut.length);
  const double magnitude = rope_magnitude(model);
  using tensor::Tensor;
  on_host(memory, cos_SP, tensor::Access::write, [&](const Tensor& cos) {
    on_host(memory, sin_SP, tensor::Access::write, [&](const Tensor& sin) {
      if (cos.dtype() == tensor::DType::f64) {
        fill<double>(f, magnitude, cut, cos, sin);
      } else {
        fill<float>(f, magnitude, cut, cos, sin);
      }
    });
  });
}

}  // namespace tessera::exec
