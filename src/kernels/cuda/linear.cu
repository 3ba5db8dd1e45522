// Products of matrices, by product_tile.h or a library.
#include "kernels/cuda/packs.h"
#include "kernels/cuda/product_tile.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

// out[m, n] = or += a[m, k] b[k, n].
template <class A, class Out, class Left, class Right>
__global__ void __launch_bounds__(kSide* kSide)
    product_tiles(Out* out, Operand<Left> a, Operand<Right> b, Extent extent, Write write) {
  product_tile<A>(out, a, b, extent, std::int64_t{blockIdx.y} * kTile, std::int64_t{blockIdx.x} * kTile,
                  write);
}

template <class Out, class Left, class Right>
void product(Stream stream, const Tensor& out, Operand<Left> a, Operand<Right> b, std::int64_t k,
             Write write) {
  const std::int64_t m = out.dim(0), n = out.dim(1);
  const Grid grid = {
      {static_cast<unsigned>((n + kTile - 1) / kTile), static_cast<unsigned>((m + kTile - 1) / kTile)},
      {kSide * kSide}};
  launch(stream, grid, &product_tiles<Acc<Out>, Out, Left, Right>, out.address<Out>(), a, b, Extent{m, n, k},
         write);
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
