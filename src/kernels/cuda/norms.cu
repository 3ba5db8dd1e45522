// RMSNorm, LayerNorm and the norms of groups of columns: a block for each row (a warp for each group), all
// sums in its tree, and the row read a second time while it is near; gradients of the weights: sums over the
// rows of a column.
#include <cmath>
#include <type_traits>

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

template <class S>
__device__ S rstd_of(S squares, S count, S eps) {
  return S(1) / std::sqrt(squares / count + eps);
}

template <class A>
__device__ A normed(A x, A center, A rstd) {
  return (x - center) * rstd;
}

template <class A>
struct NormWeights {
  const A* w;
  const A* b;  // null: RMSNorm
};

template <class S, class A>
__device__ void apply_pack(S* y, const S* x, std::int64_t first, NormWeights<A> weights, A center, A rstd,
                           std::int64_t width, bool wide) {
  A value[kPack], weight[kPack], bias[kPack] = {};
  load(value, x, first, width, wide);
  load(weight, weights.w, first, width, wide);
  if (weights.b != nullptr) load(bias, weights.b, first, width, wide);
  for (int i = 0; i < kPack; ++i) {
    value[i] = normed(value[i], center, rstd) * weight[i];
    if (weights.b != nullptr) value[i] += bias[i];
  }
  store(y, first, width, wide, value);
}

// y = the normed row, with its statistics. mean: null for RMSNorm.
template <class S, class A = Acc<S>>
__global__ void norm_rows(S* y, A* mean, A* rstd, const S* x, NormWeights<A> weights, A eps,
                          std::int64_t width, bool wide) {
  const std::int64_t t = blockIdx.x, packs = packs_of(width);
  const S* row = x + t * width;
  A center = 0, sum = 0;
  if (mean != nullptr) {
    for (std::int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
      A value[kPack];
      load(value, row, p * kPack, width, wide);
      for (int i = 0; i < kPack; ++i) sum += value[i];
    }
    center = block_sum(sum) / static_cast<A>(width);
  }
  A squares = 0;
  for (std::int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
    A value[kPack];
    load(value, row, p * kPack, width, wide);
    for (int i = 0; i < kPack; ++i) {
      const A away = value[i] - center;
      if (p * kPack + i < width) squares += away * away;
    }
  }
  const A r = rstd_of(block_sum(squares), static_cast<A>(width), eps);
  if (threadIdx.x == 0) {
    if (mean != nullptr) mean[t] = center;
    rstd[t] = r;
  }
  for (std::int64_t p = threadIdx.x; p < packs; p += blockDim.x)
    apply_pack(y + t * width, row, p * kPack, weights, center, r, width, wide);
}

template <class S, class A = Acc<S>>
__global__ void norm_apply_all(S* y, const S* x, const A* mean, const A* rstd, NormWeights<A> weights,
                               std::int64_t rows, std::int64_t width, bool wide) {
  for (std::int64_t t = first_row(); t < rows; t += row_stride()) {
    const A center = mean == nullptr ? A(0) : mean[t];
    for (std::int64_t p = first_pack(); p < packs_of(width); p += pack_stride())
      apply_pack(y + t * width, x + t * width, p * kPack, weights, center, rstd[t], width, wide);
  }
}

