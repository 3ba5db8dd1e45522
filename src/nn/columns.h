// Blocks of columns moved between matrices with the same rows: heads that are taken apart and put together.
// T rows, C and D columns.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace tessera::nn {

struct ColumnPlace {
  std::int64_t first = 0;
  std::int64_t stride = 0;  // from one block to the next
};
struct ColumnMove {
  std::int64_t blocks = 1;
  std::int64_t width = 0;
  ColumnPlace to, from;
};

// dst[t, to.first + b to.stride + j] = src[t, from.first + b from.stride + j], b < blocks, j < width. Other
// columns stay untouched. from.stride 0: the same block goes to every place; to.stride 0: its adjoint, the
// sum over b ascending. f64, f32. dst is not src. Error{internal} when columns lie outside.
void move_columns(tensor::Tensor dst_TC, tensor::Tensor src_TD, const ColumnMove& move);

}  // namespace tessera::nn
