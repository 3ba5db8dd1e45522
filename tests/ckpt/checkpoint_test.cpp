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

TEST(Checkpoint, TheIndexIsTheOneThatThePageOfTheFormatShows) {
  const TempFolder folder;
  {
    CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
    stage_small(writer, 7);
  }
  const std::string page =
      read_bytes(std::filesystem::path(TESSERA_SOURCE_DIR) / "docs/formats/checkpoint.md");
  EXPECT_THAT(page,
              ::testing::HasSubstr("```json\n" + read_bytes(folder / "step-00000007/index.json") + "```"));
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

TEST(Checkpoint, TakesThePiecesOfRanksThatAreThreads) {
  const TempFolder folder;
  constexpr std::int32_t kRanks = 6;
  CheckpointWriter writer({.folder = folder.path(), .keep = 3, .world_size = kRanks});
  std::vector<std::jthread> ranks;
  for (std::int32_t r = 0; r < kRanks; ++r) {
    ranks.emplace_back([&writer, r] {
      for (std::int64_t step = 1; step <= 3; ++step) {
        std::vector<Owned> owned;
        owned.push_back(
            make_piece("w", 2, {kRanks, 5}, {.begin = {r, 0}, .size = {1, 5}}, tensor::DType::f64));
        fill(owned.back(), step);
        writer.stage(Rank(r), meta_of(step), pieces_of(owned));
        fill(owned.back(), -1);  // staged is copied
      }
      writer.wait();
    });
  }
  ranks.clear();
  for (std::int64_t step = 1; step <= 3; ++step) {
    const CheckpointReader reader(folder / ("step-0000000" + std::to_string(step)));
    Owned whole = make_piece("w", 2, {kRanks, 5}, {.begin = {0, 0}, .size = {kRanks, 5}}, tensor::DType::f64);
    reader.read(whole.piece);
    EXPECT_EQ(num_wrong(whole, step), 0);
  }
}

TEST(Checkpoint, ARankThatOwnsNothingHasNoFile) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
  std::vector<Owned> owned;
  owned.push_back(make_piece("w", 1, {3, 1}, {.begin = {0, 0}, .size = {3, 1}}, tensor::DType::f32));
  owned.push_back(make_piece("w", 1, {3, 1}, {.begin = {3, 0}, .size = {0, 1}}, tensor::DType::f32));
  writer.stage(Rank(0), meta_of(5), {});
  writer.stage(Rank(1), meta_of(5), pieces_of(owned));
  writer.wait();
  EXPECT_THAT(entries(folder / "step-00000005"),
              ::testing::ElementsAre("index.json", "rank-001.safetensors"));
  EXPECT_NE(open_latest_checkpoint(folder.path()), nullptr);
}

TEST(Checkpoint, AFolderWithoutCheckpointsHasNoLatest) {
  const TempFolder folder;
  EXPECT_EQ(latest_checkpoint(folder.path()), std::nullopt);
  EXPECT_EQ(latest_checkpoint(folder / "missing"), std::nullopt);
  EXPECT_EQ(open_latest_checkpoint(folder.path()), nullptr);
  std::filesystem::create_directory(folder / "step-00000007");  // no index: not ours, or half removed by hand
  std::filesystem::create_directory(folder / "step-7");
  std::vector<std::string> skipped;
  EXPECT_EQ(latest_checkpoint(folder.path(), &skipped), std::nullopt);
  ASSERT_EQ(skipped.size(), 1);
  EXPECT_THAT(skipped[0], ::testing::HasSubstr("step-00000007/index.json: the file is missing"));
}

TEST(Checkpoint, TheLatestSkipsADamagedOneAndSaysWhy) {
  const TempFolder folder;
  {
    CheckpointWriter writer({.folder = folder.path(), .keep = 3, .world_size = 2});
    for (const std::int64_t step : {99'999'998, 99'999'999, 100'000'000}) stage_small(writer, step);
  }
  const std::filesystem::path file = folder / "step-100000000/rank-001.safetensors";
  write_bytes(file, read_bytes(file).substr(0, 200));
  std::filesystem::remove(folder / "step-99999999/rank-000.safetensors");
  std::vector<std::string> skipped;
  EXPECT_EQ(latest_checkpoint(folder.path(), &skipped), folder / "step-99999998");
  ASSERT_EQ(skipped.size(), 2);
  EXPECT_THAT(skipped[0],
              ::testing::AllOf(::testing::StartsWith(file.string()), ::testing::HasSubstr("200 bytes")));
  EXPECT_THAT(skipped[1], ::testing::AllOf(::testing::HasSubstr("step-99999999/rank-000.safetensors"),
                                           ::testing::HasSubstr("missing")));
}

