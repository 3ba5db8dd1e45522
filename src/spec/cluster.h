// ClusterSpec: the machines, read from YAML. Devices in nested tiers of links: inside of tier 0 (the NVLink
// domain) every device reaches every other at the tier's bandwidth; tiers above join domains of the one
// below. Plain data; every number of a preset carries its source in the YAML.
//
//   name: dgx-h100
//   device: h100-sxm           # a calibration file: peaks, kernel efficiencies
//   devices: 512
//   memory: 80 GB              # optional: of the device's file
//   tiers:
//     - {name: nvlink, size: 8, bandwidth: 450 GB/s, latency: 2 us}
//     - {name: rail, size: 256, bandwidth: 400 Gb/s, latency: 5 us, nics: 8}
//     - {name: spine, size: 16384, bandwidth: 400 Gb/s, latency: 8 us, oversubscription: 2}
//   price: 2.5                 # per device and hour, optional
//
// Bandwidths are per device and one direction (data sheets of NVLink print both together). Units are written
// out: GB/s are bytes, Gb/s bits; a bare number is refused. A tier whose numbers look like the other unit (a
// NIC of 400 GB/s, an NVLink of 450 Gb/s) is refused with both readings. Fewer NICs than devices: the
// bandwidth is the device's share of them, written as such or as `nics` and `nic_bandwidth`:
//
//     - {name: leaf, size: 256, nics: 4, nic_bandwidth: 100 Gb/s, latency: 4 us}   # 50 Gb/s for each of 8
//
// The whole format: docs/formats/cluster.md. Pure functions, thread safe.
#pragma once
#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "base/quantity.h"

namespace tessera::spec {

// One level of the network. `size`: devices that one group of this tier holds; each tier's size is a multiple
// of the one below, the last one's at least `devices`.
struct TierSpec {
  std::string name;  // nvlink, pcie, rail, leaf, spine
  std::int32_t size = 1;
  BytesPerSecond bandwidth;       // one direction, of one device (of its share of the NICs of its node)
  Seconds latency;                // of one message
  double oversubscription = 1.0;  // 2: only half of the bandwidth for all devices at once
  // NICs of one domain of the tier below, 0: one a device. A lone sender of the domain gets a whole one:
  // bandwidth * size of the tier below / nics.
  std::int32_t nics = 0;
  bool rail_optimized = false;        // the i-th devices of all nodes share a leaf
  bool in_network_reduction = false;  // NVLS / SHARP: an all-reduce sends its bytes once
  friend bool operator==(const TierSpec&, const TierSpec&) = default;
};

struct ClusterSpec {
  std::string name;
  std::string device;  // name of the calibration: h100-sxm, a100-sxm-80gb, ...
  std::int32_t num_devices = 0;
  std::int32_t devices_per_node = 8;   // that share a host
  Bytes memory;                        // of one device, as sold (80e9); 0: what the device's file says
  std::vector<TierSpec> tiers;         // innermost first, at least one
  double price_per_device_hour = 0.0;  // 0: not known
  friend bool operator==(const ClusterSpec&, const ClusterSpec&) = default;
};

// Adds every problem; what it returns beside problems is not to be used.
[[nodiscard]] ClusterSpec parse_cluster(std::string_view yaml, std::string_view where, Problems& problems);
[[nodiscard]] ClusterSpec read_cluster(const std::filesystem::path& path);  // Error{config} with all problems
[[nodiscard]] std::string to_yaml(const ClusterSpec& c);  // parse_cluster reads it back equal
void validate(const ClusterSpec& c, std::string_view where, Problems& problems);
// The same machines, another number of them. The last tier grows when it must; Error{config} when there is
// only one (an NVLink domain or a box does not grow).
[[nodiscard]] ClusterSpec with_devices(ClusterSpec c, std::int32_t num_devices);
[[nodiscard]] std::string describe(const ClusterSpec& c);  // a line of the whole, then a table of the tiers

// "400 Gb/s" -> 50e9 B/s, "900 GB/s", "80 GB" (1e9), "74.5 GiB", "2 us", "1.5 ms". When false, `problem` says
// what is wrong and how to mend it, and `out` is left alone.
[[nodiscard]] bool parse_bandwidth(std::string_view text, BytesPerSecond& out, std::string& problem);
[[nodiscard]] bool parse_bytes(std::string_view text, Bytes& out, std::string& problem);
[[nodiscard]] bool parse_seconds(std::string_view text, Seconds& out, std::string& problem);

}  // namespace tessera::spec
