// The cluster file: fields and units, every fault with its numbers and its mend line, the traps of bandwidths
// (bits and bytes, both directions), round trips, the shipped clusters, and mutated files.
#include "spec/cluster.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "spec/presets.h"
#include "spec/support.h"

namespace tessera::spec {
namespace {

using test::listed;
using test::mutated;
using test::replaced;
using test::reports;

constexpr std::string_view kCluster = R"(name: two-tier
device: h100-sxm
devices: 512
memory: 80 GB
tiers:
  - {name: nvlink, size: 8, bandwidth: 450 GB/s, latency: 2 us, in_network_reduction: true}
  - {name: rail, size: 256, bandwidth: 400 Gb/s, latency: 5 us, nics: 8, rail_optimized: true}
  - {name: spine, size: 16384, bandwidth: 400 Gb/s, latency: 8 us, oversubscription: 2}
price: 2.5
)";

ClusterSpec parsed(std::string_view yaml) {
  Problems problems;
  ClusterSpec c = parse_cluster(yaml, "cluster.yaml", problems);
  EXPECT_TRUE(problems.empty()) << listed(problems.list());
  return c;
}
std::vector<Problem> problems_of(std::string_view yaml) {
  Problems problems;
  (void)parse_cluster(yaml, "cluster.yaml", problems);
  return problems.list();
}
std::vector<Problem> with(std::string_view from, std::string_view to) {
  return problems_of(replaced(std::string(kCluster), from, to));
}

TEST(Cluster, ReadsFieldsAndUnits) {
  const ClusterSpec c = parsed(kCluster);
  EXPECT_EQ(c.name, "two-tier");
  EXPECT_EQ(c.device, "h100-sxm");
  EXPECT_EQ(c.num_devices, 512);
  EXPECT_EQ(c.devices_per_node, 8);
  EXPECT_EQ(c.memory, Bytes(80'000'000'000));
  EXPECT_EQ(c.price_per_device_hour, 2.5);
  ASSERT_EQ(c.tiers.size(), 3);
  EXPECT_EQ(c.tiers[0].bandwidth, BytesPerSecond(450e9));
  EXPECT_EQ(c.tiers[1].bandwidth, BytesPerSecond(50e9));
  EXPECT_EQ(c.tiers[1].latency, Seconds(5e-6));
  EXPECT_EQ(c.tiers[1].nics, 8);
  EXPECT_TRUE(c.tiers[1].rail_optimized);
  EXPECT_TRUE(c.tiers[0].in_network_reduction);
  EXPECT_FALSE(c.tiers[1].in_network_reduction);
  EXPECT_EQ(c.tiers[2].oversubscription, 2.0);
  EXPECT_EQ(c.tiers[1].oversubscription, 1.0);
}

TEST(Cluster, SharesTheBandwidthOfFewNicsAmongTheDevicesOfANode) {
  const ClusterSpec c = parsed(R"(name: four-nics
device: a100-sxm-80gb
devices: 64
tiers:
  - {name: nvlink, size: 8, bandwidth: 300 GB/s, latency: 2 us}
  - {name: leaf, size: 64, nics: 4, nic_bandwidth: 100 Gb/s, latency: 5 us}
)");
  EXPECT_EQ(c.tiers[1].bandwidth, BytesPerSecond(6.25e9));  // 4 x 12.5 GB/s for 8 devices
  EXPECT_EQ(c.tiers[1].nics, 4);
  EXPECT_EQ(c.memory, Bytes(0));
}

TEST(Cluster, TakesOneOfBandwidthAndNicBandwidth) {
  EXPECT_TRUE(reports(with("latency: 5 us, nics: 8", "latency: 5 us, nics: 8, nic_bandwidth: 400 Gb/s"),
                      "both given", "cluster.yaml:7: tiers[1].nic_bandwidth", "keep bandwidth"));
  EXPECT_TRUE(
      reports(with("bandwidth: 400 Gb/s, latency: 5 us, nics: 8", "nic_bandwidth: 400 Gb/s, latency: 5 us"),
              "without nics", "tiers[1].nic_bandwidth", "add nics"));
  EXPECT_TRUE(reports(with("bandwidth: 400 Gb/s, latency: 5 us", "latency: 5 us"),
                      "tiers[1].bandwidth is missing", "tiers[1].bandwidth", "nic_bandwidth"));
}

TEST(Cluster, RefusesABareNumberWithBothReadings) {
  const auto problems = with("450 GB/s", "450");
  EXPECT_EQ(problems.size(), 1) << listed(problems);
  EXPECT_TRUE(reports(problems, "bandwidth: 450 has no unit", "cluster.yaml:6: tiers[0].bandwidth",
                      "write 450 GB/s (bytes) or 450 Gb/s (bits: 56.25 GB/s)"));
  EXPECT_TRUE(
      reports(with("latency: 5 us", "latency: 5"), "5 has no unit", "tiers[1].latency", "5 us, 5 ms"));
  EXPECT_TRUE(reports(with("80 GB", "80"), "80 has no unit", "memory", "80 GB (1e9 bytes) or 80 GiB"));
}

TEST(Cluster, RefusesAUnitThatIsNeitherBitsNorBytes) {
  EXPECT_TRUE(reports(with("450 GB/s", "450 gb/s"), "\"gb/s\" is not a unit", "tiers[0].bandwidth",
                      "write 450 GB/s (bytes) or 450 Gb/s (bits: 56.25 GB/s)"));
  EXPECT_TRUE(reports(with("80 GB", "80 Gb"), "\"Gb\" is not a unit of bytes", "memory", "80 GB"));
  EXPECT_TRUE(reports(with("5 us", "5 usec"), "\"usec\" is not a unit of time", "latency", "us"));
}

TEST(Cluster, RefusesAnAdapterOfFourHundredGigabytes) {
  const auto problems = with("256, bandwidth: 400 Gb/s", "256, bandwidth: 400 GB/s");
  EXPECT_EQ(problems.size(), 1) << listed(problems);
  EXPECT_TRUE(reports(problems,
                      "rail: 400 GB/s for one device is more than any network adapter carries (3200 Gb/s)",
                      "cluster.yaml:7: tiers[1].bandwidth", "write 400 Gb/s (50 GB/s)"));
  EXPECT_TRUE(reports(
      with("bandwidth: 400 Gb/s, latency: 5 us, nics: 8", "nic_bandwidth: 400 GB/s, latency: 5 us, nics: 4"),
      "400 GB/s is more than any network adapter carries", "tiers[1].nic_bandwidth",
      "write 400 Gb/s (50 GB/s)"));
}

TEST(Cluster, RefusesAnNvlinkInBits) {
  EXPECT_TRUE(reports(with("450 GB/s", "450 Gb/s"), "nvlink: 450 Gb/s is 56.25 GB/s", "tiers[0].bandwidth",
                      "write 450 GB/s (bytes), or 56.25 GB/s if the bits are meant"));
  EXPECT_EQ(parsed(replaced(std::string(kCluster), "450 GB/s", "3600 Gb/s")).tiers[0].bandwidth,
            BytesPerSecond(450e9));
}

TEST(Cluster, RefusesBothDirectionsOfNvlinkTogether) {
  EXPECT_TRUE(reports(with("450 GB/s", "900 GB/s"),
                      "nvlink: 900 GB/s is more than the 450 GB/s that h100-sxm sends", "tiers[0].bandwidth",
                      "use 450 GB/s; data sheets print both directions together"));
}

TEST(Cluster, RefusesPcieBeyondItsStandard) {
  EXPECT_TRUE(
      reports(with("name: nvlink, size: 8, bandwidth: 450 GB/s", "name: pcie, size: 8, bandwidth: 256 GB/s"),
              "pcie: 256 GB/s is more than PCIe carries", "tiers[0].bandwidth", "256 Gb/s (32 GB/s)"));
}

TEST(Cluster, ReportsEveryProblemAtOnce) {
  const auto problems = problems_of(R"(name: bad
device: h100-sxm
devices: 300
colour: red
tiers:
  - {name: nvlink, size: 8, bandwidth: 450, latency: 2 us}
  - {name: rail, size: 20, bandwidth: 400 Gb/s, latency: 5 us, oversubscription: 0.5}
  - {name: rail, size: 40, bandwith: 400 Gb/s, latency: 5 us}
)");
  EXPECT_TRUE(reports(problems, "unknown key \"colour\"", "cluster.yaml:4", "known keys"));
  EXPECT_TRUE(reports(problems, "450 has no unit", "cluster.yaml:6", "450 GB/s"));
  EXPECT_TRUE(reports(problems, "rail: size=20 is not a larger multiple of size=8 of nvlink",
                      "cluster.yaml:7", "for example 16"));
  EXPECT_TRUE(reports(problems, "oversubscription=0.5 is not 1 or more", "cluster.yaml:7", "use 1"));
  EXPECT_TRUE(reports(problems, "unknown key \"bandwith\"", "cluster.yaml:8", "tiers[2].bandwidth"));
  EXPECT_TRUE(reports(problems, "tiers[2].bandwidth is missing", "cluster.yaml", "add bandwidth"));
  EXPECT_TRUE(reports(problems, "tiers 1 and 2 are both called rail", "cluster.yaml:8", "its own name"));
  EXPECT_TRUE(reports(problems, "devices=300 do not fit into the last tier, rail with size=40",
                      "cluster.yaml:8", "a size of 300 or more"));
  EXPECT_EQ(problems.size(), 8) << listed(problems);
}

TEST(Cluster, NamesMissingKeys) {
  const auto problems = problems_of("memory: 80 GB\n");
  EXPECT_TRUE(reports(problems, "name is missing", "cluster.yaml", "add name"));
  EXPECT_TRUE(reports(problems, "device is missing", "cluster.yaml", "add device"));
  EXPECT_TRUE(reports(problems, "devices is missing", "cluster.yaml", "add devices"));
  EXPECT_TRUE(reports(problems, "tiers is missing", "cluster.yaml", "add tiers"));
  EXPECT_EQ(problems.size(), 4) << listed(problems);
}

TEST(Cluster, RefusesNodesThatTheInnermostTierCuts) {
  EXPECT_TRUE(reports(with("devices: 512", "devices: 512\ndevices_per_node: 6"),
                      "devices_per_node=6 neither divides size=8", "cluster.yaml:4: devices_per_node",
                      "{1, 2, 4, 8}"));
}

TEST(Cluster, RefusesMoreTiersThanTheNetworkModelKnows) {
  std::string yaml = "name: deep\ndevice: x\ndevices: 2\ntiers:\n";
  for (int i = 0; i < 7; ++i)
    yaml += fmt::format("  - {{name: t{}, size: {}, bandwidth: 10 GB/s, latency: 1 us}}\n", i, 2 << i);
  EXPECT_TRUE(reports(problems_of(yaml), "7 tiers are more than 6", "tiers", "join tiers"));
}

TEST(Cluster, ValidatesPlainDataWithoutAFile) {
  ClusterSpec c = parsed(kCluster);
  c.tiers[1].bandwidth = BytesPerSecond(-1.0);
  c.tiers[2].latency = Seconds(std::nan(""));
  c.num_devices = 0;
  Problems problems;
  validate(c, "given", problems);
  EXPECT_TRUE(reports(problems.list(), "bandwidth -1e-09 GB/s is not above 0", "given: tiers[1].bandwidth",
                      "400 Gb/s"));
  EXPECT_TRUE(reports(problems.list(), "latency nan s", "given: tiers[2].latency", "5 us"));
  EXPECT_TRUE(reports(problems.list(), "devices=0 is not between 1", "given: devices", "in all"));
  EXPECT_EQ(problems.list().size(), 3) << listed(problems.list());
}

TEST(Cluster, WritesWhatItReadsBack) {
  ClusterSpec c = parsed(kCluster);
  c.name = "with \"quotes\": and #";
  c.tiers[0].latency = Seconds(1.9e-6);
  c.tiers[1].bandwidth = BytesPerSecond(1e11 / 3.0);
  c.tiers[2].latency = Seconds(7.3e-6 / 7.0);
  c.tiers[2].oversubscription = 4.0 / 3.0;
  c.memory = Bytes(79'999'999'999);
  c.price_per_device_hour = 0.1;
  EXPECT_EQ(parsed(to_yaml(c)), c) << to_yaml(c);
  EXPECT_EQ(parsed(to_yaml(parsed(kCluster))), parsed(kCluster));
  EXPECT_NE(to_yaml(parsed(kCluster)).find("bandwidth: 400 Gb/s"), std::string::npos)
      << to_yaml(parsed(kCluster));
  EXPECT_NE(to_yaml(parsed(kCluster)).find("memory: 80 GB"), std::string::npos);
}

TEST(Cluster, RoundTripsRandomNumbers) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    const auto u = [&](std::uint64_t i) { return uniform(seed, stream_of("cluster"), i); };
    ClusterSpec c = parsed(kCluster);
    c.tiers[0].bandwidth = BytesPerSecond(1e8 * std::pow(10.0, 3.0 * u(0)));
    c.tiers[1].bandwidth = BytesPerSecond(1e5 * std::pow(10.0, 6.0 * u(1)));
    c.tiers[2].latency = Seconds(std::pow(10.0, -9.0 * u(2)));
    c.memory = Bytes(static_cast<std::int64_t>(1e15 * u(3)) + 1);
    EXPECT_EQ(parsed(to_yaml(c)), c) << to_yaml(c);
  }
}

TEST(Cluster, GrowsItsLastTierWithTheDevices) {
  const ClusterSpec c = parsed(kCluster);
  EXPECT_EQ(with_devices(c, 64).num_devices, 64);
  EXPECT_EQ(with_devices(c, 64).tiers, c.tiers);
  const ClusterSpec large = with_devices(c, 20'000);
  EXPECT_EQ(large.tiers.back().size, 20'224);  // 79 rails of 256
  Problems problems;
  validate(large, "large", problems);
  EXPECT_TRUE(problems.empty()) << listed(problems.list());
}

TEST(Cluster, DoesNotGrowASingleBox) {
  const ClusterSpec box = cluster_preset("workstation");
  EXPECT_EQ(with_devices(box, 2).num_devices, 2);
  try {
    (void)with_devices(box, 8);
    FAIL() << "grew";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_TRUE(reports(e.problems(), "8 devices do not fit into workstation: its only tier, pcie, joins 4",
                        "cluster workstation", "second tier"));
  }
  EXPECT_THROW((void)with_devices(box, 0), Error);
}

TEST(Cluster, DescribesItsTiers) {
  const std::string text = describe(parsed(kCluster));
  for (const std::string_view part : {"two-tier: 512 x h100-sxm, 8 a node, 80 GB each, 2.5 an hour each",
                                      "450 GB/s", "400 Gb/s", "200 Gb/s", "8 us", "8 / 8", "1 each", "rails"})
    EXPECT_NE(text.find(part), std::string::npos) << part << " is not in\n" << text;
  EXPECT_EQ(text.find(" \n"), std::string::npos) << "blanks at the end of a line of\n" << text;
}

TEST(Units, AreReadAsWritten) {
  BytesPerSecond b;
  Bytes n;
  Seconds s;
  std::string problem;
  const auto rate = [&](std::string_view text) { return parse_bandwidth(text, b, problem) ? b.value : -1.0; };
  EXPECT_EQ(rate("400 Gb/s"), 50e9);
  EXPECT_EQ(rate("400Gbps"), 50e9);
  EXPECT_EQ(rate("3.2 Tbit/s"), 400e9);
  EXPECT_EQ(rate("900 GB/s"), 900e9);
  EXPECT_EQ(rate("1 GiB/s"), 1073741824.0);
  EXPECT_EQ(rate("100 MB/s"), 1e8);
  for (const std::string_view bad : {"", "fast", "-1 GB/s", "nan GB/s", "inf GB/s", "1e400 GB/s", "1 GB",
                                     "1 mB/s", "1 GB/s/s", "GB/s", "1,5 GB/s"}) {
    problem.clear();
    EXPECT_EQ(rate(bad), -1.0) << bad;
    EXPECT_NE(problem, "") << bad;
  }
  EXPECT_TRUE(parse_bytes("74.5 GiB", n, problem));
  EXPECT_EQ(n, Bytes(79'993'765'888));
  EXPECT_TRUE(parse_bytes("9007199254740993 B", n, problem));
  EXPECT_EQ(n, Bytes(9007199254740993));
  EXPECT_FALSE(parse_bytes("1e30 GB", n, problem));
  EXPECT_TRUE(parse_seconds("1.5 ms", s, problem));
  EXPECT_EQ(s, Seconds(1.5e-3));
  EXPECT_TRUE(parse_seconds("300 ns", s, problem));
  EXPECT_DOUBLE_EQ(s.value, 3e-7);
}

TEST(ClusterPresets, AreAllSoundAndNamedAsTheirFiles) {
  const std::vector<PresetInfo> presets = cluster_presets();
  ASSERT_GE(presets.size(), 20);
  for (const PresetInfo& p : presets) {
    const ClusterSpec c = cluster_preset(p.name);
    EXPECT_EQ(c.name, p.name);
    EXPECT_GT(p.summary.size(), 10) << p.name;
    EXPECT_GT(c.memory, Bytes(0)) << p.name;
    Problems problems;
    EXPECT_EQ(parse_cluster(to_yaml(c), p.name, problems), c);
    EXPECT_TRUE(problems.empty()) << listed(problems.list());
  }
  for (std::size_t i = 1; i < presets.size(); ++i) EXPECT_LT(presets[i - 1].name, presets[i].name);
}

TEST(ClusterPresets, HaveTheBandwidthsOfTheirDataSheets) {
  const auto intra = [](std::string_view name) {
    return cluster_preset(name).tiers.front().bandwidth.value / 1e9;
  };
  const auto inter = [](std::string_view name) {
    return cluster_preset(name).tiers[1].bandwidth.value * 8 / 1e9;
  };
  EXPECT_EQ(intra("dgx-a100"), 300);
  EXPECT_EQ(intra("dgx-h100"), 450);
  EXPECT_EQ(intra("h800"), 200);
  EXPECT_EQ(intra("a800"), 200);
  EXPECT_EQ(intra("dgx-b200"), 900);
  EXPECT_EQ(intra("gb200-nvl72"), 900);
  EXPECT_EQ(intra("mi300x"), 448);
  EXPECT_EQ(intra("a100-pcie"), 32);
  EXPECT_EQ(inter("dgx-a100"), 200);
  EXPECT_EQ(inter("dgx-h100"), 400);
  EXPECT_EQ(inter("dgx-b300"), 800);
  EXPECT_EQ(inter("gb300-nvl72"), 800);
  EXPECT_EQ(inter("aws-p4de"), 50);   // 4 x 100 for 8
  EXPECT_EQ(inter("aws-p5"), 400);    // 32 x 100 for 8
  EXPECT_EQ(inter("a100-pcie"), 25);  // 200 for 8
  EXPECT_EQ(cluster_preset("a100-pcie").tiers[2].bandwidth, cluster_preset("a100-pcie").tiers[1].bandwidth);
  EXPECT_EQ(cluster_preset("gb200-nvl72").devices_per_node, 4);
  EXPECT_EQ(cluster_preset("gb200-nvl72").tiers.front().size, 72);
}

TEST(ClusterPresets, SuggestTheNearestName) {
  try {
    (void)find_cluster("dgx-h10");
    FAIL() << "found";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_TRUE(reports(e.problems(), "\"dgx-h10\" is neither a shipped cluster nor a file", "cluster",
                        "did you mean dgx-h100?"));
  }
  try {
    (void)cluster_preset("nvl72");
    FAIL() << "found";
  } catch (const Error& e) {
    EXPECT_TRUE(reports(e.problems(), "no shipped cluster is called \"nvl72\"", "cluster", "nvl72?"));
  }
}

TEST(ClusterPresets, AreFoundByNameOrPath) {
  const std::filesystem::path path = std::filesystem::path(TESSERA_BINARY_DIR) / "cluster_test.yaml";
  write_atomically(path, kCluster);
  EXPECT_EQ(find_cluster(path.string()), parsed(kCluster));
  EXPECT_EQ(find_cluster("dgx-h100"), cluster_preset("dgx-h100"));
  std::filesystem::remove(path);
}

// The page of the format: its examples are read, its error is the one that comes, its table is complete.
TEST(ClusterPage, HoldsWhatTheProgramDoes) {
  const std::string page = read_text(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs/formats/cluster.md");
  std::vector<ClusterSpec> examples;
  for (std::size_t at = page.find("```yaml\n"); at != std::string::npos; at = page.find("```yaml\n", at)) {
    at += 8;
    examples.push_back(parsed(page.substr(at, page.find("```", at) - at)));
  }
  ASSERT_EQ(examples.size(), 2);
  EXPECT_EQ(examples[0].tiers[2].oversubscription, 2.0);
  EXPECT_EQ(examples[1].tiers[1].bandwidth, BytesPerSecond(6.25e9));
  Problems problems;
  (void)parse_cluster(replaced(std::string(kCluster), "450 GB/s", "450"), "cluster.yaml", problems);
  const std::string error = Error(ErrorKind::config, problems.list()).what();
  EXPECT_NE(page.find(error), std::string::npos) << error;
  for (const PresetInfo& p : cluster_presets())
    EXPECT_NE(page.find("`" + p.name + "`"), std::string::npos) << p.name << " is not on the page";
}

TEST(Cluster, MutatedFilesAreReadOrRefused) {
  int good = 0;
  for (std::uint64_t seed = 0; seed < 2000; ++seed) {
    const std::string text = mutated(std::string(kCluster), seed);
    Problems problems;
    try {
      const ClusterSpec c = parse_cluster(text, "cluster.yaml", problems);
      if (!problems.empty()) continue;
      ++good;
      EXPECT_EQ(parsed(to_yaml(c)), c) << text;
      (void)describe(c);
      (void)with_devices(c, c.num_devices);
    } catch (const Error&) {
      ADD_FAILURE() << "threw instead of adding problems: " << text;
    }
  }
  EXPECT_GT(good, 50);
}

}  // namespace
}  // namespace tessera::spec
