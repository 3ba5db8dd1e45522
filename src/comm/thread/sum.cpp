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
void add_to_both_loop(T* out, T* out2, const T* a, const T* b, std::int64_t n) {
#pragma GCC ivdep
  for (std::int64_t i = 0; i < n; ++i) {
    const T sum = a[i] + b[i];
    out[i] = sum;
    out2[i] = sum;
  }
}

#if defined(__x86_64__)
// Half a line at a time: fewer stores wait for lines to come over from the peer than with 16 bytes, and 1 MiB
// takes 0.6 of the time (measured). The additions are the same.
template <class T>
[[gnu::target("avx2")]] void add_to_both_wide(T* out, T* out2, const T* a, const T* b, std::int64_t n) {
  using Wide [[gnu::vector_size(32), gnu::aligned(sizeof(T)), gnu::may_alias]] = T;
  constexpr std::int64_t kStep = 32 / static_cast<std::int64_t>(sizeof(T));
  std::int64_t i = 0;
  for (; i + 2 * kStep <= n; i += 2 * kStep) {
    const Wide s = *reinterpret_cast<const Wide*>(a + i) + *reinterpret_cast<const Wide*>(b + i);
    const Wide t =
        *reinterpret_cast<const Wide*>(a + i + kStep) + *reinterpret_cast<const Wide*>(b + i + kStep);
    *reinterpret_cast<Wide*>(out + i) = s;
    *reinterpret_cast<Wide*>(out + i + kStep) = t;
    *reinterpret_cast<Wide*>(out2 + i) = s;
    *reinterpret_cast<Wide*>(out2 + i + kStep) = t;
  }
  add_to_both_loop(out + i, out2 + i, a + i, b + i, n - i);
}
#endif

template <class T>
void add_to_both_typed(void* out, void* out2, const void* a, const void* b, std::int64_t n) {
  auto* loop = &add_to_both_loop<T>;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) loop = &add_to_both_wide<T>;
#endif
  loop(static_cast<T*>(out), static_cast<T*>(out2), static_cast<const T*>(a), static_cast<const T*>(b), n);
}

constexpr std::int64_t kLine = 64;

// See sum.h. Not C++: for the language these would be races with the owner's reads; for the machine they are
// none.
inline void claim_word([[maybe_unused]] const std::byte* at) {
#if defined(__x86_64__)
  std::uint32_t value = 0;
  asm volatile("movl (%1), %0\n\tmovl %0, (%1)" : "=&r"(value) : "r"(at) : "memory");
#endif
}

// One word of each line that [begin, begin + bytes) touches, always inside it.
void claim(const void* begin, std::int64_t bytes) {
  const auto* p = static_cast<const std::byte*>(begin);
  for (std::int64_t i = 0; i + 4 <= bytes; i += kLine) claim_word(p + i);
  if (bytes >= 4) claim_word(p + bytes - 4);
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

// The running sum stays in the first cache while sources stream; small, so that claims follow soon.
constexpr std::int64_t kBlockBytes = 1024;

template <class T>
void fold_typed(T* out, std::span<const void* const> sources, std::int64_t n, Op op, Source kind) {
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
    const auto claim_block = [&](std::size_t s) {
      if (kind == Source::peers) claim(source(s) + i, count * static_cast<std::int64_t>(sizeof(T)));
    };
    const T* left = source(0) + i;
    for (std::size_t s = 1; s <= last; ++s) {
      // out may change only with the last source: it can be one of them.
      T* to = s == last ? out + i : sum.data();
      combine(to, left, source(s) + i, count, op);
      left = to;
      // A source that is `out` holds the result by now; storing that back is as harmless.
      claim_block(s);
    }
    claim_block(0);
  }
}

template <class T>
void add_typed(void* out, const void* theirs, const void* mine, std::int64_t n) {
  constexpr std::int64_t kBlock = kBlockBytes / static_cast<std::int64_t>(sizeof(T));
  const T* a = static_cast<const T*>(theirs);
  for (std::int64_t i = 0; i < n; i += kBlock) {
    const std::int64_t count = std::min(kBlock, n - i);
    add_loop(static_cast<T*>(out) + i, a + i, static_cast<const T*>(mine) + i, count);
    claim(a + i, count * static_cast<std::int64_t>(sizeof(T)));
  }
}

}  // namespace

void add(void* out, const void* theirs, const void* mine, std::int64_t n, DType dtype) {
  if (dtype == DType::f64) return add_typed<double>(out, theirs, mine, n);
  TESSERA_CHECK(dtype == DType::f32, "sums are f64 or f32");
  add_typed<float>(out, theirs, mine, n);
}

void add_to_both(void* out, void* out2, const void* theirs, const void* mine, std::int64_t n, DType dtype) {
  if (dtype == DType::f64) return add_to_both_typed<double>(out, out2, theirs, mine, n);
  TESSERA_CHECK(dtype == DType::f32, "sums are f64 or f32");
  add_to_both_typed<float>(out, out2, theirs, mine, n);
}

namespace {

void copy_then_claim(std::byte* out, const std::byte* in, std::int64_t bytes) {
  for (std::int64_t i = 0; i < bytes; i += kBlockBytes) {
    const std::int64_t count = std::min(kBlockBytes, bytes - i);
    std::memcpy(out + i, in + i, static_cast<std::size_t>(count));
    claim(in + i, count);
  }
}

#if defined(__x86_64__)
// Claims each line right after it was read, before the core has settled for a shared copy: twice as fast as a
// block at a time, and as fast as not claiming.
[[gnu::target("avx2")]] void copy_and_claim(std::byte* out, const std::byte* in, std::int64_t bytes) {
  using Wide [[gnu::vector_size(32), gnu::aligned(1), gnu::may_alias]] = char;
  std::int64_t i = 0;
  for (; i + kLine <= bytes; i += kLine) {
    const Wide a = *reinterpret_cast<const Wide*>(in + i);
    const Wide b = *reinterpret_cast<const Wide*>(in + i + 32);
    *reinterpret_cast<Wide*>(out + i) = a;
    *reinterpret_cast<Wide*>(out + i + 32) = b;
    claim_word(in + i);
  }
  copy_then_claim(out + i, in + i, bytes - i);
}
#endif

}  // namespace

void copy_from_peer(void* out, const void* in, std::int64_t bytes) {
  if (out == in) return;
  auto* copy = &copy_then_claim;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2")) copy = &copy_and_claim;
#endif
  copy(static_cast<std::byte*>(out), static_cast<const std::byte*>(in), bytes);
}

void fold(void* out, std::span<const void* const> sources, std::int64_t n, DType dtype, Op op,
          Source source) {
  if (n == 0) return;
  switch (dtype) {
    case DType::f64:
      return fold_typed(static_cast<double*>(out), sources, n, op, source);
    case DType::f32:
      return fold_typed(static_cast<float*>(out), sources, n, op, source);
    case DType::i64:
      return fold_typed(static_cast<std::int64_t*>(out), sources, n, op, source);
    case DType::i32:
      return fold_typed(static_cast<std::int32_t*>(out), sources, n, op, source);
    case DType::bf16:
    case DType::u8:
      break;
  }
  TESSERA_CHECK(false, "sums are f64, f32, i64 or i32");
}

}  // namespace tessera::comm::thread
