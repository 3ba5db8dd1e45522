// Where the time of a step goes, operation by operation, beside what the machine could do: the roofline
// (Williams,
// Waterman and Patterson 2009) as a table. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/quantity.h"
#include "report/terminal.h"

namespace tessera::report {

struct ProfileRow {  // of one rank, per step
  std::string name, width;
  double calls = 0.0;
  Seconds time;
  double bytes = 0.0;  // that must be moved
  double flops = 0.0;
};

struct ProfileView {
  std::vector<ProfileRow> rows;  // longest first
  FlopsPerSecond peak;           // 0: not known
  std::string peak_source;
  BytesPerSecond bandwidth;  // 0: not known
  Seconds step;              // without the clock
};

enum class Limit : std::uint8_t { compute, memory };
struct Share {
  Limit limit = Limit::memory;
  double reached = 0.0;  // the least time that the limit allows, over the time taken; 0: not known
};
[[nodiscard]] Share share_of(const ProfileRow& row, const ProfileView& view);

// most: rows shown, the others in one; 0: all.
[[nodiscard]] std::string render(const ProfileView& view, std::int32_t most, const Style& style);

}  // namespace tessera::report
