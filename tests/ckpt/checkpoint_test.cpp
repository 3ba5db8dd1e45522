// Writing and reading checkpoints: what comes back, what is on disk, what is kept, how failures surface.
#include "ckpt/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <csignal>
#include <thread>

#include "ckpt/safetensors.h"
#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

std::vector<std::string> entries(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder))
    names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

TEST(Checkpoint, GivesBackWhatWasStagedWithItsDescription) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder / "checkpoints", .world_size = 2});
  stage_small(writer, 100);
  writer.wait();
  const CheckpointReader reader(folder / "checkpoints" / "step-00000100");
  EXPECT_EQ(reader.meta(), meta_of(100));
  EXPECT_THAT(reader.names(), ::testing::ElementsAre("layer.weight", "norm.weight"));
  EXPECT_THAT(reader.shape("layer.weight"), ::testing::ElementsAre(6, 4));
  EXPECT_THAT(reader.shape("norm.weight"), ::testing::ElementsAre(5));
  EXPECT_EQ(num_wrong_small(reader, 100), 0);
  EXPECT_EQ(num_wrong_small(reader, 101), 29) << "the comparison must be able to fail";
}

TEST(Checkpoint, LeavesTheKeptNumberOfStepsAndNothingAside) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .keep = 2, .world_size = 2});
  for (std::int64_t step = 1; step <= 4; ++step) stage_small(writer, step);
  writer.wait();
  EXPECT_THAT(entries(folder.path()), ::testing::ElementsAre("step-00000003", "step-00000004"));
  EXPECT_EQ(latest_checkpoint(folder.path()), folder / "step-00000004");
  EXPECT_THAT(entries(folder / "step-00000004"),
              ::testing::ElementsAre("index.json", "rank-000.safetensors", "rank-001.safetensors"));
}

TEST(Checkpoint, KeepsTheBitsOfTheSameTypeAndConvertsTheOther) {
  const TempFolder folder;
  Owned wide = make_piece("w", 1, {4, 1}, {.begin = {0, 0}, .size = {4, 1}}, tensor::DType::f64);
  wide.f64 = {0.1, -0.0, std::numeric_limits<double>::quiet_NaN(), 1e-310};
  {
    CheckpointWriter writer({.folder = folder.path()});
    writer.stage(Rank(0), meta_of(1), pieces_of({wide}));
  }
  const CheckpointReader reader(folder / "step-00000001");
  Owned same = make_piece("w", 1, {4, 1}, wide.piece.slice, tensor::DType::f64);
  reader.read(same.piece);
  EXPECT_EQ(std::memcmp(same.f64.data(), wide.f64.data(), 32), 0);
  Owned narrow = make_piece("w", 1, {4, 1}, wide.piece.slice, tensor::DType::f32);
  reader.read(narrow.piece);
  EXPECT_EQ(narrow.f32[0], 0.1F);
}

}  // namespace
}  // namespace tessera::ckpt::test
