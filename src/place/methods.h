// The methods of `tessera place`, all under one signature: statistics, a machine and a wish in, one map a
// layer out, with a proven bound beside each. Layers are independent and run on as many threads as asked; the
// result does not depend on how many.
//
//   const PlaceResult r = place_experts(input, {.machine = machine, .method = Method::balance});
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "place/evaluate.h"
#include "place/input.h"
#include "place/placement.h"

namespace tessera::place {

enum class Method : std::uint8_t {
  contiguous,        // slot s holds expert s modulo E
  random,            // shuffled
  published,         // DeepSeek's balancer, hierarchical where the nodes divide the groups
  published_global,  // the same with slots anywhere
  balance,           // even load, slots anywhere
  relaxed,           // groups keep their nodes, spare slots hold any expert
  traffic,           // fewest distinct nodes per token under a cap on the load of a node
  seconds,           // the candidate of all these with the least predicted seconds
};
[[nodiscard]] std::string_view name(Method method);
[[nodiscard]] std::vector<std::string> method_names();
[[nodiscard]] Method method_of(std::string_view name);  // Error{config} with the nearest name

struct Wish {
  Machine machine;
  Method method = Method::seconds;
  std::int32_t num_groups = 0;  // of experts; 0: as many as nodes, where they divide the experts, else 1
  double cap = 0.03;            // a node's load above the mean, for traffic
  bool robust = false;          // all windows at once instead of their sum
  bool one_map = false;         // the same map in all layers, made for the sum of the layers
  const Placement* current = nullptr;  // what is deployed; its layers are the input's
  double most_moved = 1.0;  // share of the slots that may receive an expert, where there is a current
  ReplicaChoice choice = ReplicaChoice::even;
  Rates rates;
  std::uint64_t seed = 1;
  std::int32_t threads = 1;
  double effort = 1.0;  // steps of the searches, times this
};
[[nodiscard]] std::int32_t groups_of(const Wish& wish, std::int32_t num_experts);

// Every fault of the wish against the input: machine, groups, cap, a current placement of another shape, a
// method that needs each token's choices.
void check_wish(const PlaceInput& input, const Wish& wish, Problems& problems);

// What no placement on this machine can beat, of one layer.
struct Bounds {
  double balance = 1.0;  // of the whole load: mean / max is at most this
  double fullest = 1.0;  // mean over the windows of max / mean is at least this
  double nodes = 0.0;    // distinct nodes per token, without replicas on other nodes; 0: not known
};
[[nodiscard]] Bounds bounds_of(const LayerInput& layer, const Wish& wish, std::int32_t top_k);

struct PlaceResult {
  Placement placement;
  std::vector<Bounds> bounds;  // [L]
  double off_home = 0.0;       // of Method::relaxed: share of the choices served off their home node
  double seconds = 0.0;        // of this program, for all layers on one thread: CPU time
};
// REQUIRES check_wish without a problem.
[[nodiscard]] PlaceResult place_experts(const PlaceInput& input, const Wish& wish);

// One layer by one method; `current` may be null.
[[nodiscard]] LayerMap place_layer(const PlaceInput& input, std::int32_t layer, const Wish& wish,
                                   const LayerMap* current);

}  // namespace tessera::place
