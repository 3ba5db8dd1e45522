#include "cost/network_fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"
#include "cost/fit_search.h"
#include "cost/network.h"

namespace tessera::cost {

namespace {

using graph::Call;
using graph::MeasuredNetwork;
using graph::MeasuredOp;

double predicted(const MachineModel& model, const MeasuredNetwork& network, const MeasuredOp& m) {
  GroupShape pair = group_shape(model.cluster, 2, network.ranks_per_host);
  pair.sharing = 1;  // the other ranks of the hosts were silent
  // A message is priced with its device's share of the network: alone it has all of it.
  const std::int64_t shares = m.op.call == Call::send ? network.ranks_per_host : 1;
  const Bytes sent(m.op.bytes_sent.value / shares);
  return collective_time(model.cluster, model.calibration, pair, m.op.call, sent).value;
}

bool is_exchange(const MeasuredOp& m) {
  return m.op.call == Call::all_to_all_v;
}

// Mean |log(predicted / measured)| of those that `test` picks.
template <class Test>
double error(const MachineModel& model, const MeasuredNetwork& network, Test test) {
  double sum = 0.0, count = 0.0;
  for (const MeasuredOp& m : network.ops) {
    if (!test(m)) continue;
    sum += std::abs(std::log(predicted(model, network, m) / m.seconds.value));
    count += 1.0;
  }
  return sum / std::max(1.0, count);
}

void check(const MeasuredNetwork& network) {
  constexpr const char* kWhere = "calibration of a network";
  if (network.hosts < 2 || network.ranks_per_host < 1 || network.ops.empty())
    throw Error(ErrorKind::config, "no network was measured", kWhere, "start ranks on two hosts or more");
  for (const MeasuredOp& m : network.ops) {
    if (m.seconds.value > 0.0 && m.seconds.value < 1e4) continue;
    throw Error(ErrorKind::config, fmt::format("\"{}\" took {} s", m.op.name, m.seconds.value), kWhere,
                "measure again; a time is above 0");
  }
}

}  // namespace

MachineModel fit_network(const MachineModel& machine, const MeasuredNetwork& network,
                         const std::string& name) {
  check(network);
  MachineModel model = machine;
  Calibration& c = model.calibration;
  spec::ClusterSpec& cluster = model.cluster;
  c.name = cluster.name = cluster.device = name;
  const std::int32_t each = network.ranks_per_host;
  cluster.devices_per_node = each;
  cluster.num_devices = network.hosts * each;
  cluster.tiers.resize(1);
  cluster.tiers.front().size = each;
  // Of the largest transfer: small ones may lie in buffers and be faster than any line.
  const MeasuredOp& largest =
      *std::ranges::max_element(network.ops, {}, [](const MeasuredOp& m) { return m.op.bytes_sent.value; });
  const double about = static_cast<double>(largest.op.bytes_sent.value) / largest.seconds.value;
  cluster.tiers.push_back(
      {.name = "network", .size = cluster.num_devices, .latency = Seconds(1e-5), .nics = 1});
  // A lone sender of a host has the whole of its network.
  spec::TierSpec& tier = cluster.tiers.back();
  double line = about;
  c.inter_efficiency = 1.0;
  c.inter_latency = Seconds(0.0);
  const auto of = [&](const auto& test) {
    return [&model, &network, &tier, &line, each, test] {
      tier.bandwidth = BytesPerSecond(line / each);
      return error(model, network, test);
    };
  };
  const auto of_rings = of([](const MeasuredOp& m) { return !is_exchange(m); });
  search(line, 0.5 * about, 2.0 * about, tier.latency.value, 1e-7, 1e-2, of_rings);
  (void)of_rings();
  if (each == 1) {
    const auto of_exchanges = of(is_exchange);
    search(c.all_to_all_efficiency, 0.05, 2.0, of_exchanges);
  }
  c.overlap_slowdown = std::clamp(network.compute_slowdown, 0.0, 0.9);
  c.sustained_network = std::clamp(1.0 / (1.0 + network.transfer_slowdown), 0.01, 1.0);
  Problems problems;  // a file that is written can be read
  validate(c, name, problems);
  spec::validate(cluster, name, problems);
  problems.throw_if_any();
  return model;
}

std::vector<FitRow> fit_rows(const MachineModel& model, const MeasuredNetwork& network) {
  std::vector<FitRow> rows;
  std::vector<std::vector<double>> errors;
  for (const MeasuredOp& m : network.ops) {
    const auto found = std::ranges::find(rows, m.op.name, &FitRow::kernel);
    const auto i = static_cast<std::size_t>(found - rows.begin());
    if (found == rows.end()) {
      rows.push_back({.kernel = m.op.name});
      errors.emplace_back();
    }
    const double seconds = predicted(model, network, m);
    rows[i].count += 1;
    rows[i].measured_seconds += m.seconds.value;
    rows[i].fitted_seconds += seconds;
    errors[i].push_back(std::abs(seconds / m.seconds.value - 1.0));
  }
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::ranges::sort(errors[i]);
    rows[i].worst_error = errors[i].back();
    rows[i].median_error = errors[i][errors[i].size() / 2];
  }
  return rows;
}

}  // namespace tessera::cost
