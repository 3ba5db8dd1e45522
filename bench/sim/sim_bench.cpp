// A step of 16,384 devices: tp 8, pp 16, dp 128, 256 micro-batches, one pipeline standing for all. Seconds of
// one core. Segments as StepModel makes them: some twenty an action, two layers a stage and rank.
#include <benchmark/benchmark.h>

#include "sim/simulate.h"

namespace tessera::sim {
namespace {

using schedule::Kind;
using schedule::Schedule;

constexpr std::int32_t kRanks = 16, kMicrobatches = 256;

Schedule step_of(std::int64_t vpp) {
  return schedule::generate({.kind = vpp > 1 ? Kind::interleaved : Kind::one_f_one_b,
                             .pp = kRanks,
                             .vpp = static_cast<std::int32_t>(vpp),
                             .num_microbatches = kMicrobatches});
}

cost::StepWork work_of(const Schedule& s) {
  cost::StepWork work;
  work.num_microbatches = s.num_microbatches;
  const auto fill = [](std::vector<cost::Segment>& segments, double& sum, double scale) {
    for (std::int32_t layer = 0; layer < 2; ++layer) {
      for (std::int32_t i = 0; i < 5; ++i) {
        const double seconds = scale * (100 + 10 * i) * 1e-6;
        segments.push_back(
            {.name = "layer gemm", .part = cost::Part::gemm, .seconds = seconds, .exposed = seconds});
        segments.push_back({.name = "layer tp",
                            .part = cost::Part::tp,
                            .communication = true,
                            .seconds = seconds / 5,
                            .exposed = seconds / 10,
                            .bytes_sent = 1e6});
        sum += seconds + seconds / 10;
      }
    }
  };
  for (std::int32_t i = 0; i < s.num_stages(); ++i) {
    cost::StageWork w;
    fill(w.forward, w.forward_seconds, 1.0);
    fill(w.backward_input, w.backward_input_seconds, 1.0);
    fill(w.backward_weight, w.backward_weight_seconds, 0.8);
    w.p2p_seconds = 50e-6;
    w.p2p_bytes = 16e6;
    w.saved_bytes = 1e8;
    work.stages.push_back(w);
  }
  work.static_bytes.assign(kRanks, 3e10);
  work.grad_seconds.assign(kRanks, 0.1);
  work.param_seconds.assign(kRanks, 0.05);
  work.optimizer_seconds.assign(kRanks, 0.02);
  work.grad_overlapped = work.param_overlapped = true;
  work.overlap_slowdown = 0.1;
  work.p2p_overlapped = s.vpp > 1;
  return work;
}

// vpp, Detail, shared links
void BM_Step(benchmark::State& state) {
  const Schedule s = lower(step_of(state.range(0)));
  const cost::StepWork work = work_of(s);
  const Options options{.shared_links = state.range(2) != 0, .detail = static_cast<Detail>(state.range(1))};
  std::size_t spans = 0;
  for (auto _ : state) {
    const Result r = simulate(s, work, options);
    spans = r.trace.spans.size();
    benchmark::DoNotOptimize(r.makespan);
  }
  state.counters["spans"] = static_cast<double>(spans);
}
BENCHMARK(BM_Step)
    ->ArgNames({"vpp", "detail", "shared"})
    ->Args({1, 0, 0})
    ->Args({1, 1, 0})
    ->Args({1, 2, 0})
    ->Args({1, 2, 1})
    ->Args({4, 2, 0})
    ->Unit(benchmark::kMillisecond);

void BM_Makespan(benchmark::State& state) {
  const Schedule s = step_of(state.range(0));
  cost::StepWork work = work_of(s);
  if (state.range(1) == 0) work.overlap_slowdown = 0;
  for (auto _ : state) benchmark::DoNotOptimize(makespan(s, work));
}
BENCHMARK(BM_Makespan)
    ->ArgNames({"vpp", "slowdown"})
    ->Args({1, 0})
    ->Args({1, 1})
    ->Args({4, 0})
    ->Args({4, 1})
    ->Unit(benchmark::kMicrosecond);

void BM_Generate(benchmark::State& state) {
  for (auto _ : state) benchmark::DoNotOptimize(step_of(state.range(0)).ranks.data());
}
BENCHMARK(BM_Generate)->Arg(1)->Arg(4)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace tessera::sim
