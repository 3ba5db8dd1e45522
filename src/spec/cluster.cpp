#include "spec/cluster.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <optional>

#include "base/file.h"
#include "base/math.h"
#include "base/text.h"
#include "spec/internal.h"
#include "spec/units.h"

namespace tessera::spec {

namespace {

constexpr std::int32_t kMaxDevices = 1 << 24;
constexpr std::size_t kMaxTiers = 6;  // as the network model
// One direction of one device. Above it no adapter exists: 1.6 Tb/s is the fastest announced.
constexpr double kFastestAdapter = 201e9;
constexpr double kFastestPcie = 130e9;         // PCIe 6.0 x16: 128 GB/s
constexpr double kSlowestSwitchedLink = 1e11;  // below it an NVLink written in bits is a slip

struct DeviceLink {
  std::string_view device;  // beginning of the name
  double bandwidth;         // NVLink, one direction
};
// Data sheets print both directions together: 600, 400, 900, 400, 1800 GB/s.
constexpr std::array<DeviceLink, 10> kDeviceLinks = {{{"a100", 300e9},
                                                      {"a800", 200e9},
                                                      {"h100", 450e9},
                                                      {"h200", 450e9},
                                                      {"h800", 200e9},
                                                      {"h20-", 450e9},
                                                      {"b200", 900e9},
                                                      {"b300", 900e9},
                                                      {"gb200", 900e9},
                                                      {"gb300", 900e9}}};

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}
bool holds_any(std::string_view name, std::initializer_list<std::string_view> parts) {
  const std::string text = lower(name);
  return std::any_of(parts.begin(), parts.end(),
                     [&](std::string_view part) { return text.find(part) != std::string::npos; });
}
bool is_nvlink(std::string_view name) {
  return holds_any(name, {"nvlink", "nvswitch", "nvl"});
}
// Links of accelerators among themselves, which no adapter carries.
bool is_scale_up(std::string_view name) {
  return is_nvlink(name) || holds_any(name, {"xgmi", "infinity", "ualink", "hccs"});
}
bool is_pcie(std::string_view name) {
  return holds_any(name, {"pcie", "pci"});
}

std::string gigabytes(double v) {
  return fmt::format("{:.4g} GB/s", v / 1e9);
}
std::string gigabits(double v) {
  return fmt::format("{:.4g} Gb/s", v * 8.0 / 1e9);
}

bool plain_name(std::string_view name) {
  return !name.empty() && name.size() <= 100 &&
         std::all_of(name.begin(), name.end(), [](unsigned char c) { return c >= 0x20 && c != 0x7f; });
}

// --- reading

// "400 Gb/s" of the file into a quantity, with both parts of the fault.
template <class Q>
bool read_quantity(MapReader& reader, std::string_view key, const Value& v, Q& out,
                   Reading (*read)(std::string_view, Q&), bool* bits = nullptr) {
  if (v.kind == Value::Kind::list || v.kind == Value::Kind::map || v.kind == Value::Kind::null) {
    reader.problem(key, fmt::format("{} is not a number with a unit", key),
                   fmt::format("write it as in {}: {}", key,
                               key == "latency"  ? "2 us"
                               : key == "memory" ? "80 GB"
                                                 : "400 Gb/s"));
    return false;
  }
  const Reading r = read(v.text, out);
  if (!r.good) reader.problem(key, fmt::format("{}: {}", key, r.what), r.mend);
  if (bits != nullptr) *bits = r.bits;
  return r.good;
}

// `below`: devices of one domain of the tier below, 1 for the first tier.
void read_bandwidths(MapReader& reader, std::int32_t below, TierSpec& tier) {
  const Value* own = reader.take("bandwidth");
  const Value* nic = reader.take("nic_bandwidth");
  if (own != nullptr && nic != nullptr) {
    reader.problem("nic_bandwidth", "bandwidth and nic_bandwidth are both given",
                   "keep bandwidth (of one device) or nic_bandwidth (of one NIC, with nics)");
    return;
  }
  if (own == nullptr && nic == nullptr) {
    reader.problem("bandwidth", fmt::format("{} is missing", reader.place().child("bandwidth")),
                   "add bandwidth: 400 Gb/s (of one device), or nics and nic_bandwidth");
    return;
  }
  bool bits = false;
  if (own != nullptr) {
    if (!read_quantity(reader, "bandwidth", *own, tier.bandwidth, &read_bandwidth, &bits)) return;
    const double v = tier.bandwidth.value;
    if (bits && is_nvlink(tier.name) && v > 0.0 && v < kSlowestSwitchedLink) {
      reader.problem(
          "bandwidth",
          fmt::format("{}: {} is {}, less than any switched NVLink", tier.name, gigabits(v), gigabytes(v)),
          fmt::format("write {:.4g} GB/s (bytes), or {} if the bits are meant", v * 8.0 / 1e9, gigabytes(v)));
    }
    return;
  }
  BytesPerSecond of_nic;
  if (!read_quantity(reader, "nic_bandwidth", *nic, of_nic, &read_bandwidth)) return;
  if (tier.nics < 1) {
    reader.problem("nic_bandwidth", "nic_bandwidth is given without nics",
                   "add nics: how many NICs one domain of the tier below has");
    return;
  }
  tier.bandwidth = BytesPerSecond(of_nic.value * tier.nics / below);
  if (of_nic.value > kFastestAdapter && !is_scale_up(tier.name)) {
    reader.problem(
        "nic_bandwidth",
        fmt::format("{}: {} is more than any network adapter carries", tier.name, gigabytes(of_nic.value)),
        fmt::format("write {:.4g} Gb/s ({}) if bits are meant", of_nic.value / 1e9,
                    gigabytes(of_nic.value / 8.0)));
  }
}

TierSpec read_tier(MapReader& reader, std::int32_t below) {
  TierSpec tier;
  reader.required("name", tier.name);
  reader.required("size", tier.size);
  reader.optional("nics", tier.nics);
  read_bandwidths(reader, below, tier);
  if (const Value* v = reader.take("latency")) {
    read_quantity(reader, "latency", *v, tier.latency, &read_seconds);
  } else {
    reader.missing("latency");
  }
  reader.optional("oversubscription", tier.oversubscription);
  reader.optional("rail_optimized", tier.rail_optimized);
  reader.optional("in_network_reduction", tier.in_network_reduction);
  reader.refuse_unknown();
  return tier;
}

std::string tier_path(std::size_t index, std::string_view key) {
  return fmt::format("tiers[{}].{}", index, key);
}

void read_tiers(MapReader& reader, ClusterSpec& c, std::set<std::string, std::less<>>& faulty,
                Problems& problems) {
  const Value* list = reader.take("tiers");
  if (list == nullptr || list->kind != Value::Kind::list || list->items.empty()) {
    reader.problem("tiers", list == nullptr ? "tiers is missing" : "tiers is not a list of at least one tier",
                   "add tiers: [{name: nvlink, size: 8, bandwidth: 450 GB/s, latency: 2 us}]");
    return;
  }
  if (list->items.size() > kMaxTiers) {
    reader.problem("tiers", fmt::format("{} tiers are more than {}", list->items.size(), kMaxTiers),
                   "join tiers that have the same bandwidth");
    return;
  }
  for (std::size_t i = 0; i < list->items.size(); ++i) {
    const Value& item = list->items[i];
    const std::string path = fmt::format("tiers[{}]", i);
    if (item.kind != Value::Kind::map) {
      reader.problem("tiers", fmt::format("{} is not a map", path),
                     "write a tier as {name: nvlink, size: 8, bandwidth: 450 GB/s, latency: 2 us}");
      continue;
    }
    MapReader inner(item, {.file = reader.place().file, .path = path}, problems);
    const std::int32_t below = c.tiers.empty() ? 1 : std::max(1, c.tiers.back().size);
    c.tiers.push_back(read_tier(inner, below));
    faulty.insert(inner.faulty().begin(), inner.faulty().end());
  }
}

// The value of "devices" or of "tiers[1].size".
const Value* find_key(const Value& root, std::string_view key) {
  if (!key.starts_with("tiers[")) return root.find(key);
  const Value* list = root.find("tiers");
  const auto index = static_cast<std::size_t>(key[6] - '0');  // at most kMaxTiers, one digit
  if (list == nullptr || index >= list->items.size()) return list;
  const Value& item = list->items[index];
  const Value* member = item.find(key.substr(key.find('.') + 1));
  return member != nullptr ? member : &item;
}

// --- validation

void check_tier_links(const ClusterSpec& c, std::size_t i, Checker& check) {
  const TierSpec& t = c.tiers[i];
  const std::string key = tier_path(i, "bandwidth");
  const double v = t.bandwidth.value;
  if (!check.check(v > 0.0 && v <= 1e15, {key},
                   fmt::format("{}: bandwidth {} is not above 0", t.name, gigabytes(v)),
                   "give the bandwidth of one device and one direction, for example 400 Gb/s")) {
    return;
  }
  const std::string in_bits =
      fmt::format("write {:.4g} Gb/s ({}) if bits are meant", v / 1e9, gigabytes(v / 8.0));
  if (is_nvlink(t.name)) {
    for (const DeviceLink& link : kDeviceLinks) {
      if (!c.device.starts_with(link.device)) continue;
      check.check(
          v <= link.bandwidth * 1.02, {key},
          fmt::format("{}: {} is more than the {} that {} sends in one direction", t.name, gigabytes(v),
                      gigabytes(link.bandwidth), c.device),
          fmt::format("use {}; data sheets print both directions together", gigabytes(link.bandwidth)));
    }
  } else if (is_pcie(t.name)) {
    check.check(v <= kFastestPcie, {key},
                fmt::format("{}: {} is more than PCIe carries in one direction (6.0 x16: 128 GB/s)", t.name,
                            gigabytes(v)),
                in_bits);
  } else if (i > 0 && !is_scale_up(t.name)) {
    check.check(v <= kFastestAdapter, {key},
                fmt::format("{}: {} for one device is more than any network adapter carries ({})", t.name,
                            gigabytes(v), gigabits(v)),
                in_bits);
  }
}

void check_tier_size(const ClusterSpec& c, std::size_t i, Checker& check) {
  const TierSpec& t = c.tiers[i];
  const std::string key = tier_path(i, "size");
  if (!check.check(t.size >= 1 && t.size <= kMaxDevices, {key},
                   fmt::format("{}: size={} is not between 1 and {}", t.name, t.size, kMaxDevices),
                   "give the number of devices that one group of the tier holds")) {
    return;
  }
  if (i == 0) return;
  const TierSpec& below = c.tiers[i - 1];
  const std::string key_below = tier_path(i - 1, "size");
  if (!check.sound({key_below}) || below.size < 1) return;
  check.check(t.size > below.size && t.size % below.size == 0, {key, key_below},
              fmt::format("{}: size={} is not a larger multiple of size={} of {} below it", t.name, t.size,
                          below.size, below.name),
              fmt::format("use {0} times 2, 3, 4, ... devices, for example {1}", below.size,
                          std::max<std::int64_t>(2, t.size / below.size) * below.size));
}

void check_tier(const ClusterSpec& c, std::size_t i, Checker& check) {
  const TierSpec& t = c.tiers[i];
  check.check(plain_name(t.name), {tier_path(i, "name")}, "the name of a tier is empty or not plain text",
              "name it, for example nvlink, leaf, spine");
  for (std::size_t j = 0; j < i; ++j)
    check.check(c.tiers[j].name != t.name, {tier_path(i, "name"), tier_path(j, "name")},
                fmt::format("tiers {} and {} are both called {}", j, i, t.name),
                "give each tier its own name");
  check_tier_size(c, i, check);
  check_tier_links(c, i, check);
  check.check(t.latency.value >= 0.0 && t.latency.value <= 1.0, {tier_path(i, "latency")},
              fmt::format("{}: latency {} s is not between 0 and 1 s", t.name, t.latency.value),
              "give the time of one message, for example 5 us");
  check.check(t.oversubscription >= 1.0 && t.oversubscription <= 1e6, {tier_path(i, "oversubscription")},
              fmt::format("{}: oversubscription={} is not 1 or more", t.name, t.oversubscription),
              "use 1 for full bandwidth, 2 when all devices at once get half of it");
  check.check(t.nics >= 0 && t.nics <= kMaxDevices, {tier_path(i, "nics")},
              fmt::format("{}: nics={} is below 0", t.name, t.nics),
              "give the NICs of one domain of the tier below, or leave it out for one a device");
  check.check(t.nics == 0 || i > 0, {tier_path(i, "nics")},
              fmt::format("{}: nics={} on the innermost tier", t.name, t.nics),
              "remove it: NICs join domains of the tier below");
}

void validate_cluster(const ClusterSpec& c, Checker& check) {
  check.check(plain_name(c.name), {"name"}, "the cluster's name is empty or not plain text",
              "add name: my-cluster");
  check.check(plain_name(c.device), {"device"}, "the device's name is empty or not plain text",
              "name a calibration, for example device: h100-sxm");
  check.check(c.num_devices >= 1 && c.num_devices <= kMaxDevices, {"devices"},
              fmt::format("devices={} is not between 1 and {}", c.num_devices, kMaxDevices),
              "give the number of devices in all");
  check.check(c.devices_per_node >= 1 && c.devices_per_node <= kMaxDevices, {"devices_per_node"},
              fmt::format("devices_per_node={} is not between 1 and {}", c.devices_per_node, kMaxDevices),
              "give the number of devices that share a host");
  check.check(c.memory.value >= 0, {"memory"}, fmt::format("memory={} bytes is below 0", c.memory.value),
              "give the memory of one device, for example 80 GB, or leave it out");
  check.check(c.price_per_device_hour >= 0.0 && c.price_per_device_hour <= 1e9, {"price"},
              fmt::format("price={} is not 0 or more", c.price_per_device_hour),
              "give the price of one device and hour, or leave it out");
  if (!check.check(!c.tiers.empty() && c.tiers.size() <= kMaxTiers, {"tiers"},
                   fmt::format("{} tiers are not between 1 and {}", c.tiers.size(), kMaxTiers),
                   "give at least one tier")) {
    return;
  }
  for (std::size_t i = 0; i < c.tiers.size(); ++i) check_tier(c, i, check);
  const std::string last = tier_path(c.tiers.size() - 1, "size");
  check.check(c.tiers.back().size >= c.num_devices, {last, "devices"},
              fmt::format("devices={} do not fit into the last tier, {} with size={}", c.num_devices,
                          c.tiers.back().name, c.tiers.back().size),
              fmt::format("use a size of {} or more, or fewer devices", c.num_devices));
  const std::int32_t domain = c.tiers.front().size;
  check.check(domain < 1 || c.devices_per_node < 1 || domain % c.devices_per_node == 0 ||
                  c.devices_per_node % domain == 0,
              {"devices_per_node", tier_path(0, "size")},
              fmt::format("devices_per_node={} neither divides size={} of {} nor is a multiple of it",
                          c.devices_per_node, domain, c.tiers.front().name),
              fmt::format("use a divisor of {0}: {1}", domain, divisor_choices(std::max(1, domain))));
}

}  // namespace

