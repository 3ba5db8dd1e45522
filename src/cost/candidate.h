// Candidate: one layout and the choices that go with it, small enough to make a million of them. Setup: what
// stays fixed beside it. to_job turns both into the Job that plan::make_plan takes.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "cost/calibration.h"
#include "cost/routing_load.h"
#include "graph/block.h"
#include "graph/practice.h"
#include "schedule/schedule.h"
#include "spec/cluster.h"
#include "spec/job.h"
#include "spec/model.h"

namespace tessera::cost {

struct Workload {
  std::int64_t global_batch_size = 0;  // sequences
  std::int64_t sequence_length = 0;
  spec::Precision precision = spec::Precision::bf16;
  double capacity_factor = 0.0;  // 0: dropless
  friend bool operator==(const Workload&, const Workload&) = default;
};

struct Setup {
  spec::ModelSpec model;
  spec::ClusterSpec cluster;
  Calibration calibration;
  graph::Practice practice;
  Workload work;
  RoutingLoad routing;  // of the experts; balanced by default
};

// Where dp stands beside pp: which axis has the smaller stride. tp and cp are innermost, ep folds over dp.
enum class AxisOrder : std::uint8_t { tp_cp_ep_dp_pp, tp_cp_ep_pp_dp };
[[nodiscard]] std::string_view name(AxisOrder order);

struct Candidate {
  std::int32_t tp = 1, cp = 1, dp = 1, pp = 1, ep = 1, etp = 1, vpp = 1;
  std::int32_t micro_batch_size = 1;
  std::int32_t zero_stage = 1;
  spec::Recompute recompute = spec::Recompute::none;
  std::uint32_t recompute_modules = 0;  // graph::Module bits
  schedule::Kind schedule = schedule::Kind::one_f_one_b;
  AxisOrder order = AxisOrder::tp_cp_ep_dp_pp;
  bool sequence_parallel = true;
  std::int32_t zero_group = 0;  // ranks that share the optimizer state or the weights; 0: all of dp
  friend bool operator==(const Candidate&, const Candidate&) = default;
  [[nodiscard]] std::int32_t world_size() const { return tp * cp * dp * pp; }
  [[nodiscard]] std::int32_t edp() const { return tp * cp * dp / (ep * etp); }
};

// Transformer layers of each stage. Even when they divide; else embedding counts as a layer and head, loss
// and MTP layers as so many layers as their FLOPs weigh, and the layers go as evenly as whole ones can (what
// Megatron's account_for_embedding_in_pipeline_split, account_for_loss_... and custom layouts are for).
class StageSplit {
 public:
  // `balance`: a stage ends with the layer that brings it to its share of the FLOPs of layers and head
  // (nanotron), also where the layers divide.
  StageSplit(const spec::ModelSpec& model, std::int32_t num_stages, bool balance = false);
  // As a plan says it: so many layers on each stage.
  explicit StageSplit(std::span<const std::int32_t> layers);
  [[nodiscard]] std::int32_t num_stages() const { return num_stages_; }
  [[nodiscard]] std::int32_t first(std::int32_t stage) const;  // first(num_stages) = num_layers
  [[nodiscard]] std::int32_t layers(std::int32_t stage) const { return first(stage + 1) - first(stage); }

 private:
  std::int32_t num_layers_, num_stages_, base_;
  std::int32_t extra_begin_ = 0, extra_end_ = 0;  // stages with one layer more
  double share_ = 0.0;                            // balanced: of a stage, in layers
  std::vector<std::int32_t> firsts_;              // as said; else empty
};

// What one rank's part of a micro-batch is.
[[nodiscard]] graph::Cut cut_of(const Setup& setup, const Candidate& c);

// "tp 4 cp 2 pp 4 vpp 5 dp 16 mbs 1 zero 1 interleaved"; what is as usual (cp, ep, etp, vpp of 1, no
// recomputation, the default order) is left out.
[[nodiscard]] std::string to_text(const Candidate& c);

// Micro-batches of one replica, 0 when they do not come out whole.
[[nodiscard]] std::int64_t num_microbatches(const Workload& w, const Candidate& c);

// The job file of a candidate: one step, no data. stage_layers are those of StageSplit where layers do not
// divide evenly. A Job has no zero_group: from_job gives 0.
[[nodiscard]] spec::Job to_job(const Setup& setup, const Candidate& c);
// Error{config} for an order of axes that is neither of AxisOrder, a schedule or a module that is not known.
// Selective recomputation without modules is layernorm and moe_act.
[[nodiscard]] Candidate from_job(const spec::Job& job);

}  // namespace tessera::cost