// dx = rstd (g - mean(g) - n mean(g n)), g = dy w, n = the normed x; RMSNorm without mean(g).
template <class S, class A = Acc<S>>
__global__ void norm_dgrad_rows(S* dx, const S* dy, const S* x, const A* mean, const A* rstd, const A* w,
                                std::int64_t width, Write write, bool wide) {
  const std::int64_t t = blockIdx.x, at = t * width, packs = packs_of(width);
  const A center = mean == nullptr ? A(0) : mean[t], r = rstd[t];
  A sum = 0, dots = 0;
  for (std::int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
    A grad[kPack], value[kPack], weight[kPack];
    load(grad, dy + at, p * kPack, width, wide);
    load(value, x + at, p * kPack, width, wide);
    load(weight, w, p * kPack, width, wide);
    for (int i = 0; i < kPack; ++i) {
      const A g = grad[i] * weight[i];
      sum += g;
      dots += g * normed(value[i], center, r);
    }
  }
  const A mean_g = mean == nullptr ? A(0) : block_sum(sum) / static_cast<A>(width);
  const A mean_gn = block_sum(dots) / static_cast<A>(width);
  for (std::int64_t p = threadIdx.x; p < packs; p += blockDim.x) {
    A grad[kPack], value[kPack], weight[kPack], before[kPack] = {};
    load(grad, dy + at, p * kPack, width, wide);
    load(value, x + at, p * kPack, width, wide);
    load(weight, w, p * kPack, width, wide);
    if (write == Write::accumulate) load(before, dx + at, p * kPack, width, wide);
    for (int i = 0; i < kPack; ++i) {
      const A n = normed(value[i], center, r);
      before[i] += r * (grad[i] * weight[i] - mean_g - n * mean_gn);
    }
    store(dx + at, p * kPack, width, wide, before);
  }
}

// What a row gives to the gradients of weight and bias: dy n, and dy.
template <class S, class A = Acc<S>>
struct NormTerm {
  const S *dy, *x;
  const A *mean, *rstd;
  std::int64_t width;
  bool wide;
  __device__ void add(A (&sums)[kSums][kPack], std::int64_t t, std::int64_t first) const {
    const A center = mean == nullptr ? A(0) : mean[t];
    A grad[kPack], value[kPack];
    load(grad, dy + t * width, first, width, wide);
    load(value, x + t * width, first, width, wide);
    for (int i = 0; i < kPack; ++i) {
      sums[0][i] += grad[i] * normed(value[i], center, rstd[t]);
      sums[1][i] += grad[i];
    }
  }
};

template <class S, class A = Acc<S>>
struct BiasTerm {
  const S* dy;
  std::int64_t width;
  bool wide;
  __device__ void add(A (&sums)[kSums][kPack], std::int64_t t, std::int64_t first) const {
    A grad[kPack];
    load(grad, dy + t * width, first, width, wide);
    for (int i = 0; i < kPack; ++i) sums[0][i] += grad[i];
  }
};

// sums = sum of x^2 (w null), or of dy w x. A warp for each group of each row.
template <class S, class A = Acc<S>>
__global__ void group_sums(A* sums, const S* dy, std::int64_t dy_columns, const S* x, std::int64_t x_columns,
                           const A* w, ColumnGroups cols, std::int64_t n) {
  const std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * num_warps() + warp();
  const std::int64_t t = i / cols.groups, at = cols.first + i % cols.groups * cols.width;
  A sum = 0;
  for (std::int64_t j = lane(); i < n && j < cols.width; j += kWarp) {
    const A value = x[t * x_columns + at + j];
    sum += w == nullptr ? value * value : dy[t * dy_columns + at + j] * w[j] * value;
  }
  sum = warp_sum(sum);
  if (i < n && lane() == 0) sums[i] = sum;
}

template <class S>
struct GroupNorm {
  S count, eps;
  ColumnGroups cols;
};

template <class S, class A = Acc<S>>
__global__ void group_norm_all(S* y, std::int64_t y_columns, const S* x, std::int64_t x_columns,
                               const A* sums, const A* w, GroupNorm<A> o, std::int64_t n) {
  const std::int64_t in_row = o.cols.groups * o.cols.width;
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t t = i / in_row, column = i % in_row;
    const A rstd = rstd_of(sums[t * o.cols.groups + column / o.cols.width], o.count, o.eps);
    const std::int64_t at = o.cols.first + column;
    y[t * y_columns + at] = x[t * x_columns + at] * rstd * w[column % o.cols.width];
  }
}

