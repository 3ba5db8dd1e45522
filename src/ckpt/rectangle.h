// Rectangles of global tensors: intersection, exact cover, copying the common part. Sizes are in elements.
// No state; any thread.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>

#include "ckpt/safetensors.h"
#include "layout/layout.h"

namespace tessera::ckpt {

using layout::Slice;

[[nodiscard]] std::int64_t area(const Slice& slice);
[[nodiscard]] std::optional<Slice> intersection(const Slice& a, const Slice& b);
[[nodiscard]] std::string text(const Slice& slice);  // "[0:4, 8:16]"

// What keeps `pieces` from covering every element of a `global` tensor exactly once (outside, overlap, gap,
// sizes below 1 or beyond 63 bits), or "". O(n log n).
[[nodiscard]] std::string cover_fault(std::array<std::int64_t, 2> global, std::span<const Slice> pieces);

// Copies the part that `stored` and `wanted` share from the bytes of the one to the tensor of the other, both
// row-major and contiguous, converting to wanted's dtype. Returns the number of elements.
std::int64_t copy_common(const Slice& stored, StoredType type, const std::byte* from, const Slice& wanted,
                         const Tensor& to);

}  // namespace tessera::ckpt
