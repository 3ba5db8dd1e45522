// Products of bf16 matrices on tensor cores, f32 sums: mma.sync m16n8k16 over tiles of 128 x 128 in shared
// memory, copied ahead of their use by cp.async (PTX ISA 9.7: fragments of m16n8k16, ldmatrix, cp.async). The
// emulation does the same instructions lane by lane, with the same fragments.
#pragma once
#include <bit>
#include <cstring>

#include "kernels/cuda/backend.h"

namespace tessera::kernels::TESSERA_CUDA_NAMESPACE {

constexpr int kMmaTile = 128, kMmaDepth = 32, kMmaStages = 3, kMmaThreads = 256;
constexpr int kVector = 8;  // elements of a copy of 16 bytes
// A tile's rows in memory, with a gap that keeps ldmatrix from meeting a bank twice.
constexpr int kAlongPitch = kMmaDepth + kVector, kAcrossPitch = kMmaTile + kVector;
constexpr int kMmaSideElements = kMmaTile * kAlongPitch;  // more than kMmaDepth * kAcrossPitch
constexpr std::size_t kMmaBytes = std::size_t{2} * kMmaStages * kMmaSideElements * sizeof(Bf16);

// --- the instructions

// Queues 16 bytes, or as many zeros.
__device__ inline void copy_vector(Bf16* to, const Bf16* from, bool inside) {
#ifdef TESSERA_EMULATED
  inside ? std::memcpy(to, from, 16) : std::memset(to, 0, 16);
#else
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(to));
  const int bytes = inside ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes) : "memory");
#endif
}
__device__ inline void end_copies() {
#ifndef TESSERA_EMULATED
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Until all but the last `kept` groups of this thread are there.
template <int kept>
__device__ void wait_for_copies() {
#ifndef TESSERA_EMULATED
  asm volatile("cp.async.wait_group %0;" ::"n"(kept) : "memory");
#endif
}

// Four 8 x 8 matrices: lane l gives row l % 8 of matrix l / 8, and gets of each the elements 2 (l % 4) and
// the next of row l / 4; transposed: those rows of column l / 4.
template <bool transposed>
__device__ void load_matrices(std::uint32_t (&to)[4], const Bf16* row) {
#ifdef TESSERA_EMULATED
  const std::uint64_t* rows = emulation::exchange(row);
  const unsigned major = static_cast<unsigned>(lane()) / 4, minor = static_cast<unsigned>(lane()) % 4 * 2;
  for (unsigned j = 0; j < 4; ++j) {
    std::uint16_t pair[2];
    for (unsigned i = 0; i < 2; ++i) {
      const unsigned at_row = transposed ? minor + i : major, at_column = transposed ? major : minor + i;
      std::memcpy(&pair[i], emulation::value_of<const Bf16*>(rows, 8 * j + at_row) + at_column, 2);
    }
    std::memcpy(&to[j], pair, 4);
  }
#else
  const auto at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (transposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
  }
#endif
}

// c[16, 8] += a[16, 16] b[16, 8]. Lane l has of c the columns 2 (l % 4) and the next of rows l / 4 and l / 4
// + 8; of a the same rows, k = 2 (l % 4) and the next, then those 8 further; of b column l / 4 and the same
// k.
__device__ inline void multiply_add(float (&c)[4], const std::uint32_t (&a)[4], std::uint32_t b0,
                                    std::uint32_t b1) {
#ifdef TESSERA_EMULATED
  std::uint32_t all[32][6];
  for (unsigned part = 0; part < 3; ++part) {
    const std::uint32_t mine[2] = {part < 2 ? a[2 * part] : b0, part < 2 ? a[2 * part + 1] : b1};
    const std::uint64_t* words = emulation::exchange(std::bit_cast<std::uint64_t>(mine));
    for (unsigned l = 0; l < 32; ++l) std::memcpy(&all[l][2 * part], &words[l], 8);
  }
  const auto element = [&](unsigned l, unsigned reg, unsigned k) {
    return std::bit_cast<float>((all[l][reg] >> (k % 2 * 16) & 0xffffU) << 16U);
  };
  const auto me = static_cast<unsigned>(lane());
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = me / 4, column = me % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned within = k % 8 / 2, further = k / 8;
      c[i] +=
          element(row * 4 + within, i / 2 + 2 * further, k) * element(column * 4 + within, 4 + further, k);
    }
  }
#else
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
#endif
}

// --- a tile

// One side of a product, from the tile's first row (or column) on: how its elements lie. along: terms of a
// sum follow each other, a row of the side every `pitch` elements; across: rows do, terms every `pitch`.
enum class Terms : std::uint8_t { along, across };
struct MmaSide {
  const Bf16* data;
  std::int64_t pitch;
  std::int64_t rows;  // left from here
};

