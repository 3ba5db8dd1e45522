// Products of many experts at once: a tile of outputs finds its expert on the device, so the host need not
// know how many rows each has. bf16 whose rows are whole vectors of 16 bytes goes to tensor cores.
#include <algorithm>

#include "kernels/cuda/column_sums.h"
#include "kernels/cuda/experts.h"
#include "kernels/cuda/mma.h"
#include "kernels/cuda/product_tile.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {
namespace {

enum class Turn : std::uint8_t { as_is, transposed };

// out[rows of e] = in[rows of e] times the weight of e, [rows, n] from [rows, k].
template <class S, class W>
__global__ void __launch_bounds__(kSide* kSide)
    expert_rows(S* out, const S* in, Table<const W> weights, const std::int32_t* begin, int experts,
                std::int64_t n, std::int64_t k, Turn turn) {
  const ExpertTile tile = expert_tile(begin, experts, blockIdx.x, kTile);
  if (tile.row >= tile.end) return;
  const W* weight = weights.at[tile.expert];
  const Operand<W> b = turn == Turn::transposed ? Operand<W>{weight, 1, k} : Operand<W>{weight, n, 1};
  product_tile<Acc<S>>(out + tile.row * n, Operand<S>{in + tile.row * k, k, 1}, b,
                       {tile.end - tile.row, n, k}, 0, std::int64_t{blockIdx.y} * kTile, Write::overwrite);
}

// dw_e[n, k] += dy[rows of e, n]^T x[rows of e, k].
template <class S, class A = Acc<S>>
__global__ void __launch_bounds__(kSide* kSide)
    expert_weights(Table<A> dw, const S* dy, const S* x, const std::int32_t* begin, std::int64_t n,
                   std::int64_t k) {
  const std::int64_t first = begin[blockIdx.z], rows = begin[blockIdx.z + 1] - first;
  if (rows == 0) return;
  product_tile<A>(dw.at[blockIdx.z], Operand<S>{dy + first * n, 1, n}, Operand<S>{x + first * k, k, 1},
                  {n, k, rows}, std::int64_t{blockIdx.y} * kTile, std::int64_t{blockIdx.x} * kTile,
                  Write::accumulate);
}

// expert_rows on tensor cores.
template <Turn turn>
__global__ void __launch_bounds__(kMmaThreads)
    expert_rows_mma(Bf16* out, const Bf16* in, Table<const Bf16> weights, const std::int32_t* begin,
                    int experts, std::int64_t n, std::int64_t k) {
  const ExpertTile tile = expert_tile(begin, experts, blockIdx.x, kMmaTile);
  if (tile.row >= tile.end) return;
  constexpr Terms terms = turn == Turn::transposed ? Terms::along : Terms::across;
  const std::int64_t column0 = std::int64_t{blockIdx.y} * kMmaTile, rows = tile.end - tile.row;
  const Bf16* weight = weights.at[tile.expert] + (turn == Turn::transposed ? column0 * k : column0);
  const MmaSide right = {weight, turn == Turn::transposed ? k : n, n - column0};
  Bf16* corner = out + tile.row * n + column0;
  mma_tile<Terms::along, terms>({in + tile.row * k, k, rows}, right, k,
                                [=](int row, int column, float x, float y) {
                                  if (row >= rows || column >= n - column0) return;
                                  corner[row * n + column] = x;
                                  corner[row * n + column + 1] = y;
                                });
}

// expert_weights on tensor cores.
__global__ void __launch_bounds__(kMmaThreads)
    expert_weights_mma(Table<float> dw, const Bf16* dy, const Bf16* x, const std::int32_t* begin,
                       std::int64_t n, std::int64_t k) {
  const std::int64_t first = begin[blockIdx.z], rows = begin[blockIdx.z + 1] - first;
  if (rows == 0) return;
  const std::int64_t row0 = std::int64_t{blockIdx.y} * kMmaTile,
                     column0 = std::int64_t{blockIdx.x} * kMmaTile;
  float* corner = dw.at[blockIdx.z] + row0 * k + column0;
  mma_tile<Terms::across, Terms::across>({dy + first * n + row0, n, n - row0},
                                         {x + first * k + column0, k, k - column0}, rows,
                                         [=](int row, int column, float value, float next) {
                                           if (row >= n - row0 || column >= k - column0) return;
                                           corner[row * k + column] += value;
                                           corner[row * k + column + 1] += next;
                                         });
}

// A block for each row.
template <class S, class A = Acc<S>>
__global__ void add_expert_bias(S* y, Table<const A> bias, const std::int32_t* begin, int experts,
                                std::int64_t width) {
  const ExpertTile tile = expert_tile(begin, experts, blockIdx.x, 1);
  if (tile.row >= tile.end) return;
  const A* b = bias.at[tile.expert];
  for (std::int64_t i = threadIdx.x; i < width; i += blockDim.x) y[tile.row * width + i] += b[i];
}

// In the order of column_sums.h: parts of the expert's rows, then their sums.
template <class S, class A = Acc<S>>
__global__ void expert_bias_columns(Table<A> db, const S* dy, const std::int32_t* begin, std::int64_t width,
                                    std::int64_t most) {
  const std::int64_t column = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const std::int64_t first = begin[blockIdx.y], end = begin[blockIdx.y + 1];
  if (first == end) return;
  const std::int64_t each = rows_of_part(end - first, most);
  A sum = 0;
  for (std::int64_t part = first; part < end; part += each) {
    const std::int64_t part_end = part + each < end ? part + each : end;
    A mine = 0;
    for (std::int64_t t = part + threadIdx.y; column < width && t < part_end; t += kRowLanes)
      mine += dy[t * width + column];
    sum += column_total(mine);
  }
  if (threadIdx.y == 0 && column < width) db.at[blockIdx.y][column] += sum;
}

// The weights of some experts as activations of S read them.
template <class S, class F>
void with_weights(std::span<const Weight> all, std::size_t first, int count, F f) {
  with_weight<S>(all[0], [&](auto seen) {
    using W = std::remove_const_t<std::remove_pointer_t<decltype(seen.data)>>;
    Table<const W> table{};
    for (int e = 0; e < count; ++e) {
      with_weight<S>(all[first + static_cast<std::size_t>(e)], [&](auto weight) {
        if constexpr (std::is_same_v<decltype(weight), Operand<W>>) table.at[e] = weight.data;
      });
    }
    f(table);
  });
}
template <class T>
Table<T> table_of(std::span<const Tensor> all, std::size_t first, int count) {
  Table<T> table{};
  for (int e = 0; e < count; ++e) {
    table.at[e] = all[first + static_cast<std::size_t>(e)].address<std::remove_const_t<T>>();
  }
  return table;
}

unsigned tiles(std::int64_t n, int width = kTile) {
  return static_cast<unsigned>((n + width - 1) / width);
}

// Whether tensor cores take products of these two, and of the weights of a table.
bool fits_mma(const Tensor& a, const Tensor& b) {
  return a.dim(1) % kVector == 0 && b.dim(1) % kVector == 0 && takes_vectors(a.raw()) &&
         takes_vectors(b.raw());
}
bool fits_mma(const Table<const Bf16>& weights, int count) {
  return std::all_of(weights.at, weights.at + count, [](const Bf16* w) { return takes_vectors(w); });
}

void rows_times_weights(Stream stream, const Tensor& out, const Tensor& in, std::span<const Weight> w,
                        const Tensor& begin, Turn turn) {
  if (out.dim(0) == 0) return;
  with_scalar(out, [&](auto zero) {
    using S = decltype(zero);
    for_tables(w.size(), [&](std::size_t first, int count) {
      with_weights<S>(w, first, count, [&]<class W>(const Table<const W>& table) {
        if constexpr (std::is_same_v<S, Bf16> && std::is_same_v<W, Bf16>) {
          if (fits_mma(out, in) && fits_mma(table, count)) {
            const Grid grid = {{expert_slots(out.dim(0), count, kMmaTile), tiles(out.dim(1), kMmaTile)},
                               {kMmaThreads},
                               kMmaBytes};
            launch(
                stream, grid,
                turn == Turn::transposed ? &expert_rows_mma<Turn::transposed> : &expert_rows_mma<Turn::as_is>,
                out.address<S>(), in.address<S>(), table, begin.address<std::int32_t>() + first, count,
                out.dim(1), in.dim(1));
            return;
          }
        }
        const Grid grid = {{expert_slots(out.dim(0), count, kTile), tiles(out.dim(1))}, {kSide * kSide}};
        launch(stream, grid, &expert_rows<S, W>, out.address<S>(), in.address<S>(), table,
               begin.address<std::int32_t>() + first, count, out.dim(1), in.dim(1), turn);
      });
    });
  });
}

}  // namespace

