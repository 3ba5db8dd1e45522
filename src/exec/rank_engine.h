// RankEngine: one rank of a plan. It builds the rank's stages, walks the rank's list of actions and updates
// the weights. It knows no schedule by name: slots, messages and the order of everything come from the plan.
//
// A step: gradients to zero; the actions (a bucket's reduction starts as soon as its last weight gradient is
// done); tied sums; one world sum of loss, norm and routing statistics; AdamW; gather (ZeRO-1, -2); weights
// packed again. Only the world sum and the collectives of the layers wait for other ranks. Not thread safe:
// one thread per engine.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "comm/worker.h"
#include "exec/batch_source.h"
#include "exec/communicators.h"
#include "exec/compute.h"
#include "exec/param_store.h"
#include "exec/pass_pair.h"
#include "exec/stage.h"
#include "exec/step_probe.h"
#include "exec/step_tokens.h"
#include "exec/unit_shards.h"
#include "plan/memory.h"
#include "plan/plan.h"

namespace tessera::exec {

struct LayerRouting {  // one MoE layer, one step, the whole world
  std::int32_t layer = 0;
  std::vector<std::int64_t> chosen, dropped;  // [E]
  std::int64_t tokens = 0;
  double entropy = 0.0;  // mean over tokens, nats
};

struct StepResult {                     // equal on every rank
  double ce_loss = 0.0;                 // mean over the target tokens of the global batch
  double aux_loss = 0.0, z_loss = 0.0;  // weighted terms; the optimised loss is the sum of all
  double mtp_loss = 0.0;                // likewise, of the MTP layers
  double grad_norm = 0.0;               // before clipping
  double lr = 0.0;
  std::vector<LayerRouting> routing;
  [[nodiscard]] double loss() const { return ce_loss + aux_loss + z_loss + mtp_loss; }
};

// Which step of a run: the same numbers but where updates were left out or data jumped over.
struct StepOrder {
  std::int64_t step = 0;     // of the learning rate and of reports
  std::int64_t batch = 0;    // its sequences are [batch * global_batch_size, ...)
  std::int64_t updates = 0;  // of the weights, made before
};
// Asked with the sums of the world before the update; false leaves the weights as they are. The same on every
// rank.
using Accept = std::function<bool(const StepResult&)>;

// The first tensor of a step that held what is no finite number: in the order of the pass (weights, forward
// by micro-batch and layer, backward likewise), which is the same on every layout.
struct BadTensor {
  Rank rank;
  std::string what;  // "the output of layer 3, micro-batch 1"; empty: none was found
};

struct ActionTime {
  std::int64_t start_ns = 0, end_ns = 0;  // wall
  std::int64_t cpu_ns = 0;                // of this thread
};

// What a Tracer wants to know. Null: nobody watches.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void action(const schedule::Action& action, const ActionTime& time) = 0;
  virtual void phase(const char* name, const ActionTime& time) = 0;  // name: static storage
};

class RankEngine {
 public:
  struct Options {
    const plan::Plan* plan = nullptr;   // outlives the engine
    const BatchSource* data = nullptr;  // likewise
    Rank rank;
    std::unique_ptr<kernels::Kernels> kernels;
    CommFactory communicators;
    // Between the GPUs of the ranks; null: tensors of a GPU go through the host.
    std::unique_ptr<comm::DeviceNetwork> network;
    // Runs bucket reductions and gathers beside compute; null: in line, as is what goes to experts, which has
    // a helper thread of its own beside this one.
    comm::CommWorker* worker = nullptr;
    comm::Whereabouts* whereabouts = nullptr;  // of the rank in its world; null: nobody asks
    bool dry_run = false;                      // only planned_memory() is valid; takes no memory
  };
  // Error{config} with every problem of a plan that the engine does not run (spec::check_engine_runs).
  explicit RankEngine(Options options);
  ~RankEngine();

  // Planned by a dry run of the set-up over a counting arena; measured: what the real arenas held at their
  // peaks.
  [[nodiscard]] const plan::RankMemory& planned_memory() const { return planned_; }
  [[nodiscard]] plan::RankMemory measured_memory() const;

