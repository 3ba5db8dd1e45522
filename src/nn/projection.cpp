#include "nn/projection.h"

#include "nn/tp_overlap.h"

namespace tessera::nn {

ProjectionScratch projection_scratch(Arena& arena, const Dims& dims) {
  ProjectionScratch s;
  s.partial_TH = arena.take(dims.dtype, {dims.tokens(), dims.hidden});
  s.received = scatter_scratch(arena, dims);
  return s;
}

void add_projection(Context& ctx, const Dims& dims, Tensor y_tH, Tensor x_tH, Tensor h_TK, const Param& w_HK,
                    const std::optional<Param>& bias_H, const ProjectionScratch& scratch) {
  const Tensor f_tH = local_rows(ctx, scratch.partial_TH);
  then_scatter_sum(ctx, dims, f_tH, scratch.partial_TH, scratch.received,
                   [&](std::int64_t begin, std::int64_t rows) {
                     ctx.kernels.linear(scratch.partial_TH.narrow_rows(begin, rows),
                                        h_TK.narrow_rows(begin, rows), w_HK.weight);
                   });
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
