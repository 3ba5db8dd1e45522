// Sums over all elements of a tensor, in f64: parts of it by a block each, then these by one block.
#include <algorithm>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

constexpr std::int64_t kLeastPacks = 1024;  // of a part
constexpr std::int64_t kMostParts = 2048;

template <class S>
__global__ void sum_of_parts(double* parts, const S* x, std::int64_t n, std::int64_t packs, bool squares,
                             bool wide) {
  const std::int64_t begin = static_cast<std::int64_t>(blockIdx.x) * packs;
  const std::int64_t end = begin + packs < packs_of(n) ? begin + packs : packs_of(n);
  double sum = 0;
  for (std::int64_t p = begin + threadIdx.x; p < end; p += blockDim.x) {
    double value[kPack];
    load(value, x, p * kPack, n, wide);
    for (int i = 0; i < kPack; ++i) sum += squares ? value[i] * value[i] : value[i];
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[blockIdx.x] = sum;
}

__global__ void sum_of_all(double* to, const double* parts, std::int64_t n, double scale, Write write) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += parts[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = (write == Write::accumulate ? *to : 0.0) + scale * sum;
}

}  // namespace

void Backend::launch_sum(double* to, const Tensor& x, bool squares, double scale, Write write) {
  const std::int64_t n = x.num_elements();
  const std::int64_t packs = std::max(kLeastPacks, (packs_of(n) + kMostParts - 1) / kMostParts);
  const std::int64_t parts = (packs_of(n) + packs - 1) / packs;
  auto* at = work<double>();
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    const S* from = x.address<S>();
    launch(stream_, over_rows(parts), &sum_of_parts<S>, at, from, n, packs, squares, is_wide(from, n));
  });
  launch(stream_, over_rows(1), &sum_of_all, to, at, parts, scale, write);
}

double Backend::do_sum(Tensor x) {
  launch_sum(result(), x, false, 1.0, Write::overwrite);
  return wait_for_result();
}

double Backend::do_sum_squares(Tensor x) {
  launch_sum(result(), x, true, 1.0, Write::overwrite);
  return wait_for_result();
}

void Backend::do_sum_to(Tensor to, Tensor x, double scale, Write write) {
  launch_sum(to.address<double>(), x, false, scale, write);
}

void Backend::do_sum_squares_to(Tensor to, Tensor x, Write write) {
  launch_sum(to.address<double>(), x, true, 1.0, write);
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
