// One tile of a product of matrices: 64 x 64 outputs in shared memory, 4 x 4 a thread, each a sum of sums of
// 128 terms in ascending order. This is the backend's own, exact to the order of its sums; it is not the fast
// way on tensor cores.
#pragma once
#include <type_traits>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

constexpr int kTile = 64, kDepth = 16, kPerThread = 4;
constexpr int kPart = 8;                   // steps of kDepth that one partial sum takes
constexpr int kSide = kTile / kPerThread;  // threads on a side of a tile

// An f32 weight without a packed copy, beside bf16 activations: what the copy would hold.
struct RoundedToBf16 {
  float value;
  __device__ operator float() const { return Bf16(value); }
};

// An operand seen as a matrix: element (row, column) is at row * by_row + column * by_column.
template <class S>
struct Operand {
  const S* data;
  std::int64_t by_row, by_column;
};

// Of out[m, n] = or += a[m, k] b[k, n]: the tile of the outputs from (m0, n0), by a block of kSide^2 threads.
struct Extent {
  std::int64_t m, n, k;
};
template <class A, class Out, class Left, class Right>
__device__ void product_tile(Out* out, Operand<Left> a, Operand<Right> b, Extent extent, std::int64_t m0,
                             std::int64_t n0, Write write) {
  const auto [m, n, k] = extent;
  __shared__ A tile_a[kDepth][kTile];
  __shared__ A tile_b[kDepth][kTile];
  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / kSide, column0 = thread % kSide;
  A sum[kPerThread][kPerThread] = {}, part[kPerThread][kPerThread] = {};
  int steps = 0;
  for (std::int64_t k0 = 0; k0 < k; k0 += kDepth) {
    for (int i = thread; i < kDepth * kTile; i += kSide * kSide) {
      const std::int64_t at = i / kTile, within = i % kTile;
      const bool inside = k0 + at < k;
      tile_a[at][within] =
          inside && m0 + within < m ? A(a.data[(m0 + within) * a.by_row + (k0 + at) * a.by_column]) : A(0);
      tile_b[at][within] =
          inside && n0 + within < n ? A(b.data[(k0 + at) * b.by_row + (n0 + within) * b.by_column]) : A(0);
    }
    __syncthreads();
    const int depth = k - k0 < kDepth ? static_cast<int>(k - k0) : kDepth;
    for (int at = 0; at < depth; ++at) {
      for (int r = 0; r < kPerThread; ++r) {
        for (int c = 0; c < kPerThread; ++c) {
          part[r][c] += tile_a[at][row0 + r * kSide] * tile_b[at][column0 + c * kSide];
        }
      }
    }
    if (++steps % kPart == 0 || k - k0 <= kDepth) {
      for (int r = 0; r < kPerThread; ++r) {
        for (int c = 0; c < kPerThread; ++c) {
          sum[r][c] += part[r][c];
          part[r][c] = A(0);
        }
      }
    }
    __syncthreads();
  }
  for (int r = 0; r < kPerThread; ++r) {
    for (int c = 0; c < kPerThread; ++c) {
      const std::int64_t row = m0 + row0 + r * kSide, column = n0 + column0 + c * kSide;
      if (row >= m || column >= n) continue;
      Out& at = out[row * n + column];
      at = write == Write::accumulate ? at + sum[r][c] : sum[r][c];
    }
  }
}

template <class S>
Operand<S> plain(const Tensor& x) {
  return {x.address<S>(), x.dim(1), 1};
}
template <class S>
Operand<S> transposed(Operand<S> x) {
  return {x.data, x.by_column, x.by_row};
}

// f(operand) with the weight as activations of S see it, [N, K].
template <class S, class F>
void with_weight(const Weight& w, F f) {
  const Tensor& value = w.value_NK;
  const std::int64_t k = value.dim(1);
  if constexpr (!std::is_same_v<S, Bf16>) {
    f(plain<S>(value));
  } else if (w.packed.empty()) {
    f(Operand<RoundedToBf16>{reinterpret_cast<const RoundedToBf16*>(value.address<float>()), k, 1});
  } else {
    f(Operand<Bf16>{reinterpret_cast<const Bf16*>(w.packed.address<std::uint8_t>()), k, 1});
  }
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
