// How fast candidates are enumerated, sized and costed, and how long two whole searches take.
//
//   costed:   every candidate that fits is costed, nothing is pruned; one thread; `layouts_per_s_per_core`
//   whole:    as `tessera plan` searches, all cores, the simulator on the best ones; the budget is 2 s
#include <benchmark/benchmark.h>

#include "search/refine.h"
#include "search/search.h"
#include "spec/presets.h"

namespace tessera::search {
namespace {

cost::Setup setup_of(const char* model, const char* cluster, std::int32_t devices,
                     const cost::Workload& work) {
  cost::Setup s;
  s.model = spec::model_preset(model);
  s.cluster = spec::with_devices(spec::cluster_preset(cluster), devices);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice("megatron-core");
  s.work = work;
  return s;
}
cost::Setup gpt3(std::int32_t devices) {
  return setup_of("gpt3-175b", "dgx-a100", devices, {.global_batch_size = 4096, .sequence_length = 2048});
}
cost::Setup deepseek(std::int32_t devices) {
  return setup_of(
      "deepseek-v3", "h800", devices,
      {.global_batch_size = 15360, .sequence_length = 4096, .precision = spec::Precision::fp8_block});
}

void costed(benchmark::State& state, const cost::Setup& setup, const Space& space) {
  Result r;
  for (auto _ : state) r = search(setup, space, {.threads = 1, .prune = false});
  const auto count = static_cast<double>(state.iterations());
  state.counters["costed"] = static_cast<double>(r.costed);
  state.counters["layouts_per_s_per_core"] =
      benchmark::Counter(static_cast<double>(r.costed) * count, benchmark::Counter::kIsRate);
}

void whole(benchmark::State& state, const cost::Setup& setup) {
  Result r;
  for (auto _ : state) r = search(setup, {}, {.refine = simulated(setup), .refined = 32});
  const auto count = static_cast<double>(state.iterations());
  state.counters["candidates"] = static_cast<double>(r.enumerated);
  state.counters["costed"] = static_cast<double>(r.costed);
  state.counters["threads"] = r.threads;
  state.counters["candidates_per_s"] =
      benchmark::Counter(static_cast<double>(r.enumerated) * count, benchmark::Counter::kIsRate);
}

void costed_gpt3_175b_4096(benchmark::State& state) {
  costed(state, gpt3(4096), {});
}
void costed_deepseek_v3_2048(benchmark::State& state) {
  Space space;  // a part of the space, as large as GPT-3's
  space.tp = {1, 2, 4};
  space.cp = {1};
  space.etp = {1};
  space.micro_batch_size = {1, 2};
  costed(state, deepseek(2048), space);
}
void whole_gpt3_175b_4096(benchmark::State& state) {
  whole(state, gpt3(4096));
}
void whole_deepseek_v3_2048(benchmark::State& state) {
  whole(state, deepseek(2048));
}
BENCHMARK(costed_gpt3_175b_4096)->Unit(benchmark::kMillisecond);
BENCHMARK(costed_deepseek_v3_2048)->Unit(benchmark::kMillisecond);
BENCHMARK(whole_gpt3_175b_4096)->Unit(benchmark::kMillisecond)->UseRealTime();
BENCHMARK(whole_deepseek_v3_2048)->Unit(benchmark::kMillisecond)->UseRealTime();

}  // namespace
}  // namespace tessera::search
