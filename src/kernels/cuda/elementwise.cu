// Element by element: additions, biases, activations, gates, limits, rotary embedding, AdamW; and sums over
// all elements.
#include <cmath>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

template <class S>
__global__ void add_all(S* y, const S* a, const S* b, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) y[i] = a[i] + b[i];
}

template <class To, class From>
__global__ void accumulate_all(To* y, const From* x, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) y[i] += x[i];
}

template <class S, class A = Acc<S>>
__global__ void fill_all(S* y, A value, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) y[i] = value;
}

// One block: 256 threads sum every 256th element, then a tree. f64.
template <class S, class A = Acc<S>>
__global__ void sum_all(double* to, const S* x, std::int64_t n, bool squares, double scale, Write write) {
  double sum = 0;
  for (std::int64_t i = threadIdx.x; i < n; i += blockDim.x) {
    const double value = static_cast<double>(x[i]);
    sum += squares ? value * value : value;
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) *to = (write == Write::accumulate ? *to : 0.0) + scale * sum;
}

template <class S>
struct AdamW {
  S lr, beta1, beta2, one_beta1, one_beta2, eps, decay, correction1, correction2, grad_scale;
};

template <class S>
__global__ void adamw_all(S* p, const S* g, S* m, S* v, AdamW<S> o, std::int64_t n) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const S grad = o.grad_scale * g[i];
    const S mean = o.beta1 * m[i] + o.one_beta1 * grad;
    const S square = o.beta2 * v[i] + o.one_beta2 * grad * grad;
    m[i] = mean;
    v[i] = square;
    p[i] -= o.lr * (mean / o.correction1 / (std::sqrt(square / o.correction2) + o.eps) + o.decay * p[i]);
  }
}

template <class S, class A = Acc<S>>
__global__ void add_bias_all(S* y, const A* b, std::int64_t n, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) y[i] += b[i % width];
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

template <class S, class A = Acc<S>>
__global__ void activation_all(S* h, const S* z, Activation kind, bool gated, A limit, std::int64_t n,
                               std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const S* gate = z + i / width * (gated ? 2 * width : width) + i % width;
    h[i] = activate<A>(kind, gate[0], gated ? gate[width] : gate[0], limit).h;
  }
}

template <class S, class A = Acc<S>>
__global__ void activation_backward_all(S* dz, const S* dh, const S* z, Activation kind, bool gated, A limit,
                                        std::int64_t n, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t at = i / width * (gated ? 2 * width : width) + i % width;
    const A grad = dh[i];
    const Activated<A> a = activate<A>(kind, z[at], gated ? z[at + width] : z[at], limit);
    dz[at] = grad * a.dgate;
    if (gated) dz[at + width] = grad * a.dup;
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

// One thread for each pair of each head of each row. positions: null, row t is at t % seq.
template <class S, class A = Acc<S>>
__global__ void rope_all(S* x, std::int64_t columns, const A* cos, const A* sin, RopeShape shape,
                         bool adjoint, const std::int32_t* positions, std::int64_t n) {
  const std::int64_t pairs = shape.rotated / 2;
  const bool halves = shape.pairs == RopePairs::halves;
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t j = i % pairs, h = i / pairs % shape.heads, t = i / pairs / shape.heads;
    const std::int64_t position = positions == nullptr ? t % shape.seq : positions[t];
    S* head = x + t * columns + shape.first + h * shape.stride;
    S& first = head[halves ? j : 2 * j];
    S& second = head[halves ? j + pairs : 2 * j + 1];
    const A a = first, b = second, c = cos[position * pairs + j];
    const A s = adjoint ? -sin[position * pairs + j] : sin[position * pairs + j];
    first = a * c - b * s;
    second = b * c + a * s;
  }
}

}  // namespace

void Backend::do_add(Tensor y, Tensor a, Tensor b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    const std::int64_t n = y.num_elements();
    launch(stream_, over_elements(n), &add_all<S>, y.address<S>(), a.address<S>(), b.address<S>(), n);
  });
}

void Backend::do_accumulate(Tensor y, Tensor x) {
  const auto add = [&](auto to, auto from) {
    using To = decltype(to);
    using From = decltype(from);
    const std::int64_t n = y.num_elements();
    launch(stream_, over_elements(n), &accumulate_all<To, From>, y.address<To>(), x.address<From>(), n);
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
    launch(stream_, over_elements(n), &fill_all<S>, y.address<S>(), static_cast<A>(value), n);
  });
}

void Backend::launch_sum(double* to, const Tensor& x, bool squares, double scale, Write write) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    launch(stream_, over_rows(1), &sum_all<S>, to, x.address<S>(), x.num_elements(), squares, scale, write);
  });
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
    launch(stream_, over_elements(n), &adamw_all<S>, p.address<S>(), g.address<S>(), m.address<S>(),
           v.address<S>(), options, n);
  });
}

void Backend::do_add_bias(Tensor y, Tensor b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = y.num_elements();
    launch(stream_, over_elements(n), &add_bias_all<S>, y.address<S>(), b.address<A>(), n, y.dim(1));
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
    const std::int64_t n = h.num_elements();
    launch(stream_, over_elements(n), &activation_all<S>, h.address<S>(), z.address<S>(), o.kind, o.gated(),
           static_cast<A>(o.limit), n, h.dim(1));
  });
}

void Backend::do_activation_backward(Tensor dz, Tensor dh, Tensor z, const ActivationOptions& o) {
  with_scalar(dh, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = dh.num_elements();
    launch(stream_, over_elements(n), &activation_backward_all<S>, dz.address<S>(), dh.address<S>(),
           z.address<S>(), o.kind, o.gated(), static_cast<A>(o.limit), n, dh.dim(1));
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
    const std::int64_t n = x.dim(0) * shape.heads * (shape.rotated / 2);
    const std::int32_t* at = positions.empty() ? nullptr : positions.address<std::int32_t>();
    launch(stream_, over_elements(n), &rope_all<S>, x.address<S>(), x.dim(1), cos.address<A>(),
           sin.address<A>(), shape, adjoint, at, n);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
