// RoutingDump: collects trace::RoutingStats of a training run on one rank: pairs of experts from every
// token's choices, counts from the step's result, and the choices of the last tokens where they are asked
// for. It hears of each MoE layer's forward pass through the stages (RoutingListener) and holds its own
// memory, so a run without one costs nothing.
//
//   RoutingDump dump(plan, engine, {.first_step = 0, .last_step = 100, .tokens = 65536});
//   for (step ...) { dump.begin_step(step); engine.train_step(step); dump.end_step(engine.last_result()); }
//   trace::RoutingStats stats = dump.finish();   // the whole on rank 0, empty elsewhere
//
// The statistics do not depend on the layout: tokens stand in the order of the run (step, sequence,
// position). A token's choices in two MoE layers of different stages lie on two pipeline ranks: after the
// step the owner of the earlier layer sends them to the owner of the next one. Bytes: local MoE layers x
// tokens of this rank in a step x choices x 2, and 8 E^2 a local layer (twice); on rank 0 also the kept
// choices. end_step and finish are collective. One thread, the engine's; between begin_step and end_step
// nothing else may run the engine forward.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

#include "exec/rank_engine.h"
#include "trace/routing.h"

namespace tessera::exec {

class RoutingDump : public RoutingListener {
 public:
  struct Options {
    std::int64_t first_step = 0;
    std::int64_t last_step = 0;      // one behind the last
    std::int64_t tokens = 0;         // keep the choices of so many last tokens at least, whole steps; 0: none
    std::int32_t most_windows = 16;  // parts of the time that are counted apart
  };
  // Both outlive it. Error{config} for a model without experts, and where pairs or choices would take too
  // much.
  RoutingDump(const plan::Plan& plan, RankEngine& engine, const Options& options);
  ~RoutingDump() override;
  RoutingDump(const RoutingDump&) = delete;
  RoutingDump& operator=(const RoutingDump&) = delete;

  void begin_step(std::int64_t step);
  void end_step(const StepResult& result);
  [[nodiscard]] trace::RoutingStats finish();

  void on_routed(const Mixture& mixture, const nn::Microbatch& mb, std::int32_t saved_slot) override;

 private:
  struct Local {                        // a MoE layer of this rank
    std::int32_t index = 0;             // among the model's MoE layers
    std::vector<std::int16_t> choices;  // [micro-batches, t, K] of the step
    std::vector<std::int64_t> within;   // [E, E]
    std::vector<std::int64_t> across;   // [E, E] from the MoE layer before
    std::int64_t seen = 0;              // micro-batches heard of in this step
  };

  [[nodiscard]] Local* local(std::int32_t index);
  [[nodiscard]] std::int32_t owner(std::int32_t index) const;  // pipeline rank
  [[nodiscard]] bool holds(const layout::StageCut& cut, std::int32_t layer) const;
  [[nodiscard]] std::vector<std::int32_t> layers_of(Rank rank) const;
  void count_pairs();
  void count_windows(const StepResult& result);
  void keep_choices();
  void place(Rank from, std::int32_t index, std::span<const std::int16_t> choices);
  void gather_pairs(trace::RoutingStats& stats);

  const plan::Plan& plan_;
  RankEngine& engine_;
  Options options_;
  std::vector<std::int32_t> layers_;  // MoE layers of the model
  std::int32_t experts_, width_;      // E, and choices a token K
  bool experts_choose_;               // K = E, those that did not take the token are none
  std::int64_t microbatches_, local_tokens_, step_tokens_;
  std::int64_t keep_from_;     // first step whose choices are kept
  std::int64_t window_steps_;  // steps of a window
  std::vector<Local> local_;
  std::vector<std::int16_t> arrived_;  // choices of another rank's layer
  trace::RoutingStats stats_;          // rank 0: what is complete so far
  std::int64_t step_ = -1;
  std::int64_t steps_done_ = 0;
  bool active_ = false;
};

}  // namespace tessera::exec
