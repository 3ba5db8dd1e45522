// Element by element: additions, biases, activations, gates, limits, rotary embedding, AdamW.
#include <cmath>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

template <class S, class A = Acc<S>>
__global__ void add_all(S* y, const S* a, const S* b, std::int64_t n, bool wide) {
  for (std::int64_t p = first_element(); p < packs_of(n); p += element_stride()) {
    A left[kPack], right[kPack];
    load(left, a, p * kPack, n, wide);
    load(right, b, p * kPack, n, wide);
    for (int i = 0; i < kPack; ++i) left[i] += right[i];
    store(y, p * kPack, n, wide, left);
  }
}

template <class To, class From, class A = Acc<To>>
__global__ void accumulate_all(To* y, const From* x, std::int64_t n, bool wide) {
  for (std::int64_t p = first_element(); p < packs_of(n); p += element_stride()) {
    A sum[kPack], more[kPack];
    load(sum, y, p * kPack, n, wide);
    load(more, x, p * kPack, n, wide);
    for (int i = 0; i < kPack; ++i) sum[i] += more[i];
    store(y, p * kPack, n, wide, sum);
  }
}

template <class S, class A = Acc<S>>
__global__ void fill_all(S* y, A value, std::int64_t n, bool wide) {
  A values[kPack];
  for (int i = 0; i < kPack; ++i) values[i] = value;
  for (std::int64_t p = first_element(); p < packs_of(n); p += element_stride())
    store(y, p * kPack, n, wide, values);
}

template <class S>
struct AdamW {
  S lr, beta1, beta2, one_beta1, one_beta2, eps, decay, correction1, correction2, grad_scale;
};

template <class S>
__global__ void adamw_all(S* p, const S* g, S* m, S* v, AdamW<S> o, std::int64_t n, bool wide) {
  for (std::int64_t k = first_element(); k < packs_of(n); k += element_stride()) {
    const std::int64_t at = k * kPack;
    S value[kPack], grad[kPack], mean[kPack], square[kPack];
    load(value, p, at, n, wide);
    load(grad, g, at, n, wide);
    load(mean, m, at, n, wide);
    load(square, v, at, n, wide);
    for (int i = 0; i < kPack; ++i) {
      const S scaled = o.grad_scale * grad[i];
      mean[i] = o.beta1 * mean[i] + o.one_beta1 * scaled;
      square[i] = o.beta2 * square[i] + o.one_beta2 * scaled * scaled;
      const S step = mean[i] / o.correction1 / (std::sqrt(square[i] / o.correction2) + o.eps);
      value[i] -= o.lr * (step + o.decay * value[i]);
    }
    store(m, at, n, wide, mean);
    store(v, at, n, wide, square);
    store(p, at, n, wide, value);
  }
}

template <class S, class A = Acc<S>>
__global__ void add_bias_all(S* y, const A* b, std::int64_t rows, std::int64_t width, bool wide) {
  for (std::int64_t t = first_row(); t < rows; t += row_stride()) {
    for (std::int64_t p = first_pack(); p < packs_of(width); p += pack_stride()) {
      A sum[kPack], bias[kPack];
      load(sum, y + t * width, p * kPack, width, wide);
      load(bias, b, p * kPack, width, wide);
      for (int i = 0; i < kPack; ++i) sum[i] += bias[i];
      store(y + t * width, p * kPack, width, wide, sum);
    }
  }
}

template <class S, class A = Acc<S>>
__global__ void clamp_all(S* x, A limit, std::int64_t n, std::int64_t columns, std::int64_t first,
                          std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    S& at = x[i / width * columns + first + i % width];
    at = at > limit ? limit : (at < -limit ? -limit : at);
  }
}

template <class S, class A = Acc<S>>
__global__ void clamp_backward_all(S* dx, std::int64_t dx_columns, const S* x, std::int64_t x_columns,
                                   A limit, std::int64_t n, std::int64_t first, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t t = i / width, column = first + i % width;
    if (std::abs(x[t * x_columns + column]) >= limit) dx[t * dx_columns + column] = A(0);
  }
}

template <class S>
__device__ S sigmoid(S x) {
  return S(1) / (S(1) + std::exp(-x));
}

template <class S>
struct Activated {
  S h, dgate, dup;
};

