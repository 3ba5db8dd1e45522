// Collectives on a cluster of tiers: which tiers a group crosses, with how many members in each domain, and the
// seconds of a call. Pure, thread safe, no allocation.
//
// Sources: ring (Thakur, Rabenseifner and Gropp 2005), NCCL's tree and its protocols, hierarchical
// all-to-all (DeepEP; arXiv 2412.19437 section 3.2.2). Held to published measurements by a test.
#pragma once
#include <array>
#include <cstdint>

#include "cost/calibration.h"
#include "graph/graph.h"
#include "spec/cluster.h"

namespace tessera::cost {

inline constexpr std::int32_t kMaxTiers = 6;

// A group of ranks `stride` apart, on consecutive devices: how many of its members share one domain of each
// tier. members[0]: in one innermost domain (NVLink); members[last] = size.
struct GroupShape {
  std::int32_t size = 1;
  std::int32_t num_tiers = 1;
  std::array<std::int32_t, kMaxTiers> members{};
  std::int32_t sharing = 1;  // groups like it that use the same node's links at once
};
// Ranks of one group: `size` of them, `stride` apart (two-level groups: cp x dp as one run when adjacent).
[[nodiscard]] GroupShape group_shape(const spec::ClusterSpec& cluster, std::int32_t size,
                                     std::int64_t stride);
// A group made of two axes: `inner` ranks inner_stride apart, `outer` such runs outer_stride apart.
[[nodiscard]] GroupShape group_shape(const spec::ClusterSpec& cluster, std::int32_t inner,
                                     std::int64_t inner_stride, std::int32_t outer,
                                     std::int64_t outer_stride);

// `sent`: bytes that one rank sends in the ring or pairwise form, as Op::bytes_sent counts them. Best of the
// algorithms that NCCL chooses from (ring, tree, in-network where the tier has it).
[[nodiscard]] Seconds collective_time(const spec::ClusterSpec& cluster, const Calibration& c,
                                      const GroupShape& group, graph::Call call, Bytes sent);

// Tokens of a MoE layer. Every rank sends `rows` rows of row_bytes, K a token. Without de-duplication each
// choice travels on its own; with it a token goes once to each node that holds one of its experts (expected
// number by the hypergeometric distribution, or `node_limit` when routing is limited) and is forwarded
// inside. busiest: rows of the most loaded receiver / mean.
struct AllToAll {
  std::int64_t tokens = 0;  // of this rank
  std::int32_t top_k = 1;
  std::int32_t num_experts = 1;
  std::int64_t row_bytes = 0;
  std::int32_t node_limit = 0;  // 0: free
  bool dedup = false;
  double busiest = 1.0;
};
[[nodiscard]] Seconds all_to_all_time(const spec::ClusterSpec& cluster, const Calibration& c,
                                      const GroupShape& group, const AllToAll& a);
// Expected distinct remote nodes of a token: (n - 1)(1 - C(E - E/n, k) / C(E, k)), or limited.
[[nodiscard]] double expected_remote_nodes(std::int32_t num_nodes, std::int32_t num_experts,
                                           std::int32_t top_k, std::int32_t node_limit);

// One message between ranks `distance` apart.
[[nodiscard]] Seconds p2p_time(const spec::ClusterSpec& cluster, const Calibration& c, std::int64_t distance,
                               Bytes bytes);

}  // namespace tessera::cost
