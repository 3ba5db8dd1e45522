#include "exec/rope.h"

#include <cmath>
#include <numbers>

namespace tessera::exec {

std::vector<double> rope_frequencies(const spec::ModelSpec& model) {
  const spec::RopeScaling& r = model.rope_scaling;
  std::vector<double> f;
  for (std::int64_t j = 0; j < model.head_dim / 2; ++j) {
    double x =
        std::pow(model.rope_theta, -2.0 * static_cast<double>(j) / static_cast<double>(model.head_dim));
    switch (r.kind) {
      case spec::RopeKind::none:
        break;
      case spec::RopeKind::linear:
        x /= r.factor;
        break;
      case spec::RopeKind::llama3: {
        const double turns =
            static_cast<double>(r.original_max_position_embeddings) * x / (2.0 * std::numbers::pi);
        const double t = (turns - r.low_freq_factor) / (r.high_freq_factor - r.low_freq_factor);
        if (turns < r.low_freq_factor) {
          x /= r.factor;
        } else if (turns <= r.high_freq_factor) {
          x = (1.0 - t) * x / r.factor + t * x;
        }
        break;
      }
      case spec::RopeKind::dynamic:
      case spec::RopeKind::yarn:
        TESSERA_CHECK(false, "the engine trains no model with dynamic or yarn");
    }
    f.push_back(x);
  }
  return f;
}

namespace {
template <class T>
void fill(const std::vector<double>& f, tensor::Tensor cos, tensor::Tensor sin) {
  T* c = cos.as<T>();
  T* s = sin.as<T>();
  for (std::int64_t position = 0; position < cos.rows(); ++position) {
    for (const double frequency : f) {
      const double angle = static_cast<double>(position) * frequency;
      *c++ = static_cast<T>(std::cos(angle));
      *s++ = static_cast<T>(std::sin(angle));
    }
  }
}
}  // namespace

void fill_rope_tables(const spec::ModelSpec& model, tensor::Tensor cos_SP, tensor::Tensor sin_SP) {
  const std::vector<double> f = rope_frequencies(model);
  if (cos_SP.dtype() == tensor::DType::f64) {
    fill<double>(f, cos_SP, sin_SP);
  } else {
    fill<float>(f, cos_SP, sin_SP);
  }
}

}  // namespace tessera::exec
