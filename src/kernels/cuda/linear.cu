// Products of matrices: tiles of 64 x 64 in shared memory, 4 x 4 outputs a thread, each output a sum of
// sums of 128 terms in ascending order. This is the backend's own, exact to the order of its sums; it is not
// the fast way on tensor cores.
#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

constexpr int kTile = 64, kDepth = 16, kPerThread = 4;
constexpr int kPart = 8;                   // steps of kDepth that one partial sum takes
constexpr int kSide = kTile / kPerThread;  // threads on a side of a tile

// An operand seen as a matrix: element (row, column) is at row * by_row + column * by_column.
template <class S>
struct Operand {
  const S* data;
  std::int64_t by_row, by_column;
};

// out[m, n] = or += a[m, k] b[k, n].
template <class S>
__global__ void __launch_bounds__(kSide* kSide)
    product_tiles(S* out, Operand<S> a, Operand<S> b, std::int64_t m, std::int64_t n, std::int64_t k,
                  Write write) {
  __shared__ S tile_a[kDepth][kTile];
  __shared__ S tile_b[kDepth][kTile];
  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / kSide, column0 = thread % kSide;
  const std::int64_t m0 = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
  S sum[kPerThread][kPerThread] = {}, part[kPerThread][kPerThread] = {};
  int steps = 0;
  for (std::int64_t k0 = 0; k0 < k; k0 += kDepth) {
    for (int i = thread; i < kDepth * kTile; i += kSide * kSide) {
      const std::int64_t at = i / kTile, within = i % kTile;
      const bool inside = k0 + at < k;
      tile_a[at][within] =
          inside && m0 + within < m ? a.data[(m0 + within) * a.by_row + (k0 + at) * a.by_column] : S(0);
      tile_b[at][within] =
          inside && n0 + within < n ? b.data[(k0 + at) * b.by_row + (n0 + within) * b.by_column] : S(0);
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
          part[r][c] = S(0);
        }
      }
    }
    __syncthreads();
  }
  for (int r = 0; r < kPerThread; ++r) {
    for (int c = 0; c < kPerThread; ++c) {
      const std::int64_t row = m0 + row0 + r * kSide, column = n0 + column0 + c * kSide;
      if (row >= m || column >= n) continue;
      S& at = out[row * n + column];
      at = write == Write::accumulate ? at + sum[r][c] : sum[r][c];
    }
  }
}

template <class S>
void product(Stream stream, const Tensor& out, Operand<S> a, Operand<S> b, std::int64_t k, Write write) {
  const std::int64_t m = out.dim(0), n = out.dim(1);
  const Grid grid = {
      {static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>((m + kTile - 1) / kTile)},
      {kSide * kSide}};
  launch(stream, grid, &product_tiles<S>, out.as<S>(), a, b, m, n, k, write);
}

template <class S>
Operand<S> plain(const Tensor& x) {
  return {x.as<S>(), x.dim(1), 1};
}
template <class S>
Operand<S> transposed(const Tensor& x) {
  return {x.as<S>(), 1, x.dim(1)};
}

}  // namespace

void Backend::do_linear(Tensor y, Tensor x, const Weight& w) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    product(stream_, y, plain<S>(x), transposed<S>(w.value_NK), x.dim(1), Write::overwrite);
  });
}

void Backend::do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    product(stream_, dx, plain<S>(dy), plain<S>(w.value_NK), dy.dim(1), write);
  });
}

void Backend::do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) {
  with_scalar(dw, [&](auto zero) {
    using S = decltype(zero);
    product(stream_, dw, transposed<S>(dy), plain<S>(x), x.dim(0), Write::accumulate);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