template <class S, class A = Acc<S>>
__global__ void group_norm_dgrad_all(S* dx, std::int64_t dx_columns, const S* dy, std::int64_t dy_columns,
                                     const S* x, std::int64_t x_columns, const A* sums, const A* dots,
                                     const A* w, GroupNorm<A> o, std::int64_t n) {
  const std::int64_t in_row = o.cols.groups * o.cols.width;
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const std::int64_t t = i / in_row, column = i % in_row;
    const std::int64_t group = t * o.cols.groups + column / o.cols.width, at = o.cols.first + column;
    const A rstd = rstd_of(sums[group], o.count, o.eps);
    const A mean = dots[group] / o.count;
    dx[t * dx_columns + at] = rstd * (w[column % o.cols.width] * dy[t * dy_columns + at] -
                                      x[t * x_columns + at] * rstd * rstd * mean);
  }
}

// Rows are the groups of all rows.
template <class S, class A = Acc<S>>
struct GroupNormTerm {
  const S* dy;
  std::int64_t dy_columns;
  const S* x;
  std::int64_t x_columns;
  const A* sums;
  GroupNorm<A> o;
  bool wide;
  __device__ void add(A (&into)[kSums][kPack], std::int64_t i, std::int64_t first) const {
    const std::int64_t t = i / o.cols.groups, at = o.cols.first + i % o.cols.groups * o.cols.width;
    const A rstd = rstd_of(sums[i], o.count, o.eps);
    A grad[kPack], value[kPack];
    load(grad, dy + t * dy_columns + at, first, o.cols.width, wide);
    load(value, x + t * x_columns + at, first, o.cols.width, wide);
    for (int k = 0; k < kPack; ++k) into[0][k] += grad[k] * (value[k] * rstd);
  }
};

template <class S>
GroupNorm<S> group_norm_of(const GroupNormOptions& options, const ColumnGroups& cols) {
  return {static_cast<S>(options.count), static_cast<S>(options.eps), cols};
}

}  // namespace

void Backend::norm(const Tensor& y, const NormStats& stats, const Tensor& x, const Tensor& w, const Tensor& b,
                   double eps) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = x.dim(1);
    S *to = y.address<S>(), *from = x.address<S>();
    const NormWeights<A> weights{w.address<A>(), address_or_null<A>(b)};
    const bool wide =
        is_wide(to, width) && is_wide(from, width) && is_wide(weights.w, width) && is_wide(weights.b, width);
    launch(stream_, over_wide_rows(x.dim(0), width), &norm_rows<S>, to, address_or_null<A>(stats.mean),
           stats.rstd.address<A>(), from, weights, static_cast<A>(eps), width, wide);
  });
}

void Backend::norm_apply(const Tensor& y, const NormStats& stats, const Tensor& x, const Tensor& w,
                         const Tensor& b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = x.dim(1);
    S *to = y.address<S>(), *from = x.address<S>();
    const NormWeights<A> weights{w.address<A>(), address_or_null<A>(b)};
    const bool wide =
        is_wide(to, width) && is_wide(from, width) && is_wide(weights.w, width) && is_wide(weights.b, width);
    launch(stream_, over_matrix(x.dim(0), packs_of(width)), &norm_apply_all<S>, to, from,
           address_or_null<A>(stats.mean), stats.rstd.address<A>(), weights, x.dim(0), width, wide);
  });
}

void Backend::norm_dgrad(const Tensor& dx, const Tensor& dy, const Tensor& x, const NormStats& stats,
                         const Tensor& w, Write write) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = x.dim(1);
    S *to = dx.address<S>(), *grad = dy.address<S>(), *from = x.address<S>();
    A* weight = w.address<A>();
    const bool wide =
        is_wide(to, width) && is_wide(grad, width) && is_wide(from, width) && is_wide(weight, width);
    launch(stream_, over_wide_rows(x.dim(0), width), &norm_dgrad_rows<S>, to, grad, from,
           address_or_null<A>(stats.mean), stats.rstd.address<A>(), weight, width, write, wide);
  });
}

void Backend::norm_wgrad(const Tensor& dw, const Tensor& db, const Tensor& dy, const Tensor& x,
                         const NormStats& stats) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = x.dim(1);
    S *grad = dy.address<S>(), *from = x.address<S>();
    const NormTerm<S> term{grad,
                           from,
                           address_or_null<A>(stats.mean),
                           stats.rstd.address<A>(),
                           width,
                           is_wide(grad, width) && is_wide(from, width)};
    sum_columns(stream_, workspace_, term, dw.address<A>(), address_or_null<A>(db), x.dim(0), width,
                Write::accumulate);
  });
}

