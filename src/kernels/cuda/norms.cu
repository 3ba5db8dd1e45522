// RMSNorm, LayerNorm and the norms of groups of columns: a block for each row (or group), all sums in its
// tree; gradients of the weights: sums over the rows of a column.
#include <cmath>
#include <type_traits>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

template <class S>
__device__ S rstd_of(S squares, S count, S eps) {
  return S(1) / std::sqrt(squares / count + eps);
}

// mean: null for RMSNorm. b: null for RMSNorm.
template <class A>
__device__ A normed(std::type_identity_t<A> x, const A* mean, A rstd, std::int64_t t) {
  return mean == nullptr ? x * rstd : (x - mean[t]) * rstd;
}

template <class S, class A = Acc<S>>
__global__ void norm_rows(A* mean, A* rstd, const S* x, A eps, std::int64_t width) {
  const std::int64_t t = blockIdx.x;
  const S* row = x + t * width;
  A center = 0;
  if (mean != nullptr) {
    for (std::int64_t h = threadIdx.x; h < width; h += blockDim.x) center += row[h];
    center = block_sum(center) / static_cast<A>(width);
  }
  A squares = 0;
  for (std::int64_t h = threadIdx.x; h < width; h += blockDim.x) {
    squares += (row[h] - center) * (row[h] - center);
  }
  squares = block_sum(squares);
  if (threadIdx.x == 0) {
    if (mean != nullptr) mean[t] = center;
    rstd[t] = rstd_of(squares, static_cast<A>(width), eps);
  }
}

template <class S, class A = Acc<S>>
__global__ void norm_apply_all(S* y, const S* x, const A* mean, const A* rstd, const A* w, const A* b,
                               std::int64_t n, std::int64_t width) {
  for (std::int64_t i = first_element(); i < n; i += element_stride()) {
    const A value = normed(x[i], mean, rstd[i / width], i / width) * w[i % width];
    y[i] = b == nullptr ? value : value + b[i % width];
  }
}

// dx = rstd (g - mean(g) - n mean(g n)), g = dy w, n = the normed x; RMSNorm without mean(g).
template <class S, class A = Acc<S>>
__global__ void norm_dgrad_rows(S* dx, const S* dy, const S* x, const A* mean, const A* rstd, const A* w,
                                std::int64_t width, Write write) {
  const std::int64_t t = blockIdx.x, at = t * width;
  A sum = 0, dots = 0;
  for (std::int64_t h = threadIdx.x; h < width; h += blockDim.x) {
    const A g = dy[at + h] * w[h];
    sum += g;
    dots += g * normed(x[at + h], mean, rstd[t], t);
  }
  const A mean_g = mean == nullptr ? A(0) : block_sum(sum) / static_cast<A>(width);
  const A mean_gn = block_sum(dots) / static_cast<A>(width);
  for (std::int64_t h = threadIdx.x; h < width; h += blockDim.x) {
    const A n = normed(x[at + h], mean, rstd[t], t);
    const A value = rstd[t] * (dy[at + h] * w[h] - mean_g - n * mean_gn);
    dx[at + h] = write == Write::accumulate ? dx[at + h] + value : value;
  }
}

// dw += sum of dy n, db += sum of dy (null: none).
template <class S, class A = Acc<S>>
__global__ void norm_wgrad_columns(A* dw, A* db, const S* dy, const S* x, const A* mean, const A* rstd,
                                   std::int64_t rows, std::int64_t width) {
  const std::int64_t h = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  A weight = 0, bias = 0;
  for (std::int64_t t = threadIdx.y; h < width && t < rows; t += kRowLanes) {
    weight += dy[t * width + h] * normed(x[t * width + h], mean, rstd[t], t);
    bias += dy[t * width + h];
  }
  weight = column_total(weight);
  bias = column_total(bias);
  if (threadIdx.y != 0 || h >= width) return;
  dw[h] += weight;
  if (db != nullptr) db[h] += bias;
}

template <class S, class A = Acc<S>>
__global__ void bias_wgrad_columns(A* db, const S* dy, std::int64_t rows, std::int64_t width, Write write) {
  const std::int64_t n = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  A sum = 0;
  for (std::int64_t t = threadIdx.y; n < width && t < rows; t += kRowLanes) sum += dy[t * width + n];
  sum = column_total(sum);
  if (threadIdx.y == 0 && n < width) db[n] = write == Write::accumulate ? db[n] + sum : sum;
}

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

