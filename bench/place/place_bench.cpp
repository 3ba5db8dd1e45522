// The table of docs/placement.md: quality and time of each method on seeded synthetic loads and tokens, and
// on ../shared/routing where that is beside the checkout. Time is of one core for all 58 layers (or a layer,
// where it says so); counters are means over the layers.
#include <benchmark/benchmark.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "place/balance.h"
#include "place/candidates.h"
#include "place/evaluate.h"
#include "place/input.h"
#include "place/methods.h"
#include "place/published.h"
#include "place/relaxed.h"
#include "place/synthetic.h"
#include "place/traffic.h"
#include "trace/routing_file.h"

namespace tessera::place {
namespace {

namespace fs = std::filesystem;
constexpr std::int32_t kLayers = 58;

// Log-normal with groups: as uneven as the decode loads of DeepSeek-V3 that are published (contiguous 0.404,
// the published balancer 0.993 at 288 slots on 32 GPUs).
const SyntheticLoad kLikeDeepSeek{.num_experts = 256, .num_groups = 8, .spread = 0.4, .group_spread = 0.65};

std::vector<std::vector<double>> loads_of(const SyntheticLoad& what) {
  std::vector<std::vector<double>> loads;
  for (std::int32_t l = 0; l < kLayers; ++l) loads.push_back(synthetic_load(what, l));
  return loads;
}

double mean_balance(const std::vector<std::vector<double>>& loads, const std::vector<LayerMap>& maps,
                    const Machine& machine) {
  double sum = 0.0;
  for (std::size_t l = 0; l < loads.size(); ++l) sum += balancedness(gpu_loads(maps[l], loads[l], machine));
  return sum / static_cast<double>(loads.size());
}

// The same with more within a group and less between them: the published balancer with 8 groups has 0.53 at
// 320 slots on 64 GPUs, as there.
const SyntheticLoad kMilderGroups{.num_experts = 256, .num_groups = 8, .spread = 0.7, .group_spread = 0.45};

// One group far above the others: near to what is published of DeepSeek-V3's decode loads, all at once
// (contiguous 0.404, the published balancer with groups 0.782 on 4 nodes and 0.525 on 8, without 0.993).
const SyntheticLoad kOneHotGroup{
    .num_experts = 256, .num_groups = 8, .spread = 0.5, .group_spread = 0.25, .group_peak = 0.87};

struct LoadCase {
  SyntheticLoad load;
  Machine machine;
  std::int32_t groups = 1;
};

void run_load(benchmark::State& state, const LoadCase& c,
              const std::function<LayerMap(const std::vector<double>&)>& place) {
  const auto loads = loads_of(c.load);
  std::vector<LayerMap> maps(loads.size());
  for (auto _ : state) {
    for (std::size_t l = 0; l < loads.size(); ++l) maps[l] = place(loads[l]);
  }
  double bound = 0.0;
  for (const auto& load : loads) {
    const double sum = std::accumulate(load.begin(), load.end(), 0.0);
    bound += sum / c.machine.gpus / load_bound(load, c.machine) / kLayers;
  }
  state.counters["balance"] = mean_balance(loads, maps, c.machine);
  state.counters["bound"] = bound;
  std::vector<LayerMap> plain(loads.size(), contiguous(c.machine, c.load.num_experts));
  state.counters["contiguous"] = mean_balance(loads, plain, c.machine);
}

void published_58(benchmark::State& state, const LoadCase& c) {
  run_load(state, c, [&](const auto& load) { return published_map(load, c.machine, c.groups); });
}
void balance_58(benchmark::State& state, const LoadCase& c) {
  run_load(state, c, [&](const auto& load) { return balance(load, c.machine, {}); });
}
void relaxed_8(benchmark::State& state, const LoadCase& c) {  // 8 layers: a layer's time is this / 8
  double b = 0.0, off = 0.0, theirs = 0.0, bound = 0.0, intact = 0.0;
  for (auto _ : state) {
    b = off = theirs = bound = intact = 0.0;
    for (std::int32_t l = 0; l < 8; ++l) {
      const auto load = synthetic_load(c.load, l);
      const RelaxedMap r =
          relaxed({load}, c.machine, c.groups, {.off_home = 0.7, .search = {.steps = 2'000'000}});
      b += balancedness(gpu_loads(r.map, load, c.machine)) / 8;
      off += r.off_home / 8;
      theirs += balancedness(gpu_loads(published_map(load, c.machine, c.groups), load, c.machine)) / 8;
      bound += 1.0 / relaxed_bound(load, c.machine, r.home) / 8;
      intact += 1.0 / intact_groups_bound(load, c.machine, c.groups) / 8;
    }
  }
  state.counters["balance"] = b;
  state.counters["bound"] = bound;
  state.counters["off_home"] = off;
  state.counters["published"] = theirs;
  state.counters["intact_bound"] = intact;
}

const Machine k32{.nodes = 4, .gpus = 32, .slots = 288}, k72{.nodes = 9, .gpus = 72, .slots = 288},
    k64{.nodes = 8, .gpus = 64, .slots = 320}, k1024{.nodes = 128, .gpus = 1024, .slots = 2048};

BENCHMARK_CAPTURE(published_58, groups_288_on_32, {kLikeDeepSeek, k32, 8})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, global_288_on_32, {kLikeDeepSeek, k32, 1})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, global_288_on_72, {kLikeDeepSeek, k72, 1})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, groups_320_on_64, {kLikeDeepSeek, k64, 8})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, global_2048_on_1024, {kLikeDeepSeek, k1024, 1})
    ->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, 288_on_32, {kLikeDeepSeek, k32})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, 288_on_72, {kLikeDeepSeek, k72})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, 320_on_64, {kLikeDeepSeek, k64})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, 2048_on_1024, {kLikeDeepSeek, k1024})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, zipf_0p5_288_on_32, {{.zipf = 0.5}, k32})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, zipf_0p5_288_on_32, {{.zipf = 0.5}, k32, 1})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(balance_58, zipf_0p8_288_on_72, {{.zipf = 0.8}, k72})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(published_58, zipf_0p8_288_on_72, {{.zipf = 0.8}, k72, 1})->Unit(benchmark::kMillisecond);
