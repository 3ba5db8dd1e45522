// ForwardModel: the weights of one rank for running a model forward only: values and packed copies, rotary
// tables, communicators, memory; no gradients, no optimiser state. Decoder and Scorer build their stages on
// it.
//
// The layout is that of training without pipeline stages: tp cuts heads and widths, ep and etp the experts,
// dp holds copies that work on other rows. All ranks of the world make the same calls.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>

#include "ckpt/checkpoint.h"
#include "exec/communicators.h"
#include "exec/compute.h"
#include "exec/param_store.h"
#include "exec/stage.h"
#include "spec/job.h"

namespace tessera::exec {

struct ForwardOptions {
  spec::ModelSpec model;
  spec::ParallelSpec parallel;  // tp, dp, ep, etp
  tensor::DType dtype = tensor::DType::f32;
  std::int64_t context = 0;  // the longest sequence: rows of the rotary tables
  // [MoE layers] of [slots] the expert of each slot, every layer as many: ep rank r has the r-th share of
  // them.
  // An expert may have several (replicas); its tokens take turns. Empty: in order of experts.
  std::vector<std::vector<std::int32_t>> expert_of_slot;
  Compute compute = {};
};

// Adds what makes these options impossible: a model the engine does not run, degrees that do not divide it, a
// context beyond its positions. Places are those of a job: "parallel.tp", "train.sequence_length".
void check_forward(const ForwardOptions& options, Problems& problems);

class ForwardModel {
 public:
  // REQUIRES: check_forward finds nothing.
  ForwardModel(const ForwardOptions& options, Rank rank, const CommFactory& factory);

  // Takes the weights' memory, then what `build` takes; build returns the scratch memory that running needs.
  // Called twice, over a counting arena and over the real one.
  void set_up(const std::function<ArenaSize(Arena&)>& build);
  void load(const ckpt::WeightSource& source);

  // Inside `build`. rows: sequences of one call times their length, a multiple of tp. cached: rows are single
  // tokens with a cache (nn::Microbatch::cache).
  enum class Parts : std::uint8_t { all, without_head };
  [[nodiscard]] std::unique_ptr<Stage> make_stage(std::int64_t batch, std::int64_t seq, Parts parts,
                                                  bool cached);

  [[nodiscard]] nn::Context context() {
    return {.kernels = *kernels_,
            .tp = *comms_.tp,
            .scratch = scratch_,
            .weights = {.ce = 1.0},
            .training = false};
  }
  [[nodiscard]] const ForwardOptions& options() const { return options_; }
  [[nodiscard]] const layout::Layout& layout() const { return layout_; }
  [[nodiscard]] const Communicators& comms() const { return comms_; }
  [[nodiscard]] const ParamStore& store() const { return *store_; }
  [[nodiscard]] kernels::Kernels& kernels() { return *kernels_; }
  [[nodiscard]] Rank rank() const { return rank_; }
  // Of the weights that one token needs, on this rank: all but the embedding table, of which it reads a row;
  // of the experts the share that it is sent to.
  struct ActiveBytes {
    double dense = 0.0, experts = 0.0;
  };
  [[nodiscard]] ActiveBytes active_bytes() const;

 private:
  ForwardOptions options_;
  Rank rank_;
  layout::Layout layout_;
  std::unique_ptr<kernels::Kernels> kernels_;
  std::unique_ptr<comm::DeviceNetwork> network_;  // null: none
  Communicators comms_;
  Arena arena_, scratch_;
  std::unique_ptr<ParamStore> store_;
  Tensor cos_, sin_;
};

}  // namespace tessera::exec
