// Collectives between threads beside MPI's own between processes of this machine, by turns in one run: 1 MiB,
// written anew by every rank before each call, time until all ranks are done. Medians of the rounds.
// `all_reduce_times` and `all_to_all_times`: MPI's time over that of threads (goal: 3 or more).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include "base/clock.h"
#include "comm/thread_world.h"
#include "tensor/arena.h"

namespace tessera::comm {
namespace {

#ifdef TESSERA_MPI_CALLS

constexpr std::int64_t kBytes = 1 << 20;
constexpr int kTurns = 5;

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

struct Times {
  double reduce_us = 0, exchange_us = 0;
};

Times of_threads(std::int32_t size) {
  Times t;
  ThreadWorld world({.size = size});
  std::vector<Rank> everyone;
  for (std::int32_t r = 0; r < size; ++r) everyone.push_back(Rank(r));
  world.run([&](Rank rank) {
    const auto c = world.communicator(rank, everyone, "dp");
    const tensor::Buffer in_buffer{Bytes(kBytes)}, out_buffer{Bytes(kBytes)};
    const std::int64_t n = kBytes / 4;
    const Tensor in(in_buffer.data(), tensor::DType::f32, {n}),
        out(out_buffer.data(), tensor::DType::f32, {n});
    const std::vector<std::int64_t> rows(size, n / size);
    const auto median_us = [&](const auto& call) {
      constexpr int kRounds = 60;
      std::vector<double> us;
      for (int i = 0; i < kRounds; ++i) {
        std::fill_n(in.as<float>(), n, 1.0F);
        c->barrier();
        const std::int64_t start = wall_ns();
        call();
        c->barrier();
        us.push_back(static_cast<double>(wall_ns() - start) * 1e-3);
      }
      return median(us);
    };
    const double reduce = median_us([&] { c->all_reduce(in); });
    const double exchange = median_us([&] { c->all_to_all_v(out, rows, in, rows); });
    if (rank.value == 0) t = {reduce, exchange};
  });
  return t;
}

Times of_mpi(std::int32_t size) {
  const std::string command =
      "OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 " TESSERA_MPIRUN " -n " +
      std::to_string(size) + " " TESSERA_MPI_CALLS " " + std::to_string(kBytes) + " 2>/dev/null";
  Times t;
  FILE* pipe = ::popen(command.c_str(), "r");
  if (pipe == nullptr) return t;
  if (std::fscanf(pipe, "%lf %lf", &t.reduce_us, &t.exchange_us) != 2) t = {};
  ::pclose(pipe);
  return t;
}

void ThreadsBesideMpi(benchmark::State& state) {
  const auto size = static_cast<std::int32_t>(state.range(0));
  std::vector<double> reduce, exchange, mpi_reduce, mpi_exchange;
  for (auto _ : state) {
    for (int turn = 0; turn < kTurns; ++turn) {
      const Times threads = of_threads(size);
      const Times mpi = of_mpi(size);
      if (mpi.reduce_us <= 0) return state.SkipWithError("mpirun did not run");
      reduce.push_back(threads.reduce_us);
      exchange.push_back(threads.exchange_us);
      mpi_reduce.push_back(mpi.reduce_us);
      mpi_exchange.push_back(mpi.exchange_us);
    }
  }
  state.counters["all_reduce_us"] = median(reduce);
  state.counters["mpi_all_reduce_us"] = median(mpi_reduce);
  state.counters["all_reduce_times"] = median(mpi_reduce) / median(reduce);
  state.counters["all_to_all_us"] = median(exchange);
  state.counters["mpi_all_to_all_us"] = median(mpi_exchange);
  state.counters["all_to_all_times"] = median(mpi_exchange) / median(exchange);
}
BENCHMARK(ThreadsBesideMpi)
    ->ArgName("ranks")
    ->Arg(2)
    ->Arg(4)
    ->Arg(8)
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

#endif

}  // namespace
}  // namespace tessera::comm
