// Products of matrices: tiles of 64 x 64 in shared memory, 4 x 4 outputs a thread, each output a sum of
// sums of 128 terms in ascending order. This is the backend's own, exact to the order of its sums; it is not
// the fast way on tensor cores.
#include <type_traits>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

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

// out[m, n] = or += a[m, k] b[k, n].
template <class A, class Out, class Left, class Right>
__global__ void __launch_bounds__(kSide* kSide)
    product_tiles(Out* out, Operand<Left> a, Operand<Right> b, std::int64_t m, std::int64_t n, std::int64_t k,
                  Write write) {
  __shared__ A tile_a[kDepth][kTile];
  __shared__ A tile_b[kDepth][kTile];
  const int thread = static_cast<int>(threadIdx.x);
  const int row0 = thread / kSide, column0 = thread % kSide;
  const std::int64_t m0 = static_cast<std::int64_t>(blockIdx.y) * kTile;
  const std::int64_t n0 = static_cast<std::int64_t>(blockIdx.x) * kTile;
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

template <class Out, class Left, class Right>
void product(Stream stream, const Tensor& out, Operand<Left> a, Operand<Right> b, std::int64_t k,
             Write write) {
  const std::int64_t m = out.dim(0), n = out.dim(1);
  const Grid grid = {
      {static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>((m + kTile - 1) / kTile)},
      {kSide * kSide}};
  launch(stream, grid, &product_tiles<Acc<Out>, Out, Left, Right>, out.address<Out>(), a, b, m, n, k, write);
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

// f(Out{}): y or dy beside activations x of S, of the same type or in f32 (the router's logits).
template <class S, class F>
void with_output(const Tensor& y, F f) {
  if (y.dtype() == tensor::dtype_of<S>()) {
    f(S{});
  } else {
    f(Acc<S>{});
  }
}

// The weight as activations of this type read it; none where that is not in memory.
Tensor weight_beside(const Tensor& activations, const Weight& w) {
  const Tensor& value = w.value_NK;
  if (activations.dtype() == value.dtype()) return value;
  if (w.packed.empty()) return {};
  return {w.packed.raw(), DType::bf16, value.shape(), w.packed.device()};
}

__global__ void round_all(Bf16* to, const float* from, std::int64_t n, bool wide) {
  for (std::int64_t p = first_element(); p < packs_of(n); p += element_stride()) {
    float value[kPack];
    load(value, from, p * kPack, n, wide);
    store(to, p * kPack, n, wide, value);
  }
}

}  // namespace

void Backend::do_pack(Weight& w) {
  const std::int64_t n = w.value_NK.num_elements();
  auto* to = reinterpret_cast<Bf16*>(w.packed.address<std::uint8_t>());
  const float* from = w.value_NK.address<float>();
  launch(stream_, over_packs(n), &round_all, to, from, n, is_wide(to, n) && is_wide(from, n));
}

void Backend::do_linear(Tensor y, Tensor x, const Weight& w) {
  const Tensor seen = library_ ? weight_beside(x, w) : Tensor();
  if (!seen.empty() && (linear_of_few_rows(y, x, seen) || library_->linear(y, x, seen))) return;
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    with_output<S>(y, [&](auto out) {
      with_weight<S>(w, [&](auto weight) {
        product<decltype(out)>(stream_, y, plain<S>(x), transposed(weight), x.dim(1), Write::overwrite);
      });
    });
  });
}

void Backend::do_linear_dgrad(Tensor dx, Tensor dy, const Weight& w, Write write) {
  const Tensor seen = library_ ? weight_beside(dy, w) : Tensor();
  if (!seen.empty() && library_->linear_dgrad(dx, dy, seen, write)) return;
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    with_output<S>(dy, [&](auto out) {
      with_weight<S>(w, [&](auto weight) {
        product<S>(stream_, dx, plain<decltype(out)>(dy), weight, dy.dim(1), write);
      });
    });
  });
}

void Backend::do_linear_wgrad(Tensor dw, Tensor dy, Tensor x) {
  if (library_ && library_->linear_wgrad(dw, dy, x)) return;
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    with_output<S>(dy, [&](auto out) {
      product<Acc<S>>(stream_, dw, transposed(plain<decltype(out)>(dy)), plain<S>(x), x.dim(0),
                      Write::accumulate);
    });
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