void Backend::do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  norm(y, {{}, rstd}, x, w, {}, eps);
}
void Backend::do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) {
  norm_apply(y, {{}, rstd}, x, w, {});
}
void Backend::do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) {
  norm_dgrad(dx, dy, x, {{}, rstd}, w, write);
}
void Backend::do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  norm_wgrad(dw, {}, dy, x, {{}, rstd});
}
void Backend::do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) {
  norm(y, {mean, rstd}, x, w, b, eps);
}
void Backend::do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) {
  norm_apply(y, {mean, rstd}, x, w, b);
}
void Backend::do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                                  Write write) {
  norm_dgrad(dx, dy, x, {mean, rstd}, w, write);
}
void Backend::do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) {
  norm_wgrad(dw, db, dy, x, {mean, rstd});
}

void Backend::do_bias_wgrad(Tensor db, Tensor dy, Write write) {
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t width = dy.dim(1);
    S* grad = dy.address<S>();
    A* none = nullptr;
    sum_columns(stream_, workspace_, BiasTerm<S>{grad, width, is_wide(grad, width)}, db.address<A>(), none,
                dy.dim(0), width, write);
  });
}

void Backend::do_group_squares(Tensor sums, Tensor x, const ColumnGroups& cols) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const S* no_dy = nullptr;
    const A* no_w = nullptr;
    const std::int64_t n = x.dim(0) * cols.groups, none_columns = 0;
    launch(stream_, over_rows((n + kThreads / kWarp - 1) / (kThreads / kWarp)), &group_sums<S>,
           sums.address<A>(), no_dy, none_columns, x.address<S>(), x.dim(1), no_w, cols, n);
  });
}

void Backend::do_group_norm(Tensor y, Tensor x, Tensor sums, Tensor w, const GroupNormOptions& options,
                            const ColumnGroups& cols) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.dim(0) * cols.groups * cols.width;
    launch(stream_, over_elements(n), &group_norm_all<S>, y.address<S>(), y.dim(1), x.address<S>(), x.dim(1),
           sums.address<A>(), w.address<A>(), group_norm_of<A>(options, cols), n);
  });
}

void Backend::do_group_norm_dots(Tensor dots, Tensor dy, Tensor x, Tensor w, const ColumnGroups& cols) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.dim(0) * cols.groups;
    launch(stream_, over_rows((n + kThreads / kWarp - 1) / (kThreads / kWarp)), &group_sums<S>,
           dots.address<A>(), dy.address<S>(), dy.dim(1), x.address<S>(), x.dim(1), w.address<A>(), cols, n);
  });
}

void Backend::do_group_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor sums, Tensor dots, Tensor w,
                                  const GroupNormOptions& options, const ColumnGroups& cols) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.dim(0) * cols.groups * cols.width;
    launch(stream_, over_elements(n), &group_norm_dgrad_all<S>, dx.address<S>(), dx.dim(1), dy.address<S>(),
           dy.dim(1), x.address<S>(), x.dim(1), sums.address<A>(), dots.address<A>(), w.address<A>(),
           group_norm_of<A>(options, cols), n);
  });
}

void Backend::do_group_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor sums,
                                  const GroupNormOptions& options, const ColumnGroups& cols, Write write) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    S *grad = dy.address<S>(), *from = x.address<S>();
    const bool wide = is_wide(grad, dy.dim(1)) && is_wide(from, x.dim(1)) && cols.first % kPack == 0 &&
                      cols.width % kPack == 0;
    const GroupNormTerm<S> term{
        grad, dy.dim(1), from, x.dim(1), sums.address<A>(), group_norm_of<A>(options, cols), wide};
    A* none = nullptr;
    sum_columns(stream_, workspace_, term, dw.address<A>(), none, x.dim(0) * cols.groups, cols.width, write);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
