// A sharded checkpoint of 1 GiB (two ranks) beside dd on the same disk, by turns in one run: saving until all
// of it is on disk (fsync), as dd conv=fsync; loading with every checksum verified and nothing in the cache
// of the system, as dd does of the same files. `save_of_dd`, `load_of_dd`: dd's time over it (goal: 0.7 or
// more).
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "ckpt/checkpoint.h"
#include "tensor/arena.h"

namespace tessera::ckpt {
namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kBytes = std::int64_t{1} << 30;
constexpr std::int32_t kRanks = 2;
constexpr std::int64_t kMatrices = 32;
constexpr int kTurns = 3;

double seconds(const auto& f) {
  const std::int64_t start = wall_ns();
  f();
  return static_cast<double>(wall_ns() - start) * 1e-9;
}

double best(const std::vector<double>& v) {
  return *std::min_element(v.begin(), v.end());
}

void forget(const fs::path& folder) {
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file()) continue;
    const int fd = ::open(entry.path().c_str(), O_RDONLY);
    (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    ::close(fd);
  }
}

void shell(const std::string& command) {
  if (std::system((command + " 2>/dev/null").c_str()) != 0) std::abort();
}

// Half of each matrix by rows, as tensor parallelism cuts them.
std::vector<Piece> pieces_of(std::int32_t rank, float* values) {
  const std::int64_t each = kBytes / 4 / kMatrices;
  std::vector<Piece> pieces;
  for (std::int64_t k = 0; k < kMatrices; ++k) {
    Piece p{.name = "w" + std::to_string(k), .global = {2048, each / 2048}};
    p.slice.begin = {rank * 1024, 0};
    p.slice.size = {1024, each / 2048};
    p.data = Tensor(values + k * each / kRanks, tensor::DType::f32, {each / kRanks});
    pieces.push_back(p);
  }
  return pieces;
}

template <class F>
void on_each_rank(const F& f) {
  std::vector<std::jthread> threads;
  for (std::int32_t r = 0; r < kRanks; ++r) threads.emplace_back([&f, r] { f(r); });
}

void GigabyteBesideDd(benchmark::State& state) {
  const fs::path folder = fs::temp_directory_path() / ("tessera_disk_" + std::to_string(::getpid()));
  fs::create_directory(folder);
  const std::string plain = (folder / "dd").string();
  std::vector<double> save, stage, load, dd_write, dd_read;
  for (auto _ : state) {
    const tensor::Buffer memory{Bytes(kBytes)};
    auto* values = reinterpret_cast<float*>(memory.data());
    for (std::int64_t i = 0; i < kBytes / 4; ++i) values[i] = static_cast<float>(i % 1'000'003);
    std::vector<std::vector<Piece>> pieces;
    for (std::int32_t r = 0; r < kRanks; ++r)
      pieces.push_back(pieces_of(r, values + r * (kBytes / 4 / kRanks)));
    CheckpointWriter writer({.folder = folder / "checkpoints", .keep = 1, .world_size = kRanks});
    for (std::int64_t turn = 0; turn <= kTurns; ++turn) {
      const double staged = seconds([&] {
        on_each_rank([&](std::int32_t r) { writer.stage(Rank(r), {.step = turn + 1}, pieces[r]); });
      });
      const double saved = staged + seconds([&] { writer.wait(); });
      const double wrote =
          seconds([&] { shell("dd if=/dev/zero of=" + plain + " bs=16M count=64 conv=fsync"); });
      forget(folder);
      const double direct = seconds([&] { shell("dd if=" + plain + " of=/dev/null bs=16M"); });
      forget(folder);
      const double loaded = seconds([&] {
        const auto reader = open_latest_checkpoint(folder / "checkpoints");
        on_each_rank([&](std::int32_t r) {
          for (const Piece& p : pieces[r]) reader->read(p);
        });
      });
      if (turn == 0) continue;  // takes its memory
      stage.push_back(staged);
      save.push_back(saved);
      dd_write.push_back(wrote);
      dd_read.push_back(direct);
      load.push_back(loaded);
    }
  }
  fs::remove_all(folder);
  const double gigabytes = static_cast<double>(kBytes) * 1e-9;
  state.counters["stage_GB_per_s"] = gigabytes / best(stage);
  state.counters["save_GB_per_s"] = gigabytes / best(save);
  state.counters["dd_write_GB_per_s"] = gigabytes / best(dd_write);
  state.counters["save_of_dd"] = best(dd_write) / best(save);
  state.counters["load_GB_per_s"] = gigabytes / best(load);
  state.counters["dd_read_GB_per_s"] = gigabytes / best(dd_read);
  state.counters["load_of_dd"] = best(dd_read) / best(load);
}
BENCHMARK(GigabyteBesideDd)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera::ckpt
