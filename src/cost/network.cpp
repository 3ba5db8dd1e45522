#include "cost/network.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace tessera::cost {
namespace {

using graph::Call;
using spec::ClusterSpec;
using spec::TierSpec;

// The own share beside the bytes sent, in a step's worth: fits all-gather, reduce-scatter and all-reduce of
// 2, 4 and 8 ranks on A100 to B300.
constexpr double kFirstStep = 0.45;
// NICs that the rings of one group drive out of a domain: NVL72 racks reach 405 GB/s, not 72 NICs' worth.
constexpr std::int32_t kMaxRails = 8;
// NVLS is taken from this many ranks on: with four the ring is as fast (H200, B200).
constexpr std::int32_t kMinInNetwork = 5;
// The longest chunk of a pipelined transfer, in latencies of a chunk.
constexpr double kLongestChunk = 10.0;
// Largest chunk that a hop between domains stores before it forwards.
constexpr double kHopChunk = 2e6;
// Every pair of ranks of different nodes with a flow of its own, beside node by node: published charts of 32
// A100 and H100 show 24 and 48 GB/s.
constexpr double kDirectFlows = 0.85;
// A message of a pair waits for the receiver's buffer; short ones are written ahead, at this rate.
constexpr double kRendezvous = 7e-6;
constexpr double kEagerRate = 4e9;
// Posting one message of an all-to-all to a further domain.
constexpr double kPostMessage = 1e-6;

std::size_t at(std::int32_t i) {
  return static_cast<std::size_t>(i);
}

std::int32_t ceil_div(std::int32_t a, std::int32_t b) {
  return (a + b - 1) / b;
}

std::int32_t ceil_log2(std::int32_t n) {
  return n <= 1 ? 0 : static_cast<std::int32_t>(std::bit_width(static_cast<std::uint32_t>(n - 1)));
}

std::int32_t num_tiers(const ClusterSpec& cluster) {
  return std::min<std::int32_t>(static_cast<std::int32_t>(cluster.tiers.size()), kMaxTiers);
}

double hop_latency(const ClusterSpec& cluster, const Calibration& c, std::int32_t tier) {
  const TierSpec& t = cluster.tiers[at(tier)];
  if (tier > 0) return t.latency.value + c.inter_latency.value;
  return c.intra_latency.value > 0.0 ? c.intra_latency.value : t.latency.value;
}

// Of one device, with all devices sending.
double device_share(const ClusterSpec& cluster, const Calibration& c, std::int32_t tier) {
  const TierSpec& t = cluster.tiers[at(tier)];
  if (tier == 0) return t.bandwidth.value * c.intra_efficiency;
  return t.bandwidth.value * c.inter_efficiency / std::max(1.0, t.oversubscription);
}

// What leaves one domain of the tier below for a group with members in it, over at most `rails` of its NICs.
double domain_bandwidth(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g,
                        std::int32_t tier, std::int32_t rails) {
  const TierSpec& t = cluster.tiers[at(tier)];
  const std::int32_t members = g.members[at(tier - 1)];
  const std::int32_t below = cluster.tiers[at(tier - 1)].size;
  const std::int32_t nics = t.nics > 0 ? std::min(t.nics, below) : below;
  const double line = t.bandwidth.value * c.inter_efficiency * below / nics;
  // Above 1 where not all devices of a domain are in such a group.
  const double idle = static_cast<double>(cluster.tiers[0].size) / (g.members[0] * g.sharing);
  return std::min(members * device_share(cluster, c, tier) * std::max(1.0, idle),
                  std::min(rails, nics) * line);
}
// A ring leaves each domain once, through the NICs of one innermost domain.
std::int32_t ring_rails(const GroupShape& g) {
  return std::min(g.members[0], kMaxRails);
}

double ring_bandwidth(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g) {
  double b = g.members[0] > 1 ? device_share(cluster, c, 0) : std::numeric_limits<double>::infinity();
  for (std::int32_t t = 1; t < g.num_tiers; ++t) {
    b = std::min(b, domain_bandwidth(cluster, c, g, t, ring_rails(g)));
  }
  return b;
}

// The chain of hops that a byte takes. In a ring all links work from the first step on; in a tree a domain
// stores a chunk before it forwards, so that the transfer begins late by a chunk for each hop.
struct Hops {
  double latency = 0.0;
  double remote = 0.0;  // of it, between domains
  double store = 0.0;   // of the largest chunks, between domains
};

void add_hops(Hops& h, const ClusterSpec& cluster, const Calibration& c, std::int32_t tier, double count) {
  const double latency = count * hop_latency(cluster, c, tier);
  h.latency += latency;
  if (tier == 0) return;
  h.remote += latency;
  h.store += count * kHopChunk / cluster.tiers[at(tier)].bandwidth.value;
}

// n - 1 hops along the ring, each in the lowest tier that joins its two ends.
Hops ring_hops(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g) {
  Hops h;
  std::int32_t runs = g.size;
  for (std::int32_t t = 0; t < g.num_tiers; ++t) {
    add_hops(h, cluster, c, t, runs - g.domains[at(t)]);
    runs = g.domains[at(t)];
  }
  return h;
}

Hops tree_hops(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g) {
  Hops h;
  for (std::int32_t t = 0; t < g.num_tiers; ++t) add_hops(h, cluster, c, t, g.depth[at(t)]);
  return h;
}

// A transfer in chunks, each late by chunk_latency: short chunks fill the pipeline soon, long ones cost less.
// The best length goes with the root of the transfer, up to one whose overhead is a tenth; transfer includes
// that.
double chunked(double transfer, double chunk_latency) {
  const double bare = transfer / (1.0 + 1.0 / kLongestChunk);
  const double chunk = std::min(std::sqrt(chunk_latency * bare), kLongestChunk * chunk_latency);
  return chunk > 0.0 ? bare + chunk + bare * chunk_latency / chunk : transfer;
}

// passes: times around the ring (an all-reduce goes round twice).
double ring_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g, double sent,
                 double passes) {
  const double own_share = kFirstStep / (passes * (g.size - 1));
  const double chunk =
      c.chunk_latency.value + (g.num_tiers > 1 ? hop_latency(cluster, c, g.num_tiers - 1) : 0.0);
  const double ring = ring_bandwidth(cluster, c, g);
  // Pipelined in chunks the own share goes the same way as the others; without, it is copied in the own
  // memory.
  const double own = c.chunk_latency.value > 0.0 ? ring : device_share(cluster, c, 0);
  return c.collective_launch.value + passes * ring_hops(cluster, c, g).latency +
         chunked(sent / ring + sent / own * own_share, chunk);
}