ClusterSpec parse_cluster(std::string_view yaml, std::string_view where, Problems& problems) {
  ClusterSpec c;
  Value root;
  try {
    root = parse_yaml(yaml, where);
  } catch (const Error& e) {
    for (const Problem& p : e.problems()) problems.add(p.what, p.where, p.mend);
    return c;
  }
  if (root.kind != Value::Kind::map) {
    problems.add("the cluster is not a map of keys", std::string(where),
                 "write keys such as device: and tiers:");
    return c;
  }
  const Place place{.file = std::string(where), .path = ""};
  MapReader reader(root, place, problems);
  std::set<std::string, std::less<>> faulty;
  reader.required("name", c.name);
  reader.required("device", c.device);
  reader.required("devices", c.num_devices);
  if (const Value* v = reader.take("memory"); v != nullptr && v->kind != Value::Kind::null)
    read_quantity(reader, "memory", *v, c.memory, &read_bytes);
  reader.optional("price", c.price_per_device_hour);
  read_tiers(reader, c, faulty, problems);
  if (!c.tiers.empty()) c.devices_per_node = std::clamp(c.tiers.front().size, 1, 8);
  reader.optional("devices_per_node", c.devices_per_node);
  reader.refuse_unknown();
  faulty.insert(reader.faulty().begin(), reader.faulty().end());
  Checker checker([&](std::string_view key) { return place.where(key, find_key(root, key)); },
                  std::move(faulty), problems);
  validate_cluster(c, checker);
  return c;
}