template <class S>
__device__ Activated<S> activate(Activation kind, S gate, S up, S limit) {
  switch (kind) {
    case Activation::swiglu: {
      const S s = sigmoid(gate);
      return {gate * s * up, up * s * (S(1) + gate * (S(1) - s)), gate * s};
    }
    case Activation::gelu: {
      const S phi = std::erfc(-gate * S(0.70710678118654752440)) / S(2);
      const S density = std::exp(-gate * gate / S(2)) * S(0.39894228040143267794);  // (2 pi)^-1/2
      return {gate * phi, phi + gate * density, S(0)};
    }
    case Activation::gelu_tanh: {
      const S c = S(1.59576912160573071176);  // 2 sqrt(2 / pi)
      const S s = sigmoid(c * (gate + S(0.044715) * gate * gate * gate));
      const S slope = c * (S(1) + S(3 * 0.044715) * gate * gate);
      return {gate * s, s + gate * s * (S(1) - s) * slope, S(0)};
    }
    case Activation::clamped_swiglu: {
      const S g = gate > limit ? limit : gate;
      const S u = up > limit ? limit : (up < -limit ? -limit : up);
      const S s = sigmoid(S(1.702) * g);
      const S dg = (u + S(1)) * s * (S(1) + S(1.702) * g * (S(1) - s));
      return {(u + S(1)) * g * s, gate < limit ? dg : S(0), std::abs(up) < limit ? g * s : S(0)};
    }
  }
  return {};
}

// z: rows of gate | up, or of what is activated alone.
template <class S, class A = Acc<S>>
__global__ void activation_all(S* h, const S* z, Activation kind, bool gated, A limit, std::int64_t rows,
                               std::int64_t width, bool wide) {
  for (std::int64_t t = first_row(); t < rows; t += row_stride()) {
    const S* row = z + t * (gated ? 2 * width : width);
    for (std::int64_t p = first_pack(); p < packs_of(width); p += pack_stride()) {
      A gate[kPack], up[kPack];
      load(gate, row, p * kPack, width, wide);
      load(up, gated ? row + width : row, p * kPack, width, wide);
      for (int i = 0; i < kPack; ++i) gate[i] = activate<A>(kind, gate[i], up[i], limit).h;
      store(h + t * width, p * kPack, width, wide, gate);
    }
  }
}

template <class S, class A = Acc<S>>
__global__ void activation_backward_all(S* dz, const S* dh, const S* z, Activation kind, bool gated, A limit,
                                        std::int64_t rows, std::int64_t width, bool wide) {
  for (std::int64_t t = first_row(); t < rows; t += row_stride()) {
    const std::int64_t at = t * (gated ? 2 * width : width);
    for (std::int64_t p = first_pack(); p < packs_of(width); p += pack_stride()) {
      A grad[kPack], gate[kPack], up[kPack];
      load(grad, dh + t * width, p * kPack, width, wide);
      load(gate, z + at, p * kPack, width, wide);
      load(up, gated ? z + at + width : z + at, p * kPack, width, wide);
      for (int i = 0; i < kPack; ++i) {
        const Activated<A> a = activate<A>(kind, gate[i], up[i], limit);
        gate[i] = grad[i] * a.dgate;
        up[i] = grad[i] * a.dup;
      }
      store(dz + at, p * kPack, width, wide, gate);
      if (gated) store(dz + at + width, p * kPack, width, wide, up);
    }
  }
}

template <class S, class A = Acc<S>>
__global__ void sigmoid_gate_all(S* y, const S* f, const S* z, std::int64_t n, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride())
    y[i] += sigmoid(A(z[i / width])) * f[i];
}

template <class S, class A = Acc<S>>
__global__ void sigmoid_gate_backward_rows(S* df, S* dz, const S* dy, const S* f, const S* z,
                                           std::int64_t width) {
  const std::int64_t t = blockIdx.x;
  const A s = sigmoid(A(z[t]));
  A sum = 0;
  for (std::int64_t h = threadIdx.x; h < width; h += blockDim.x) {
    const A grad = dy[t * width + h];
    sum += grad * f[t * width + h];
    df[t * width + h] = s * grad;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) dz[t] = s * (A(1) - s) * sum;
}

