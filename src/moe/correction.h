// Balancing without a loss (Wang et al. 2024, arXiv 2408.15664): once a step the bias of the choice rises for
// experts below the mean load and down for those above it. The gradient sees nothing of it.
#pragma once
#include <cstdint>
#include <span>

#include "tensor/tensor.h"

namespace tessera::moe {

// uncentred: as published; centred: the mean of the steps is taken away, so that the biases do not drift.
enum class CorrectionMean : std::uint8_t { uncentred, centred };

// b_e += rate * sign(mean N - N_e) [- the mean of that], N_e: choices of expert e in the global batch before
// drops. bias_E: f64 or f32. The same bits on every rank that sees the same counts.
void move_correction(tensor::Tensor bias_E, std::span<const std::int64_t> chosen, double rate,
                     CorrectionMean mean);

}  // namespace tessera::moe
