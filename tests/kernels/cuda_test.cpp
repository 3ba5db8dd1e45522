// What the emulation behind cuda_emulated finds (support/emulation.h), and what there is without a GPU.
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

#include "kernels/cuda/cuda_kernels.h"
#include "kernels/fixtures.h"
#include "kernels/gpu_peaks.h"
#include "support/run_emulated.h"

namespace tessera::kernels {
namespace {

TEST(Emulation, EveryThreadOfEveryBlockRunsOnce) {
  std::vector<int> seen(3 * 2 * 64, 0);
  test::run_emulated({.blocks_x = 3, .blocks_y = 2, .threads = 64}, [&](const test::EmulatedThread& at) {
    ++seen[(at.block_y * 3 + at.block_x) * 64 + at.thread];
  });
  EXPECT_EQ(seen, std::vector<int>(seen.size(), 1));
}

TEST(Emulation, ABarrierHoldsUntilAllThreadsHaveMet) {
  std::vector<int> ready(96, 0);
  int early = 0;
  test::run_emulated({.threads = 96}, [&](const test::EmulatedThread& at) {
    ready[at.thread] = 1;
    at.block_barrier();
    for (const int r : ready) early += r == 0 ? 1 : 0;
  });
  EXPECT_EQ(early, 0);
}

TEST(Emulation, WithoutABarrierTheOrderOfTheThreadsShows) {
  std::vector<std::vector<int>> order(2);
  test::run_emulated({.blocks_x = 2, .threads = 32},
                     [&](const test::EmulatedThread& at) { order[at.block_x].push_back(at.thread); });
  EXPECT_EQ(order[0].front(), 0);
  EXPECT_EQ(order[1].front(), 31) << "odd blocks begin with their last thread";
}

TEST(Emulation, LanesSeeEachOthersValues) {
  std::vector<int> got(64, -1);
  test::run_emulated({.threads = 64}, [&](const test::EmulatedThread& at) {
    int value = 100 + at.thread;
    for (int turn = 0; turn < 3; ++turn) value = at.shuffle_xor(value, 1 << turn);
    got[at.thread] = value;
  });
  for (int t = 0; t < 64; ++t) EXPECT_EQ(got[static_cast<std::size_t>(t)], 100 + (t ^ 7));
}

TEST(Emulation, ABarrierThatSomeThreadsNeverReachIsAnError) {
  try {
    test::run_emulated({.threads = 64}, [](const test::EmulatedThread& at) {
      if (at.thread < 40) at.block_barrier();
    });
    FAIL() << "a divergent barrier went unseen";
  } catch (const Error& e) {
    EXPECT_NE(std::string(e.what()).find("wait at different points"), std::string::npos) << e.what();
  }
}

// On a machine with a GPU every kernel test runs on it too, as "cuda"; TESSERA_REQUIRE_GPU=1 insists on one.
TEST(Cuda, IsTestedWhereThereIsADevice) {
  const DeviceList list = cuda_devices();
  if (list.count > 0) {
    EXPECT_NE(make_cuda(0), nullptr);
    return;
  }
  EXPECT_FALSE(list.why_none.empty());
  ASSERT_EQ(std::getenv("TESSERA_REQUIRE_GPU"), nullptr) << "no GPU: " << list.why_none;
  GTEST_SKIP() << "no GPU: " << list.why_none;
}

TEST(Cuda, ADeviceThatIsNotThereIsAnErrorWithItsMend) {
  try {
    const auto kernels = make_cuda(4096);
    FAIL() << "device 4096 was opened";
  } catch (const Error& e) {
    const std::string text = e.what();
    EXPECT_TRUE(text.find("CUDA device 4096") != std::string::npos ||
                text.find("this build has no CUDA") != std::string::npos)
        << text;
    EXPECT_FALSE(e.problems().front().mend.empty());
  }
}

// Dense, without sparsity; NVIDIA's data sheets.
TEST(Cuda, PublishedPeaksAreThoseOfTheNameAndType) {
  const auto peak = [](std::string_view name, DType dtype) {
    const auto p = published_peak(name, dtype);
    return p ? p->value * 1e-12 : 0.0;
  };
  EXPECT_NEAR(peak("NVIDIA H100 80GB HBM3", DType::bf16), 989.4, 0.1);
  EXPECT_NEAR(peak("NVIDIA H100 PCIe", DType::bf16), 756.0, 0.1) << "fewer units, a lower clock";
  EXPECT_NEAR(peak("NVIDIA H200", DType::f32), 66.9, 0.1);
  EXPECT_NEAR(peak("NVIDIA A100-SXM4-80GB", DType::bf16), 312.0, 0.1);
  EXPECT_NEAR(peak("NVIDIA A100-SXM4-80GB", DType::f64), 9.7, 0.1);
  EXPECT_EQ(published_peak("NVIDIA GeForce RTX 9999", DType::bf16), std::nullopt) << "no guess";
}

}  // namespace
}  // namespace tessera::kernels
