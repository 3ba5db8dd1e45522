// The log of a training run of Megatron-LM, torchtitan, DeepSpeed or NeMo: what an iteration took, and the
// peak of memory. Other lines are passed over; colours, time stamps and rank prefixes may stand around.
//
//   const TrainingLog log = parse_training_log(text, "train.log", problems);
//   const Steady s = steady(log, {.global_batch_size = 128, .sequence_length = 8192, .devices = 64});
//   s.median;       // seconds
//
//   megatron    "elapsed time per iteration (ms): 9496.4", "max allocated: 6510.74" (MiB), "mem usages: 0.61"
//   torchtitan  "step: 10 ... memory: 47.61GiB(60.15%)  tps: 2,793": tokens a second and device
//   deepspeed   "CurrSamplesPerSec=53.01 ... MaxMemAllocated=27.96GB" (GiB), "iter time (s): 1.234"
//   nemo        "train_step_timing in s: 13.36", Megatron-Bridge's "Step Time : 20.15s"
//
// Ranks that log the same iteration count once, by the slowest. Pure, thread safe.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "validate/row.h"

namespace tessera::validate {

enum class LogKind : std::uint8_t { megatron, torchtitan, deepspeed, nemo };
[[nodiscard]] std::string_view name(LogKind kind);

// What a log line says of an iteration: seconds, or a rate that becomes seconds with the work of a step.
enum class LogUnit : std::uint8_t { seconds, tokens_per_device_second, samples_per_second };

struct LogStep {
  std::int32_t line = 0;  // of the file, from 1
  std::optional<std::int64_t> iteration;
  LogUnit unit = LogUnit::seconds;
  double value = 0;  // above 0 and finite
};

struct TrainingLog {
  LogKind kind = LogKind::megatron;
  std::vector<LogStep> steps;          // as logged, at least one
  std::int32_t unreadable = 0;         // lines of iterations whose time is no time
  std::optional<double> memory_bytes;  // peak that the framework's tensors took, of the fullest rank
  std::optional<double> memory_share;  // of the device's memory (Megatron's "mem usages")
  std::optional<std::int64_t> global_batch_size;  // as logged
};
// Problems when no iteration is in the text, or those of several frameworks.
[[nodiscard]] TrainingLog parse_training_log(std::string_view text, std::string_view where,
                                             Problems& problems);

// The work of a step, for logs that say rates.
struct LogWork {
  std::int64_t global_batch_size = 0, sequence_length = 0;
  std::int32_t devices = 1;
};
[[nodiscard]] double seconds_of(const LogStep& step, const LogWork& work);

// The iterations behind the warm-up. Dropped are the first one, and those behind it that are more than a
// tenth slower than the median of the second half of the log, up to the first that is not. A log of one or
// two iterations has no warm-up to tell.
struct Steady {
  double median = 0;  // seconds
  double spread = 0;  // half of the middle half's width / median
  std::int32_t used = 0, dropped = 0;
  std::string dropped_text;  // "iterations 1 to 3 (lines 12 to 20)"; empty: none
};
[[nodiscard]] Steady steady(const TrainingLog& log, const LogWork& work);

}  // namespace tessera::validate
