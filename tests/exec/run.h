// Runs a job on thread ranks over synthetic tokens and gathers what tests compare: losses, gradients,
// weights, router counts, all in global coordinates and f64, so that two layouts can be laid side by side.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "comm/world.h"
#include "exec/rank_engine.h"
#include "plan/plan.h"

namespace tessera::testing {

// Tokens that depend only on (sequence, position); every `ignore_every`-th target is ignored (0: none).
class SyntheticTokens : public exec::BatchSource {
 public:
  SyntheticTokens(std::int64_t vocab, std::int64_t seq, std::int64_t ignore_every = 0)
      : vocab_(vocab), seq_(seq), ignore_every_(ignore_every) {}
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override;
  [[nodiscard]] std::int64_t num_targets(std::int64_t first, std::int64_t count) const override;

 private:
  [[nodiscard]] std::int32_t token(std::int64_t index, std::int64_t position) const;
  [[nodiscard]] bool ignored(std::int64_t index, std::int64_t position) const;
  std::int64_t vocab_, seq_, ignore_every_;
};

using GlobalTensors = std::map<std::string, std::vector<double>>;

struct RunOptions {
  std::int64_t steps = 3;
  bool worker = false;  // bucket reductions on a CommWorker
  std::int64_t ignore_every = 0;
  bool cpu_kernels = false;  // else the reference
  // Instead of both, of each rank.
  std::function<std::unique_ptr<kernels::Kernels>()> make_kernels = nullptr;
  exec::MakeNetwork make_network = nullptr;  // between their devices; null: through the host
  const exec::BatchSource* data = nullptr;   // instead of synthetic tokens
  comm::World* world = nullptr;  // instead of threads; the result then holds what the local ranks have
  std::function<void(exec::RankEngine&)> start = nullptr;  // instead of initialise()
  // After each step but the last, on every rank's thread.
  std::function<void(exec::RankEngine&, std::int64_t step)> between = nullptr;
  // After the last step, on every rank's thread (ranks one after another).
  std::function<void(exec::RankEngine&)> inspect = nullptr;
};

struct RunResult {
  std::vector<exec::StepResult> steps;
  GlobalTensors gradients;  // of the last step, before clipping
  GlobalTensors weights;    // after the last step
};

[[nodiscard]] RunResult run_job(const spec::Job& job, const RunOptions& options = {});

// A small model: 8 layers (fewer with `layers`), 16 query heads on 8 kv heads, 8 experts top-2 when moe.
struct ModelOptions {
  bool moe = false;
  bool tied = false;
  std::int32_t layers = 4;
};
[[nodiscard]] spec::Job small_job(const ModelOptions& options);
// The small deepseek_v3 of tests/golden/hf with so many MTP layers.
[[nodiscard]] spec::ModelSpec mtp_model(std::int32_t num_layers);

// The largest |a - b| over the largest |a| of a tensor; NaN or a missing tensor gives infinity.
[[nodiscard]] double worst_difference(const GlobalTensors& a, const GlobalTensors& b, std::string* where);

// Expects loss, balancing terms, gradient norm and router entropy of every step, the last gradients and the
// final weights within 1e-10 of each tensor's largest value, and equal router counts.
void expect_parity(const RunResult& want, const RunResult& got, const std::string& what);

}  // namespace tessera::testing
