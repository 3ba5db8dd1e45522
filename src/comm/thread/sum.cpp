#include "comm/thread/sum.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace tessera::comm::thread {

using tensor::DType;

namespace {

// Same index on both sides of every statement, so aliasing of out with a source carries nothing over.
template <class T>
void add_loop(T* out, const T* a, const T* b, std::int64_t n) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) out[i] = a[i] + b[i];
}

template <class T>
void max_loop(T* out, const T* a, const T* b, std::int64_t n) {
  // b != b is NaN: it wins over every number, and stays once it is in a.
  for (std::int64_t i = 0; i < n; ++i) out[i] = (b[i] > a[i] || b[i] != b[i]) ? b[i] : a[i];
}

template <class T>
void combine(T* out, const T* a, const T* b, std::int64_t n, Op op) {
  switch (op) {
    case Op::sum:
      return add_loop(out, a, b, n);
    case Op::max:
      return max_loop(out, a, b, n);
  }
}

constexpr std::int64_t kBlockBytes = 8192;  // the running sum stays in the first cache while sources stream

template <class T>
void fold_typed(T* out, std::span<const void* const> sources, std::int64_t n, Op op) {
  constexpr std::int64_t kBlock = kBlockBytes / static_cast<std::int64_t>(sizeof(T));
  const auto source = [&](std::size_t s) { return static_cast<const T*>(sources[s]); };
  if (sources.size() == 1) {
    if (out != source(0)) std::memcpy(out, source(0), static_cast<std::size_t>(n) * sizeof(T));
    return;
  }
  alignas(64) std::array<T, static_cast<std::size_t>(kBlock)> sum;
  const std::size_t last = sources.size() - 1;
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t count = std::min(kBlock, n - i);
    if (last == 1) {
      combine(out + i, source(0) + i, source(1) + i, count, op);
      continue;
    }
    combine(sum.data(), source(0) + i, source(1) + i, count, op);
    for (std::size_t s = 2; s < last; ++s) combine(sum.data(), sum.data(), source(s) + i, count, op);
    // Only now may out change: it can be one of the sources.
    combine(out + i, sum.data(), source(last) + i, count, op);
  }
}

}  // namespace

void add(void* out, const void* a, const void* b, std::int64_t n, DType dtype) {
  if (dtype == DType::f64)
    return add_loop(static_cast<double*>(out), static_cast<const double*>(a), static_cast<const double*>(b),
                    n);
  TESSERA_CHECK(dtype == DType::f32, "sums are f64 or f32");
  add_loop(static_cast<float*>(out), static_cast<const float*>(a), static_cast<const float*>(b), n);
}

void fold(void* out, std::span<const void* const> sources, std::int64_t n, DType dtype, Op op) {
  if (n == 0) return;
  switch (dtype) {
    case DType::f64:
      return fold_typed(static_cast<double*>(out), sources, n, op);
    case DType::f32:
      return fold_typed(static_cast<float*>(out), sources, n, op);
    case DType::i64:
      return fold_typed(static_cast<std::int64_t*>(out), sources, n, op);
    case DType::i32:
      return fold_typed(static_cast<std::int32_t*>(out), sources, n, op);
    case DType::bf16:
    case DType::u8:
      break;
  }
  TESSERA_CHECK(false, "sums are f64, f32, i64 or i32");
}

}  // namespace tessera::comm::thread
