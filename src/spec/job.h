// Job: one YAML file plus flags. It names the model, how to train it (Recipe), how to lay it out
// (ParallelSpec), the data, the checkpoints and the output. Plain data, read once at the border, immutable
// after.
//
//   model: {config: model.json}            parallel: {tp: 2, pp: 2, dp: 2, ep: 2, schedule: 1f1b}
//   train: {steps: 200, sequence_length: 128, global_batch_size: 32, micro_batch_size: 4, lr: 1.0e-3}
//   data:  {train: runs/demo/tokens.bin}   checkpoint: {folder: runs/demo/checkpoints, every: 100}
#pragma once
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "spec/model.h"

namespace tessera::spec {

// Of the matrix products; the engine runs f32 and f64, the planner prices all.
enum class Precision : std::uint8_t {
  f32,
  f64,
  bf16,
  fp16,
  fp8,        // per-tensor scales: all linear layers but the head and the router
  fp8_block,  // 128 x 128 blocks (DeepSeek-V3)
  mxfp8,
  nvfp4,
};
[[nodiscard]] std::string_view name(Precision precision);
[[nodiscard]] std::int64_t element_bytes(
    Precision precision);                           // of weights and activations: 2 but of f32 and f64
[[nodiscard]] bool is_narrow(Precision precision);  // products of 8 bits and fewer
enum class Recompute : std::uint8_t {
  none,
  // norm outputs and SwiGLU products are made again in backward (Megatron's layernorm and moe_act/mlp_act)
  selective,
  full,  // each transformer layer keeps only its input and runs forward again in backward
};
enum class BalanceUnit : std::uint8_t { sequence, micro_batch, global_batch };
enum class DropPolicy : std::uint8_t { position, probs };
// Who chooses the experts: the model's own way, a hash of the token id (arXiv 2106.04426), or each expert its
// tokens (arXiv 2202.09368).
enum class RouterChoice : std::uint8_t { model, hash, expert_choice };
// loss: a term of the training loss; bias: a bias of the choice moved after each step (arXiv 2408.15664).
enum class Balancing : std::uint8_t { loss, bias, none };
enum class AuxNormalisation : std::uint8_t { tessera, huggingface, megatron };
// How rows travel to experts of other ranks: once to each expert, all rows to all ranks, or once to each node
// (ParallelSpec::ranks_per_node) and there to its experts; automatic: graph::dispatch_form.
enum class DispatchForm : std::uint8_t { automatic, all_to_all, all_gather, hierarchical };
enum class LrDecay : std::uint8_t { constant, cosine, wsd };
// Of a step whose loss or gradient norm is not finite, or spikes; its update is never made.
enum class OnDivergence : std::uint8_t {
  stop,
  skip,     // go on with the next step (as OLMo-core's skip-step optimizers do)
  rollback  // to the last checkpoint, and on with the data behind the step (arXiv 2204.02311 section 5.1)
};

struct OptimizerSpec {  // AdamW
  double lr = 3e-4;
  double min_lr = 0.0;
  double beta1 = 0.9;
  double beta2 = 0.95;
  double eps = 1e-8;
  double weight_decay = 0.1;  // on matrices; norms are not decayed
  double clip_grad = 1.0;     // global norm; 0 = off
  LrDecay lr_decay = LrDecay::cosine;
  std::int64_t lr_warmup_steps = 0;
  std::int64_t lr_wsd_decay_steps = 0;  // the last steps of wsd, linear to min_lr
  friend bool operator==(const OptimizerSpec&, const OptimizerSpec&) = default;
};

struct DivergenceSpec {
  OnDivergence action = OnDivergence::stop;
  // A step spikes when its loss, or its gradient norm before clipping, is above so many times the mean of the
  // last `window` good steps, from half of them on. 0: only what is not finite counts.
  double max_loss_ratio = 0.0, max_grad_norm_ratio = 0.0;
  std::int64_t window = 128;
  std::int64_t most = 10;  // skips in a row, or rollbacks before the step is passed; then the run stops
  friend bool operator==(const DivergenceSpec&, const DivergenceSpec&) = default;
};

struct MoeRecipe {  // section `moe` of the file; docs/moe.md has the formulas
  RouterChoice router = RouterChoice::model;
  double router_jitter = 0.0;  // eps of the noise on the router's input
  // Absent in the file: bias where the model has a correction bias, none where the router does not choose,
  // else loss.
  Balancing balancing = Balancing::loss;
  // Absent in the file: the model's router_aux_loss_coef where balancing is loss, else 0.
  double aux_loss_coef = 0.0;
  BalanceUnit aux_loss_unit = BalanceUnit::micro_batch;
  // tessera: value = coef at perfect balance, each layer for itself; huggingface: coef * top-k, all layers
  // together; megatron: as tessera, but the global batch counts 1 / dp.
  AuxNormalisation aux_loss_normalisation = AuxNormalisation::tessera;
  double bias_update_rate = 0.0;  // absent in the file: 0.001 where balancing is bias
  bool bias_update_centred = false;
  double z_loss_coef = 0.0;
  double capacity_factor =
      0.0;  // 0 = dropless; C = ceil(factor * tokens * k / experts), unit: the micro-batch
  DropPolicy drop_policy = DropPolicy::position;
  bool pad_to_capacity = false;
  DispatchForm dispatch = DispatchForm::automatic;
  bool overlap_dispatch = true;  // rows travel while the shared expert computes
  friend bool operator==(const MoeRecipe&, const MoeRecipe&) = default;
};

struct Recipe {
  std::int64_t steps = 0;
  std::int64_t sequence_length = 0;
  std::int64_t global_batch_size = 0;  // sequences per optimiser step, over all replicas
  std::int64_t micro_batch_size = 0;   // sequences per pipeline unit of one replica
  Precision precision = Precision::f32;
  Recompute recompute = Recompute::none;
  // Of selective, Megatron-Core's names: core_attn, layernorm, mlp, moe, moe_act, mla_up_proj,
  // shared_experts. Empty: layernorm and moe_act (what the engine does).
  std::vector<std::string> recompute_modules;
  std::uint64_t seed = 1;
  // 1: optimizer state sharded over dp, 2: and gradients, 3: and weights (FSDP). The engine runs 0 and 1.
  std::int32_t zero_stage = 0;
  bool overlap_param_gather = true;                   // ZeRO: weights travel while layers before them compute
  std::int64_t bucket_bytes = std::int64_t{4} << 20;  // gradient buckets
  bool overlap_grad_reduce = true;                    // a bucket is summed over dp while backward goes on
  // Of the loss of the MTP layers (lambda of arXiv 2412.19437 section 2.2), shared evenly by them; 0: the
  // engine trains no MTP layers.
  double mtp_loss_coef = 0.0;
  OptimizerSpec optimizer;
  DivergenceSpec divergence;
  MoeRecipe moe;
  friend bool operator==(const Recipe&, const Recipe&) = default;
};

struct ParallelSpec {
  std::int32_t tp = 1, cp = 1, dp = 1, pp = 1;  // attention and dense weights: world = tp*cp*dp*pp
  std::int32_t ep = 1;                          // experts: world = etp*ep*edp*pp
  std::int32_t etp = 1;
  std::int32_t vpp = 1;  // stages per pipeline rank
  bool sequence_parallel =
      true;                      // with tp: norms and residuals are cut along the sequence (arXiv 2205.05198)
  bool overlap_p2p_comm = true;  // messages between stages travel while both ends compute
  bool tp_comm_overlap = false;  // gathers and scatters of tp go part by part beside the GEMM
  // Of the axes in the world, the first has stride 1: a permutation of the five words. Where ep stands
  // changes nothing: it folds over tp, cp and dp.
  std::string order = "tp-cp-ep-dp-pp";
  // Expert of each slot, MoE layer by MoE layer: E slots, ep rank r has the r-th share of them. Empty: in
  // order.
  std::vector<std::int32_t> expert_slots;
  std::int32_t ranks_per_node = 0;  // of consecutive ranks; 0: all on one node
  std::string schedule = "1f1b";    // a name of the schedule room
  std::vector<std::int32_t>
      stage_layers;  // transformer layers per stage; empty: even, first stages take the remainder
  [[nodiscard]] std::int32_t world_size() const { return tp * cp * dp * pp; }
  [[nodiscard]] std::int32_t edp() const { return tp * cp * dp / (etp * ep); }  // valid after validation
  friend bool operator==(const ParallelSpec&, const ParallelSpec&) = default;
};

struct DataSpec {               // train or text, not both; neither: a job to plan only
  std::string train;            // token file: Megatron .bin/.idx or llm.c .bin
  std::string text;             // or UTF-8 text, tokenised once into the output folder
  std::string tokenizer;        // sentencepiece .model; with `text` and no model one is trained
  std::int64_t vocab_size = 0;  // of the tokenizer to train; 0: the model's
  double validation_fraction = 0.0;
  friend bool operator==(const DataSpec&, const DataSpec&) = default;
};

struct CheckpointSpec {
  std::string folder;      // empty: no checkpoints
  std::int64_t every = 0;  // steps; 0: only at the end
  std::int32_t keep = 2;
  bool resume = true;  // continue from the last checkpoint of the folder when there is one
  friend bool operator==(const CheckpointSpec&, const CheckpointSpec&) = default;
};

struct OutputSpec {
  std::string folder;            // metrics.jsonl, trace.json, plan.json
  std::int64_t trace_steps = 3;  // the last steps of the run that go into the trace
  std::string sample_prompt;     // text continued at the end of the run; empty: no sample
  std::int64_t sample_tokens = 100;
  friend bool operator==(const OutputSpec&, const OutputSpec&) = default;
};

struct Job {
  std::string model_config;  // path of the config.json, or of its folder; relative to the job file
  ModelSpec model;
  Recipe train;
  ParallelSpec parallel;
  DataSpec data;
  CheckpointSpec checkpoint;
  OutputSpec output;
  friend bool operator==(const Job&, const Job&) = default;
};

// What a job is read for. plan: whatever means something. train: the engine's limits are checked as well, on
// CPUs or on GPUs.
enum class JobUse : std::uint8_t { plan, train, train_on_gpu };
enum class EngineOn : std::uint8_t { cpu, gpu };

// Reads a job file; `overrides` are flags in the form "train.steps=50" with the YAML paths of the file. The
// model may be given inline (`model: {...config keys...}`) or by `model: {config: PATH}`. Throws
// Error{config} with every problem found: unknown keys with the nearest known one, wrong types, bad values,
// missing keys, and those of validate(). balancing: bias gives a model without a correction bias one.
[[nodiscard]] Job read_job(const std::filesystem::path& path, std::span<const std::string> overrides,
                           JobUse use = JobUse::plan);
[[nodiscard]] Job parse_job(std::string_view yaml, const std::filesystem::path& folder,
                            std::string_view where, std::span<const std::string> overrides,
                            JobUse use = JobUse::plan);
// YAML that parse_job reads back to an equal Job (the model inline). For --print-config and checkpoints.
[[nodiscard]] std::string to_yaml(const Job& job);
// The same as JSON, which parse_job reads too. For files that hold a job beside other things.
[[nodiscard]] std::string to_json(const Job& job);
// All known YAML paths ("train.steps", ...), for help and a test.
[[nodiscard]] std::vector<std::string> job_keys();

// Cross-checks of model, recipe and layout, whatever is to become of them: tp divides heads, the widths of
// dense MLPs, and with sequence parallelism the tokens of a micro-batch; kv heads and tp divide one another
// (heads are repeated, as Megatron does; the vocabulary is padded); 2 cp divides the sequence; etp divides
// the expert width; ep divides the experts; tp*cp*dp = etp*ep*edp; dp * micro_batch_size divides the global
// batch; stage_layers sum; pp*vpp <= layers; modules of recomputation and axes of the order by name; keys of
// experts with a dense model; ...
void validate(const Job& job, std::string_view where, Problems& problems);
// What of a valid job the engine does not run: models outside of check_trainable,
// precisions but f32 and f64, other recomputation, tp without sequence parallelism, another order, sizes that
// would need padding, sequences beyond the model's positions.
void check_engine_runs(const Job& job, std::string_view where, Problems& problems,
                       EngineOn on = EngineOn::cpu);
// The same as Error{config} with all problems; the engine calls it before it builds anything.
void require_engine_runs(const Job& job, std::string_view where, EngineOn on = EngineOn::cpu);

}  // namespace tessera::spec
