// Rotary position tables (arXiv 2104.09864): angle of pair j at position s is s * f_j, f_j = theta^(-2j /
// head_dim), scaled as the model says. Linear: f / factor. Llama 3: n = original_max_position_embeddings * f
// / 2 pi turns; n < low_freq_factor: f / factor; n > high_freq_factor: f; between, t = (n - low) / (high -
// low) blends (1 - t) f / factor + t f. Computed in f64, then rounded.
#pragma once
#include <cstdint>
#include <vector>

#include "spec/model.h"
#include "tensor/tensor.h"

namespace tessera::exec {

[[nodiscard]] std::vector<double> rope_frequencies(const spec::ModelSpec& model);  // [head_dim / 2]

// cos, sin: [seq, head_dim / 2], f32 or f64.
void fill_rope_tables(const spec::ModelSpec& model, tensor::Tensor cos_SP, tensor::Tensor sin_SP);

}  // namespace tessera::exec