  void initialise();       // weights from the recipe's seed
  void weights_changed();  // after values were written from outside (a checkpoint)
  // Between steps: moves experts to other slots (layout::place_experts). Collective, the same on every rank.
  // REQUIRES a plan that names its slots. Gives the slots, over all layers, that another rank's expert came
  // to.
  std::int64_t place_experts(std::span<const std::int32_t> slots);
  const StepResult& train_step(std::int64_t step) { return train_step({step, step, step}, {}); }
  const StepResult& train_step(const StepOrder& order, const Accept& accept);
  // After a step that was not accepted: runs it again and looks at every tensor. Collective, the same on
  // every rank.
  [[nodiscard]] BadTensor find_bad_tensor(const StepOrder& order);
  // Likewise, of a step whose numbers are finite: where its gradient is largest.
  [[nodiscard]] BadTensor find_largest_gradient();
  // Mean loss over sequences [first, first + count) of `data`, forward only; count must be a multiple of dp *
  // micro_batch_size.
  // Collective. The same on every rank.
  [[nodiscard]] double evaluate(const BatchSource& data, std::int64_t first, std::int64_t count);

  [[nodiscard]] Rank rank() const { return options_.rank; }
  [[nodiscard]] ParamStore& store() { return *store_; }
  [[nodiscard]] Communicators& comms() { return comms_; }
  [[nodiscard]] kernels::Kernels& kernels() { return *options_.kernels; }
  [[nodiscard]] std::vector<Stage>& stages() { return stages_; }
  // Of the last step, parallel to this rank's actions in the plan.
  [[nodiscard]] const std::vector<ActionTime>& action_times() const { return times_; }
  [[nodiscard]] const schedule::ActionList& actions() const;
  [[nodiscard]] const StepResult& last_result() const { return result_; }
  [[nodiscard]] Flops step_flops() const { return step_flops_; }
  // Main thread inside gradient reductions and gathers of ZeRO, or waiting for those of the helper thread.
  [[nodiscard]] std::int64_t exposed_reduce_ns() const { return exposed_reduce_ns_ + shards_->exposed_ns(); }
  // Rows travel on the helper thread while the shared expert computes; for so long in the last step.
  [[nodiscard]] bool overlaps_dispatch() const;
  [[nodiscard]] std::int64_t hidden_dispatch_ns() const;
  // Share of the last step's choices per expert [MoE layers, E] (f64), where the balancing loss uses it; else
  // empty.
  [[nodiscard]] Tensor routing_frequencies() const { return frequencies_; }
  void use_routing_frequencies();  // after they were written from outside
  void set_observer(Observer* observer) { observer_ = observer; }
  void set_wait_listener(comm::WaitListener* listener);  // of all helper threads

 private:
  struct StageState {
    Stage* stage = nullptr;
    SlotCounts counts;
    std::int32_t previous_rank = -1, next_rank = -1;  // pipeline ranks of the neighbours, -1: none
    StageState* next_here = nullptr;                  // the neighbours, where this rank holds them
    StageState* previous_here = nullptr;
    std::vector<std::int32_t> deferred_of;  // [m]; -1: none
    std::vector<bool> deferred_used;
    std::vector<std::int64_t> sent_gradient;  // [gradient slot]: tag of the message that may still read it
    std::vector<std::int64_t> sent_output;    // [live slot]: likewise
    std::int32_t num_weight_done = 0;         // micro-batches whose W ran in this step
  };
  static constexpr std::int64_t kNoMessage = -1;

  void build(Arena& arena, plan::RankMemory& memory);
  void join_ranks();
  void reserve_step_buffers(Arena& arena);
  void link_stages();
  [[nodiscard]] nn::Dims dims() const;
  [[nodiscard]] SequenceCut sequence_cut() const;
  [[nodiscard]] SlotCounts slot_counts(StageId stage) const;
  [[nodiscard]] StageState& state(StageId stage);
  [[nodiscard]] std::int32_t live_slot(const StageState& s, MicrobatchId mb) const;
  [[nodiscard]] std::int32_t gradient_slot(const StageState& s, MicrobatchId mb) const;
  std::int32_t take_deferred(StageState& s, MicrobatchId mb);
  void free_deferred(StageState& s, MicrobatchId mb);
  // Wait until the message that reads this slot has been received.
  void claim_output(StageState& s, std::int32_t live);
  void claim_gradient(StageState& s, MicrobatchId mb);

