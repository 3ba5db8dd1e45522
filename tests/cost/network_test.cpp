// The network model: shapes of groups by enumeration, laws that any network obeys, counts of the all-to-all
// by brute force, and measured collectives (comm_rows.h).
#include "cost/network.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <vector>

#include "comm_rows.h"

namespace tessera::cost {
namespace {

using graph::Call;
using testing::ElementsAre;

spec::TierSpec tier(std::string name, std::int32_t size, double bandwidth, double latency) {
  spec::TierSpec t;
  t.name = std::move(name);
  t.size = size;
  t.bandwidth = BytesPerSecond(bandwidth);
  t.latency = Seconds(latency);
  return t;
}

// Nodes of 8 with a NIC a device, 32 nodes on a leaf.
spec::ClusterSpec nodes_of_8() {
  spec::ClusterSpec c;
  c.name = "nodes-of-8";
  c.device = "h100-sxm";
  c.num_devices = 1024;
  c.tiers = {tier("nvlink", 8, 450e9, 1e-6), tier("leaf", 256, 50e9, 4e-6), tier("spine", 1024, 50e9, 5e-6)};
  return c;
}

const Calibration& h100() {
  static const Calibration c = calibration("h100-sxm");
  return c;
}

constexpr Call kRingCalls[] = {Call::reduce_scatter, Call::all_gather, Call::all_gather_v,
                               Call::reduce_scatter_v};
constexpr Call kCalls[] = {
    Call::all_reduce,   Call::all_reduce_direct, Call::reduce_scatter, Call::all_gather,
    Call::all_gather_v, Call::reduce_scatter_v,  Call::all_to_all_v,   Call::send};

double seconds(const spec::ClusterSpec& c, const GroupShape& g, Call call, double sent) {
  return collective_time(c, h100(), g, call, Bytes(static_cast<std::int64_t>(sent))).value;
}

// Largest number of members that one domain of the tier holds when the group starts at device 0.
std::int32_t members_by_counting(std::int64_t domain, std::int32_t inner, std::int64_t inner_stride,
                                 std::int32_t outer, std::int64_t outer_stride) {
  std::map<std::int64_t, std::int32_t> count;
  std::int32_t most = 0;
  for (std::int32_t i = 0; i < inner; ++i) {
    for (std::int32_t j = 0; j < outer; ++j) {
      most = std::max(most, ++count[(i * inner_stride + j * outer_stride) / domain]);
    }
  }
  return most;
}

TEST(GroupShape, CountsMembersOfEveryTierLikeAnEnumeration) {
  const spec::ClusterSpec c = nodes_of_8();
  std::int32_t groups = 0;
  for (std::int32_t size = 1; size <= 1024; size *= 2) {
    for (std::int64_t stride = 1; stride * size <= 1024; stride *= 2) {
      const GroupShape g = group_shape(c, size, stride);
      EXPECT_EQ(g.size, size);
      for (std::int32_t t = 0; t < g.num_tiers; ++t) {
        const auto at = static_cast<std::size_t>(t);
        EXPECT_EQ(g.members[at], members_by_counting(c.tiers[at].size, size, stride, 1, 1))
            << size << " ranks " << stride << " apart, tier " << t;
      }
      EXPECT_EQ(g.members[static_cast<std::size_t>(g.num_tiers - 1)], size);
      EXPECT_EQ(g.sharing, 8 / g.members[0]);
      ++groups;
    }
  }
  EXPECT_EQ(groups, 66);
}

TEST(GroupShape, JoinsTwoAxesAsAnEnumerationDoes) {
  const spec::ClusterSpec c = nodes_of_8();
  // Inner 2 ranks adjacent, outer 16 of them at stride 4: 4 in a node, 8 nodes.
  const GroupShape g = group_shape(c, 2, 1, 16, 4);
  EXPECT_EQ(g.size, 32);
  EXPECT_EQ(g.num_tiers, 2);
  for (std::int32_t inner = 1; inner <= 8; inner *= 2) {
    for (std::int32_t outer = 1; outer <= 32; outer *= 2) {
      for (std::int64_t gap = 1; inner * gap * outer <= 1024; gap *= 4) {
        const GroupShape s = group_shape(c, inner, 1, outer, inner * gap);
        EXPECT_EQ(s.members[0], members_by_counting(8, inner, 1, outer, inner * gap))
            << inner << " adjacent, " << outer << " at " << inner * gap;
      }
    }
  }
}

TEST(CollectiveTime, OfOneRankOrNoBytesIsZero) {
  const spec::ClusterSpec c = nodes_of_8();
  for (const Call call : kCalls) {
    EXPECT_EQ(seconds(c, group_shape(c, 1, 1), call, 1e9), 0.0);
    EXPECT_EQ(seconds(c, group_shape(c, 8, 1), call, 0.0), 0.0);
  }
  EXPECT_EQ(all_to_all_time(c, h100(), group_shape(c, 1, 1), {.tokens = 4096, .row_bytes = 4096}).value, 0.0);
  EXPECT_EQ(p2p_time(c, h100(), 0, Bytes(1)).value, 0.0);
}

TEST(CollectiveTime, GrowsWithBytes) {
  for (const bool in_network : {false, true}) {
    spec::ClusterSpec c = nodes_of_8();
    c.tiers[0].in_network_reduction = in_network;
    for (const Call call : kCalls) {
      for (std::int32_t size = 2; size <= 1024; size *= 2) {
        for (std::int64_t stride = 1; stride * size <= 1024; stride *= 8) {
          const GroupShape g = group_shape(c, size, stride);
          double last = 0.0;
          for (double bytes = 1.0; bytes < 2e10; bytes *= 3.0) {
            const double t = seconds(c, g, call, bytes);
            EXPECT_GT(t, last) << graph::name(call) << " " << size << " x " << stride << " at " << bytes;
            last = t;
          }
        }
      }
    }
  }
}

TEST(CollectiveTime, OfOneTensorGrowsWithRanks) {
  const spec::ClusterSpec c = nodes_of_8();
  for (const double whole : {1e3, 1e6, 1e9}) {
    for (const Call call : kRingCalls) {
      double last = 0.0;
      for (std::int32_t n = 2; n <= 1024; n *= 2) {
        const double t = seconds(c, group_shape(c, n, 1), call, whole * (n - 1) / n);
        EXPECT_GT(t, last) << graph::name(call) << " of " << whole << " bytes on " << n;
        last = t;
      }
    }
    double last = 0.0;
    for (std::int32_t n = 2; n <= 128; n *= 2) {
      const double t = seconds(c, group_shape(c, n, 8), Call::all_reduce, 2.0 * whole * (n - 1) / n);
      EXPECT_TRUE(t > last) << whole << " bytes on " << n;
      last = t;
    }
  }
}

// No algorithm moves fewer bytes than must enter a node and a device.
TEST(CollectiveTime, NeverBeatsTheLinks) {
  for (const bool in_network : {false, true}) {
    spec::ClusterSpec c = nodes_of_8();
    c.tiers[0].in_network_reduction = in_network;
    for (std::int32_t n = 2; n <= 1024; n *= 2) {
      for (std::int64_t stride = 1; stride * n <= 1024; stride *= 2) {
        const GroupShape g = group_shape(c, n, stride);
        const double k = g.members[0], nodes = n / k;
        for (double whole = 1e3; whole < 1e11; whole *= 10) {
          const double all_reduce = seconds(c, g, Call::all_reduce, 2.0 * whole * (n - 1) / n);
          EXPECT_GE(all_reduce, (k > 1 ? whole / 450e9 : 0.0));
          EXPECT_GE(all_reduce, (nodes > 1 ? 2.0 * whole * (nodes - 1) / nodes / (k * 50e9) : 0.0));
          const double gather = seconds(c, g, Call::all_gather, whole * (n - 1) / n);
          EXPECT_GE(gather, (k > 1 ? whole * (n - 1) / n / 450e9 : 0.0));
          EXPECT_GE(gather, whole * (nodes - 1) / nodes / (k * 50e9));
          const double exchange = seconds(c, g, Call::all_to_all_v, whole * (n - 1) / n);
          EXPECT_GE(exchange, whole * (n - k) / n / 50e9);
          EXPECT_GE(exchange, whole * (k - 1) / n / 450e9);
        }
      }
    }
  }
}

TEST(CollectiveTime, RingAcrossNodesUsesTheNicsOfAllItsMembers) {
  const spec::ClusterSpec c = nodes_of_8();
  const double sent = 8e9;
  const double one = seconds(c, group_shape(c, 16, 8), Call::all_gather, sent);
  const double two = seconds(c, group_shape(c, 16, 4), Call::all_gather, sent);
  const double four = seconds(c, group_shape(c, 16, 2), Call::all_gather, sent);
  EXPECT_NEAR(one / two, 2.0, 0.05);
  EXPECT_NEAR(two / four, 2.0, 0.05);
  EXPECT_NEAR(sent / one, 50e9 * h100().inter_efficiency, 2e9);
}

TEST(CollectiveTime, OneNicForANodeIsSharedByTheGroupsThatUseIt) {
  spec::ClusterSpec c = nodes_of_8();
  c.tiers[1].nics = 1;
  c.tiers[1].bandwidth = BytesPerSecond(50e9 / 8);  // share of one device
  c.tiers[2].bandwidth = BytesPerSecond(50e9 / 8);
  c.tiers[2].nics = 32;
  GroupShape g = group_shape(c, 16, 8);
  EXPECT_EQ(g.sharing, 8);
  const double all = seconds(c, g, Call::all_gather, 1e10);
  g.sharing = 1;
  const double alone = seconds(c, g, Call::all_gather, 1e10);
  EXPECT_NEAR(all / alone, 8.0, 0.1);
  EXPECT_NEAR(1e10 / alone, 50e9 * h100().inter_efficiency, 2e9);
}

TEST(CollectiveTime, OversubscribedSpineSlowsTheExchangeNotTheRingOfWholeNodes) {
  spec::ClusterSpec c = nodes_of_8();
  const GroupShape g = group_shape(c, 1024, 1);
  const double ring = seconds(c, g, Call::all_gather, 1e10),
               exchange = seconds(c, g, Call::all_to_all_v, 1e10);
  c.tiers[2].oversubscription = 4.0;
  EXPECT_NEAR(seconds(c, g, Call::all_gather, 1e10) / ring, 1.0, 1e-9);
  EXPECT_NEAR(seconds(c, g, Call::all_to_all_v, 1e10) / exchange, 4.0 * 768 / 1016, 0.1);
}

TEST(CollectiveTime, TreeTakesOverFromTheRingForSmallSumsOfManyNodes) {
  const spec::ClusterSpec c = nodes_of_8();
  const GroupShape g = group_shape(c, 128, 8);
  const double small = seconds(c, g, Call::all_reduce, 1024);
  const double ring_latency = 2.0 * 127 * (4e-6 + h100().inter_latency.value);
  EXPECT_LT(small, 0.2 * ring_latency);
  EXPECT_GT(small, 2.0 * 7 * (4e-6 + h100().inter_latency.value));
}

TEST(CollectiveTime, SwitchThatAddsSpeedsUpLargeSumsOfFiveOrMoreRanks) {
  spec::ClusterSpec plain = nodes_of_8(), nvls = nodes_of_8();
  nvls.tiers[0].in_network_reduction = true;
  const auto ratio = [&](std::int32_t n) {
    const double sent = 2.0 * 16e9 * (n - 1) / n;
    const GroupShape g = group_shape(plain, n, 1);
    return seconds(plain, g, Call::all_reduce, sent) / seconds(nvls, g, Call::all_reduce, sent);
  };
  EXPECT_EQ(ratio(4), 1.0);
  EXPECT_GT(ratio(8), 1.2);  // 480 against 367 GB/s on H200
  EXPECT_LT(ratio(8), 1.4);
}

// All ways to draw, one by one.
double remote_nodes_by_enumeration(std::int32_t nodes, std::int32_t experts, std::int32_t k,
                                   std::int32_t limit) {
  const std::int32_t per_node = experts / nodes;
  const std::int32_t open_nodes = limit > 0 && limit < nodes ? limit : nodes;
  double sum = 0.0, ways = 0.0;
  for (std::uint32_t open = 0; open < (1U << nodes); ++open) {
    if (std::popcount(open) != open_nodes) continue;
    for (std::uint32_t choice = 0; choice < (1U << experts); ++choice) {
      if (std::popcount(choice) != k) continue;
      std::uint32_t hit = 0;
      for (std::int32_t e = 0; e < experts; ++e) {
        if ((choice >> e & 1U) != 0) hit |= 1U << (e / per_node);
      }
      if ((hit & ~open) != 0) continue;
      sum += std::popcount(hit & ~1U);  // node 0 is the token's own
      ways += 1.0;
    }
  }
  return sum / ways;
}

TEST(ExpectedRemoteNodes, EqualsAnEnumerationOfAllDraws) {
  std::int32_t cases = 0;
  for (const std::int32_t nodes : {1, 2, 4}) {
    for (const std::int32_t experts : {4, 8, 12}) {
      for (std::int32_t k = 1; k <= 4; ++k) {
        for (std::int32_t limit = 0; limit <= nodes; ++limit) {
          const std::int32_t open = limit > 0 && limit < nodes ? limit : nodes;
          if (experts / nodes * open < k) continue;
          EXPECT_NEAR(expected_remote_nodes(nodes, experts, k, limit),
                      remote_nodes_by_enumeration(nodes, experts, k, limit), 1e-12)
              << nodes << " nodes, " << experts << " experts, top " << k << ", limit " << limit;
          ++cases;
        }
      }
    }
  }
  EXPECT_GT(cases, 80);
}

TEST(AllToAllTime, CountsATokenOncePerNodeOnTheNetwork) {
  const spec::ClusterSpec c = nodes_of_8();
  const GroupShape g = group_shape(c, 64, 1);
  AllToAll a{.tokens = 1 << 16, .top_k = 8, .num_experts = 256, .row_bytes = 14336};
  const double bandwidth = 50e9 * h100().inter_efficiency * h100().all_to_all_efficiency;
  const double flat = all_to_all_time(c, h100(), g, a).value;
  EXPECT_NEAR(flat, 65536.0 * 14336 * 8 * 56 / 64 / (0.85 * bandwidth), 0.05 * flat);
  a.dedup = true;
  const double dedup = all_to_all_time(c, h100(), g, a).value;
  EXPECT_NEAR(dedup, 65536.0 * 14336 * expected_remote_nodes(8, 256, 8, 0) / bandwidth, 0.05 * dedup);
  a.node_limit = 4;
  const double limited = all_to_all_time(c, h100(), g, a).value;
  EXPECT_LT(limited, 0.75 * dedup);
  EXPECT_LT(dedup, 0.75 * flat);
}

// Bus bandwidth of large messages on four DGX, as published in charts.
TEST(AllToAllTime, OfFourDgxIsThatOfThePublishedCharts) {
  for (const auto& [device, nvlink, nic, bus] :
       {std::tuple{"a100-sxm-80gb", 300e9, 25e9, 24e9}, std::tuple{"h100-sxm", 450e9, 50e9, 48e9}}) {
    spec::ClusterSpec c = nodes_of_8();
    c.tiers[0].bandwidth = BytesPerSecond(nvlink);
    c.tiers[1].bandwidth = BytesPerSecond(nic);
    const double t = collective_time(c, calibration(device), group_shape(c, 32, 1), Call::all_to_all_v,
                                     Bytes(16'000'000'000))
                         .value;
    EXPECT_NEAR(16e9 / t, bus, 0.05 * bus) << device;
  }
}

TEST(AllToAllTime, FollowsTheBusiestReceiver) {
  const spec::ClusterSpec c = nodes_of_8();
  AllToAll a{.tokens = 1 << 16, .top_k = 8, .num_experts = 256, .row_bytes = 14336};
  for (const std::int32_t n : {8, 64}) {
    a.busiest = 1.0;
    const double even = all_to_all_time(c, h100(), group_shape(c, n, 1), a).value;
    a.busiest = 1.5;
    EXPECT_NEAR(all_to_all_time(c, h100(), group_shape(c, n, 1), a).value / even, 1.5, 0.02);
  }
}

TEST(AllToAllTime, InOneNodeStaysOnTheInnermostLinks) {
  const spec::ClusterSpec c = nodes_of_8();
  const AllToAll a{.tokens = 1 << 16, .top_k = 8, .num_experts = 64, .row_bytes = 4096};
  const double inside = all_to_all_time(c, h100(), group_shape(c, 8, 1), a).value;
  const double across = all_to_all_time(c, h100(), group_shape(c, 8, 8), a).value;
  EXPECT_GT(across, 5.0 * inside);
}

TEST(PeerToPeerTime, TakesTheTierThatJoinsBothEnds) {
  const spec::ClusterSpec c = nodes_of_8();
  const Bytes message(64 << 20);
  const double node = p2p_time(c, h100(), 4, message).value, leaf = p2p_time(c, h100(), 8, message).value;
  const double spine = p2p_time(c, h100(), 256, message).value;
  EXPECT_GT(leaf, 4.0 * node);
  EXPECT_GT(spine, leaf);
  EXPECT_LT(spine, 1.1 * leaf);
  EXPECT_NEAR(64 * 1048576 / leaf, 50e9 * h100().inter_efficiency, 8e9);
}

double median(std::vector<double> v) {
  std::sort(v.begin(), v.end());
  return v.empty() ? 0.0 : v[v.size() / 2];
}

struct Bound {
  std::string network;
  double large = 0.0, small = 0.0;  // median |error| of messages from 1 MB on, and below
};

// Rows that were fitted and rows that were not stand together; the fabrics of one source each are few.
TEST(Measurements, AreMetWithinTheStatedMedians) {
  const test::CommCases cases =
      test::read_comm_cases(std::filesystem::path(TESSERA_SOURCE_DIR) / "validation/comm_measurements.csv");
  EXPECT_EQ(cases.rows, 2653);
  std::string unmapped;
  std::int32_t num_unmapped = 0;
  for (const auto& [why, count] : cases.unmapped) {
    unmapped += fmt::format("{} {}\n", count, why);
    num_unmapped += count;
  }
  EXPECT_EQ(std::ssize(cases.mapped) + num_unmapped, cases.rows);
  EXPECT_GE(std::ssize(cases.mapped), 1773) << unmapped;

  std::map<std::string, Calibration> calibrations;
  std::map<std::string, std::pair<std::vector<double>, std::vector<double>>> errors;
  for (const test::CommCase& one : cases.mapped) {
    auto [it, fresh] = calibrations.try_emplace(one.cluster.device);
    if (fresh) it->second = calibration(one.cluster.device);
    const double error = test::predict(one, it->second).value / one.measured - 1.0;
    ASSERT_TRUE(std::isfinite(error)) << one.row.hardware;
    const std::string key =
        one.network == "NVLink" ? fmt::format("NVLink {}", one.row.collective) : one.network;
    auto& [large, small] = errors[key];
    (one.message.value >= 1'000'000 ? large : small).push_back(std::abs(error));
  }
  const Bound bounds[] = {
      {"NVLink all_reduce", 0.07, 0.09},
      {"NVLink all_gather", 0.06, 0.08},
      {"NVLink reduce_scatter", 0.07, 0.07},
      {"NVLink alltoall", 0.07, 0.15},
      {"InfiniBand", 0.06, 0.0},
      {"InfiniBand HDR", 0.10, 0.0},
      {"EFA of p4de", 0.06, 0.08},
      {"EFA of p5", 0.20, 0.20},
      {"EFA of p6", 0.08, 0.50},
      {"DeepEP", 0.12, 0.0},
      // Far slower than any other source, whatever the call: a bound on how far it is off, not a claim.
      {"EFA, means on a shared cluster", 0.80, 0.0},
  };
  std::set<std::string> bounded;
  for (const Bound& b : bounds) {
    const auto& [large, small] = errors[b.network];
    EXPECT_LE(median(large), b.large) << b.network << ", " << large.size() << " rows from 1 MB";
    EXPECT_LE(median(small), b.small) << b.network << ", " << small.size() << " rows below 1 MB";
    bounded.insert(b.network);
  }
  for (const auto& [key, unused] : errors) EXPECT_TRUE(bounded.contains(key)) << key << " has no bound";
}

}  // namespace
}  // namespace tessera::cost
