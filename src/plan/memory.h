// MemoryPlan: the bytes that each rank of a plan will take, by purpose. Plain data: the engine fills it from
// the dry run of its set-up, the planner from formulas; the text form prints either.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/quantity.h"

namespace tessera::plan {

enum class MemoryKind : std::uint8_t {
  weights,
  packed_weights,  // copies that fast kernels read
  gradients,
  optimizer,      // AdamW moments
  saved,          // kept from F to W, all slots
  deferred,       // handed from I to W, all slots
  scratch,        // inside one call, kernel workspace included
  communication,  // staging buffers
  tokens,         // ids and targets of a step
};
inline constexpr std::int32_t kNumMemoryKinds = 9;
[[nodiscard]] std::string_view name(MemoryKind kind);

struct RankMemory {
  std::array<Bytes, kNumMemoryKinds> bytes{};
  [[nodiscard]] Bytes& operator[](MemoryKind kind) { return bytes[static_cast<std::size_t>(kind)]; }
  [[nodiscard]] Bytes operator[](MemoryKind kind) const { return bytes[static_cast<std::size_t>(kind)]; }
  [[nodiscard]] Bytes total() const;
  friend bool operator==(const RankMemory&, const RankMemory&) = default;
};

struct MemoryPlan {
  std::vector<RankMemory> ranks;  // [world]
  friend bool operator==(const MemoryPlan&, const MemoryPlan&) = default;
};

// One line a rank, one column a purpose (those that are not zero everywhere), the largest rank marked. Ranks
// with equal lines that follow each other share one: "2-3".
[[nodiscard]] std::string describe(const MemoryPlan& memory);

}  // namespace tessera::plan