// Whole: bytes of the tensor. Each domain sums it, the trees carry it between domains.
double tree_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g, double whole) {
  const bool in_network = cluster.tiers[0].in_network_reduction && g.members[0] >= kMinInNetwork;
  double transfer = 0.0;
  if (in_network) {
    transfer = whole / (cluster.tiers[0].bandwidth.value * c.in_network_efficiency);
  } else if (g.members[0] > 1) {
    const double up_and_down = 2.0 * (g.members[0] - 1) / g.members[0];
    transfer = (g.num_tiers > 1 ? 2.0 : up_and_down) * whole / device_share(cluster, c, 0);
  }
  for (std::int32_t t = 1; t < g.num_tiers; ++t) {
    // Two trees, in each of which a domain has two children; of two domains each is the leaf of one.
    const double times = cluster.tiers[at(t)].in_network_reduction || g.domains[at(t - 1)] == 2 ? 1.0 : 2.0;
    transfer = std::max(transfer, times * whole / domain_bandwidth(cluster, c, g, t, ring_rails(g)));
  }
  const Hops up = tree_hops(cluster, c, g);
  return c.collective_launch.value + 2.0 * up.latency + chunked(transfer, c.chunk_latency.value) +
         2.0 * std::min(std::sqrt(2.0 * up.remote * transfer), up.store);
}

double all_reduce_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g, double sent) {
  const double whole = sent * g.size / (2.0 * (g.size - 1));
  const double ring = ring_time(cluster, c, g, sent, 2.0);
  const bool in_network = cluster.tiers[0].in_network_reduction && g.members[0] >= kMinInNetwork;
  // NVLink domains of several hosts: two racks go as the tree does, twenty racks as the ring.
  const bool between = g.members[0] <= cluster.devices_per_node || g.domains[0] == 2;
  const bool tree = g.num_tiers > 1 ? between : in_network;
  return tree ? std::min(ring, tree_time(cluster, c, g, whole)) : ring;
}

