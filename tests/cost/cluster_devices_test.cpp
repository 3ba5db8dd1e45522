// The shipped clusters against the shipped calibrations and the network model: every device is calibrated,
// memory agrees, and groups of every kind of size have a price.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "cost/calibration.h"
#include "cost/network.h"
#include "spec/presets.h"

namespace tessera::cost {
namespace {

TEST(ShippedClusters, HaveCalibratedDevicesOfTheSameMemory) {
  const std::vector<std::string> known = calibration_names();
  for (const spec::PresetInfo& p : spec::cluster_presets()) {
    const spec::ClusterSpec c = spec::cluster_preset(p.name);
    ASSERT_NE(std::find(known.begin(), known.end(), c.device), known.end()) << p.name << " has " << c.device;
    EXPECT_EQ(calibration(c.device).memory, c.memory) << p.name;
  }
}

TEST(ShippedClusters, PriceGroupsOfEverySize) {
  for (const spec::PresetInfo& p : spec::cluster_presets()) {
    const spec::ClusterSpec c = spec::cluster_preset(p.name);
    const Calibration device = calibration(c.device);
    for (const std::int32_t size : {2, 3, 4, 8, 12, 64, 72, 100, 512}) {
      for (const std::int64_t stride : {1, 2, 8, 24, 64}) {
        if (size * stride > c.num_devices) continue;
        const GroupShape g = group_shape(c, size, stride);
        for (const graph::Call call : {graph::Call::all_reduce, graph::Call::all_gather}) {
          const double t = collective_time(c, device, g, call, Bytes(1 << 20)).value;
          EXPECT_TRUE(std::isfinite(t) && t > 0.0) << p.name << " " << size << " x " << stride;
        }
      }
    }
  }
}

// 8 nodes that sum 1 GB a device: with a quarter of the NICs at least three times as long.
TEST(ShippedClusters, FeelTheirNics) {
  const auto seconds = [](std::string_view name) {
    const spec::ClusterSpec c = spec::with_devices(spec::cluster_preset(name), 64);
    return collective_time(c, calibration(c.device), group_shape(c, 64, 1), graph::Call::all_reduce,
                           Bytes(1'000'000'000))
        .value;
  };
  EXPECT_GT(seconds("a100-4x100"), 3.0 * seconds("dgx-a100"));
  EXPECT_GT(seconds("dgx-a100"), seconds("dgx-h100"));
  EXPECT_GT(seconds("dgx-h100"), seconds("gb200-nvl72"));
}

}  // namespace
}  // namespace tessera::cost
