#include "nn/projection.h"

namespace tessera::nn {

void add_projection(Context& ctx, Tensor y_tH, Tensor x_tH, Tensor h_TK, const Param& w_HK,
                    const std::optional<Param>& bias_H, Tensor partial_TH) {
  ctx.kernels.linear(partial_TH, h_TK, w_HK.weight);
  const Tensor f_tH = local_rows(ctx, partial_TH);
  scatter_sum(ctx, f_tH, partial_TH);
  add_bias(ctx.kernels, f_tH, bias_H);
  ctx.kernels.add(y_tH, x_tH, f_tH);
}

void projection_wgrad(Context& ctx, const Param& w_HK, const std::optional<Param>& bias_H, Tensor dout_TH,
                      Tensor h_TK) {
  ctx.kernels.linear_wgrad(w_HK.grad, dout_TH, h_TK);
  bias_wgrad(ctx.kernels, bias_H, local_rows(ctx, dout_TH));
}

void add_bias(Kernels& k, Tensor y_TN, const std::optional<Param>& bias_N) {
  if (bias_N) k.add_bias(y_TN, bias_N->weight.value_NK);
}

void bias_wgrad(Kernels& k, const std::optional<Param>& bias_N, Tensor dy_TN) {
  if (bias_N) k.bias_wgrad(bias_N->grad, dy_TN, kernels::Write::accumulate);
}

}  // namespace tessera::nn
