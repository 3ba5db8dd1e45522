// Relaxed hierarchical placement: every expert keeps one replica on the home node of its group (which group
// lives where is packed by load, as the published balancer does), the spare slots of all nodes hold any
// expert. Traffic that group-limited routing keeps within few nodes mostly stays there, and hot groups no
// longer overload their node. The share of choices served off their home node is what it costs.
//
// Deterministic, pure, thread safe.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "place/placement.h"
#include "place/search.h"

namespace tessera::place {

struct RelaxedOptions {
  double off_home = 0.5;  // weight against 1 of the fullest device
  SearchOptions search;
};

struct RelaxedMap {
  LayerMap map;
  std::vector<std::int32_t> home;  // [E] node
  double off_home = 0.0;           // share of the choices served off it
};

// REQUIRES num_groups that the nodes divide and that divides the experts, and slots of a node for its home
// experts. windows: at least one.
[[nodiscard]] RelaxedMap relaxed(const std::vector<std::vector<double>>& windows, const Machine& machine,
                                 std::int32_t num_groups, const RelaxedOptions& options);

// The best that intact groups allow: no packing of whole groups to nodes, of as many each, has a lighter
// heaviest node than this share of the mean. Exact up to 16 groups, else a bound.
[[nodiscard]] double intact_groups_bound(std::span<const double> load, const Machine& machine,
                                         std::int32_t num_groups);

// No relaxed placement has a lighter heaviest node. Of any nodes together: what leaves them must go to the
// spare slots of the others, and so many only take so much (largest gain first, which is optimal), even if it
// weighed nothing there. Taken over the heaviest 1, 2, ... nodes; relative to the mean node.
[[nodiscard]] double relaxed_bound(std::span<const double> load, const Machine& machine,
                                   std::span<const std::int32_t> home);

}  // namespace tessera::place
