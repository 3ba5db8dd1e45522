// Line charts of braille dots (2 x 4 to a cell) with axes, for the loss against steps.
//
//   line_chart({{.label = "loss", .values = losses}}, {{.label = "unigram entropy", .value = 6.12}},
//              {.style = {.width = 80}, .x_label = "step", .y_label = "nats per token"});
//
// Values that are not finite are gaps. Where several points share a dot column, the column shows their range
// from smallest to largest. The chart covers all finite values and the reference lines. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "report/terminal.h"

namespace tessera::report {

struct Series {
  std::string label;
  std::vector<double> values;
  double first_x = 1.0;  // of values[0]
  double x_step = 1.0;   // > 0, from each value to the next
};

struct ReferenceLine {
  std::string label;
  double value = 0.0;  // not finite: left out
};

struct ChartOptions {
  Style style;
  std::int32_t height = 12;  // rows of the plot, without axis and labels; at least 2
  std::string x_label, y_label;
};

// Ends with a line feed; "" when no value is finite. The first series is a line, further ones are dotted.
// Throws Error{internal} on an x_step that is not above 0.
[[nodiscard]] std::string line_chart(const std::vector<Series>& series,
                                     const std::vector<ReferenceLine>& lines, const ChartOptions& options);

// Ascending multiples of 1, 2 or 5 x 10^n (n >= 0 when `whole`) inside [low, high]: at most `max_count` (>=
// 1).
struct Ticks {
  std::vector<double> at;
  std::int32_t decimals = 0;  // that all of them need
};
[[nodiscard]] Ticks nice_ticks(double low, double high, std::int32_t max_count, bool whole = false);

}  // namespace tessera::report
