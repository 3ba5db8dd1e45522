// The training loop: every rank a thread, checkpoints in the background, metrics and trace into the output
// folder.
#pragma once
#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ckpt/checkpoint.h"
#include "comm/world.h"
#include "data/token_source.h"
#include "exec/compute.h"
#include "exec/metrics.h"
#include "exec/rank_engine.h"
#include "plan/plan.h"

namespace tessera::exec {

struct TrainInputs {
  Compute compute;
  // The ranks of the plan; null: threads of this process. A world of several processes trains in all of them,
  // each with the same plan and inputs; the folders are shared.
  comm::World* world = nullptr;
  std::shared_ptr<const data::TokenSource> train;
  std::shared_ptr<const data::TokenSource> validation;  // null: none
  std::int32_t cores = 1;
  FlopsPerSecond peak_per_core;          // measured FMA peak in the run's precision
  std::filesystem::path output;          // metrics.jsonl, trace.json; empty: none
  std::filesystem::path dump_routing;    // routing statistics of the steps run (trace/routing.h); empty: none
  std::int64_t dump_routing_tokens = 0;  // with the choices of so many last tokens
  // Both are shared between the caller, who checked them, and all ranks.
  // The checkpoint to go on from; null: the newest of the job's folder, where the job resumes.
  std::shared_ptr<const ckpt::CheckpointReader> resume;
  // The first weights when nothing is resumed; null: from the seed.
  std::shared_ptr<const ckpt::WeightSource> start_weights;
  Rebalancing rebalancing;  // the plan names its slots where it is on
  // A number other than 0, of any process, ends the run after the step that all ranks are in, with a
  // checkpoint. Null: nobody asks.
  const std::atomic<int>* leave = nullptr;
};

struct TrainHooks {                                       // called on rank 0's thread
  std::function<void(std::int64_t first_step)> on_start;  // engines are built, weights are there
  std::function<void(const StepMetrics&)> on_step;
};

struct RankUse {
  Rank rank;
  plan::RankMemory planned, measured;
};

struct Divergence {
  std::int64_t step = 0;
  std::string fault;  // "the loss is not finite"
  std::string where;  // "first in the output of layer 3, micro-batch 1, rank 2"
  spec::OnDivergence action = spec::OnDivergence::stop;  // what was done
  std::int64_t back_to = -1;                             // of a rollback: the next step
};

struct RunSummary {
  std::int64_t first_step = 0;  // > 0: resumed
  std::vector<double> losses;   // ce loss of each step run
  // The step that diverged and ended the run, without a checkpoint of it (-1: none).
  std::int64_t diverged_at = -1;
  std::vector<Divergence> divergences;  // all of them
  int left_by = 0;                      // what TrainInputs::leave asked with; 0: not asked, or too late
  std::vector<std::string> notes;       // what a person should read at the end
  StepMetrics mean;  // rates, MFU, bubble and axes: means and sums over the steps run but the first
  std::vector<ExpertMove> moves;        // of the steps run
  std::vector<RoutingFigures> routing;  // over the last tenth of the steps
  std::vector<RankUse> ranks;
  double validation_loss = -1.0;  // < 0: none
  std::int64_t validation_sequences = 0;
  std::filesystem::path checkpoint;  // the last one; empty: none
  std::filesystem::path metrics, trace, routing_dump;
  Seconds seconds;
};

// Of several processes the one with rank 0 writes metrics and trace, calls the hooks and has the whole
// summary. Runs the plan to its last step, to one that diverges and is not passed by the job's rule
// (spec::DivergenceSpec), or until it is asked to leave. Throws Error; what was checkpointed stays.
[[nodiscard]] RunSummary train(const plan::Plan& plan, const TrainInputs& inputs, const TrainHooks& hooks);

}  // namespace tessera::exec