// Terms [first, first + kMmaDepth) of k, zeros outside. Rows across, or k along, are multiples of kVector.
template <Terms terms>
__device__ void copy_side(Bf16* tile, const MmaSide& side, std::int64_t first, std::int64_t k) {
  for (int i = static_cast<int>(threadIdx.x); i < kMmaTile * kMmaDepth / kVector; i += kMmaThreads) {
    constexpr int width = (terms == Terms::along ? kMmaDepth : kMmaTile) / kVector;
    constexpr int pitch = terms == Terms::along ? kAlongPitch : kAcrossPitch;
    const int line = i / width, at = i % width * kVector;
    const std::int64_t row = terms == Terms::along ? line : at,
                       term = first + (terms == Terms::along ? at : line);
    const bool inside = row < side.rows && term < k;
    const std::int64_t from = terms == Terms::along ? row * side.pitch + term : term * side.pitch + row;
    copy_vector(tile + line * pitch + at, side.data + (inside ? from : 0), inside);
  }
}

// Rows [row, row + 16), terms [term, term + 16) of a tile as four fragments: rows 0-7 and 8-15, terms 0-7
// before 8-15 where rows_first, else terms change first.
template <Terms terms, bool rows_first>
__device__ void load_fragments(std::uint32_t (&to)[4], const Bf16* tile, int row, int term) {
  const int within = lane() % 8, second = lane() / 8 % 2 * 8, fourth = lane() / 16 * 8;
  const int row_step = rows_first ? second : fourth, term_step = rows_first ? fourth : second;
  if constexpr (terms == Terms::along) {
    load_matrices<false>(to, tile + (row + row_step + within) * kAlongPitch + term + term_step);
  } else {
    load_matrices<true>(to, tile + (term + term_step + within) * kAcrossPitch + row + row_step);
  }
}

// store(row, column, value, that of the next column) for the elements of the tile of a[m, k] b[n, k]^T, by a
// block of kMmaThreads with kMmaBytes of memory: eight warps of 64 x 32. Sums run over ascending terms, 16 an
// instruction. Also elements outside of the sides.
template <Terms left, Terms right, class Store>
__device__ void mma_tile(const MmaSide& a, const MmaSide& b, std::int64_t k, Store store) {
  Bf16* memory = block_memory<Bf16>();
  const auto stage = [=](std::int64_t step) { return memory + step % kMmaStages * (2 * kMmaSideElements); };
  const std::int64_t steps = (k + kMmaDepth - 1) / kMmaDepth;
  const auto copy = [&](std::int64_t step) {
    if (step < steps) {
      copy_side<left>(stage(step), a, step * kMmaDepth, k);
      copy_side<right>(stage(step) + kMmaSideElements, b, step * kMmaDepth, k);
    }
    end_copies();
  };
  const int row0 = warp() % 2 * 64, column0 = warp() / 2 * 32;
  float sum[4][4][4] = {};
  for (int step = 0; step + 1 < kMmaStages; ++step) copy(step);
  for (std::int64_t step = 0; step < steps; ++step) {
    wait_for_copies<kMmaStages - 2>();
    __syncthreads();  // this stage is there, and nobody reads the one that is filled next
    copy(step + kMmaStages - 1);
    const Bf16* tile_a = stage(step);
    const Bf16* tile_b = tile_a + kMmaSideElements;
    for (int term = 0; term < kMmaDepth; term += 16) {
      std::uint32_t fa[4][4], fb[2][4];
      for (int i = 0; i < 4; ++i) load_fragments<left, true>(fa[i], tile_a, row0 + 16 * i, term);
      for (int j = 0; j < 2; ++j) load_fragments<right, false>(fb[j], tile_b, column0 + 16 * j, term);
      for (int i = 0; i < 4; ++i) {
        for (int j = 0; j < 4; ++j)
          multiply_add(sum[i][j], fa[i], fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]);
      }
    }
  }
  for (int i = 0; i < 4; ++i) {
    for (int j = 0; j < 4; ++j) {
      const int row = row0 + 16 * i + lane() / 4, column = column0 + 8 * j + lane() % 4 * 2;
      store(row, column, sum[i][j][0], sum[i][j][1]);
      store(row + 8, column, sum[i][j][2], sum[i][j][3]);
    }
  }
}

// Whether the tiles' copies may read it: 16 bytes at a time.
inline bool takes_vectors(const void* data) {
  return reinterpret_cast<std::uintptr_t>(data) % 16 == 0;
}

}  // namespace tessera::kernels::TESSERA_CUDA_NAMESPACE
