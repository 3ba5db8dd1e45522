// Moves of columns.
#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

// One thread for each element that is written.
template <class S, class A = Acc<S>>
__global__ void move_all(S* dst, std::int64_t dst_columns, const S* src, std::int64_t src_columns,
                         ColumnMove m, std::int64_t n) {
  const bool sums = m.to.stride == 0;
  const std::int64_t blocks = sums ? 1 : m.blocks;
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t j = i % m.width, b = i / m.width % blocks, t = i / m.width / blocks;
    const S* from = src + t * src_columns + m.from.first + b * m.from.stride + j;
    A value = *from;
    if (sums) {
      for (std::int64_t k = 1; k < m.blocks; ++k) value += from[k * m.from.stride];
    }
    dst[t * dst_columns + m.to.first + b * m.to.stride + j] = value;
  }
}

}  // namespace

void Backend::do_move_columns(Tensor dst, Tensor src, const ColumnMove& move) {
  with_scalar(dst, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t n = dst.rows() * (move.to.stride == 0 ? 1 : move.blocks) * move.width;
    launch(stream_, over_elements(n), &move_all<S>, dst.address<S>(), dst.dim(1), src.address<S>(),
           src.dim(1), move, n);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
