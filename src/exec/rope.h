// Rotary position tables (arXiv 2104.09864): angle of pair j at position s is s * f_j, f_j = theta^(-2j / d),
// d the rotated part of a head, scaled as the model says (formulas of Hugging Face's modeling_rope_utils):
//   linear    f / factor
//   dynamic   only when the sequence S is longer than P = max_position_embeddings: theta grows by
//             (factor S / P - (factor - 1))^(d / (d - 2))
//   llama3    n = original_max_position_embeddings * f / 2 pi turns; n < low_freq_factor: f / factor;
//             n > high_freq_factor: f; between, t = (n - low) / (high - low) blends (1 - t) f / factor + t f
//   yarn      (arXiv 2309.00071) r(n) = d / 2 * ln(old / (2 pi n)) / ln(theta) is the pair that turns n times
//   in the
//             old context; from r(beta_fast) to r(beta_slow) pairs go over from f to f / factor
// Computed in f64, then rounded.
#pragma once
#include <cstdint>
#include <vector>

#include "base/sequence_cut.h"
#include "spec/model.h"
#include "tensor/memory.h"

namespace tessera::exec {

// [rotated / 2]; seq: the longest sequence that is run (dynamic scaling asks for it).
[[nodiscard]] std::vector<double> rope_frequencies(const spec::ModelSpec& model, std::int64_t seq);
// YaRN's factor on cos and sin, so on rotated q and k; 1 for the others.
[[nodiscard]] double rope_magnitude(const spec::ModelSpec& model);
// Scale of the scores: (columns of a query head)^-1/2, with DeepSeek's YaRN times m(mscale_all_dim)^2
// (arXiv 2405.04434; the released code), with scale_attn_by_inverse_layer_idx divided by layer + 1.
[[nodiscard]] double attention_scale(const spec::ModelSpec& model, std::int32_t layer);

// cos, sin: [rows of a sequence on the rank, rotated / 2], f32 or f64: row s is of position cut.position(s).
void fill_rope_tables(const spec::ModelSpec& model, const SequenceCut& cut, tensor::Tensor cos_SP,
                      tensor::Tensor sin_SP, tensor::Memory& memory);

}  // namespace tessera::exec