// Pairwise: every tier carries the bytes that cross it, all at once.
struct Pairwise {
  double inside = 0.0;   // bytes of one rank over the innermost links
  double remote = 0.0;   // to other innermost domains
  double message = 0.0;  // to one peer
  double flows = 1.0;    // efficiency of the flows between nodes beside forwarding node by node
};
double pairwise_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& g,
                     const Pairwise& p) {
  double transfer = p.inside / (device_share(cluster, c, 0) * c.all_to_all_efficiency) *
                    (1.0 + kFirstStep / std::max(1, g.members[0] - 1));
  double latency = g.members[0] > 1 ? hop_latency(cluster, c, 0) : 0.0;
  double chunk = c.chunk_latency.value;
  for (std::int32_t t = 1; t < g.num_tiers; ++t) {
    const double crossing = p.remote * (g.size - g.members[at(t - 1)]) / (g.size - g.members[0]);
    const double b = domain_bandwidth(cluster, c, g, t, g.members[at(t - 1)]) / g.members[at(t - 1)];
    transfer = std::max(transfer, crossing / (b * c.all_to_all_efficiency * p.flows));
    chunk = latency = hop_latency(cluster, c, t);
  }
  const double posts = g.num_tiers > 1 ? (g.domains[0] - 1) * kPostMessage : 0.0;
  const double rendezvous = std::min(kRendezvous, p.message / kEagerRate);
  return c.collective_launch.value + latency + posts +
         std::max(chunked(transfer, chunk), transfer + rendezvous);
}

double send_time(const ClusterSpec& cluster, const Calibration& c, std::int32_t tier, double bytes) {
  const double transfer =
      tier == 0 ? bytes / (device_share(cluster, c, 0) * c.all_to_all_efficiency) * (1.0 + kFirstStep)
                : bytes / device_share(cluster, c, tier);
  const double latency = hop_latency(cluster, c, tier);
  const double chunk = tier == 0 ? c.chunk_latency.value : latency;
  return c.collective_launch.value + latency + chunked(transfer, chunk);
}

// C(total - avoided, draws) / C(total, draws): no draw falls among the avoided.
double none_of(double total, double avoided, std::int32_t draws) {
  double p = 1.0;
  for (std::int32_t i = 0; i < draws; ++i) p *= std::max(0.0, total - avoided - i) / (total - i);
  return p;
}

// Distinct parts, out of `parts` even parts of the experts, that hold a choice of one token.
double distinct_parts(double parts, const AllToAll& a, std::int32_t num_nodes) {
  const double part = a.num_experts / parts;
  const bool limited = a.node_limit > 0 && a.node_limit < num_nodes;
  const double within =
      limited ? static_cast<double>(a.num_experts) * a.node_limit / num_nodes : a.num_experts;
  const double open =
      std::max<double>(within, a.top_k);  // too few experts for the choices: no limit can hold
  return open / part * (1.0 - none_of(open, part, a.top_k));
}

}  // namespace

GroupShape group_shape(const ClusterSpec& cluster, std::int32_t size, std::int64_t stride) {
  return group_shape(cluster, size, stride, 1, stride * size);
}

GroupShape group_shape(const ClusterSpec& cluster, std::int32_t inner, std::int64_t inner_stride,
                       std::int32_t outer, std::int64_t outer_stride) {
  TESSERA_CHECK(inner >= 1 && outer >= 1 && inner_stride >= 1 && outer_stride >= 1,
                "a group needs at least one rank and strides above 0");
  TESSERA_CHECK(!cluster.tiers.empty(), "a cluster has at least one tier");
  const auto fit = [](std::int32_t n, std::int64_t stride, std::int64_t domain) {
    return std::clamp<std::int64_t>(domain / stride, 1, n);
  };
  GroupShape g;
  g.size = inner * outer;
  const std::int32_t tiers = num_tiers(cluster);
  std::int32_t below = 1;
  for (std::int32_t t = 0; t < tiers; ++t) {
    const std::int64_t domain = cluster.tiers[at(t)].size;
    auto m = static_cast<std::int32_t>(fit(inner, inner_stride, domain) * fit(outer, outer_stride, domain));
    if (t == tiers - 1) m = g.size;
    below = std::max(below, m);
    g.members[at(t)] = below;
    g.num_tiers = t + 1;
    if (below == g.size) break;
  }
  for (std::int32_t t = 0; t < g.num_tiers; ++t) {
    g.domains[at(t)] = ceil_div(g.size, g.members[at(t)]);
    if (t > 0) g.depth[at(t)] = ceil_log2(ceil_div(g.members[at(t)], g.members[at(t - 1)]));
  }
  // Up the tree: a chain in the host, a binary tree of the hosts of one innermost domain.
  const std::int32_t in_host = std::clamp(cluster.devices_per_node, 1, g.members[0]);
  g.depth[0] = in_host - 1 + ceil_log2(ceil_div(g.members[0], in_host));
  g.sharing = std::max(1, cluster.tiers[0].size / g.members[0]);
  return g;
}