void Backend::do_experts_linear(Tensor y, Tensor x, std::span<const Weight> w, Tensor begin) {
  rows_times_weights(stream_, y, x, w, begin, Turn::transposed);
}

void Backend::do_experts_linear_dgrad(Tensor dx, Tensor dy, std::span<const Weight> w, Tensor begin) {
  rows_times_weights(stream_, dx, dy, w, begin, Turn::as_is);
}

void Backend::do_experts_linear_wgrad(std::span<const Tensor> dw, Tensor dy, Tensor x, Tensor begin) {
  if (x.dim(0) == 0) return;
  with_scalar(x, [&](auto zero) {
    using S = decltype(zero);
    for_tables(dw.size(), [&](std::size_t first, int count) {
      if constexpr (std::is_same_v<S, Bf16>) {
        if (fits_mma(x, dy)) {
          const Grid grid = {
              {tiles(x.dim(1), kMmaTile), tiles(dy.dim(1), kMmaTile), static_cast<unsigned>(count)},
              {kMmaThreads},
              kMmaBytes};
          launch(stream_, grid, &expert_weights_mma, table_of<float>(dw, first, count), dy.address<S>(),
                 x.address<S>(), begin.address<std::int32_t>() + first, dy.dim(1), x.dim(1));
          return;
        }
      }
      const Grid grid = {{tiles(x.dim(1)), tiles(dy.dim(1)), static_cast<unsigned>(count)}, {kSide * kSide}};
      launch(stream_, grid, &expert_weights<S>, table_of<Acc<S>>(dw, first, count), dy.address<S>(),
             x.address<S>(), begin.address<std::int32_t>() + first, dy.dim(1), x.dim(1));
    });
  });
}

void Backend::do_experts_add_bias(Tensor y, std::span<const Tensor> b, Tensor begin) {
  if (y.dim(0) == 0) return;
  with_scalar(y, [&](auto zero) {
    using S = decltype(zero);
    for_tables(b.size(), [&](std::size_t first, int count) {
      launch(stream_, over_rows(expert_slots(y.dim(0), count, 1)), &add_expert_bias<S>, y.address<S>(),
             table_of<const Acc<S>>(b, first, count), begin.address<std::int32_t>() + first, count, y.dim(1));
    });
  });
}

void Backend::do_experts_bias_wgrad(std::span<const Tensor> db, Tensor dy, Tensor begin) {
  if (dy.dim(0) == 0) return;
  with_scalar(dy, [&](auto zero) {
    using S = decltype(zero);
    for_tables(db.size(), [&](std::size_t first, int count) {
      Grid grid = over_columns(dy.dim(1));
      grid.blocks.y = static_cast<unsigned>(count);
      launch(stream_, grid, &expert_bias_columns<S>, table_of<Acc<S>>(db, first, count), dy.address<S>(),
             begin.address<std::int32_t>() + first, dy.dim(1), most_parts<Acc<S>>(workspace_, dy.dim(1)));
    });
  });
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
