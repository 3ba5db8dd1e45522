// What the ranks of one run share, and what is done for all of them: files, trace, summary.
#pragma once
#include <fstream>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "comm/thread_world.h"
#include "exec/divergence.h"
#include "exec/rebalancer.h"
#include "exec/token_batches.h"
#include "exec/tracer.h"
#include "exec/trainer.h"

namespace tessera::exec {

// Written by one rank at a time (rank 0, or the first of the process between two barriers).
struct TrainingRun {
  const plan::Plan& plan;
  const TrainInputs& inputs;
  const TrainHooks& hooks;
  std::optional<comm::ThreadWorld> threads;
  comm::World& world;
  TokenBatches batches;
  std::optional<TokenBatches> validation;
  std::optional<ckpt::CheckpointWriter> writer;
  std::shared_ptr<const ckpt::CheckpointReader> resume;  // shared by the ranks: its checksums are read once
  std::ofstream metrics;
  RunSummary summary;
  std::vector<std::unique_ptr<Tracer>> tracers;  // [2 * local rank]: own thread, helper
  bool complete = false;                         // rank 0 of the process: the last step was run

  TrainingRun(const plan::Plan& p, const TrainInputs& in, const TrainHooks& h);
  // Of several processes the first has rank 0, and writes what is not each rank's own.
  [[nodiscard]] bool leads() const { return world.process() == 0; }
  [[nodiscard]] bool is_first_here(Rank rank) const { return rank == world.local_ranks().front(); }

  // On rank 0.
  void report_step(const StepMetrics& m);
  // Steps from `step` on are run again: their lines and losses go.
  void forget_from(std::int64_t step);
  // Of several processes each leaves its part beside the trace, and the first puts them together. Collective.
  void write_trace();
};

// Listens to the engine's actions and calls, or no longer.
void watch(RankEngine& engine, Tracer& own, Tracer& helper, bool on);
// Collective: the memory of every rank, into the summary.
void gather_memory(TrainingRun& run, RankEngine& engine);

// A rank's state beside its weights, which goes into checkpoints too.
struct RankState {
  DivergenceWatch divergence;
  Rebalancer rebalancer;
};
// The engine's state as the run begins, or after a rollback: of run.resume, else the first weights. Gives the
// steps done.
std::int64_t start_state(TrainingRun& run, RankEngine& engine, RankState& state);
// Stages a checkpoint of so many steps.
void save(TrainingRun& run, RankEngine& engine, const RankState& state, std::int64_t steps_done);
// Back to the newest checkpoint, on with the data behind `step`. Collective; gives the next step.
std::int64_t roll_back(TrainingRun& run, RankEngine& engine, RankState& state, std::int64_t step);

}  // namespace tessera::exec
