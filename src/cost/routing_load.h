// RoutingLoad: how unevenly tokens choose experts, as a distribution, and what follows for a layout: rows of
// the slowest expert-parallel rank, drops under a capacity factor. Pure, thread safe.
//
//   const LoadFigures f = load_figures({.kind = LoadKind::power_law, .alpha = 1.2}, 256, 8, 32, 0.0);
//   f.slowest_rank;  // its expert products take so many times those of balanced routing
#pragma once
#include <cstdint>
#include <map>
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
  std::vector<double> histogram;  // [num_layers, experts] shares; those of a layer sum to 1
  std::int32_t num_layers = 1;    // of the histogram; a layer's figures are the mean of theirs
  // Of a routing file: [num_layers] their index in the model, and choices of some tokens [T, top_k] each, -1:
  // none. Empty: not known.
  std::vector<std::int32_t> layers = {};
  std::vector<std::vector<std::int16_t>> tokens = {};
  std::int32_t top_k = 0;
  // [num_layers] of [slots] the expert of each slot: replicas share an expert's rows evenly, and ep rank r
  // has the r-th share of the slots where ep divides them. Empty: experts in order.
  std::vector<std::vector<std::int32_t>> expert_of_slot = {};
  friend bool operator==(const RoutingLoad&, const RoutingLoad&) = default;
};

// balanced | power:ALPHA (0 < ALPHA <= 10) | file of counts (one an expert, blank, comma or newline apart; up
// to 65536 of them, none negative, not all 0) | any other file that trace::read_routing reads: all its
// layers with a choice, and what up to 2,048 tokens chose where it says.
// Error{config}, and those of read_routing.
[[nodiscard]] RoutingLoad parse_routing_load(std::string_view text);
// "balanced", "power:1.2", "histogram of 64 experts", "... in 16 layers, placed"
[[nodiscard]] std::string to_text(const RoutingLoad& load);

// Rows of each expert relative to the mean [num_experts], sums to num_experts, ascending for power_law.
//
// power_law: x(u) = ((R^(1-alpha) - 1) u + 1)^(1/(1-alpha)), R^u for alpha = 1, at the quantiles
// u = (i + 0.5) / num_experts. R = xmax / xmin = 0.8 x 4096 tokens (aiconfigurator draws u at random, with
// its number of tokens). No expert gets more than one choice of every token, num_experts / top_k times the
// mean; what is above goes to the others in proportion.
// Of a histogram: layer `layer`. Error{config} when it has another number of experts.
[[nodiscard]] std::vector<double> expert_loads(const RoutingLoad& load, std::int32_t num_experts,
                                               std::int32_t top_k, std::int32_t layer = 0);

// The same load with experts where a placement says; maps [layers of the placement] of [slots] by layer of
// the model. Without a histogram every expert has the same load; one for all layers holds for each.
// Error{config} for a power law, which does not say which expert is hot, for experts that are not the
// histogram's and for layers that the placement does not have.
[[nodiscard]] RoutingLoad placed(const RoutingLoad& load, std::int32_t num_experts,
                                 const std::map<std::int32_t, std::vector<std::int32_t>>& maps);

// Of a layer with num_experts experts, top_k choices a token, cut over ep ranks (contiguous experts, or as
// placed; REQUIRES that ep divides num_experts). Rows are those that are computed, after drops; the mean is
// that of all choices, so a time of balanced experts is multiplied by the figure.
//
// slowest_rank of power_law: nobody knows which experts are popular, so the expectation over random
// assignments of experts to ranks, by 256 shuffles from a fixed seed (standard error about 1 %; some tenths
// of a millisecond: keep the figures of one ep). Of histogram: the experts as they are numbered.
struct LoadFigures {
  double slowest_rank = 1.0;    // rows of the most loaded ep rank / mean
  double busiest_expert = 1.0;  // rows of the most loaded expert / mean
  double dropped = 0.0;         // share of the choices beyond capacity_factor x mean rows of an expert
  // [n] distinct n-ths of the ep ranks that a token's choices lie on, for every n that divides ep: measured
  // on the load's tokens. Empty: not known.
  std::map<std::int32_t, double> parts = {};
  friend bool operator==(const LoadFigures&, const LoadFigures&) = default;
};
// capacity_factor 0: nothing is dropped.
[[nodiscard]] LoadFigures load_figures(const RoutingLoad& load, std::int32_t num_experts, std::int32_t top_k,
                                       std::int32_t ep, double capacity_factor);

}  // namespace tessera::cost