ClusterSpec read_cluster(const std::filesystem::path& path) {
  Problems problems;
  ClusterSpec c = parse_cluster(read_text(path), path.string(), problems);
  problems.throw_if_any();
  return c;
}

void validate(const ClusterSpec& c, std::string_view where, Problems& problems) {
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, {}, problems);
  validate_cluster(c, checker);
}

std::string to_yaml(const ClusterSpec& c) {
  const auto line = [](std::string_view key, Value value) {
    Value map = map_value();
    map.set(key, std::move(value));
    return to_yaml(map);
  };
  const auto inline_text = [&](std::string_view text) {
    const std::string all = line("k", scalar(text));
    return all.substr(3, all.size() - 4);
  };
  std::string out = line("name", scalar(std::string_view(c.name)));
  out += line("device", scalar(std::string_view(c.device)));
  out += line("devices", scalar(std::int64_t{c.num_devices}));
  out += line("devices_per_node", scalar(std::int64_t{c.devices_per_node}));
  if (c.memory.value != 0) out += fmt::format("memory: {}\n", bytes_text(c.memory));
  out += "tiers:\n";
  for (std::size_t i = 0; i < c.tiers.size(); ++i) {
    const TierSpec& t = c.tiers[i];
    out += fmt::format("  - {{name: {}, size: {}, bandwidth: {}, latency: {}", inline_text(t.name), t.size,
                       bandwidth_text(t.bandwidth, i == 0 ? BandwidthUnit::bytes : BandwidthUnit::bits),
                       seconds_text(t.latency));
    if (t.oversubscription != 1.0)
      out += fmt::format(", oversubscription: {}", scalar(t.oversubscription).text);
    if (t.nics != 0) out += fmt::format(", nics: {}", t.nics);
    if (t.rail_optimized) out += ", rail_optimized: true";
    if (t.in_network_reduction) out += ", in_network_reduction: true";
    out += "}\n";
  }
  if (c.price_per_device_hour != 0.0) out += line("price", scalar(c.price_per_device_hour));
  return out;
}

