// Counts heap allocations of the calling thread: include in exactly one file of a test program, it replaces
// operator new and delete there.
#pragma once
#include <cstdint>
#include <cstdlib>
#include <new>

namespace tessera::test {
inline thread_local std::int64_t allocations = 0;  // since the thread began
}

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++tessera::test::allocations;
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t align) {
  ++tessera::test::allocations;
  const auto a = static_cast<std::size_t>(align);
  if (void* p = std::aligned_alloc(a, (size + a - 1) / a * a)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::align_val_t) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t, std::align_val_t) noexcept {
  std::free(p);
}
