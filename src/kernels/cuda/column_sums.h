// Sums over the rows of columns, in two steps whose order is fixed by the shape: blocks of rows into a
// workspace, then these in ascending order.
#pragma once
#include <algorithm>

#include "kernels/cuda/packs.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

constexpr std::int64_t kLeastRows = 64;   // of a block
constexpr std::int64_t kMostParts = 512;  // blocks of rows
constexpr std::int64_t kSums = 2;         // of each column: of a weight's gradient and of a bias's

// term.add(sums, row, first): adds what the row gives to each of the columns first, ..., first + kPack - 1.
// parts [part, kSums, columns].
template <class A, class Term>
__global__ void sum_rows_of_columns(A* parts, Term term, std::int64_t rows, std::int64_t each,
                                    std::int64_t columns) {
  __shared__ A shared[kRowLanes][kWarp * kPack];
  const std::int64_t pack = static_cast<std::int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const std::int64_t part = blockIdx.y, first = pack * kPack;
  const std::int64_t end = (part + 1) * each < rows ? (part + 1) * each : rows;
  A sums[kSums][kPack] = {};
  for (std::int64_t t = part * each + threadIdx.y; first < columns && t < end; t += kRowLanes) {
    term.add(sums, t, first);
  }
  for (int s = 0; s < kSums; ++s) {
    for (int i = 0; i < kPack; ++i) shared[threadIdx.y][threadIdx.x * kPack + i] = sums[s][i];
    __syncthreads();
    for (int i = static_cast<int>(threadIdx.y); i < kPack; i += kRowLanes) {
      const std::int64_t column = first + i;
      A sum = 0;
      for (int r = 0; r < kRowLanes; ++r) sum += shared[r][threadIdx.x * kPack + i];
      if (column < columns) parts[(part * kSums + s) * columns + column] = sum;
    }
    __syncthreads();
  }
}

// out[s] (null: not wanted) = or += the sum of its parts.
template <class A>
__global__ void sum_parts_of_columns(A* first_out, A* second_out, const A* parts, std::int64_t num_parts,
                                     std::int64_t columns, Write write) {
  for (std::int64_t i = first_element(); i < kSums * columns; i += element_stride()) {
    A* out = i < columns ? first_out : second_out;
    if (out == nullptr) continue;
    A sum = 0;
    for (std::int64_t p = 0; p < num_parts; ++p) sum += parts[p * kSums * columns + i];
    A& at = out[i < columns ? i : i - columns];
    at = write == Write::accumulate ? at + sum : sum;
  }
}

// most: parts that the workspace has room for.
__host__ __device__ inline std::int64_t rows_of_part(std::int64_t rows, std::int64_t most) {
  const std::int64_t each = (rows + most - 1) / most;
  return each > kLeastRows ? each : kLeastRows;
}
template <class A>
std::int64_t most_parts(const tensor::Buffer& workspace, std::int64_t columns) {
  const std::int64_t room = workspace.size().value / static_cast<std::int64_t>(kSums * columns * sizeof(A));
  TESSERA_CHECK(room >= 1, "a row of sums fits into the workspace");
  return std::min(room, kMostParts);
}

template <class A, class Term>
void sum_columns(Stream stream, const tensor::Buffer& workspace, const Term& term, A* first_out,
                 A* second_out, std::int64_t rows, std::int64_t columns, Write write) {
  const std::int64_t each = rows_of_part(rows, most_parts<A>(workspace, columns));
  const std::int64_t parts = (rows + each - 1) / each;
  A* at = reinterpret_cast<A*>(workspace.data());
  const auto blocks = static_cast<unsigned>((packs_of(columns) + kWarp - 1) / kWarp);
  launch(stream, {{blocks, static_cast<unsigned>(parts)}, {kWarp, kRowLanes}}, &sum_rows_of_columns<A, Term>,
         at, term, rows, each, columns);
  launch(stream, over_elements(kSums * columns), &sum_parts_of_columns<A>, first_out, second_out, at, parts,
         columns, write);
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
