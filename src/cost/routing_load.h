// RoutingLoad: how unevenly tokens choose experts, as a distribution, and what follows for a layout: rows of the
// slowest expert-parallel rank, the most loaded receiver, drops under a capacity factor. Pure, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"

namespace tessera::cost {

enum class LoadKind : std::uint8_t {
  balanced,   // forced: every expert gets the same (what most published runs do)
  power_law,  // truncated Pareto with exponent alpha (aiconfigurator's law; 1.01 fits DeepSeek-R1, 1.2 Qwen3)
  histogram,  // measured shares of the experts
};

struct RoutingLoad {
  LoadKind kind = LoadKind::balanced;
  double alpha = 1.2;             // of power_law
  std::vector<double> histogram;  // one share an expert, sums to 1
  friend bool operator==(const RoutingLoad&, const RoutingLoad&) = default;
};

// balanced | power:ALPHA | file of counts (one an expert, blank, comma or newline apart). Error{config}.
[[nodiscard]] RoutingLoad parse_routing_load(std::string_view text);

// Of a layer with num_experts experts, top_k choices a token, cut over ep ranks (contiguous experts).
struct LoadFigures {
  double slowest_rank = 1.0;    // rows of the most loaded ep rank / mean
  double busiest_expert = 1.0;  // rows of the most loaded expert / mean
  double dropped = 0.0;         // share of the choices beyond the capacity
};
[[nodiscard]] LoadFigures load_figures(const RoutingLoad& load, std::int32_t num_experts, std::int32_t top_k,
                                       std::int32_t ep, double capacity_factor);

}  // namespace tessera::cost