Seconds collective_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& group, Call call,
                        Bytes sent) {
  if (group.size <= 1 || sent.value <= 0) return Seconds(0.0);
  const auto bytes = static_cast<double>(sent.value);
  switch (call) {
    case Call::all_reduce:
      return Seconds(all_reduce_time(cluster, c, group, bytes));
    case Call::all_reduce_direct:
    case Call::reduce_scatter:
    case Call::all_gather:
    case Call::all_gather_v:
    case Call::reduce_scatter_v:
      return Seconds(ring_time(cluster, c, group, bytes, 1.0));
    case Call::all_to_all_v: {
      const double inside = (group.members[0] - 1.0) / (group.size - 1.0);
      return Seconds(
          pairwise_time(cluster, c, group,
                        {bytes * inside, bytes * (1.0 - inside), bytes / (group.size - 1.0), kDirectFlows}));
    }
    case Call::send:
      return Seconds(send_time(cluster, c, group.num_tiers - 1, bytes));
  }
  return Seconds(0.0);
}

Seconds all_to_all_time(const ClusterSpec& cluster, const Calibration& c, const GroupShape& group,
                        const AllToAll& a) {
  if (group.size <= 1 || a.tokens <= 0 || a.row_bytes <= 0) return Seconds(0.0);
  const double token_bytes = static_cast<double>(a.tokens) * static_cast<double>(a.row_bytes);
  const std::int32_t nodes = group.num_tiers > 1 ? group.domains[0] : 1;
  const double size = group.size, inside = group.members[0];
  Pairwise p;
  if (a.dedup) {
    // A remote copy lands on the rank of the same place in its node and is forwarded to those that need it.
    const auto measured = [&](std::int32_t parts, double expected) {
      if (a.parts == nullptr) return expected;
      const auto found = a.parts->find(parts);
      return found == a.parts->end() ? expected : found->second;
    };
    p.remote = token_bytes * (measured(nodes, distinct_parts(nodes, a, nodes)) * (nodes - 1) / nodes);
    p.inside = token_bytes * measured(group.size, distinct_parts(size, a, nodes)) * (inside - 1.0) / inside;
  } else {
    p.remote = token_bytes * a.top_k * (size - inside) / size;
    p.inside = token_bytes * a.top_k * (inside - 1.0) / size;
    p.message = token_bytes * a.top_k / size;
    p.flows = kDirectFlows;
  }
  p.remote *= a.busiest;
  p.inside *= a.busiest;
  return Seconds(pairwise_time(cluster, c, group, p));
}

double expected_remote_nodes(std::int32_t num_nodes, std::int32_t num_experts, std::int32_t top_k,
                             std::int32_t node_limit) {
  if (num_nodes <= 1) return 0.0;
  const AllToAll a{.top_k = top_k, .num_experts = num_experts, .node_limit = node_limit};
  return distinct_parts(num_nodes, a, num_nodes) * (num_nodes - 1) / num_nodes;
}

Seconds p2p_time(const ClusterSpec& cluster, const Calibration& c, std::int64_t distance, Bytes bytes) {
  if (distance <= 0 || bytes.value <= 0) return Seconds(0.0);
  std::int32_t tier = 0;
  while (tier + 1 < num_tiers(cluster) && distance >= cluster.tiers[at(tier)].size) ++tier;
  return Seconds(send_time(cluster, c, tier, static_cast<double>(bytes.value)));
}

}  // namespace tessera::cost