// Rows over y, packs of pairs of all heads over x. positions: null, row t is at t % seq.
template <class S, class A = Acc<S>>
__global__ void rope_all(S* x, std::int64_t columns, const A* cos, const A* sin, RopeShape shape,
                         bool adjoint, const std::int32_t* positions, std::int64_t rows, bool wide) {
  const std::int64_t pairs = shape.rotated / 2, packs = packs_of(pairs);
  const bool halves = shape.pairs == RopePairs::halves;
  for (std::int64_t t = first_row(); t < rows; t += row_stride()) {
    const std::int64_t position = positions == nullptr ? t % shape.seq : positions[t];
    for (std::int64_t k = first_pack(); k < shape.heads * packs; k += pack_stride()) {
      const std::int64_t h = k / packs, j = k % packs * kPack;
      S* head = x + t * columns + shape.first + h * shape.stride;
      A c[kPack], s[kPack], a[kPack], b[kPack];
      load(c, cos + position * pairs, j, pairs, wide);
      load(s, sin + position * pairs, j, pairs, wide);
      if (halves) {
        load(a, head, j, pairs, wide);
        load(b, head + pairs, j, pairs, wide);
      } else {
        A even[kPack], odd[kPack];
        load(even, head, 2 * j, 2 * pairs, wide);
        load(odd, head, 2 * j + kPack, 2 * pairs, wide);
        for (int i = 0; i < kPack; ++i) {
          a[i] = i < kPack / 2 ? even[2 * i] : odd[2 * i - kPack];
          b[i] = i < kPack / 2 ? even[2 * i + 1] : odd[2 * i + 1 - kPack];
        }
      }
      for (int i = 0; i < kPack; ++i) {
        const A turn = adjoint ? -s[i] : s[i], first = a[i];
        a[i] = first * c[i] - b[i] * turn;
        b[i] = b[i] * c[i] + first * turn;
      }
      if (halves) {
        store(head, j, pairs, wide, a);
        store(head + pairs, j, pairs, wide, b);
      } else {
        A even[kPack], odd[kPack];
        for (int i = 0; i < kPack; ++i) {
          const int at = i / 2;
          even[i] = i % 2 == 0 ? a[at] : b[at];
          odd[i] = i % 2 == 0 ? a[at + kPack / 2] : b[at + kPack / 2];
        }
        store(head, 2 * j, 2 * pairs, wide, even);
        store(head, 2 * j + kPack, 2 * pairs, wide, odd);
      }
    }
  }
}

}  // namespace

void Backend::do_add(Tensor y, Tensor a, Tensor b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t n = y.num_elements();
    S *to = y.address<S>(), *left = a.address<S>(), *right = b.address<S>();
    const bool wide = is_wide(to, n) && is_wide(left, n) && is_wide(right, n);
    launch(stream_, over_packs(n), &add_all<S>, to, left, right, n, wide);
  });
}

void Backend::do_accumulate(Tensor y, Tensor x) {
  const auto add = [&](auto to, auto from) {
    using To = decltype(to);
    using From = decltype(from);
    const std::int64_t n = y.num_elements();
    To* sum = y.address<To>();
    From* more = x.address<From>();
    // A helper thread may call, in its lane.
    launch(place_.stream(), over_packs(n), &accumulate_all<To, From>, sum, more, n,
           is_wide(sum, n) && is_wide(more, n));
  };
  if (y.dtype() == x.dtype()) {
    with_scalar(y, [&](auto zero) { add(zero, zero); });
  } else if (y.dtype() == DType::bf16) {
    add(Bf16{}, float{});
  } else {
    add(float{}, Bf16{});
  }
}

void Backend::do_fill(Tensor y, double value) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = y.num_elements();
    S* to = y.address<S>();
    launch(stream_, over_packs(n), &fill_all<S>, to, static_cast<A>(value), n, is_wide(to, n));
  });
}

