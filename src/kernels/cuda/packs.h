// Reads and writes of eight neighbouring elements by one thread: 16 bytes at a time where memory allows it,
// one by one elsewhere. Which elements a thread has does not depend on that, nor on their type, so sums have
// the same order and bf16 gives what f32 gives, rounded.
#pragma once
#include <cstring>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

constexpr int kPack = 8;
constexpr int kWideBytes = 16;

struct alignas(kWideBytes) Words {
  std::uint32_t word[4];
};

// Whether rows of `width` elements may be read 16 bytes at a time, from the first element of each.
template <class S>
bool is_wide(const S* data, std::int64_t width) {
  return data == nullptr || (reinterpret_cast<std::uintptr_t>(data) % kWideBytes == 0 && width % kPack == 0);
}

__host__ __device__ inline std::int64_t packs_of(std::int64_t width) {
  return (width + kPack - 1) / kPack;
}

// Elements of a row from `first` on, zeros behind its end.
template <class A, class S>
__device__ void load(A (&to)[kPack], const S* row, std::int64_t first, std::int64_t width, bool wide) {
  static_assert(sizeof(S) * kPack % kWideBytes == 0);
  if (wide) {
    constexpr int n = static_cast<int>(sizeof(S)) * kPack / kWideBytes;
    S raw[kPack];
#ifdef TESSERA_EMULATED
    TESSERA_CHECK(reinterpret_cast<std::uintptr_t>(row + first) % kWideBytes == 0, "a wide load is aligned");
    std::memcpy(raw, row + first, n * sizeof(Words));
#else
    Words words[n];
    for (int i = 0; i < n; ++i) words[i] = reinterpret_cast<const Words*>(row + first)[i];
    memcpy(raw, words, sizeof words);
#endif
    for (int i = 0; i < kPack; ++i) to[i] = raw[i];
  } else {
    for (int i = 0; i < kPack; ++i) to[i] = first + i < width ? A(row[first + i]) : A(0);
  }
}

template <class A, class S>
__device__ void store(S* row, std::int64_t first, std::int64_t width, bool wide, const A (&from)[kPack]) {
  if (wide) {
    constexpr int n = static_cast<int>(sizeof(S)) * kPack / kWideBytes;
    S raw[kPack];
    for (int i = 0; i < kPack; ++i) raw[i] = from[i];
#ifdef TESSERA_EMULATED
    TESSERA_CHECK(reinterpret_cast<std::uintptr_t>(row + first) % kWideBytes == 0, "a wide store is aligned");
    std::memcpy(row + first, raw, n * sizeof(Words));
#else
    Words words[n];
    memcpy(words, raw, sizeof words);
    for (int i = 0; i < n; ++i) reinterpret_cast<Words*>(row + first)[i] = words[i];
#endif
  } else {
    for (int i = 0; i < kPack; ++i) {
      if (first + i < width) row[first + i] = from[i];
    }
  }
}

// Threads over the packs of a flat tensor: for (i = first_element(); i < packs; i += element_stride()).
inline Grid over_packs(std::int64_t n) {
  return over_elements(packs_of(n));
}

// Threads over rows of packs, without a division: x over the packs of a row, y over rows.
//   for (t = first_row(); t < rows; t += row_stride()) for (p = first_pack(); p < packs; p += pack_stride())
__device__ inline std::int64_t first_row() {
  return static_cast<std::int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
}
__device__ inline std::int64_t row_stride() {
  return static_cast<std::int64_t>(gridDim.y) * blockDim.y;
}
__device__ inline std::int64_t first_pack() {
  return first_element();
}
__device__ inline std::int64_t pack_stride() {
  return element_stride();
}
inline Grid over_matrix(std::int64_t rows, std::int64_t packs) {
  unsigned x = kWarp;
  while (x < kThreads && x < packs) x *= 2;
  const unsigned y = kThreads / x;
  const auto blocks = [](std::int64_t n, unsigned each) {
    const std::int64_t count = (n + each - 1) / each, most = 65535;
    return static_cast<unsigned>(count < most ? count : most);
  };
  return {{blocks(packs, x), blocks(rows, y)}, {x, y}};
}

// A block for each row, whose threads go over its packs: as many as there is work for.
inline Grid over_wide_rows(std::int64_t rows, std::int64_t width) {
  int threads = kWarp;
  while (threads < kThreads && threads < packs_of(width)) threads *= 2;
  return over_rows(rows, threads);
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
