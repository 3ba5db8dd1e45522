// Where the time of a step goes, operation by operation, beside what the machine could do: the roofline
// (Williams,
// Waterman and Patterson 2009) as a table. Pure, thread safe.
#pragma once
#include <cstdint>
#include <optional>
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
  BytesPerSecond bandwidth;  // of a copy; 0: not known
  FlopsPerSecond product;    // the best of a product with three sides of `side`
  std::int64_t side = 0;
  Seconds launch;                                    // from one small call to the next
  Seconds step, fastest;                             // without the clock: the median and the fastest
  double tokens = 0.0;                               // of a step
  double model_flops = 0.0, model_flops_full = 0.0;  // of a token; the second: the whole square of attention
  std::int32_t units = 1;                            // cores or GPUs that the peak is of one of
};

// Of the median step: model FLOPs over what the units could do; none where their peak is not known.
[[nodiscard]] std::optional<double> mfu(const ProfileView& view);
[[nodiscard]] std::optional<double> mfu_full(const ProfileView& view);

enum class Limit : std::uint8_t { compute, memory };
struct Share {
  Limit limit = Limit::memory;
  double reached = 0.0;  // the least time that the limit allows, over the time taken; 0: not known
};
[[nodiscard]] Share share_of(const ProfileRow& row, const ProfileView& view);

// most: rows shown, the others in one; 0: all.
[[nodiscard]] std::string render(const ProfileView& view, std::int32_t most, const Style& style);

}  // namespace tessera::report
