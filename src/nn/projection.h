// How attention and MLP end: a row-parallel linear whose partial results are summed over tp, a bias on this
// rank's own rows, the residual stream.
#pragma once
#include <optional>

#include "nn/layer.h"

namespace tessera::nn {

// y_tH = x_tH + this rank's rows of sum over tp of h_TK w_HK^T [+ bias_H]. scratch: projection_scratch.
struct ProjectionScratch {
  Tensor partial_TH, received;
};
[[nodiscard]] ProjectionScratch projection_scratch(Arena& arena, const Dims& dims);
void add_projection(Context& ctx, const Dims& dims, Tensor y_tH, Tensor x_tH, Tensor h_TK, const Param& w_HK,
                    const std::optional<Param>& bias_H, const ProjectionScratch& scratch);
// The gradients of its weights, +=; dout_TH: d loss / d y of the rows of all tp ranks. A bias sees this
// rank's rows only: its gradient is summed over tp with those of the norms.
void projection_wgrad(Context& ctx, const Param& w_HK, const std::optional<Param>& bias_H, Tensor dout_TH,
                      Tensor h_TK);

// A bias on all columns, when there is one, and its gradient, +=.
void add_bias(Kernels& k, Tensor y_TN, const std::optional<Param>& bias_N);
void bias_wgrad(Kernels& k, const std::optional<Param>& bias_N, Tensor dy_TN);

}  // namespace tessera::nn
