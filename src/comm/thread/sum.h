// The additions of the thread backend. Each output element is one chain in a stated order of sources, so the
// bits do not depend on blocks, threads or timing.
#pragma once
#include <cstdint>
#include <span>

#include "comm/communicator.h"

namespace tessera::comm::thread {

// out[i] = a[i] + b[i] (n elements of f64 or f32); out may be a or b.
void add(void* out, const void* a, const void* b, std::int64_t n, tensor::DType dtype);

// out[i] = sources[0][i] op sources[1][i] op ..., left to right; out may be any of the sources. max passes
// NaN on.
void fold(void* out, std::span<const void* const> sources, std::int64_t n, tensor::DType dtype, Op op);

}  // namespace tessera::comm::thread
