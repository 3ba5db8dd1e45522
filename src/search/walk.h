// The space as tasks: one a cut (tp, cp, ep, etp), so that the layer costs of a cut are made once, by one
// thread. Inside of this room.
#pragma once
#include <cstdint>
#include <vector>

#include "search/search.h"
#include "search/tally.h"

namespace tessera::search {

struct Task {
  cost::Candidate base;          // the cut; pp 1
  std::vector<std::int32_t> pp;  // pipeline degrees that it goes with, ascending
};

struct Walk {
  std::vector<Task> tasks;  // small degrees first
  Tally tally;              // layouts that divide nothing
  std::int64_t layouts = 0;
};
[[nodiscard]] Walk make_walk(const cost::Setup& setup, const Space& space, Coster& coster);

// For the dp and cp of a layout, ascending; none where dp does not divide the batch.
[[nodiscard]] std::vector<std::int32_t> micro_batch_sizes(const cost::Setup& setup, const Space& space,
                                                          const cost::Candidate& layout);

// The choices beside a layout and its micro-batch size. Those without effect are left out: one schedule for
// pp 1, one order when dp or pp is 1, one ZeRO stage when there is nothing to share.
struct Pipeline {
  schedule::Kind kind{};
  std::int32_t vpp = 1;
};
[[nodiscard]] std::vector<Pipeline> pipelines(const cost::Setup& setup, const Space& space, std::int32_t pp);
[[nodiscard]] std::vector<std::int32_t> zero_stages(const Space& space, const cost::Candidate& c);
[[nodiscard]] std::vector<cost::AxisOrder> orders(const Space& space, const cost::Candidate& c);
[[nodiscard]] std::vector<RecomputeChoice> recompute_choices(const cost::Setup& setup, const Space& space);

}  // namespace tessera::search
