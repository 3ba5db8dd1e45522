// Rebalancer: moves experts between the ranks of ep in the middle of a run, so that none has far more rows
// than the mean. Where they go is asked of the caller (tessera train asks src/place) with the choices since
// the last time; the training itself stays the same on every layout and placement.
//
// Collective as the engine is: loads are equal on every rank, rank 0 asks and tells the others.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "exec/rank_engine.h"
#include "plan/plan.h"

namespace tessera::exec {

struct RoutedLoad {
  std::vector<std::int32_t> layers;               // MoE layers of the model
  std::vector<std::vector<std::int64_t>> chosen;  // [layers][E] since the last time
  std::vector<std::vector<std::int32_t>> slots;   // [layers][E] the expert of each slot now
};
struct Rebalancing {
  std::int64_t every = 0;  // steps; 0: never
  // New slots, in the form of RoutedLoad::slots; what does not pay may stay. On rank 0's thread.
  std::function<std::vector<std::vector<std::int32_t>>(const RoutedLoad&)> place;
};

struct ExpertMove {
  std::int64_t slots = 0;   // whose expert came from another rank, over all layers
  std::int64_t layers = 0;  // with any
  // Rows of the fullest rank over the mean, of the steps before: the layer where it is largest.
  double fullest_before = 1.0, fullest_after = 1.0;  // as it was; as it would have been
  Seconds time;
};

// The choices of the fullest of `ep` ranks over the mean, where slot s is on rank s / (slots / ep).
[[nodiscard]] double fullest_rank(const std::vector<std::int64_t>& chosen,
                                  const std::vector<std::int32_t>& slots, std::int32_t ep);

class Rebalancer {
 public:
  // REQUIRES a plan that names its slots (parallel.expert_slots), where rebalancing.every > 0. Both outlive
  // this.
  Rebalancer(const plan::Plan& plan, const Rebalancing& rebalancing);
  // After each step that was made. Moves what is to move when `steps_done` is a multiple of `every`.
  [[nodiscard]] std::optional<ExpertMove> after_step(RankEngine& engine, std::int64_t steps_done);

  // For checkpoints: the slots of all layers one after another; empty: never.
  [[nodiscard]] std::vector<double> state() const;
  void restore(RankEngine& engine, std::span<const double> state);  // empty: what the plan says

 private:
  void add(const StepResult& result);
  [[nodiscard]] std::vector<std::int32_t> ask(RankEngine& engine) const;  // of all layers
  [[nodiscard]] std::vector<std::vector<std::int32_t>> by_layer(const std::vector<std::int32_t>& slots) const;
  std::int64_t move(RankEngine& engine, const std::vector<std::int32_t>& slots);

  const Rebalancing& rebalancing_;
  std::int32_t ep_;
  std::vector<std::int32_t> planned_;  // slots of all layers
  std::vector<std::int32_t> slots_;    // likewise, now
  RoutedLoad load_;
};

}  // namespace tessera::exec