void Backend::do_adamw(Tensor p, Tensor g, Tensor m, Tensor v, const AdamWOptions& o) {
  with_stats(p, [&](auto zero) {
    using S = decltype(zero);
    const AdamW<S> options{.lr = static_cast<S>(o.lr),
                           .beta1 = static_cast<S>(o.beta1),
                           .beta2 = static_cast<S>(o.beta2),
                           .one_beta1 = static_cast<S>(1 - o.beta1),
                           .one_beta2 = static_cast<S>(1 - o.beta2),
                           .eps = static_cast<S>(o.eps),
                           .decay = static_cast<S>(o.weight_decay),
                           .correction1 = static_cast<S>(o.bias_correction1),
                           .correction2 = static_cast<S>(o.bias_correction2),
                           .grad_scale = static_cast<S>(o.grad_scale)};
    const std::int64_t n = p.num_elements();
    bool wide = true;
    for (const Tensor& t : {p, g, m, v}) wide = wide && is_wide(t.address<S>(), n);
    launch(stream_, over_packs(n), &adamw_all<S>, p.address<S>(), g.address<S>(), m.address<S>(),
           v.address<S>(), options, n, wide);
  });
}

void Backend::do_add_bias(Tensor y, Tensor b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = y.dim(1);
    S* to = y.address<S>();
    A* bias = b.address<A>();
    launch(stream_, over_matrix(y.dim(0), packs_of(width)), &add_bias_all<S>, to, bias, y.dim(0), width,
           is_wide(to, width) && is_wide(bias, width));
  });
}

void Backend::do_clamp(Tensor x, double limit, std::int64_t first, std::int64_t width) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.dim(0) * width;
    launch(stream_, over_elements(n), &clamp_all<S>, x.address<S>(), static_cast<A>(limit), n, x.dim(1),
           first, width);
  });
}

void Backend::do_clamp_backward(Tensor dx, Tensor x, double limit, std::int64_t first, std::int64_t width) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.dim(0) * width;
    launch(stream_, over_elements(n), &clamp_backward_all<S>, dx.address<S>(), dx.dim(1), x.address<S>(),
           x.dim(1), static_cast<A>(limit), n, first, width);
  });
}

void Backend::do_activation(Tensor h, Tensor z, const ActivationOptions& o) {
  with_scalar(h, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = h.dim(1);
    S *to = h.address<S>(), *from = z.address<S>();
    launch(stream_, over_matrix(h.dim(0), packs_of(width)), &activation_all<S>, to, from, o.kind, o.gated(),
           static_cast<A>(o.limit), h.dim(0), width, is_wide(to, width) && is_wide(from, width));
  });
}

void Backend::do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& o) {
  with_scalar(dh, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = dh.dim(1);
    S *to = dz.address<S>(), *grad = dh.address<S>(), *from = z.address<S>();
    const bool wide = is_wide(to, width) && is_wide(grad, width) && is_wide(from, width);
    launch(stream_, over_matrix(dh.dim(0), packs_of(width)), &activation_backward_all<S>, to, grad, from,
           o.kind, o.gated(), static_cast<A>(o.limit), dh.dim(0), width, wide);
  });
}

void Backend::do_sigmoid_gate(Tensor y, Tensor f, Tensor z) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t n = y.num_elements();
    launch(stream_, over_elements(n), &sigmoid_gate_all<S>, y.address<S>(), f.address<S>(), z.address<S>(), n,
           y.dim(1));
  });
}

void Backend::do_sigmoid_gate_backward(Tensor df, Tensor dz, Tensor dy, Tensor f, Tensor z) {
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    launch(stream_, over_rows(dy.dim(0)), &sigmoid_gate_backward_rows<S>, df.address<S>(), dz.address<S>(),
           dy.address<S>(), f.address<S>(), z.address<S>(), dy.dim(1));
  });
}

void Backend::do_rope(Tensor x, Tensor cos, Tensor sin, const RopeShape& shape, bool adjoint,
                      Tensor positions) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t pairs = shape.rotated / 2;
    const std::int32_t* at = positions.empty() ? nullptr : positions.address<std::int32_t>();
    S* data = x.address<S>();
    A *c = cos.address<A>(), *s = sin.address<A>();
    // Every head begins at a wide place, too.
    bool wide = is_wide(data, x.dim(1)) && is_wide(c, pairs) && is_wide(s, pairs);
    for (const std::int64_t step : {shape.first, shape.stride}) wide = wide && step % kPack == 0;
    launch(stream_, over_matrix(x.dim(0), shape.heads * packs_of(pairs)), &rope_all<S>, data, x.dim(1), c, s,
           shape, adjoint, at, x.dim(0), wide);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
