// Collectives on a cluster of tiers: which tiers a group crosses, with how many members in each domain, and
// the seconds of a call. Pure, thread safe, no allocation; some tens of nanoseconds a call.
//
//   const GroupShape dp = group_shape(cluster, 64, 8);   // 64 ranks, one a node of 8
//   collective_time(cluster, calibration, dp, graph::Call::reduce_scatter, sent);
//
// A call takes launch + hops x latency + bytes / bandwidth + the fill of the pipeline:
//   bandwidth  of a ring, the slowest tier that it crosses: its links inside, and the NICs' share of k
//              members (of 8 at most) where k members stand in one domain of the tier below;
//   first step the own share is handled too (copied, not sent): bytes / bandwidth x (1 + 0.45 / steps); where
//              chunk_latency is 0 (no pipeline of chunks) at the bandwidth of the innermost tier;
//   fill       cut into chunks of the best size, a transfer t pays 2 sqrt(t x chunk latency), until a chunk's
//              overhead is a tenth; the efficiencies are those of such large transfers.
// An all-reduce takes the best of a ring, a tree between domains (2 log2 hops, each of which stores a chunk
// before it forwards; with two domains half of the bytes), and the switches that add (NVLS, SHARP), as NCCL
// does. Latencies: intra_latency of the calibration (that of the tier where it is 0) for a hop inside; tier
// latency + inter_latency for a hop above.
//
// Sources: ring and tree (Thakur, Rabenseifner and Gropp 2005; NCCL's double binary trees), hierarchical
// all-to-all (DeepEP; arXiv 2412.19437 section 3.2.2). Held to published measurements by a test.
#pragma once
#include <array>
#include <cstdint>
#include <map>

#include "cost/calibration.h"
#include "graph/graph.h"
#include "spec/cluster.h"

namespace tessera::cost {

inline constexpr std::int32_t kMaxTiers = 6;

// A group of ranks `stride` apart, on consecutive devices: how many of its members share one domain of each
// tier. members[0]: in one innermost domain (NVLink); members[num_tiers - 1] = size; num_tiers: those
// crossed.
struct GroupShape {
  std::int32_t size = 1;
  std::int32_t num_tiers = 1;
  std::array<std::int32_t, kMaxTiers> members{};
  std::array<std::int32_t, kMaxTiers> domains{};  // of each tier that the group touches: size / members
  std::array<std::int32_t, kMaxTiers>
      depth{};  // of the tree in one domain of each tier, in hops of that tier
  // Groups like it that use the links of an innermost domain at once: all of them, unless a caller says less.
  std::int32_t sharing = 1;
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
// number by the hypergeometric distribution, or among `node_limit` nodes when routing is limited) and is
// forwarded inside, once to each rank. busiest: rows of the most loaded receiver / mean.
struct AllToAll {
  std::int64_t tokens = 0;  // of this rank
  std::int32_t top_k = 1;
  std::int32_t num_experts = 1;
  std::int64_t row_bytes = 0;
  std::int32_t node_limit = 0;  // 0: free
  bool dedup = false;
  double busiest = 1.0;
  // Measured instead of expected (LoadFigures::parts): distinct parts of so many even ones. Null: not known.
  const std::map<std::int32_t, double>* parts = nullptr;
};
[[nodiscard]] Seconds all_to_all_time(const spec::ClusterSpec& cluster, const Calibration& c,
                                      const GroupShape& group, const AllToAll& a);
// Expected distinct remote nodes of a token whose top_k experts are drawn evenly without repetition:
// (n - 1)(1 - C(E - E/n, k) / C(E, k)). With a limit M < n the experts are drawn from M nodes drawn before:
// (n - 1)/n M (1 - C(F - E/n, k) / C(F, k)), F = M E/n. Sources: arXiv 2412.19437 section 2.1.2.
[[nodiscard]] double expected_remote_nodes(std::int32_t num_nodes, std::int32_t num_experts,
                                           std::int32_t top_k, std::int32_t node_limit);

// One message between ranks `distance` apart, while all devices of the node send theirs.
[[nodiscard]] Seconds p2p_time(const spec::ClusterSpec& cluster, const Calibration& c, std::int64_t distance,
                               Bytes bytes);

}  // namespace tessera::cost
