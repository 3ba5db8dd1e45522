// validation/comm_measurements.csv as calls of the network model: each row that names a switched accelerator,
// a size and a number of ranks becomes a cluster, a group and a call; the others are counted by reason. Rows
// of the hierarchical all-to-all of MoE print bytes of tokens by node (or by rank in one node) over time, the
// own node included: they become an AllToAll.
#pragma once
#include <algorithm>
#include <charconv>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/file.h"
#include "base/math.h"
#include "base/text.h"
#include "cost/network.h"

namespace tessera::test {

struct CommRow {
  std::string collective, hardware, interconnect, gpus, nodes, message_bytes, algbw, busbw, latency;
};

struct CommCase {
  CommRow row;
  std::string network;  // nvlink, or the fabric between the nodes
  spec::ClusterSpec cluster;
  std::int32_t ranks = 0;
  std::int32_t num_nodes = 1;
  graph::Call call = graph::Call::all_gather;
  Bytes message, sent;
  std::optional<cost::AllToAll> moe;
  double measured = 0.0;  // seconds
};

struct CommCases {
  std::vector<CommCase> mapped;
  std::map<std::string, std::int32_t> unmapped;  // reason -> rows
  std::int32_t rows = 0;
};

// Fields of one line; quotes keep commas.
inline std::vector<std::string> csv_fields(std::string_view line) {
  std::vector<std::string> fields(1);
  bool quoted = false;
  for (const char ch : line) {
    if (ch == '"') {
      quoted = !quoted;
    } else if (ch == ',' && !quoted) {
      fields.emplace_back();
    } else if (ch != '\r') {
      fields.back() += ch;
    }
  }
  return fields;
}

inline std::optional<double> number_of(std::string_view text) {
  double v = 0.0;
  const auto [end, code] = std::from_chars(text.data(), text.data() + text.size(), v);
  if (text.empty() || code != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return v;
}

// One fabric as the rows' sources describe it. NIC bandwidth is of one device and direction; latency is that
// of a hop, which EFA's first generations make long (read off the smallest messages of the same source).
struct Fabric {
  std::string_view name;
  double nic = 50e9, latency = 5e-6;
};
inline constexpr Fabric kInfiniBand{"InfiniBand", 50e9, 5e-6};
inline constexpr Fabric kInfiniBandHdr{"InfiniBand HDR", 25e9, 5e-6};
inline constexpr Fabric kEfaP4{"EFA of p4de", 6.25e9, 70e-6};
inline constexpr Fabric kEfaP5{"EFA of p5", 50e9, 30e-6};
inline constexpr Fabric kEfaShared{"EFA, means on a shared cluster", 50e9, 30e-6};
inline constexpr Fabric kEfaV4{"EFA of p6", 50e9, 68e-6};

struct Machine {
  std::string_view part;  // of the hardware column
  std::string_view device;
  double nvlink;
  std::int32_t domain, per_node;
  Fabric fabric = kInfiniBand;
  bool in_network = true;
};
inline constexpr Machine kMachines[] = {
    {"p4de", "a100-sxm-80gb", 300e9, 8, 8, kEfaP4, false},
    {"DGX A100", "a100-sxm-80gb", 300e9, 8, 8, kInfiniBandHdr, false},
    {"8x A100-PCIe", "", 0, 0, 0},
    {"not named", "", 0, 0, 0},
    {"A100", "a100-sxm-80gb", 300e9, 8, 8, kInfiniBandHdr, false},
    {"H100 per node (HF", "h100-sxm", 450e9, 8, 8, kEfaShared},
    {"p5.48", "h100-sxm", 450e9, 8, 8, kEfaP5},
    {"p5en", "h200-sxm", 450e9, 8, 8, kEfaP5},
    {"H100", "h100-sxm", 450e9, 8, 8},
    {"H200", "h200-sxm", 450e9, 8, 8},
    {"H800", "h800-sxm", 200e9, 8, 8},
    {"p6-b200", "b200-sxm", 900e9, 8, 8, kEfaV4},
    {"GB200", "gb200", 900e9, 72, 4},
    {"GB300", "gb300", 900e9, 72, 4},
    {"B200", "b200-sxm", 900e9, 8, 8},
    {"B300", "b300-sxm", 900e9, 8, 8},
};

inline std::optional<graph::Call> call_of(std::string_view collective) {
  if (collective == "all_reduce") return graph::Call::all_reduce;
  if (collective == "all_gather") return graph::Call::all_gather;
  if (collective == "reduce_scatter") return graph::Call::reduce_scatter;
  if (collective == "alltoall") return graph::Call::all_to_all_v;
  return std::nullopt;
}

inline spec::ClusterSpec cluster_of(const Machine& m, std::int32_t ranks, bool in_network) {
  spec::ClusterSpec c;
  c.name = std::string(m.part);
  c.device = std::string(m.device);
  c.devices_per_node = m.per_node;
  c.num_devices = ranks;
  spec::TierSpec nvlink;
  nvlink.name = "nvlink";
  nvlink.size = m.domain;
  nvlink.bandwidth = BytesPerSecond(m.nvlink);
  nvlink.in_network_reduction = in_network;
  c.tiers.push_back(nvlink);
  spec::TierSpec nics;
  nics.name = "nics";
  nics.size = std::max(m.domain, static_cast<std::int32_t>(round_up(ranks, m.domain)));
  nics.bandwidth = BytesPerSecond(m.fabric.nic);
  nics.latency = Seconds(m.fabric.latency);
  c.tiers.push_back(nics);
  return c;
}

// Empty when the row was mapped, else the reason.
inline std::string map_row(const CommRow& row, CommCase& out) {
  const auto call = call_of(row.collective);
  if (!call) return "another collective: " + row.collective;
  const Machine* machine = nullptr;
  for (const Machine& m : kMachines) {
    if (machine == nullptr && row.hardware.find(m.part) != std::string::npos) machine = &m;
  }
  if (machine == nullptr || machine->device.empty()) return "no calibration: " + row.hardware;
  const auto gpus = number_of(row.gpus);
  const auto message = number_of(row.message_bytes);
  if (!gpus) return "number of ranks not printed";
  if (!message) return "message size not printed";
  const auto busbw = number_of(row.busbw), latency = number_of(row.latency);
  if (!busbw && !latency) return "no time and no bandwidth";
  const auto n = static_cast<std::int32_t>(*gpus);
  out.row = row;
  out.ranks = n;
  out.num_nodes = static_cast<std::int32_t>(div_ceil(n, machine->domain));
  const bool ring = row.interconnect.find("ring") != std::string::npos;
  out.cluster = cluster_of(*machine, n, machine->in_network && !ring);
  out.network = out.num_nodes > 1 ? std::string(machine->fabric.name) : "NVLink";
  out.call = *call;
  out.message = Bytes(static_cast<std::int64_t>(*message));
  const double factor = (*call == graph::Call::all_reduce ? 2.0 : 1.0) * (n - 1) / n;
  out.sent = Bytes(static_cast<std::int64_t>(*message * factor));
  out.measured = latency ? *latency * 1e-6 : *message * factor / (*busbw * 1e9);
  return "";
}

// DeepEP: 4096 tokens a rank, hidden size 7168, fp8 out and bf16 back, 8 of 256 experts in at most 4 nodes.
inline std::string map_moe_row(const CommRow& row, CommCase& out) {
  const bool dispatch = row.collective.starts_with("moe dispatch");
  if (!dispatch && !row.collective.starts_with("moe combine")) return "another collective: " + row.collective;
  if (row.collective.find("low latency") != std::string::npos) return "kernels of inference";
  const auto gpus = number_of(row.gpus), bandwidth = number_of(row.busbw);
  if (row.hardware.find("H800") == std::string::npos || !gpus || !bandwidth) {
    return "bytes counted in another way: " + row.hardware;
  }
  Machine machine;
  for (const Machine& m : kMachines) {
    if (m.part == "H800") machine = m;
  }
  out.row = row;
  out.ranks = static_cast<std::int32_t>(*gpus);
  out.num_nodes = static_cast<std::int32_t>(div_ceil(out.ranks, machine.domain));
  out.cluster = cluster_of(machine, out.ranks, true);
  out.network = "DeepEP";
  out.call = graph::Call::all_to_all_v;
  out.moe = cost::AllToAll{.tokens = 4096,
                           .top_k = 8,
                           .num_experts = 256,
                           .row_bytes = dispatch ? 7168 : 14336,
                           .node_limit = 4,
                           .dedup = true};
  const std::int32_t parts = out.num_nodes > 1 ? out.num_nodes : out.ranks;
  const double copies =
      cost::expected_remote_nodes(parts, 256, 8, out.num_nodes > 1 ? 4 : 0) * parts / (parts - 1);
  out.message = Bytes(static_cast<std::int64_t>(copies * 4096.0 * static_cast<double>(out.moe->row_bytes)));
  out.measured = static_cast<double>(out.message.value) / (*bandwidth * 1e9);
  return "";
}

inline CommCases read_comm_cases(const std::filesystem::path& path) {
  CommCases cases;
  const std::string text = read_text(path);
  const std::vector<std::string> lines = split(text, '\n');
  for (std::size_t i = 1; i < lines.size(); ++i) {
    if (trim(lines[i]).empty()) continue;
    const auto f = csv_fields(lines[i]);
    ++cases.rows;
    CommCase one;
    std::string why = "fields missing";
    if (f.size() >= 9) {
      const CommRow row{f[0], f[1], f[2], f[3], f[4], f[5], f[6], f[7], f[8]};
      why = f[0].starts_with("moe") ? map_moe_row(row, one) : map_row(row, one);
    }
    if (why.empty()) {
      cases.mapped.push_back(std::move(one));
    } else {
      ++cases.unmapped[why];
    }
  }
  return cases;
}

inline Seconds predict(const CommCase& one, const cost::Calibration& c) {
  const cost::GroupShape group = cost::group_shape(one.cluster, one.ranks, 1);
  if (one.moe) return cost::all_to_all_time(one.cluster, c, group, *one.moe);
  return cost::collective_time(one.cluster, c, group, one.call, one.sent);
}

}  // namespace tessera::test
