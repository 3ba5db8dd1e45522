// The network that is fitted to what a known one would take is that one, whatever else shares the hosts.
#include "cost/network_fit.h"

#include <gmock/gmock.h>

#include "cost/network.h"

namespace tessera::cost {
namespace {

using ::testing::HasSubstr;

constexpr double kLine = 120e6;  // bytes a second of a host
constexpr double kLatency = 80e-6;

MachineModel machine() {
  MachineModel m{.calibration = calibration("cpu-generic"), .cluster = {}};
  m.cluster.name = m.cluster.device = "box";
  m.cluster.memory = Bytes(std::int64_t{8} << 30);
  m.cluster.num_devices = m.cluster.devices_per_node = 2;
  m.cluster.tiers = {
      {.name = "threads", .size = 2, .bandwidth = BytesPerSecond(20e9), .latency = Seconds(1e-6)}};
  m.calibration.chunk_latency = m.calibration.collective_launch = Seconds(0.0);
  return m;
}

// What one rank of each host measures: nobody else sends.
graph::MeasuredNetwork measured(std::int32_t ranks_per_host) {
  graph::MeasuredNetwork n{.hosts = 2, .ranks_per_host = ranks_per_host};
  n.compute_slowdown = 0.2;
  n.transfer_slowdown = 0.25;
  const auto add = [&](graph::Call call, const char* name, double kib) {
    const double bytes = kib * 1024.0;
    graph::Op op;
    op.name = name;
    op.kind = graph::OpKind::collective;
    op.call = call;
    op.bytes_sent = Bytes(static_cast<std::int64_t>(bytes));
    const double hops = call == graph::Call::all_reduce ? 2.0 : 1.0;
    n.ops.push_back({.op = op, .ranks = 2, .seconds = Seconds(hops * kLatency + bytes / kLine)});
  };
  for (const double kib : {64.0, 512.0, 4096.0}) {
    add(graph::Call::all_gather, "all_gather", kib);
    add(graph::Call::reduce_scatter, "reduce_scatter", kib);
    add(graph::Call::all_reduce, "all_reduce", kib);
    add(graph::Call::send, "send", kib);
  }
  return n;
}

TEST(NetworkFit, FindsTheLineOfAHostHoweverManyRanksShareIt) {
  for (const std::int32_t each : {1, 2}) {
    const MachineModel m = fit_network(machine(), measured(each), "two-boxes");
    const spec::TierSpec& tier = m.cluster.tiers.back();
    EXPECT_NEAR(tier.bandwidth.value * each, kLine, 0.05 * kLine) << each << " ranks a host";
    EXPECT_EQ(tier.nics, 1);
    EXPECT_EQ(m.cluster.devices_per_node, each);
    EXPECT_EQ(m.cluster.num_devices, 2 * each);
    for (const FitRow& row : fit_rows(m, measured(each))) EXPECT_LT(row.median_error, 0.1) << row.kernel;
    EXPECT_NEAR(m.calibration.overlap_slowdown, 0.2, 1e-12);
    EXPECT_NEAR(m.calibration.sustained_network, 0.8, 1e-12);
  }
}

// Two groups that cross at once have half of the line each: not what a lone one measured.
TEST(NetworkFit, RanksThatSendTogetherShareTheLine) {
  const MachineModel m = fit_network(machine(), measured(2), "two-boxes");
  const std::int64_t bytes = std::int64_t{4} << 20;
  const double both = collective_time(m.cluster, m.calibration, group_shape(m.cluster, 2, 2),
                                      graph::Call::all_gather, Bytes(bytes))
                          .value;
  EXPECT_NEAR(both, 2.0 * static_cast<double>(bytes) / kLine, 0.1 * both);
}

TEST(NetworkFit, WhatWasNotMeasuredIsRefused) {
  const auto error_of = [](const graph::MeasuredNetwork& n) -> std::string {
    try {
      (void)fit_network(machine(), n, "x");
    } catch (const Error& e) {
      return e.what();
    }
    return "";
  };
  graph::MeasuredNetwork one = measured(1), none = measured(1), never = measured(1);
  one.hosts = 1;
  none.ops.clear();
  never.ops.front().seconds = Seconds(0.0);
  EXPECT_THAT(error_of(one), HasSubstr("start ranks on two hosts or more"));
  EXPECT_THAT(error_of(none), HasSubstr("no network was measured"));
  EXPECT_THAT(error_of(never), HasSubstr("took 0 s"));
}

}  // namespace
}  // namespace tessera::cost