ClusterSpec with_devices(ClusterSpec c, std::int32_t num_devices) {
  if (num_devices < 1 || num_devices > kMaxDevices) {
    throw Error(ErrorKind::config,
                fmt::format("devices={} is not between 1 and {}", num_devices, kMaxDevices),
                fmt::format("cluster {}", c.name), "give the number of devices in all");
  }
  TESSERA_CHECK(!c.tiers.empty(), "a cluster has at least one tier");
  if (num_devices > c.tiers.back().size) {
    if (c.tiers.size() == 1) {
      throw Error(
          ErrorKind::config,
          fmt::format("{} devices do not fit into {}: its only tier, {}, joins {}", num_devices, c.name,
                      c.tiers.back().name, c.tiers.back().size),
          fmt::format("cluster {}", c.name),
          fmt::format("use up to {} devices, or describe the network that joins more as a second tier",
                      c.tiers.back().size));
    }
    const std::int32_t below = c.tiers[c.tiers.size() - 2].size;
    c.tiers.back().size = static_cast<std::int32_t>(round_up(num_devices, below));
  }
  c.num_devices = num_devices;
  return c;
}

std::string describe(const ClusterSpec& c) {
  std::string out = fmt::format(
      "{}: {} x {}, {} a node, {}{}\n", c.name, c.num_devices, c.device, c.devices_per_node,
      c.memory.value > 0 ? bytes_text(c.memory) + " each" : "memory of the device's file",
      c.price_per_device_hour > 0.0 ? fmt::format(", {} an hour each", c.price_per_device_hour) : "");
  std::size_t width = 4;
  for (const TierSpec& t : c.tiers) width = std::max(width, t.name.size());
  out += fmt::format("  {:{}}  {:>8}  {:>12}  {:>12}  {:>8}  {:>7}{}\n", "tier", width, "devices", "each way",
                     "all at once", "latency", "NICs", "");
  for (std::size_t i = 0; i < c.tiers.size(); ++i) {
    const TierSpec& t = c.tiers[i];
    const BandwidthUnit unit = i == 0 ? BandwidthUnit::bytes : BandwidthUnit::bits;
    const auto rate = [&](double v) { return unit == BandwidthUnit::bytes ? gigabytes(v) : gigabits(v); };
    const std::string nics = i == 0        ? "-"
                             : t.nics == 0 ? "1 each"
                                           : fmt::format("{} / {}", t.nics, c.tiers[i - 1].size);
    std::string notes;
    if (t.rail_optimized) notes += "  rails";
    if (t.in_network_reduction) notes += "  reduces in the network";
    out += fmt::format("  {:{}}  {:>8}  {:>12}  {:>12}  {:>8}  {:>7}{}\n", t.name, width, t.size,
                       rate(t.bandwidth.value), rate(t.bandwidth.value / t.oversubscription),
                       seconds_text(t.latency), nics, notes);
  }
  return out;
}

}  // namespace tessera::spec
