// What a run tells when it ends: loss curve, speed, communication per axis, pipeline bubble, experts, memory,
// a sample of text, files. RunView is plain data that the caller fills from the engine's summary; render()
// makes the page, each number with a few words on what it means. What is empty or unknown is left out. Pure,
// thread safe.
//
//   RunView view;
//   view.title = "demo";
//   view.losses = ...;
//   std::string page = render(view, {.color = true, .width = 100});
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/quantity.h"
#include "plan/memory.h"
#include "report/routing_view.h"
#include "report/terminal.h"

namespace tessera::report {

struct AxisRow {  // one axis; per step, all ranks together
  std::string axis;
  Bytes bytes_per_step;  // sent to other ranks
  Seconds total;         // inside calls, waiting included
  Seconds exposed;       // the part that no compute of the rank hides
};

enum class BubbleClock : std::uint8_t { wall, cpu };

struct BubbleView {
  double fraction = 0.0;  // of the pipeline's rank-seconds
  BubbleClock clock = BubbleClock::wall;
  std::optional<double> ideal;  // of the schedule with equal stages
  std::string schedule;         // "1f1b, 8 micro-batches"
  std::string why;              // "": a sentence made from clock, ranks and cores
};

struct SpeedView {
  double tokens_per_s = 0.0;
  Seconds step;                        // mean time of a step
  std::optional<double> mfu;           // causal attention counted once (half the square)
  std::optional<double> mfu_full;      // the whole square
  std::optional<double> hfu;           // FLOPs executed, recomputation included
  std::optional<FlopsPerSecond> peak;  // of all cores in use
  std::string peak_source;             // how it was found: "measured FMA peak, 2 cores x 61.2 GFLOP/s"
};

struct MemoryRow {
  std::int32_t rank = 0;
  plan::RankMemory planned;
  plan::RankMemory measured;  // all zero: not measured
};

struct FileRow {
  std::string what;  // "checkpoint"
  std::string path;
};

struct RunView {
  std::string title;                     // "demo"
  std::vector<std::string> description;  // model and plan, a line each
  std::int32_t ranks = 1;
  std::int32_t cores = 1;
  Seconds seconds;              // of the whole run
  std::int64_t first_step = 0;  // steps done before this run (resumed)
  std::vector<double> losses;   // nats per token, a value a step
  std::optional<double> unigram_entropy;
  std::optional<double> validation_loss;
  std::int64_t validation_sequences = 0;
  SpeedView speed;
  std::vector<AxisRow> axes;
  std::optional<BubbleView> bubble;
  std::vector<RoutingRow> routing;
  std::string expert_moves;       // a sentence or two; empty: none
  std::vector<MemoryRow> memory;  // ascending ranks
  std::string prompt, sample;     // the sample without its prompt
  std::vector<std::string> warnings;
  std::vector<FileRow> files;
};

// The whole page, ends with a line feed.
[[nodiscard]] std::string render(const RunView& view, const Style& style);

// The loss that the page speaks of: the mean of the finite ones among the last tenth of the steps (at least
// one); nothing when there are none.
[[nodiscard]] std::optional<double> final_loss(const RunView& view);

}  // namespace tessera::report