template <class S, class A = Acc<S>>
__global__ void group_norm_wgrad_columns(A* dw, const S* dy, std::int64_t dy_columns, const S* x,
                                         std::int64_t x_columns, const A* sums, GroupNorm<A> o,
                                         std::int64_t rows, Write write) {
  const std::int64_t j = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  A sum = 0;
  for (std::int64_t i = threadIdx.y; j < o.cols.width && i < rows * o.cols.groups; i += kRowLanes) {
    const std::int64_t t = i / o.cols.groups;
    const std::int64_t at = o.cols.first + i % o.cols.groups * o.cols.width + j;
    sum += dy[t * dy_columns + at] * (x[t * x_columns + at] * rstd_of(sums[i], o.count, o.eps));
  }
  sum = column_total(sum);
  if (threadIdx.y == 0 && j < o.cols.width) dw[j] = write == Write::accumulate ? dw[j] + sum : sum;
}

template <class S>
GroupNorm<S> group_norm_of(const GroupNormOptions& options, const ColumnGroups& cols) {
  return {static_cast<S>(options.count), static_cast<S>(options.eps), cols};
}

}  // namespace

void Backend::do_rms_norm(Tensor y, Tensor rstd, Tensor x, Tensor w, double eps) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_rows(x.dim(0)), &norm_rows<S>, static_cast<A*>(nullptr), rstd.address<A>(),
           x.address<S>(), static_cast<A>(eps), x.dim(1));
  });
  do_rms_norm_apply(y, x, rstd, w);
}

void Backend::do_rms_norm_apply(Tensor y, Tensor x, Tensor rstd, Tensor w) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const A* none = nullptr;
    const std::int64_t n = x.num_elements();
    launch(stream_, over_elements(n), &norm_apply_all<S>, y.address<S>(), x.address<S>(), none,
           rstd.address<A>(), w.address<A>(), none, n, x.dim(1));
  });
}

void Backend::do_rms_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor rstd, Tensor w, Write write) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const A* none = nullptr;
    launch(stream_, over_rows(x.dim(0)), &norm_dgrad_rows<S>, dx.address<S>(), dy.address<S>(),
           x.address<S>(), none, rstd.address<A>(), w.address<A>(), x.dim(1), write);
  });
}

void Backend::do_rms_norm_wgrad(Tensor dw, Tensor dy, Tensor x, Tensor rstd) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    A* no_bias = nullptr;
    const A* no_mean = nullptr;
    launch(stream_, over_columns(x.dim(1)), &norm_wgrad_columns<S>, dw.address<A>(), no_bias, dy.address<S>(),
           x.address<S>(), no_mean, rstd.address<A>(), x.dim(0), x.dim(1));
  });
}

void Backend::do_bias_wgrad(Tensor db, Tensor dy, Write write) {
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_columns(dy.dim(1)), &bias_wgrad_columns<S>, db.address<A>(), dy.address<S>(),
           dy.dim(0), dy.dim(1), write);
  });
}

void Backend::do_layer_norm(Tensor y, Tensor mean, Tensor rstd, Tensor x, Tensor w, Tensor b, double eps) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_rows(x.dim(0)), &norm_rows<S>, mean.address<A>(), rstd.address<A>(), x.address<S>(),
           static_cast<A>(eps), x.dim(1));
  });
  do_layer_norm_apply(y, x, mean, rstd, w, b);
}

void Backend::do_layer_norm_apply(Tensor y, Tensor x, Tensor mean, Tensor rstd, Tensor w, Tensor b) {
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    const std::int64_t n = x.num_elements();
    launch(stream_, over_elements(n), &norm_apply_all<S>, y.address<S>(), x.address<S>(), mean.address<A>(),
           rstd.address<A>(), w.address<A>(), b.address<A>(), n, x.dim(1));
  });
}

void Backend::do_layer_norm_dgrad(Tensor dx, Tensor dy, Tensor x, Tensor mean, Tensor rstd, Tensor w,
                                  Write write) {
  with_scalar(dx, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_rows(x.dim(0)), &norm_dgrad_rows<S>, dx.address<S>(), dy.address<S>(),
           x.address<S>(), mean.address<A>(), rstd.address<A>(), w.address<A>(), x.dim(1), write);
  });
}

void Backend::do_layer_norm_wgrad(Tensor dw, Tensor db, Tensor dy, Tensor x, Tensor mean, Tensor rstd) {
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    using A = Acc<S>;
    launch(stream_, over_columns(x.dim(1)), &norm_wgrad_columns<S>, dw.address<A>(), db.address<A>(),
           dy.address<S>(), x.address<S>(), mean.address<A>(), rstd.address<A>(), x.dim(0), x.dim(1));
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
    launch(stream_, over_columns(cols.width), &group_norm_wgrad_columns<S>, dw.address<A>(), dy.address<S>(),
           dy.dim(1), x.address<S>(), x.dim(1), sums.address<A>(), group_norm_of<A>(options, cols), x.dim(0),
           write);
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
