// Two trainings side by side, and what speaks for which: two models, two clusters, two plans, a mixture of
// experts against a dense model. Every figure is of the cost model that `tessera plan` uses; what it cannot
// know, how many tokens which model needs for the same loss, is an assumption with a name (gain).
//
//   const Side a = planned_side("mixtral-8x7b", setup, space, options);
//   for (const Finding& f : findings(a, b, options)) f.point, f.ratio;
//
// Pure but for Side::seconds_of_search, thread safe.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "cost/candidate.h"
#include "cost/step.h"
#include "explain/serving.h"
#include "search/space.h"

namespace tessera::explain {

struct CompareOptions {
  double tokens = 1e12;              // to train on
  double price_per_device_hour = 0;  // 0: the cluster's
  ServingOptions serving;
  double alpha = 1.2;           // of the power law that routing follows when nothing balances it
  double routing_excess = 0.7;  // of the busiest expert beyond the mean when something does
  // For the same loss a dense model of the mixture's active compute needs so many times its tokens; 0: not
  // assumed.
  double gain = 0;
  double memory_fraction = 1.0;
  std::int32_t threads = 0;
};

struct Side {
  std::string name;
  cost::Setup setup;
  bool found = false;  // there is a layout; else only model and serving are known
  std::string why;     // there is none
  cost::Candidate candidate;
  cost::StepCost cost;
  // Of a step of the same layout: experts evenly loaded; the busiest 1 + routing_excess times the mean; the
  // power law, which serving without balancing sees. Dense: all as planned. A routing that the setup has
  // stands in the place of the second.
  double even_seconds = 0, uneven_seconds = 0, power_seconds = 0;
  double network_seconds = 0;  // planned anew on twice the network; 0: it uses none, or the layout is fixed
  std::int32_t fewest_devices =
      0;                       // doublings of one device on which training fits at all; 0: not looked for
  double days = 0, price = 0;  // of the tokens; price 0: not known
  Serving serving;

  [[nodiscard]] double step_tokens() const;
  // Device seconds a token: what is paid for. The other: on twice the network.
  [[nodiscard]] double token_cost() const;
  [[nodiscard]] double token_cost_on_network() const;
  [[nodiscard]] bool has_experts() const { return setup.model.moe.has_value(); }
};
// The fastest layout, as `tessera plan` finds it.
[[nodiscard]] Side planned_side(std::string name, const cost::Setup& setup, const search::Space& space,
                                const CompareOptions& options);
// Of a plan that is there. REQUIRES a valid candidate.
[[nodiscard]] Side fixed_side(std::string name, const cost::Setup& setup, const cost::Candidate& candidate,
                              const CompareOptions& options);

enum class Point : std::uint8_t {
  fits,           // only one has a layout
  time,           // days
  cost,           // price, or device seconds where no price is known
  network,        // waiting for the network, share of the step
  imbalance,      // uneven routing, share of the step
  scale,          // devices to train at all
  serving_hold,   // devices to serve
  serving_alone,  // bytes read for a token at batch 1
  serving_batch   // at the batch
};
inline constexpr std::int32_t kNumPoints = 9;
[[nodiscard]] std::string_view name(Point point);

struct Finding {
  Point point{};
  double first = 0, second = 0;  // less is better
  // 0 or 1; -1: within two per cent.
  [[nodiscard]] std::int32_t better() const;
};
// Those that both sides have figures for.
[[nodiscard]] std::vector<Finding> findings(const Side& a, const Side& b, const CompareOptions& options);

// Why a mixture of experts does not pay on this cluster, or pays less.
enum class Against : std::uint8_t {
  no_layout,  // it does not fit, the dense one does
  cost,       // a token costs more than the assumed gain gives back
  network,    // starved: a tenth of its step or more waits for messages, a quarter more than of the dense one
  imbalance,  // a twentieth or more, under uneven routing
  small_scale,     // it needs more devices to train at all
  serving_memory,  // it needs more devices to serve
  latency          // at the batch it reads a quarter more or above that for a token
};
inline constexpr std::int32_t kNumAgainst = 7;
struct MixtureVerdict {
  std::int32_t mixture = -1;      // which side; -1: not one of each kind
  double cost_ratio = 0;          // device seconds (or price) a token, mixture over dense: the gain needed
  double uneven_cost_ratio = 0;   // with uneven routing
  double network_cost_ratio = 0;  // both on twice the network; 0: not known
  double waiting = 0, dense_waiting = 0;  // for messages of all axes, share of the step
  bool pays = false;                      // gain > cost_ratio; only said when a gain is assumed
  std::vector<Against> against;
};
[[nodiscard]] MixtureVerdict mixture_verdict(const Side& a, const Side& b, const CompareOptions& options);

}  // namespace tessera::explain
