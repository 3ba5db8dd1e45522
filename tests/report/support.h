// A run as the engine might tell it, with round numbers; used by golden and property tests.
#pragma once
#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "base/random.h"
#include "report/run_summary.h"

namespace tessera::report {

inline std::vector<double> falling_losses(std::int32_t steps) {
  std::vector<double> out;
  for (std::int32_t i = 0; i < steps; ++i) {
    const double noise = 0.08 * normal(1, stream_of("loss"), static_cast<std::uint64_t>(i));
    out.push_back(3.1 + 5.2 * std::exp(-i / (0.12 * steps)) + noise);
  }
  return out;
}

inline RoutingRow routing_row(std::int32_t layer, std::vector<double> load, std::int32_t dead, double drops) {
  double sum = 0, squares = 0, largest = 0, entropy = 0;
  for (const double v : load) {
    sum += v;
    squares += v * v;
    largest = std::max(largest, v);
  }
  const double n = static_cast<double>(load.size()), mean = sum / n;
  for (const double v : load) entropy -= v > 0 ? v / sum * std::log(v / sum) : 0;
  return {.layer = layer,
          .load = std::move(load),
          .max_over_mean = largest / mean,
          .cv = std::sqrt(squares / n - mean * mean) / mean,
          .effective = std::exp(entropy),
          .dead = dead,
          .drop_rate = drops,
          .entropy = 1.74};
}

inline plan::RankMemory rank_memory(std::int64_t scale) {
  plan::RankMemory m;
  for (std::int32_t k = 0; k < plan::kNumMemoryKinds; ++k) {
    m[static_cast<plan::MemoryKind>(k)] = Bytes(scale * 1'000'000 * (k + 1));
  }
  return m;
}

inline RunView demo_view() {
  RunView v;
  v.title = "demo";
  v.description = {"model  8.4 M parameters, 3.1 M active per token; 4 layers of 192, 8 experts, top-2",
                   "plan   8 ranks: tp 2 x pp 2 x dp 2, ep 2; 1f1b, 4 micro-batches, ZeRO-1"};
  v.ranks = 8;
  v.cores = 2;
  v.seconds = Seconds(252.4);
  v.losses = falling_losses(600);
  v.unigram_entropy = 6.1234;
  v.validation_loss = 3.3122;
  v.validation_sequences = 64;
  v.speed = {.tokens_per_s = 18432,
             .step = Seconds(0.42),
             .mfu = 0.412,
             .mfu_full = 0.4271,
             .hfu = 0.455,
             .peak = FlopsPerSecond(122.4e9),
             .peak_source = "measured f32 FMA peak: 2 cores of 61.2 GFLOP/s"};
  v.axes = {{"tp", Bytes(101'000'000), Seconds(0.62), Seconds(0.61)},
            {"ep", Bytes(25'165'824), Seconds(0.31), Seconds(0.3)},
            {"pp", Bytes(6'291'456), Seconds(0.8), Seconds(0.8)},
            {"dp", Bytes(67'108'864), Seconds(0.2), Seconds(0.0004)}};
  v.bubble = BubbleView{.fraction = 0.231, .clock = BubbleClock::cpu, .ideal = 0.2, .schedule = "1f1b"};
  v.routing = {routing_row(0, {120, 130, 118, 140, 122, 131, 125, 138}, 0, 0.0),
               routing_row(1, {60, 190, 120, 118, 0, 260, 150, 126}, 1, 0.0312),
               routing_row(2, {128, 127, 128, 129, 128, 126, 130, 128}, 0, 0.0001)};
  for (std::int32_t r = 0; r < 8; ++r) {
    const plan::RankMemory planned = rank_memory(r < 4 ? 1 : 2);
    plan::RankMemory measured = planned;
    if (r == 7) measured[plan::MemoryKind::saved] += Bytes(1'500'000);
    v.memory.push_back({r, planned, measured});
  }
  v.prompt = "The king said";
  v.sample =
      " that he would go to the sea, and the men of the town came with him.\n\"Who art thou?\" said he.";
  v.warnings = {
      "layer 1: expert 4 is dead (no token in the last 60 steps); raise aux_loss_coef or the capacity"};
  v.files = {{"checkpoint", "runs/demo/checkpoints/step-600"},
             {"metrics", "runs/demo/metrics.jsonl"},
             {"trace", "runs/demo/trace.json (open in ui.perfetto.dev)"}};
  return v;
}

}  // namespace tessera::report
