// Checkpoints beside what bounds them, in one run: staging beside memcpy, opening beside XXH3 alone, a write
// beside the bare disk. 64 MiB of f32 in 16 matrices on one rank. Ratios: `of_memcpy`, `of_hash`, `of_disk`
// (1 is the bound).
#include <benchmark/benchmark.h>
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <vector>

#include "base/clock.h"
#include "ckpt/checkpoint.h"
#include "ckpt/digest.h"
#include "tensor/arena.h"

namespace tessera::ckpt {
namespace {

constexpr std::int64_t kBytes = std::int64_t{64} << 20;
constexpr std::int64_t kMatrices = 16;
constexpr int kRounds = 5;

struct State {
  std::filesystem::path folder =
      std::filesystem::temp_directory_path() / ("tessera_bench_" + std::to_string(::getpid()));
  tensor::Buffer memory{Bytes(kBytes)};
  tensor::Buffer other{Bytes(kBytes)};
  std::vector<Piece> pieces;
  State() {
    std::filesystem::create_directory(folder);
    auto* values = reinterpret_cast<float*>(memory.data());
    const std::int64_t n = kBytes / 4;
    for (std::int64_t i = 0; i < n; ++i) values[i] = static_cast<float>(i % 1'000'003);
    for (std::int64_t k = 0; k < kMatrices; ++k) {
      Piece p{.name = "w" + std::to_string(k), .global = {1024, n / kMatrices / 1024}};
      p.slice.size = p.global;
      p.data = Tensor(values + k * (n / kMatrices), tensor::DType::f32, {n / kMatrices});
      pieces.push_back(p);
    }
  }
  ~State() {
    std::error_code ignored;
    std::filesystem::remove_all(folder, ignored);
  }
  [[nodiscard]] std::span<const std::byte> bytes() const {
    return {memory.data(), static_cast<std::size_t>(kBytes)};
  }
};

template <class F>
double seconds(const F& f) {
  const std::int64_t start = wall_ns();
  f();
  return static_cast<double>(wall_ns() - start) * 1e-9;
}

double best(std::vector<double> v) {
  return *std::min_element(v.begin(), v.end());
}

void bare_write(const State& s) {
  const std::filesystem::path path = s.folder / "bare";
  const int fd = ::open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0644);
  std::int64_t done = 0;
  while (done < kBytes) {
    const ssize_t n = ::write(fd, s.memory.data() + done, static_cast<std::size_t>(kBytes - done));
    if (n <= 0) break;
    done += n;
  }
  ::fsync(fd);
  ::close(fd);
  std::filesystem::remove(path);
}

// Rounds alternate between the thing and its bound, so a noisy neighbour slows both; the best of each.
void checkpoint(benchmark::State& state) {
  for (auto _ : state) {
    State s;
    std::vector<double> copy, stage, disk, write, hash, open, read;
    CheckpointWriter writer({.folder = s.folder / "checkpoints", .keep = 1});
    for (std::int64_t round = 1; round <= kRounds; ++round) {
      copy.push_back(
          seconds([&] { std::memcpy(s.other.data(), s.memory.data(), static_cast<std::size_t>(kBytes)); }));
      const double staged = seconds([&] { writer.stage(Rank(0), {.step = round}, s.pieces); });
      if (round > 1) stage.push_back(staged);  // the first takes its memory
      write.push_back(seconds([&] { writer.wait(); }));
      disk.push_back(seconds([&] { bare_write(s); }));
      std::string digest;
      hash.push_back(seconds([&] { digest = digest_of(s.bytes()); }));
      std::unique_ptr<CheckpointReader> reader;
      open.push_back(seconds([&] { reader = open_latest_checkpoint(s.folder / "checkpoints"); }));
      read.push_back(seconds([&] {
        for (Piece p : s.pieces) {
          p.data = Tensor(s.other.data(), tensor::DType::f32, {p.data.num_elements()});
          reader->read(p);
        }
      }));
      benchmark::DoNotOptimize(digest);
    }
    const double gigabytes = static_cast<double>(kBytes) * 1e-9;
    state.counters["stage_GB_per_s"] = gigabytes / best(stage);
    state.counters["of_memcpy"] = best(copy) / best(stage);
    state.counters["write_GB_per_s"] = gigabytes / best(write);
    state.counters["of_disk"] = best(disk) / best(write);
    state.counters["open_GB_per_s"] = gigabytes / best(open);
    state.counters["of_hash"] = best(hash) / best(open);
    state.counters["read_GB_per_s"] = gigabytes / best(read);
  }
}
BENCHMARK(checkpoint)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera::ckpt
