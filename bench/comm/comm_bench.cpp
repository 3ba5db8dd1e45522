// Ranks as threads: all-reduce beside the memory copies that it needs, and the latency of small calls.
//
// An all-reduce of S bytes on N ranks makes each rank take in (N - 1) / N S to add and (N - 1) / N S to
// gather. The yardstick is measured in the same run: every rank at once copies 2 (N - 1) / N S bytes between
// two private arrays of S bytes. `times_copies` is the all-reduce's time over that time (goal: 2 or less).
// As in training, each rank has written its whole tensor before the all-reduce (not timed), so the peers'
// lines come from another core. Rounds alternate, so a noisy neighbour slows both; medians over the rounds.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "base/clock.h"
#include "comm/thread_world.h"
#include "tensor/arena.h"

namespace tessera::comm {
namespace {

std::vector<Rank> ranks_upto(std::int32_t n) {
  std::vector<Rank> ranks;
  for (std::int32_t r = 0; r < n; ++r) ranks.push_back(Rank(r));
  return ranks;
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

// Seconds until f is done on all ranks when all start together, after `before` on each; mean of `repeats`.
template <class F, class G>
double timed(Communicator& c, std::int32_t repeats, const G& before, const F& f) {
  std::int64_t sum = 0;
  for (std::int32_t i = 0; i < repeats; ++i) {
    before();
    c.barrier();
    const std::int64_t start = wall_ns();
    f();
    c.barrier();  // with more ranks than cores a rank's own time says nothing: until all are done
    sum += wall_ns() - start;
  }
  return static_cast<double>(sum) * 1e-9 / repeats;
}

// Seconds of one of `repeats` calls of f in a row.
template <class F>
double in_a_row(Communicator& c, std::int32_t repeats, const F& f) {
  c.barrier();
  const std::int64_t start = wall_ns();
  for (std::int32_t i = 0; i < repeats; ++i) f();
  return static_cast<double>(wall_ns() - start) * 1e-9 / repeats;
}

void AllReduceBesideCopies(benchmark::State& state) {
  const auto size = static_cast<std::int32_t>(state.range(0));
  const std::int64_t bytes = state.range(1);
  const auto repeats = static_cast<std::int32_t>(std::max<std::int64_t>(1, (std::int64_t{16} << 20) / bytes));
  std::vector<double> reduce;
  std::vector<double> copy;
  std::vector<double> ratio;
  for (auto _ : state) {
    ThreadWorld world({.size = size});
    world.run([&](Rank rank) {
      const auto c = world.communicator(rank, ranks_upto(size), "dp");
      const tensor::Buffer a{Bytes(bytes)};
      const tensor::Buffer b{Bytes(bytes)};
      const Tensor x(a.data(), tensor::DType::f32, {bytes / 4});
      const auto nothing = [] {};
      const auto fill = [&] { std::fill_n(x.as<float>(), bytes / 4, 1.0F); };
      const std::int64_t need = 2 * (size - 1) * bytes / size;
      for (std::int32_t round = 0; round < 15; ++round) {
        const double t_copy = timed(*c, repeats, nothing, [&] {
          for (std::int64_t left = need; left > 0; left -= bytes) {
            std::memcpy(b.data(), a.data(), static_cast<std::size_t>(std::min(left, bytes)));
            benchmark::DoNotOptimize(b.data());
            benchmark::ClobberMemory();
          }
        });
        const double t_reduce = timed(*c, repeats, fill, [&] { c->all_reduce(x); });
        if (rank.value == 0 && round > 0) {
          copy.push_back(t_copy);
          reduce.push_back(t_reduce);
          ratio.push_back(t_reduce / t_copy);
        }
      }
    });
  }
  const double moved = 2.0 * (size - 1) / size * static_cast<double>(bytes);
  state.counters["all_reduce_us"] = median(reduce) * 1e6;
  state.counters["copies_us"] = median(copy) * 1e6;
  state.counters["times_copies"] = median(ratio);
  state.counters["best_times_copies"] =
      *std::min_element(reduce.begin(), reduce.end()) / *std::min_element(copy.begin(), copy.end());
  state.counters["copy_GB_s_per_rank"] = 2 * moved / median(copy) * 1e-9;  // read and written
}
BENCHMARK(AllReduceBesideCopies)
    ->ArgNames({"ranks", "bytes"})
    ->Args({2, 1 << 16})
    ->Args({2, 1 << 20})
    ->Args({2, 1 << 26})
    ->Args({4, 1 << 20})
    ->Args({8, 1 << 20})
    ->Args({8, 1 << 24})
    ->Iterations(1)
    ->Unit(benchmark::kMillisecond);

// Two ranks, 1 MiB that the owner has just written: what one message, one all_gather and one all_to_all_v
// take beside a plain copy of the bytes that each moves.
void MovesBesideCopies(benchmark::State& state) {
  constexpr std::int64_t kBytes = 1 << 20;
  constexpr std::int64_t kElements = kBytes / 4;
  std::vector<double> copy;
  std::vector<double> message;
  std::vector<double> gather;
  std::vector<double> exchange;
  for (auto _ : state) {
    ThreadWorld world({.size = 2});
    world.run([&](Rank rank) {
      const auto c = world.communicator(rank, ranks_upto(2), "ep");
      const tensor::Buffer in_buffer{Bytes(2 * kBytes)};
      const tensor::Buffer out_buffer{Bytes(2 * kBytes)};
      const Tensor in(in_buffer.data(), tensor::DType::f32, {2 * kElements});
      const Tensor out(out_buffer.data(), tensor::DType::f32, {2 * kElements});
      const Tensor half = in.narrow_rows(0, kElements);
      const std::vector<std::int64_t> rows = {kElements, kElements};
      const auto fill = [&] { std::fill_n(in.as<float>(), 2 * kElements, 1.0F); };
      for (std::int32_t round = 0; round < 15; ++round) {
        const double t_copy = timed(*c, 16, fill, [&] {
          std::memcpy(out.raw(), in.raw(), kBytes);
          benchmark::ClobberMemory();
        });
        const double t_message = timed(*c, 16, fill, [&] {
          if (rank.value == 0)
            c->send(half, 1, 0);
          else
            c->recv(out.narrow_rows(0, kElements), 0, 0);
        });
        const double t_gather = timed(*c, 16, fill, [&] { c->all_gather(out, half); });
        const double t_exchange = timed(*c, 16, fill, [&] { c->all_to_all_v(out, rows, in, rows); });
        if (rank.value != 0 || round == 0) continue;
        copy.push_back(t_copy);
        message.push_back(t_message);
        gather.push_back(t_gather);
        exchange.push_back(t_exchange);
      }
    });
  }
  state.counters["copy_us"] = median(copy) * 1e6;
  state.counters["message_us"] = median(message) * 1e6;
  state.counters["all_gather_us"] = median(gather) * 1e6;    // one part from the peer, one of its own
  state.counters["all_to_all_us"] = median(exchange) * 1e6;  // the same
}
BENCHMARK(MovesBesideCopies)->Iterations(1)->Unit(benchmark::kMillisecond);

// Microseconds of one small call: all_reduce and barrier of 8 bytes, and a message there and back.
void SmallCalls(benchmark::State& state) {
  const auto size = static_cast<std::int32_t>(state.range(0));
  std::vector<double> all_reduce;
  std::vector<double> barrier;
  std::vector<double> round_trip;
  for (auto _ : state) {
    ThreadWorld world({.size = size});
    world.run([&](Rank rank) {
      const auto c = world.communicator(rank, ranks_upto(size), "dp");
      double value = 1.0;
      const Tensor x(&value, tensor::DType::f64, {1});
      const std::int32_t repeats = size <= 2 ? 5000 : 500;
      for (std::int32_t round = 0; round < 9; ++round) {
        const double a = in_a_row(*c, repeats, [&] { c->all_reduce(x); });
        value = 1.0;
        const double b = in_a_row(*c, repeats, [&] { c->barrier(); });
        const double m = in_a_row(*c, repeats, [&] {
          if (rank.value == 0) {
            c->send(x, 1, 0);
            c->recv(x, 1, 0);
          } else if (rank.value == 1) {
            c->recv(x, 0, 0);
            c->send(x, 0, 0);
            c->wait_send(0, 0);
          }
        });
        if (rank.value != 0) continue;
        all_reduce.push_back(a);
        barrier.push_back(b);
        round_trip.push_back(m);
      }
    });
  }
  state.counters["all_reduce_8B_us"] = median(all_reduce) * 1e6;
  state.counters["barrier_us"] = median(barrier) * 1e6;
  state.counters["message_one_way_us"] = median(round_trip) * 0.5e6;
}
BENCHMARK(SmallCalls)->ArgName("ranks")->Arg(2)->Arg(8)->Iterations(1)->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace tessera::comm