  void begin_step(const StepOrder& order);
  void run_actions();
  void probe_action(const schedule::Action& action);
  void probe_forward(const StageState& s, MicrobatchId mb);
  void probe_backward(const StageState& s, MicrobatchId mb);
  void weight_done(StageState& s, std::int32_t position);
  [[nodiscard]] BadTensor first_of_all(const StepProbe& probe);
  void load_batch(const BatchSource& data, std::int64_t first_sequence, std::int32_t num_microbatches);
  [[nodiscard]] nn::Microbatch microbatch(MicrobatchId mb) const;
  [[nodiscard]] nn::LossWeights loss_weights(std::int64_t targets, std::int64_t sequences) const;
  void run(const schedule::Action& action);
  void at(comm::Phase phase, std::int32_t microbatch = -1);  // for errors of communication
  void run_forward(StageState& s, MicrobatchId mb);
  void run_backward_input(StageState& s, MicrobatchId mb);
  void run_backward_weight(StageState& s, MicrobatchId mb);
  void run_backward(StageState& s, MicrobatchId mb, nn::Context& ctx);
  // Forward and backward of different micro-batches that stand together run beside each other, one computing
  // while rows of the other travel. Needs a worker; full recomputation has one slot for both.
  [[nodiscard]] bool runs_pairs() const;
  // The position of the B that may run beside the F at i; none: -1.
  [[nodiscard]] std::int64_t pair_at(std::size_t i) const;
  void run_timed(std::size_t i);
  void expect_after(std::size_t i);
  void run_pair(std::size_t forward, std::size_t backward);
  void pull_gradient(StageState& s, MicrobatchId mb);

  void reduce_completed(StageState& s, std::int32_t position);
  void finish_reductions();
  void share_results();
  [[nodiscard]] std::size_t moe_index(std::int32_t layer) const;  // of a MoE layer among the MoE layers
  void note_frequencies();
  void forget_frequencies();
  void update(const StepOrder& order);
  void move_corrections();
  void timed_phase(const char* name, std::int64_t start_ns, std::int64_t start_cpu_ns);

  Options options_;
  std::int32_t exceptions_at_start_;
  plan::RankMemory planned_;
  tensor::ArenaSize planned_arena_, planned_scratch_;
  Arena arena_, scratch_,
      pair_scratch_;  // before the communicators, which take back unread messages before memory goes
  Communicators comms_;
  std::unique_ptr<ParamStore> store_;
  std::unique_ptr<UnitShards> shards_;
  std::vector<Stage> stages_;
  std::vector<StageState> states_;
  std::optional<layout::Layout> layout_;  // the plan's, with the experts where they are now
  std::vector<std::int32_t> moe_layers_;  // of the whole model
  Tensor cos_, sin_;
  StepTokens tokens_;
  std::int64_t first_sequence_ = 0;  // of what tokens_ holds
  Tensor sums_, counts_;             // world sums: f64, i64
  Tensor frequencies_;               // [MoE layers, E], see routing_frequencies
  std::unique_ptr<nn::Context> ctx_;
  // Of the second pass of a pair; null: pairs run one after the other.
  std::unique_ptr<nn::Context> pair_ctx_;
  std::unique_ptr<PassPair> pair_;
  StepResult result_;
  Tensor local_losses_2_;  // f64: cross entropy and terms of the MTP layers of a step, as kernels add them
  Flops step_flops_;
  std::vector<ActionTime> times_;
  std::int64_t exposed_reduce_ns_ = 0;
  Observer* observer_ = nullptr;
  std::unique_ptr<StepProbe> probe_;  // null: nobody looks
  // A queue of its own: rows to experts do not wait behind gradients. Last: it ends first.
  std::unique_ptr<comm::CommWorker> rows_worker_;
};

// What a rank of the plan will take, by a dry run of its set-up; needs no communicators and takes no memory.
[[nodiscard]] plan::RankMemory plan_memory(const plan::Plan& plan, Rank rank, const MakeKernels& make = {});
// Of every rank; ranks that hold the same sizes are set up once.
[[nodiscard]] plan::MemoryPlan plan_memory(const plan::Plan& plan, const MakeKernels& make = {});

}  // namespace tessera::exec
