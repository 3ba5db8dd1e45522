// What predictions are worth: errors of step time by group, order of layouts within sweeps, memory, and the
// verdict whether a layout fits. Pure.
#pragma once
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "validate/run.h"

namespace tessera::validate {

// Of relative errors, predicted / measured - 1.
struct ErrorStats {
  std::int32_t rows = 0;
  double median = 0, mean = 0, p90 = 0;  // of the absolute error
  double bias = 0;                       // median of the signed error
  double worst = 0;                      // the largest absolute error, signed
};
[[nodiscard]] ErrorStats error_stats(std::vector<double> signed_errors);

struct Group {
  std::string name;
  ErrorStats model, baseline;  // baseline.rows 0: not asked for
};
// Timed rows of quality A and B without guesses, as the targets count them.
[[nodiscard]] bool counts(const Outcome& o);

using KeyOf = std::function<std::string(const Outcome&)>;  // empty: in no group
// Groups of the outcomes that `which` takes, sorted by name. `baseline[i]`: its error of outcomes[i]; may be
// empty.
[[nodiscard]] std::vector<Group> grouped(std::span<const Outcome> outcomes,
                                         const std::function<bool(const Outcome&)>& which, const KeyOf& key,
                                         std::span<const double> baseline);

// What the targets speak of. A row may stand in several.
enum class Target : std::uint8_t { dense_ampere_hopper, moe, blackwell };
inline constexpr std::int32_t kNumTargets = 3;
[[nodiscard]] std::string_view name(Target t);
[[nodiscard]] bool belongs(const Outcome& o, Target t);

// One constant MFU per accelerator and precision: the step that a pocket calculator predicts. The constant of
// a row comes from the rows of other folds (`fold` names them; empty name for all: in sample), in the
// geometric mean with equal weight a row; of all accelerators where no other fold has this one. Signed
// errors, NaN where there is nothing to compare.
[[nodiscard]] std::vector<double> constant_mfu_errors(std::span<const Outcome> outcomes, const KeyOf& fold);

// Layouts of one model on one cluster at one batch.
struct Sweep {
  std::string source, name;
  std::int32_t layouts = 0;
  double tau = 0;     // Kendall's tau-b of predicted and measured
  double regret = 0;  // measured time of the layout ranked first / of the best - 1
};
// Of at least `least` different layouts; a layout measured more than once counts with its best time.
[[nodiscard]] std::vector<Sweep> sweeps(std::span<const Outcome> outcomes,
                                        const std::function<bool(const Outcome&)>& which,
                                        std::int32_t least = 3);
[[nodiscard]] double kendall_tau_b(std::span<const double> a, std::span<const double> b);

struct MemoryGroup {
  std::string name;  // source, kind
  ErrorStats errors;
};
// Predicted bytes that stand against a peak of that kind.
[[nodiscard]] double predicted_memory(const cost::StepCost& cost, MemoryKind kind);
[[nodiscard]] std::vector<MemoryGroup> memory_groups(std::span<const Outcome> outcomes);

// Whether the layout fits into the device.
[[nodiscard]] bool fits(const Outcome& o);
struct Verdicts {
  std::string name;                             // source
  std::int32_t ran = 0, ran_right = 0;          // it ran: must fit
  std::int32_t oom = 0, oom_right = 0;          // out of memory, as the source says: must not fit
  std::int32_t missing = 0, missing_right = 0;  // no value shown: probably out of memory
};
// The first is the sum over all sources.
[[nodiscard]] std::vector<Verdicts> verdicts(std::span<const Outcome> outcomes);

}  // namespace tessera::validate
