// The additions and copies of the thread backend. Each output element is one chain in a stated order of
// sources, so the bits do not depend on blocks, threads or timing.
//
// Claiming: what a rank has read from a peer's memory it also claims, by storing one value of each cache line
// back unchanged. Otherwise the line stays shared by both cores, and the owner's next write to it must first
// take back the reader's copy. Measured on a Zen 4 virtual machine (two cores, 1 MiB): the owner then writes
// 2 GB/s; lines that a store has moved to the reader are rewritten at 26 GB/s, and reading is as fast as
// before. Values never change, and only bytes that were asked for are stored; but the memory must be
// writable.
#pragma once
#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace tessera::comm::thread {

// Whose memory the sources are: `peers` are claimed.
enum class Source : std::uint8_t { own, peers };

// out[i] = theirs[i] + mine[i] (n elements of f64 or f32); out may be mine. theirs is claimed.
void add(void* out, const void* theirs, const void* mine, std::int64_t n, tensor::DType dtype);
// The same into two places; either may be one of the terms.
void add_to_both(void* out, void* out2, const void* theirs, const void* mine, std::int64_t n,
                 tensor::DType dtype);

// out[i] = sources[0][i] op sources[1][i] op ..., left to right; out may be any of the sources. max passes
// NaN on.
void fold(void* out, std::span<const void* const> sources, std::int64_t n, tensor::DType dtype, Op op,
          Source source);

// A copy out of a peer's memory, which is claimed. Nothing happens when both are the same place.
void copy_from_peer(void* out, const void* in, std::int64_t bytes);

}  // namespace tessera::comm::thread