TEST(Checkpoint, AStepThatIsThereIsReplaced) {
  const TempFolder folder;
  for (const std::int64_t salt : {1, 2}) {
    CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
    const std::vector<std::vector<Owned>> ranks = small_state(salt);
    writer.stage(Rank(0), meta_of(8), pieces_of(ranks[0]));
    writer.stage(Rank(1), meta_of(8), pieces_of(ranks[1]));
    writer.wait();
    EXPECT_EQ(num_wrong_small(CheckpointReader(folder / "step-00000008"), salt), 0);
    EXPECT_THAT(entries(folder.path()), ::testing::ElementsAre("step-00000008"));
  }
}

TEST(Checkpoint, PruningSparesLaterStepsAndWhatIsNotOurs) {
  const TempFolder folder;
  {
    CheckpointWriter writer({.folder = folder.path(), .keep = 9, .world_size = 2});
    for (const std::int64_t step : {1, 2, 30}) stage_small(writer, step);
  }
  std::filesystem::create_directory(folder / "step-00000001.saved");
  CheckpointWriter writer({.folder = folder.path(), .keep = 1, .world_size = 2});
  stage_small(writer, 5);  // resumed from an earlier one
  writer.wait();
  EXPECT_THAT(entries(folder.path()),
              ::testing::ElementsAre("step-00000001.saved", "step-00000005", "step-00000030"));
}

TEST(Checkpoint, TheNextWriterRemovesWhatADeadProcessLeft) {
  const TempFolder folder;
  // The largest number a process can have is below 2^22; init is alive.
  const std::vector<std::string> names = {"step-00000001.tmp4194999", "step-00000002.tmp1",
                                          "step-00000003.tmpx"};
  for (const std::string& name : names) {
    std::filesystem::create_directory(folder / name);
    write_bytes(folder / name / "rank-000.safetensors", "half");
  }
  EXPECT_EQ(latest_checkpoint(folder.path()), std::nullopt);
  const CheckpointWriter writer({.folder = folder.path()});
  EXPECT_THAT(entries(folder.path()), ::testing::ElementsAre("step-00000002.tmp1", "step-00000003.tmpx"));
}

// ---- failures

TEST(CheckpointFailure, AFullDiskSurfacesAtTheNextCallAndSparesTheLastCheckpoint) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .keep = 1, .world_size = 1});
  std::vector<Owned> owned;
  owned.push_back(make_piece("w", 1, {5000, 1}, {.begin = {0, 0}, .size = {5000, 1}}, tensor::DType::f32));
  fill(owned.back(), 1);
  writer.stage(Rank(0), meta_of(1), pieces_of(owned));
  writer.wait();
  // A limit on the size of files stands for the end of the disk.
  const auto before = std::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ::getrlimit(RLIMIT_FSIZE, &old);
  const rlimit small{.rlim_cur = 9000, .rlim_max = old.rlim_max};
  ::setrlimit(RLIMIT_FSIZE, &small);
  writer.stage(Rank(0), meta_of(2), pieces_of(owned));
  expect_error(ErrorKind::io,
               {"cannot write: File too large", "step-00000002.tmp", "rank-000", "free some disk space"},
               [&] { writer.wait(); });
  ::setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, before);
  expect_error(ErrorKind::io, {"File too large"},
               [&] { writer.stage(Rank(0), meta_of(3), pieces_of(owned)); });
  EXPECT_THAT(entries(folder.path()), ::testing::ElementsAre("step-00000001"));
  EXPECT_NE(open_latest_checkpoint(folder.path()), nullptr);
}

TEST(CheckpointFailure, AVanishedFolderIsNamed) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder / "gone", .world_size = 2});
  std::filesystem::remove_all(folder / "gone");
  stage_small(writer, 1);
  expect_error(ErrorKind::io, {"cannot create: No such file", "gone/step-00000001.tmp", "restore the folder"},
               [&] { stage_small(writer, 2); });
}

TEST(CheckpointFailure, AFolderThatCannotBeMadeIsRefusedAtOnce) {
  const TempFolder folder;
  write_bytes(folder / "file", "x");
  expect_error(ErrorKind::io, {"cannot create the checkpoint folder", "file/checkpoints"},
               [&] { const CheckpointWriter writer({.folder = folder / "file" / "checkpoints"}); });
}

