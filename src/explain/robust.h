// The choice that holds when the machine is not what the plan says: candidates timed again under seeded
// scenarios of uneven routing, slow nodes and a busy network, and ranked by a quantile of their steps.
//
//   const std::vector<Robust> r = robust_times(setup, candidates, {.quantile = 0.9});
//   r[0].quantile_seconds;                                   // of candidates[0]
//   scenario_seconds(setup, candidates[0], scenario(setup, options, r[0].at));   // the same figure
//
// A scenario is drawn with counter-based random numbers from (seed, index) alone and is the same for every
// candidate, so that differences are those of the candidates:
//   nodes    each node computes 1 + s z times as long, z normal. s is such that the slowest of all nodes is,
//            in the mean over the scenarios, as slow as the calibration's stragglers say, which the plain
//            price adds to every step as a constant; here it falls where the slow node stands;
//   network  all bandwidths above the innermost domain are divided by 1 + network_spread |z|;
//   routing  of a model with experts: the busiest expert gets 1 + routing_excess |z| times the mean, the
//   others
//            follow a power law, popular ones at random places, in every layer others (routing_draw.h). A
//            power law that the setup has stands whole, at random places; measured routing stays as it is.
//
// Ranks that work in lockstep wait for the slowest of their nodes: those of a tensor- and context-parallel
// group, of the replicas that an expert-parallel group spans, with ZeRO-3 of all replicas. The replica whose
// slowest pipeline rank is slowest stands for all: gradients wait for it. A step that runs out of memory in a
// scenario (more tokens on the fullest rank) takes for ever there. Pure, thread safe.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "cost/candidate.h"
#include "cost/step.h"

namespace tessera::explain {

enum class Disturbance : std::uint8_t { nodes, network, routing };
inline constexpr std::int32_t kNumDisturbances = 3;

struct RobustOptions {
  double quantile = 0.9;
  std::int32_t scenarios = 64;
  std::uint64_t seed = 1;
  double network_spread = 0.2;
  double routing_excess = 0.7;
  double alpha = 1.2;                                          // of the power law, where the setup has none
  double memory_fraction = 1.0;                                // of the usable memory
  std::array<bool, kNumDisturbances> on = {true, true, true};  // what is drawn; else it stays as planned
  std::int32_t threads = 0;  // 0: all cores; the figures are the same for any
};

struct Scenario {
  std::vector<double> node_slowdown;  // [nodes]; empty: none, then the constant of the price stands
  double network = 1.0;               // divides the bandwidths above the innermost domain
  cost::RoutingLoad routing;
};
[[nodiscard]] Scenario scenario(const cost::Setup& setup, const RobustOptions& options, std::int32_t index);

// Of a step; infinity where it runs out of memory. REQUIRES a valid candidate.
[[nodiscard]] double scenario_seconds(const cost::Setup& setup, const cost::Candidate& c,
                                      const Scenario& scenario, const RobustOptions& options);

struct Robust {
  double nominal_seconds = 0;   // as planned
  double mean_seconds = 0;      // of the scenarios that fit
  double quantile_seconds = 0;  // the ceil(q S)-th shortest of the S scenarios
  double worst_seconds = 0;     // of those that fit
  std::int32_t overflows = 0;   // scenarios that run out of memory
  std::int32_t at = 0;          // index of the scenario at the quantile
};
// Parallel to `candidates`. Throws Error{config} on a quantile outside of (0, 1] and on no scenarios.
[[nodiscard]] std::vector<Robust> robust_times(const cost::Setup& setup,
                                               std::span<const cost::Candidate> candidates,
                                               const RobustOptions& options);

// Index of the candidate with the shortest quantile; of equals the one that overflows least, then the first.
[[nodiscard]] std::int32_t robust_choice(std::span<const Robust> times);

// Seconds at the quantile beyond the nominal step under each disturbance alone.
[[nodiscard]] std::array<double, kNumDisturbances> price_of_each(const cost::Setup& setup,
                                                                 const cost::Candidate& c,
                                                                 const RobustOptions& options);

}  // namespace tessera::explain
