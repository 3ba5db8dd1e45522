// What the CUDA sources need of the language and the runtime. They are compiled twice: by nvcc for GPUs, into
// namespace cuda, and by the host compiler for tests, into namespace emulated, over
// tests/support/emulation.h.
//
// Conventions of all kernels: blocks are multiples of 32 threads, sums have a fixed order (no atomic
// additions), so results are the same in every run and do not depend on the grid.
#pragma once
#include <cstdint>
#include <string_view>

#ifdef TESSERA_EMULATED
#define TESSERA_CUDA_NAMESPACE emulated
#else
#include <cuda_runtime.h>
#define TESSERA_CUDA_NAMESPACE cuda
#endif

#include "base/error.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

#ifdef TESSERA_EMULATED
using Stream = emulation::Queue*;  // null: launches run at once
#else
using Stream = cudaStream_t;
// A code of the runtime as Error{io} that names the call.
void check(cudaError_t code, std::string_view call);
#endif

struct Grid {
  dim3 blocks, threads;
  std::size_t shared = 0;  // bytes
};

// Queues kernel(args...) on the stream.
template <class... Params, class... Args>
void launch(Stream stream, const Grid& grid, void (*kernel)(Params...), Args... args) {
  if (grid.blocks.x == 0 || grid.blocks.y == 0) return;  // nothing to do: not a launch
#ifdef TESSERA_EMULATED
  emulation::run_on(stream, [=] {
    emulation::run(grid.blocks, grid.threads, grid.shared, [&] { kernel(static_cast<Params>(args)...); });
  });
#else
  if (grid.shared > 48U << 10U) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(grid.shared)),
          "cudaFuncSetAttribute");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = grid.blocks;
  config.blockDim = grid.threads;
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "cudaLaunchKernelEx");
#endif
}

// The dynamic shared memory of the block.
template <class T>
__device__ T* block_memory() {
#ifdef TESSERA_EMULATED
  return static_cast<T*>(emulation::dynamic_shared());
#else
  extern __shared__ __align__(16) unsigned char bytes[];
  return reinterpret_cast<T*>(bytes);
#endif
}

constexpr unsigned kAllLanes = 0xffffffffU;
constexpr int kWarp = 32;
constexpr int kThreads = 256;  // of a block, where nothing speaks for another number

__device__ inline int lane() {
  return static_cast<int>(threadIdx.x) % kWarp;
}
__device__ inline int warp() {
  return static_cast<int>(threadIdx.x) / kWarp;
}
__device__ inline int num_warps() {
  return static_cast<int>(blockDim.x) / kWarp;
}

// The sum over the lanes, the same bits on all of them.
template <class T>
__device__ T warp_sum(T value) {
#ifdef TESSERA_EMULATED
  return emulation::sum_of_lanes(value);
#else
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += __shfl_xor_sync(kAllLanes, value, mask);
  return value;
#endif
}
template <class T>
__device__ T warp_max(T value) {
  for (int mask = kWarp / 2; mask > 0; mask /= 2) {
    const T other = __shfl_xor_sync(kAllLanes, value, mask);
    value = other > value ? other : value;
  }
  return value;
}
// A number of each warp, for all threads of the block, all of which must call. A barrier has to stand behind
// the last read.
template <class T>
__device__ const T* of_warps(T value) {
  __shared__ T part[kWarp];
  if (lane() == 0) part[warp()] = value;
  __syncthreads();
  return part;
}
// The sum over the block, warps in ascending order, for all of its threads, all of which must call.
template <class T>
__device__ T block_sum(T value) {
  const T* part = of_warps(warp_sum(value));
  T sum = 0;
  for (int w = 0; w < num_warps(); ++w) sum += part[w];
  __syncthreads();
  return sum;
}
template <class T>
__device__ T block_max(T value) {
  const T* part = of_warps(warp_max(value));
  T largest = part[0];
  for (int w = 1; w < num_warps(); ++w) largest = part[w] > largest ? part[w] : largest;
  __syncthreads();
  return largest;
}

// Threads over n elements: for (i = first_element(); i < n; i += element_stride()).
__device__ inline std::int64_t first_element() {
  return static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
}
__device__ inline std::int64_t element_stride() {
  return static_cast<std::int64_t>(gridDim.x) * blockDim.x;
}

inline Grid over_elements(std::int64_t n) {
  const std::int64_t blocks = (n + kThreads - 1) / kThreads;
  const std::int64_t most = std::int64_t{1} << 16;
  return {{static_cast<unsigned>(blocks < most ? blocks : most)}, {kThreads}};
}
// A block for each row.
inline Grid over_rows(std::int64_t rows, int threads = kThreads) {
  return {{static_cast<unsigned>(rows)}, {static_cast<unsigned>(threads)}};
}

// Sums over rows: a block has 32 columns, thread (c, r) every 8th row of column c; then r in ascending order.
constexpr int kRowLanes = 8;

template <class S>
__device__ S column_total(S value) {
  __shared__ S part[kRowLanes][kWarp];
  part[threadIdx.y][threadIdx.x] = value;
  __syncthreads();
  S sum = 0;
  for (int r = 0; r < kRowLanes; ++r) sum += part[r][threadIdx.x];
  __syncthreads();
  return sum;
}
inline Grid over_columns(std::int64_t columns) {
  return {{static_cast<unsigned>((columns + kWarp - 1) / kWarp)}, {kWarp, kRowLanes}};
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
