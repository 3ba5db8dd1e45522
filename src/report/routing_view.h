// The experts of a model as a heat map: a line a MoE layer, a bar an expert, and the numbers that say how
// even the load is. Shown at the end of a run, while it trains, and of a routing file. Pure, thread safe.
//
//   layer  load      max/mean    cv   eff  dead  dropped
//       0  <bars>        1.09  0.05   7.98    0     0.0%
#pragma once
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "report/terminal.h"

namespace tessera::report {

struct RoutingRow {  // of one MoE layer
  std::int32_t layer = 0;
  std::vector<double> load;  // per expert, any scale
  double max_over_mean = 0.0;
  double cv = 0.0;         // standard deviation over mean
  double effective = 0.0;  // exp of the entropy of the load: experts that are in use, at most all
  std::int32_t dead = 0;
  // Columns of what no row knows are left out.
  std::optional<double> drop_rate;
  std::optional<double> entropy;                // of the router's choice, nats; at most ln(experts)
  std::optional<double> logit_rms, logit_max;   // of the router, max of absolute values
  std::optional<double> bias_least, bias_most;  // of the choice, where the model has one
};

// The map as a table; "" for no rows.
[[nodiscard]] std::string routing_map(std::span<const RoutingRow> rows, const Style& style);

// What the columns of that map mean, sentences in one paragraph.
[[nodiscard]] std::string routing_note(std::span<const RoutingRow> rows, const Style& style);

[[nodiscard]] std::int32_t most_experts(std::span<const RoutingRow> rows);

}  // namespace tessera::report
