// Which form of dispatch a job runs (docs/performance.md derives the rule).
//
// Bytes that one rank sends over ep for a micro-batch, forward and backward, dropless and in balance: t
// tokens, K choices of a token, H hidden, b bytes an element, P = ep, E experts:
//   all_to_all   4 t K (P - 1) / P H b + 4 (P - 1) E
//   all_gather   (P - 1) (4 t H b + t K (4 + 2 b))
// automatic is the smaller of the two, all_to_all when they are equal: all_gather about where K > P. Where
// the ep group spans nodes it is hierarchical: over the node boundary a token goes at most once to each node.
#pragma once
#include "spec/job.h"

namespace tessera::graph {

// Never automatic. Dense models and ep = 1: all_to_all. Pure, thread safe.
[[nodiscard]] spec::DispatchForm dispatch_form(const spec::Job& job);

// Nodes that an ep group spans (1: on one, or unknown).
[[nodiscard]] std::int32_t nodes_of_ep(const spec::ParallelSpec& p);
// The same with hierarchical dispatch, else 1.
[[nodiscard]] std::int32_t dispatch_nodes(const spec::Job& job);

}  // namespace tessera::graph
