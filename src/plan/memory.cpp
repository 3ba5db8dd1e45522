#include "plan/memory.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace tessera::plan {

std::string_view name(MemoryKind kind) {
  switch (kind) {
    case MemoryKind::weights:
      return "weights";
    case MemoryKind::packed_weights:
      return "packed";
    case MemoryKind::gradients:
      return "gradients";
    case MemoryKind::optimizer:
      return "optimizer";
    case MemoryKind::saved:
      return "saved";
    case MemoryKind::deferred:
      return "deferred";
    case MemoryKind::scratch:
      return "scratch";
    case MemoryKind::communication:
      return "comm";
    case MemoryKind::tokens:
      return "tokens";
  }
  return "unknown";
}

Bytes RankMemory::total() const {
  Bytes sum;
  for (const Bytes b : bytes) sum += b;
  return sum;
}

std::string describe(const MemoryPlan& memory) {
  std::vector<MemoryKind> shown;
  for (std::int32_t k = 0; k < kNumMemoryKinds; ++k) {
    const auto kind = static_cast<MemoryKind>(k);
    const bool used = std::any_of(memory.ranks.begin(), memory.ranks.end(),
                                  [&](const RankMemory& r) { return r[kind].value != 0; });
    if (used) shown.push_back(kind);
  }
  Bytes largest;
  for (const RankMemory& r : memory.ranks) largest = std::max(largest, r.total());
  std::string out = fmt::format("{:>9}", "rank");
  for (const MemoryKind kind : shown) out += fmt::format(" {:>11}", name(kind));
  out += fmt::format(" {:>11}\n", "total");
  for (std::size_t first = 0; first < memory.ranks.size();) {
    std::size_t last = first;
    while (last + 1 < memory.ranks.size() && memory.ranks[last + 1] == memory.ranks[first]) ++last;
    const RankMemory& r = memory.ranks[first];
    out += fmt::format("{:>9}", first == last ? fmt::format("{}", first) : fmt::format("{}-{}", first, last));
    for (const MemoryKind kind : shown) out += fmt::format(" {:>11}", human(r[kind]));
    out += fmt::format(" {:>11}{}\n", human(r.total()), r.total() == largest ? " <- largest" : "");
    first = last + 1;
  }
  return out;
}

}  // namespace tessera::plan
