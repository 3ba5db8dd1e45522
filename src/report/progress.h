// The line that a run rewrites after each step.
//
//   step  123/600  loss 3.2142  18.4 k tok/s   1m 05s left  <bars>  MFU 41.2%  grad 0.82  lr 3.0e-04
//
// Numbers keep their columns, so the line does not jitter. Where room lacks, fields go from the right; the
// order above is the order of worth. Step and loss always stay (clipped at worst). Room to spare is a bar
// behind the step.
#pragma once
#include <cstdint>
#include <optional>
#include <string>

#include "base/quantity.h"
#include "report/terminal.h"

namespace tessera::report {

struct ProgressState {
  std::int64_t step = 0;  // done, from 1
  std::int64_t steps = 0;
  double loss = 0.0;
  std::optional<double> tokens_per_s;  // fields that are not there are left out
  std::optional<Seconds> seconds_left;
  std::string strip;  // heat_strip of the same style; "" none
  std::optional<double> mfu;
  std::optional<double> grad_norm;
  std::optional<double> lr;
};

// One line without a line feed, at most style.width columns.
[[nodiscard]] std::string progress_line(const ProgressState& state, const Style& style);

}  // namespace tessera::report