TEST(CheckpointFailure, PiecesThatLeaveAGapOrOverlapAreNeverWritten) {
  struct Case {
    Slice first, second;
    std::string_view word;
  };
  const std::vector<Case> cases = {
      {{.begin = {0, 0}, .size = {2, 4}},
       {.begin = {2, 0}, .size = {1, 4}},
       "the pieces hold 12 of 16 elements"},
      {{.begin = {0, 0}, .size = {3, 4}},
       {.begin = {2, 0}, .size = {2, 4}},
       "[0:3, 0:4] and [2:4, 0:4] overlap"},
      {{.begin = {0, 0}, .size = {4, 3}},
       {.begin = {0, 2}, .size = {4, 2}},
       "[0:4, 0:3] and [0:4, 2:4] overlap"},
      {{.begin = {0, 0}, .size = {4, 3}}, {.begin = {0, 3}, .size = {4, 2}}, "outside global shape [4, 4]"},
  };
  for (const Case& c : cases) {
    const TempFolder folder;
    CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
    writer.stage(Rank(0), meta_of(1), pieces_of({make_piece("w", 2, {4, 4}, c.first, tensor::DType::f32)}));
    writer.stage(Rank(1), meta_of(1), pieces_of({make_piece("w", 2, {4, 4}, c.second, tensor::DType::f32)}));
    expect_error(ErrorKind::internal, {"tensor \"w\"", std::string(c.word)}, [&] { writer.wait(); });
    EXPECT_TRUE(entries(folder.path()).empty());
  }
}

TEST(CheckpointFailure, RanksThatDisagreeAreCaught) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
  const std::vector<std::vector<Owned>> ranks = small_state(1);
  writer.stage(Rank(0), meta_of(1), pieces_of(ranks[0]));
  expect_error(ErrorKind::internal, {"all ranks stage the same step"},
               [&] { writer.stage(Rank(1), meta_of(2), pieces_of(ranks[1])); });
  Meta other = meta_of(1);
  other.tokens = 3;
  expect_error(ErrorKind::internal, {"same description"},
               [&] { writer.stage(Rank(1), other, pieces_of(ranks[1])); });
}

TEST(CheckpointFailure, ARankThatNeverStagesIsNotWaitedForForEver) {
  const TempFolder folder;
  CheckpointWriter writer({.folder = folder.path(), .world_size = 2, .timeout_seconds = 0.05});
  const std::vector<std::vector<Owned>> ranks = small_state(1);
  writer.stage(Rank(0), meta_of(4), pieces_of(ranks[0]));
  expect_error(ErrorKind::comm, {"1 of 2 ranks staged step 4 within 0.05 s", "the other ranks"},
               [&] { writer.wait(); });
}

TEST(CheckpointFailure, WhatIsNotThereIsNamedWithItsMend) {
  const TempFolder folder;
  {
    CheckpointWriter writer({.folder = folder.path(), .world_size = 2});
    stage_small(writer, 1);
  }
  const CheckpointReader reader(folder / "step-00000001");
  const auto read = [&](const char* name, std::int32_t dims, std::array<std::int64_t, 2> global,
                        Slice slice) {
    const Owned o = make_piece(name, dims, global, slice, tensor::DType::f32);
    reader.read(o.piece);
  };
  const Slice whole{.begin = {0, 0}, .size = {6, 4}};
  expect_error(ErrorKind::io, {"no tensor \"layer.weigth\" among 2", "step-00000001", "\"layer.weight\""},
               [&] {
                 read("layer.weigth", 2, {6, 4}, whole);
               });
  expect_error(ErrorKind::io, {"no tensor \"optimizer.m.layer.weight\"", "fresh optimizer state"}, [&] {
    read("optimizer.m.layer.weight", 2, {6, 4}, whole);
  });
  expect_error(ErrorKind::io, {"has shape [6, 4], [6, 5] is wanted", "config.json"}, [&] {
    read("layer.weight", 2, {6, 5}, whole);
  });
  expect_error(ErrorKind::io, {"for 24 of the 32 elements of [0:8, 0:4]"}, [&] {
    read("layer.weight", 2, {6, 4}, {.begin = {0, 0}, .size = {8, 4}});
  });
  expect_error(ErrorKind::io, {"no tensor \"x\"", "among 2"}, [&] { (void)reader.shape("x"); });
  expect_error(ErrorKind::io, {"index.json"}, [&] { const CheckpointReader none(folder / "step-00000002"); });
}

}  // namespace
}  // namespace tessera::ckpt::test
