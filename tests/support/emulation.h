// CUDA's language on the host: what the sources of src/kernels/cuda need of it, so that the same files run in
// tests where there is no GPU. The build puts this header before each of them (-include, TESSERA_EMULATED).
//
// A launch runs its blocks one after the other, each thread of a block a fiber: __syncthreads, __syncwarp and
// the shuffles are real meeting points. Found here, and reported as Error{internal}: threads that wait at
// different points for ever, a barrier that some threads of the block have left. Odd blocks take their
// threads in descending order, so code that leans on an order between two barriers gives other results. Not
// found: races between blocks, reads of __shared__ variables that nobody wrote (dynamic shared memory begins
// as NaN), what memory ordering does on a GPU.
// Launches are finished when `launch` returns, or when their queue is. One thread runs one launch at a time.
#pragma once
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <new>
#include <utility>

#include "support/queue.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __restrict__
#define __launch_bounds__(...)
#define __shared__ static thread_local

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

namespace tessera::emulation {

struct Position {
  dim3 thread, block, block_dim, grid_dim;
};
[[nodiscard]] const Position& here();  // of the running thread

void run(dim3 grid, dim3 block, std::size_t shared_bytes, const std::function<void()>& kernel);

void block_barrier();
void warp_barrier();
// Eight bytes of each lane of this warp, other ones at every second call: whoever writes them again has met
// all lanes since they were read.
[[nodiscard]] std::uint64_t* warp_words();
[[nodiscard]] void* dynamic_shared();

// Every lane gives its value and sees those of all lanes of the warp, until its next exchange but one.
template <class T>
const std::uint64_t* exchange(T value) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t* words = warp_words();
  std::memcpy(&words[here().thread.x % 32], &value, sizeof(T));
  warp_barrier();
  return words;
}
template <class T>
T value_of(const std::uint64_t* words, unsigned lane) {
  T value;
  std::memcpy(&value, &words[lane % 32], sizeof(T));
  return value;
}
// The butterfly of additions of 32 lanes in one meeting instead of five: the same sums.
template <class T>
T sum_of_lanes(T value) {
  const std::uint64_t* words = exchange(value);
  T sums[32], next[32];
  for (unsigned i = 0; i < 32; ++i) sums[i] = value_of<T>(words, i);
  for (unsigned mask = 16; mask > 0; mask /= 2) {
    for (unsigned i = 0; i < 32; ++i) next[i] = sums[i] + sums[i ^ mask];
    std::memcpy(sums, next, sizeof sums);
  }
  return sums[0];
}

}  // namespace tessera::emulation

#define threadIdx (::tessera::emulation::here().thread)
#define blockIdx (::tessera::emulation::here().block)
#define blockDim (::tessera::emulation::here().block_dim)
#define gridDim (::tessera::emulation::here().grid_dim)

inline void __syncthreads() {
  tessera::emulation::block_barrier();
}
inline void __syncwarp(unsigned = 0xffffffffU) {
  tessera::emulation::warp_barrier();
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  const unsigned lane = tessera::emulation::here().thread.x % 32;
  return tessera::emulation::value_of<T>(tessera::emulation::exchange(value),
                                         lane ^ static_cast<unsigned>(mask));
}
// The lanes that give the same value.
template <class T>
unsigned __match_any_sync(unsigned, T value) {
  const std::uint64_t* words = tessera::emulation::exchange(value);
  unsigned same = 0;
  for (unsigned i = 0; i < 32; ++i) {
    same |= (tessera::emulation::value_of<T>(words, i) == value ? 1U : 0U) << i;
  }
  return same;
}
inline int __popc(unsigned bits) {
  return std::popcount(bits);
}
inline int atomicAdd(int* at, int value) {
  const int before = *at;
  *at += value;
  return before;
}
