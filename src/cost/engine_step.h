// The step of Tessera's own engine, priced from the graph that describes it operation by operation: FLOPs,
// bytes on every axis, and bytes of weights, gradients, optimizer and activations are those that the engine
// counts and takes, exactly (a test runs every kind of layout); seconds come from kernel_time and
// collective_time. StepModel prices jobs of other software from blocks; this is for jobs that train here.
//
//   const plan::Plan plan = plan::read_plan("plan.json");
//   const EngineStep step = engine_step({plan.job, plan.layout, plan.schedule}, cluster, calibration);
//   step.cost.seconds(); sim::simulate(plan, step.work);
//
// Ranks are threads of one processor, one a core (a device of the cluster):
//   - the host is the device, so every operator takes kernel_latency + launch beside its own time;
//   - collectives and messages between threads are copies that stop the rank; reductions run beside compute
//     where the cluster has a spare device for every rank, and where their group spans hosts (tiers above the
//     first), unless train.overlap_grad_reduce is false; so do a pipeline's messages between hosts;
//   - once a step: gradients set to zero, their norm, AdamW, matrices packed: bytes x optimizer_passes.
// Not modelled: scratch memory (the dry run of `train --dry-run` has it to the byte), reading of tokens.
//
// Pure, thread safe. REQUIRES a validated job that the engine runs.
#pragma once
#include <array>
#include <vector>

#include "cost/step.h"
#include "graph/graph.h"
#include "layout/layout.h"
#include "schedule/check.h"

namespace tessera::cost {

// Views of a plan's parts; the schedule lowered or not.
struct EngineJob {
  const spec::Job& job;
  const layout::Layout& layout;
  const schedule::Schedule& schedule;
};

// Bytes of one rank.
struct EngineMemory {
  Bytes weights;         // padding of the buckets and rotary tables included
  Bytes gradients;       // of all buckets
  Bytes optimizer;       // both moments, of the owned part
  Bytes saved;           // slots from F to W, with the gradients of stage inputs
  Bytes deferred;        // slots from I to W
  Bytes packed_weights;  // about: panels round up
  Bytes tokens;          // about: ids and targets of a step
  // weights, gradients and optimizer as they are; saved and deferred are activations; packed copies and
  // tokens are buffers.
  [[nodiscard]] MemoryCost cost(std::int32_t pipeline_rank) const;
};
[[nodiscard]] EngineMemory engine_memory(const EngineJob& job, Rank rank);

struct EngineRank {  // in one step
  Flops flops, model_flops;
  std::array<Bytes, graph::kNumAxes> bytes_sent{};
  EngineMemory memory;
};

struct EngineStep {
  // Of each pipeline rank's slowest ranks; one segment an operator. Ranks that share experts wait for the
  // most loaded in every layer.
  StepWork work;
  // Parts and rates of an average device (model and hardware FLOPs, bytes); memory of the largest.
  StepCost cost;
  std::vector<EngineRank> ranks;  // [world]
};
// The routing of mixtures is balanced unless given.
[[nodiscard]] EngineStep engine_step(const EngineJob& job, const spec::ClusterSpec& cluster,
                                     const Calibration& calibration,
                                     const graph::RoutingCounts& routing = {});

// Of a rank's gradients, about: for sim::Options::num_buckets.
[[nodiscard]] std::int32_t num_buckets(const EngineJob& job, const StepWork& work);

}  // namespace tessera::cost
