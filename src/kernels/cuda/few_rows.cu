// Products of few rows with a weight, as generation makes them: what counts is reading the weight once, as
// fast as memory gives it. A warp for each output feature and all rows, 16 bytes a lane at a time.
#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

constexpr int kWarps = 4;  // of a block

template <int kRows, class Out, class S, class W, class A = Acc<S>>
__global__ void __launch_bounds__(kWarps* kWarp)
    few_rows(Out* y, const S* x, const W* w, std::int64_t rows, std::int64_t outputs, std::int64_t inputs,
             bool wide) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kWarps + warp();
  if (n >= outputs) return;
  A sum[kRows] = {};
  for (std::int64_t p = lane(); p < packs_of(inputs); p += kWarp) {
    A weight[kPack];
    load(weight, w + n * inputs, p * kPack, inputs, wide);
    for (int r = 0; r < kRows; ++r) {
      if (r >= rows) break;
      A value[kPack];
      load(value, x + r * inputs, p * kPack, inputs, wide);
      for (int i = 0; i < kPack; ++i) sum[r] += value[i] * weight[i];
    }
  }
  for (int r = 0; r < kRows; ++r) {
    const A total = warp_sum(sum[r]);
    if (r < rows && lane() == 0) y[r * outputs + n] = total;
  }
}

template <int kRows, class Out, class S, class W>
void queue(Stream stream, const Tensor& y, const Tensor& x, const W* w) {
  const std::int64_t outputs = y.dim(1), inputs = x.dim(1);
  const S* from = x.address<S>();
  const bool wide = is_wide(from, inputs) && is_wide(w, inputs);
  launch(stream, over_rows((outputs + kWarps - 1) / kWarps, kWarps * kWarp), &few_rows<kRows, Out, S, W>,
         y.address<Out>(), from, w, x.dim(0), outputs, inputs, wide);
}

template <class Out, class S, class W>
void by_rows(Stream stream, const Tensor& y, const Tensor& x, const W* w) {
  if (x.dim(0) == 1) return queue<1, Out, S>(stream, y, x, w);
  if (x.dim(0) <= 4) return queue<4, Out, S>(stream, y, x, w);
  queue<8, Out, S>(stream, y, x, w);
}

}  // namespace

bool Backend::linear_of_few_rows(const Tensor& y, const Tensor& x, const Tensor& seen) {
  if (x.dim(0) < 1 || x.dim(0) > kFewRows) return false;
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    if (y.dtype() == x.dtype()) {
      by_rows<S, S>(stream_, y, x, seen.address<S>());
    } else {
      by_rows<Acc<S>, S>(stream_, y, x, seen.address<S>());
    }
  });
  return true;
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