BENCHMARK_CAPTURE(relaxed_8, 288_on_32_4_nodes, {kLikeDeepSeek, k32, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(relaxed_8, hot_group_288_on_32_4_nodes, {kOneHotGroup, k32, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(relaxed_8, hot_group_320_on_64_8_nodes, {kOneHotGroup, k64, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(relaxed_8, milder_288_on_32_4_nodes, {kMilderGroups, k32, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(relaxed_8, milder_320_on_64_8_nodes, {kMilderGroups, k64, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(relaxed_8, 320_on_64_8_nodes, {kLikeDeepSeek, k64, 8})
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);

// Windows that drift apart, one left out: placed for the sum of the others, for all of them at once, and for
// the one left out itself (what is not to be had).
void robust_8(benchmark::State& state, const Machine& machine, std::int32_t causes) {
  SyntheticLoad what = kLikeDeepSeek;
  what.drift = 0.35;
  what.drift_causes = causes;
  double once = 0.0, robust = 0.0, theirs = 0.0, oracle = 0.0;
  for (auto _ : state) {
    once = robust = theirs = oracle = 0.0;
    for (std::int32_t l = 0; l < 8; ++l) {
      LayerInput layer{.load = std::vector<double>(256, 0.0)};
      for (std::int32_t w = 0; w < 3; ++w) {
        layer.windows.push_back(synthetic_load(what, l, w));
        for (std::int32_t e = 0; e < 256; ++e) layer.load[e] += layer.windows.back()[e];
      }
      const auto test = synthetic_load(what, l, 3);
      const auto judge = [&](const LayerMap& map) { return balancedness(gpu_loads(map, test, machine)) / 8; };
      Wish wish{.machine = machine};
      once += judge(balanced_layer(layer, wish, nullptr));
      wish.robust = true;
      robust += judge(balanced_layer(layer, wish, nullptr));
      theirs += judge(published_map(layer.load, machine, 1));
      oracle += judge(published_map(test, machine, 1));
    }
  }
  state.counters["published"] = theirs;
  state.counters["for_the_sum"] = once;
  state.counters["robust"] = robust;
  state.counters["oracle"] = oracle;
}
BENCHMARK_CAPTURE(robust_8, two_causes_288_on_32, k32, 2)->Unit(benchmark::kMillisecond)->Iterations(1);
BENCHMARK_CAPTURE(robust_8, two_causes_288_on_72, k72, 2)->Unit(benchmark::kMillisecond)->Iterations(1);

BENCHMARK_CAPTURE(robust_8, no_cause_288_on_32, k32, 0)->Unit(benchmark::kMillisecond)->Iterations(1);

// From the published map of one load to another, with so many percent of the slots.
void moved_8(benchmark::State& state, const Machine& machine, double drift) {
  SyntheticLoad what = kLikeDeepSeek;
  what.drift = drift;
  double was = 0.0, is = 0.0, share = 0.0, scratch = 0.0;
  for (auto _ : state) {
    was = is = share = scratch = 0.0;
    for (std::int32_t l = 0; l < 8; ++l) {
      const LayerMap old = published_map(synthetic_load(what, l, 0), machine, 1);
      const LayerInput now{.load = synthetic_load(what, l, 1)};
      was += balancedness(gpu_loads(old, now.load, machine)) / 8;
      scratch += moved_slots(old, published_map(now.load, machine, 1), machine) / 8.0 / machine.slots;
      const Wish wish{.machine = machine, .most_moved = static_cast<double>(state.range(0)) / 100.0};
      const LayerMap map = balanced_layer(now, wish, &old);
      is += balancedness(gpu_loads(map, now.load, machine)) / 8;
      share += moved_slots(old, map, machine) / 8.0 / machine.slots;
    }
  }
  state.counters["as_it_was"] = was;
  state.counters["balance"] = is;
  state.counters["moved"] = share;
  state.counters["published_moves"] = scratch;
}
BENCHMARK_CAPTURE(moved_8, little_drift, k32, 0.05)
    ->Arg(5)
    ->Arg(10)
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(moved_8, drift, k32, 0.3)
    ->Arg(10)
    ->Arg(20)
    ->Arg(30)
    ->Unit(benchmark::kMillisecond)
    ->Iterations(1);

struct Halves {
  std::vector<std::vector<std::int16_t>> train, test;  // by layer
};

// Two domains of DeepSeek-V2-Lite without their template, the first half of the sequences and the second.
Halves real_tokens() {
  Halves halves;
  const fs::path base = fs::path(TESSERA_SOURCE_DIR) / ".." / "shared" / "routing" / "deepseek_v2_lite_esft";
  if (!fs::exists(base)) return halves;
  for (const std::string domain : {"intent", "summary"}) {
    const auto stats =
        trace::read_routing(base / (domain + "_topk.npy"), {.num_experts = 64, .first_layer = 1});
    nlohmann::json meta;
    std::ifstream(base / (domain + "_meta.json")) >> meta;
    const std::vector<std::int64_t> lengths = meta["sequence_lengths"];
    halves.train.resize(stats.num_layers());
    halves.test.resize(stats.num_layers());
    for (std::int32_t l = 0; l < stats.num_layers(); ++l) {
      const auto choices = stats.choices_of(l);
      std::int64_t at = 0;
      for (std::size_t s = 0; s < lengths.size(); at += lengths[s++]) {
        auto& to = s < lengths.size() / 2 ? halves.train[l] : halves.test[l];
        to.insert(to.end(), choices.begin() + (at + (domain == "intent" ? 15 : 16)) * 6,
                  choices.begin() + (at + lengths[s]) * 6);
      }
    }
  }
  return halves;
}

std::vector<double> load_of(const std::vector<std::int16_t>& tokens, std::int32_t experts) {
  std::vector<double> load(experts, 0.0);
  for (const std::int16_t e : tokens) load[e] += 1.0;
  return load;
}

// All layers; the counters are of the second half, seconds_a_layer of this core.
void traffic(benchmark::State& state, const Halves& halves, double cap) {
  const auto nodes = static_cast<std::int32_t>(state.range(0));
  if (halves.train.empty()) {
    state.SkipWithError("no routing data beside the checkout (../shared/routing)");
    return;
  }
  double found = 0.0, plain = 0.0, theirs = 0.0, bound = 0.0, train = 0.0, test = 0.0;
  const auto layers = static_cast<double>(halves.train.size());
  for (auto _ : state) {
    found = plain = theirs = bound = train = test = 0.0;
    for (std::size_t l = 0; l < halves.train.size(); ++l) {
      const std::vector<double> load = load_of(halves.train[l], 64), later = load_of(halves.test[l], 64);
      CutProblem p{.num_experts = 64,
                   .top_k = 6,
                   .num_nodes = nodes,
                   .tokens = halves.train[l],
                   .windows = {load},
                   .cap = cap};
      const auto node_of = fewest_nodes(p, {});
      p.tokens = halves.test[l];
      std::vector<std::int32_t> other(64);
      for (std::int32_t e = 0; e < 64; ++e) other[e] = e / (64 / nodes);
      plain += mean_nodes(other, p) / layers;
      const LayerMap map = published_map(load, {.nodes = 1, .gpus = 8, .slots = 64}, 1);
      for (std::int32_t s = 0; s < 64; ++s) other[map[s]] = s / (64 / nodes);
      theirs += mean_nodes(other, p) / layers;
      found += mean_nodes(node_of, p) / layers;
      bound += nodes_bound(p, 64 / nodes) / layers;
      const auto even = [&](const std::vector<double>& x) {
        std::vector<double> node(nodes, 0.0);
        for (std::int32_t e = 0; e < 64; ++e) node[node_of[e]] += x[e];
        return balancedness(node) / layers;
      };
      train += even(load);
      test += even(later);
    }
  }
  state.counters["nodes"] = found;
  state.counters["contiguous"] = plain;
  state.counters["published"] = theirs;
  state.counters["bound"] = bound;
  state.counters["node_balance"] = train;
  state.counters["node_balance_later"] = test;
  state.counters["s_a_layer"] =
      benchmark::Counter(layers, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}

// Every fifth layer by seconds, 2 GPUs a node: what annealing takes off the best of the methods, on the first
// half and on the second. Arguments: nodes, spare slots of a GPU, bandwidth of a node in GB/s.
void real_seconds(benchmark::State& state) {
  const Halves halves = real_tokens();
  if (halves.train.empty()) {
    state.SkipWithError("no routing data beside the checkout (../shared/routing)");
    return;
  }
  const auto nodes = static_cast<std::int32_t>(state.range(0)), gpus = 2 * nodes;
  Wish wish{.machine = {.nodes = nodes,
                        .gpus = gpus,
                        .slots = 64 + static_cast<std::int32_t>(state.range(1)) * gpus}};
  wish.rates = {.seconds_per_choice = 2.0 * 3 * 2048 * 1408 / 6e14,
                .bytes_per_copy = 2048 * 3.03,
                .node_bandwidth = static_cast<double>(state.range(2)) * 1e9,
                .tokens = 4096.0 * gpus};
  double apart = 0.0, joint = 0.0, apart_later = 0.0, joint_later = 0.0, network = 0.0, layers = 0.0;
  for (auto _ : state) {
    for (std::size_t l = 0; l < halves.train.size(); l += 5, layers += 1.0) {
      const LayerInput train{.load = load_of(halves.train[l], 64), .tokens = halves.train[l]};
      const LayerInput test{.load = load_of(halves.test[l], 64), .tokens = halves.test[l]};
      const std::vector<Candidate> all = candidates(train, 6, wish, nullptr);
      std::vector<Candidate> methods = all;
      std::erase_if(methods, [](const Candidate& c) { return c.name.starts_with("annealed"); });
      const auto add = [&](const Candidate& c, double& seconds, double& later) {
        seconds += c.cost.seconds.total();
        later += cost_of(c.map, wish.machine, test, 6, {.rates = wish.rates}).seconds.total();
      };
      add(best_of(methods), apart, apart_later);
      add(best_of(all), joint, joint_later);
      network += best_of(all).cost.seconds.network / best_of(all).cost.seconds.compute;
    }
  }
  state.counters["network_to_compute"] = network / layers;
  state.counters["saved"] = 1.0 - joint / apart;
  state.counters["saved_later"] = 1.0 - joint_later / apart_later;
  state.counters["s_a_layer"] =
      benchmark::Counter(layers, benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(real_seconds)
    ->Args({4, 0, 100})
    ->Args({4, 1, 100})
    ->Args({4, 1, 25})
    ->Args({8, 0, 100})
    ->Args({8, 1, 100})
    ->Args({8, 1, 25})
    ->Unit(benchmark::kSecond)
    ->Iterations(1);

void real_traffic(benchmark::State& state, double cap) {
  traffic(state, real_tokens(), cap);
}

void clustered_traffic(benchmark::State& state, double cap) {
  Halves halves;
  for (std::int32_t l = 0; l < 4; ++l) {
    const auto all = synthetic_tokens({.num_tokens = 16'384}, l);
    halves.train.emplace_back(all.begin(), all.begin() + std::ssize(all) / 2);
    halves.test.emplace_back(all.begin() + std::ssize(all) / 2, all.end());
  }
  traffic(state, halves, cap);
}
BENCHMARK_CAPTURE(real_traffic, cap_3, 0.03)->Arg(2)->Arg(4)->Arg(8)->Unit(benchmark::kSecond)->Iterations(1);
BENCHMARK_CAPTURE(real_traffic, cap_10, 0.10)
    ->Arg(2)
    ->Arg(4)
    ->Arg(8)
    ->Unit(benchmark::kSecond)
    ->Iterations(1);
BENCHMARK_CAPTURE(clustered_traffic, cap_3, 0.03)->Arg(4)->Arg(8)->Unit(benchmark::kSecond)->Iterations(1);

// OLMoE's counts of several domains, each left out once.
void real_robust(benchmark::State& state) {
  const fs::path file =
      fs::path(TESSERA_SOURCE_DIR) / ".." / "shared" / "routing" / "olmoe" / "olmoe_expert_counts.json";
  if (!fs::exists(file)) {
    state.SkipWithError("no routing data beside the checkout (../shared/routing)");
    return;
  }
  const auto stats = trace::read_routing(file);
  const Machine machine{.nodes = 1, .gpus = static_cast<std::int32_t>(state.range(0)), .slots = 80};
  double once = 0.0, robust = 0.0, theirs = 0.0;
  const auto share = 1.0 / static_cast<double>(stats.windows.size() * stats.layers.size());
  for (auto _ : state) {
    once = robust = theirs = 0.0;
    for (const trace::RoutingWindow& window : stats.windows) {
      PlaceInput train = input_of(stats);
      const PlaceInput test = hold_out_window(train, window.name);
      for (std::int32_t l = 0; l < train.num_layers(); ++l) {
        const auto judge = [&](const LayerMap& map) {
          return balancedness(gpu_loads(map, test.data[l].load, machine)) * share;
        };
        Wish wish{.machine = machine};
        once += judge(balanced_layer(train.data[l], wish, nullptr));
        wish.robust = true;
        robust += judge(balanced_layer(train.data[l], wish, nullptr));
        theirs += judge(published_map(train.data[l].load, machine, 1));
      }
    }
  }
  state.counters["published"] = theirs;
  state.counters["for_the_sum"] = once;
  state.counters["robust"] = robust;
}
BENCHMARK(real_robust)->Arg(8)->Arg(16)->Unit(benchmark::kSecond)->Iterations(1);

}  // namespace
}  // namespace tessera::place
