// Figures derived from a trace: seconds and bytes per axis, what communication compute does not hide, how
// busy each rank is. Pure, thread safe.
#pragma once
#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "trace/trace.h"

namespace tessera::trace {

struct AxisFigures {
  std::int64_t count = 0;  // communication spans
  Seconds total{};         // their wall time, over all ranks
  Seconds exposed{};       // the part that no compute of the same rank hides
  Bytes bytes{};           // moved, over all ranks
  friend bool operator==(const AxisFigures&, const AxisFigures&) = default;
};

struct RankFigures {
  Rank rank{};
  Seconds window{};        // from the first start to the last end of the whole trace
  Seconds busy{};          // some compute span runs and the rank's own thread neither communicates nor waits
  Seconds exposed{};       // some communication runs and the rank is not busy (overlaps counted once)
  Seconds waiting{};       // a wait span runs (overlaps counted once)
  Seconds cpu{};           // CPU time of compute spans where known; nested ones count within the outer one
  std::int64_t flops = 0;  // of all spans
  friend bool operator==(const RankFigures&, const RankFigures&) = default;
};

struct Figures {
  std::array<AxisFigures, kNumAxes> axes{};          // [Axis]
  std::array<Seconds, kNumCategories> categories{};  // [Category] wall time of all spans, nested ones too
  std::vector<RankFigures> ranks;                    // ascending
  Seconds window{};
  [[nodiscard]] const AxisFigures& of(Axis axis) const { return axes[static_cast<std::size_t>(axis)]; }
  [[nodiscard]] Seconds of(Category category) const { return categories[static_cast<std::size_t>(category)]; }
  friend bool operator==(const Figures&, const Figures&) = default;
};

// Of the whole trace, or of the spans of one step. A span communicates when its category is communication,
// its axis may be none. Exposed time of an axis sums over its spans, so two axes exposed at once both count.
[[nodiscard]] Figures figures(const Trace& trace, std::optional<std::int32_t> step = std::nullopt);

}  // namespace tessera::trace
