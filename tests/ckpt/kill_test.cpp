// kill -9 at any moment: a child process writes checkpoints without end and is killed at random moments;
// after every kill the last complete checkpoint is there, opens, and holds exactly its step.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <csignal>
#include <set>

#include "base/clock.h"
#include "ckpt/checkpoint.h"
#include "ckpt/support.h"

namespace tessera::ckpt::test {
namespace {

// Never returns; the process has no other threads when it is made.
[[noreturn]] void write_for_ever(const std::filesystem::path& folder, std::int64_t first) {
  try {
    CheckpointWriter writer({.folder = folder, .keep = 2, .world_size = 2});
    for (std::int64_t step = first;; ++step) stage_small(writer, step);
  } catch (const Error& e) {
    fmt::print(stderr, "the child failed: {}\n", e.what());
    std::fflush(stderr);
    ::_exit(1);
  }
}

// Which moments were hit: what lies in the folder after a kill.
std::string picture(const std::filesystem::path& folder, std::int64_t latest) {
  std::string out;
  std::int64_t complete = 0;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    const std::string name = entry.path().filename();
    if (name.find(".tmp") == std::string::npos) {
      ++complete;
      continue;
    }
    const auto files = std::distance(std::filesystem::directory_iterator(entry.path()), {});
    const bool pruned = std::stoll(name.substr(5, 8)) < latest;
    out += fmt::format("{} aside with {} files, ", pruned ? "an old step" : "the next step", files);
  }
  return fmt::format("{}{} complete", out, complete);
}

// Microseconds of one checkpoint of the small state on this disk.
double checkpoint_time(const std::filesystem::path& folder) {
  CheckpointWriter writer({.folder = folder, .keep = 2, .world_size = 2});
  const std::int64_t start = wall_ns();
  for (std::int64_t step = 1; step <= 3; ++step) stage_small(writer, step);
  writer.wait();
  return static_cast<double>(wall_ns() - start) / 3e3;
}

TEST(Kill, AtAnyMomentLeavesTheLastCheckpointReadable) {
  const TempFolder folder;
  const double one = checkpoint_time(folder / "timing");
  std::int64_t latest = 0;
  std::set<std::string> seen;
  constexpr int kKills = 52;
  constexpr int kMostKills = 500;
  constexpr std::int64_t kSteps = 10;
  double patience = 1.0;  // the disk and the machine change their pace: grows while kills come too early
  for (int kill = 0; kill < kKills || (latest <= kSteps && kill < kMostKills); ++kill) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) write_for_ever(folder / "checkpoints", latest + 1);
    const double moment = 2 * uniform(5, stream_of("kill"), static_cast<std::uint64_t>(kill));
    ::usleep(static_cast<useconds_t>(moment * one * patience));
    ::kill(child, SIGKILL);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child ended by itself";
    std::vector<std::string> skipped;
    const auto reader = open_latest_checkpoint(folder / "checkpoints", &skipped);
    ASSERT_THAT(skipped, ::testing::IsEmpty());
    if (reader == nullptr) {
      ASSERT_EQ(latest, 0) << "a complete checkpoint was lost";
      patience = std::min(patience * 1.5, 100.0);
      continue;
    }
    ASSERT_GE(reader->meta().step, latest);
    const bool went_on = reader->meta().step > latest;
    patience = went_on ? std::max(1.0, patience * 0.8) : std::min(patience * 1.5, 100.0);
    latest = reader->meta().step;
    ASSERT_EQ(reader->meta(), meta_of(latest));
    ASSERT_EQ(num_wrong_small(*reader, latest), 0);
    seen.insert(picture(folder / "checkpoints", latest));
  }
  EXPECT_GT(latest, kSteps) << "too few checkpoints to mean anything";
  EXPECT_GE(seen.size(), 3) << "the kills hit too few different moments";
  for (const std::string& moment : seen) fmt::print("[ MOMENT   ] {}\n", moment);
}

}  // namespace
}  // namespace tessera::ckpt::test
