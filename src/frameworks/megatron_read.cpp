// Megatron-LM's arguments as a launch, with the software's own defaults for what is absent.
#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "frameworks/internal.h"
#include "frameworks/megatron_stages.h"

namespace tessera::frameworks {

namespace {

using spec::Precision;

constexpr std::int64_t kMost = 1 << 20;

// A degree: 1 or more.
void degree(Arguments& args, std::string_view name, std::int32_t& out, Interpretation& in) {
  const auto v = args.integer(name, in.problems);
  if (!v) return;
  if (*v >= 1 && *v <= kMost) {
    out = static_cast<std::int32_t>(*v);
    return;
  }
  in.problems.add(fmt::format("{} is {}", args.spelt(name), *v), args.where(name),
                  fmt::format("use a whole number from 1 to {}", kMost));
}

void layout(Arguments& args, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  degree(args, "tensor-model-parallel-size", p.tp, in);
  degree(args, "pipeline-model-parallel-size", p.pp, in);
  degree(args, "context-parallel-size", p.cp, in);
  degree(args, "expert-model-parallel-size", p.ep, in);
  p.etp = in.launch.job.model.moe ? p.tp : 1;
  degree(args, "expert-tensor-parallel-size", p.etp, in);
  p.sequence_parallel = args.on("sequence-parallel", in.problems) || p.tp == 1;
  p.order = args.on("use-tp-pp-dp-mapping", in.problems) ? "tp-cp-ep-pp-dp" : "tp-cp-ep-dp-pp";
  if (const auto kind = args.choice("cp-comm-type", {"p2p", "a2a", "allgather", "a2a+p2p"}, in.problems);
      p.cp > 1) {
    const std::string word = kind.value_or("p2p");
    in.launch.practice.cp_all_to_all = word == "a2a";
    if (word != "p2p" && word != "a2a")
      in.notes.push_back(fmt::format("--cp-comm-type {} is priced as p2p", word));
  }
  read_megatron_stages(args, in);
}

void zero(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  t.zero_stage = args.on("use-distributed-optimizer", in.problems) ? 1 : 0;
  const bool fsdp = args.on("use-megatron-fsdp", in.problems);
  const bool torch = args.on("use-torch-fsdp2", in.problems);
  const auto strategy = args.choice("data-parallel-sharding-strategy",
                                    {"no_shard", "optim", "optim_grads", "optim_grads_params"}, in.problems);
  if (fsdp) {
    const std::string word = strategy.value_or("no_shard");
    t.zero_stage = word == "no_shard" ? 0 : word == "optim" ? 1 : word == "optim_grads" ? 2 : 3;
  } else if (strategy && *strategy != "no_shard") {
    in.problems.add("--data-parallel-sharding-strategy has no effect without --use-megatron-fsdp",
                    args.where("data-parallel-sharding-strategy"), "add --use-megatron-fsdp, or remove it");
  }
  if (torch) {
    t.zero_stage = args.on("torch-fsdp2-no-reshard-after-forward", in.problems) ? 2 : 3;
    if (args.has("use-distributed-optimizer")) {
      in.problems.add("--use-torch-fsdp2 and --use-distributed-optimizer contradict each other",
                      args.where("use-torch-fsdp2"), "keep one of them");
    }
  }
  if (fsdp) args.accept("ckpt-format");
  std::int32_t instances = 1;
  degree(args, "num-distributed-optimizer-instances", instances, in);
  in.launch.machine.zero_group = instances;  // the group follows when dp is known
}

void overlaps(Arguments& args, Interpretation& in) {
  graph::Practice& w = in.launch.practice;
  const spec::Job& job = in.launch.job;
  w.grad_overlap = args.on("overlap-grad-reduce", in.problems);
  const bool gather = args.on("overlap-param-gather", in.problems);
  if (job.train.zero_stage >= 1) w.param_overlap = gather;
  if (gather && !w.grad_overlap) {
    in.problems.add("--overlap-param-gather without --overlap-grad-reduce",
                    args.where("overlap-param-gather"), "add --overlap-grad-reduce");
  }
  if (gather && job.train.zero_stage == 0) {
    in.problems.add("--overlap-param-gather without --use-distributed-optimizer",
                    args.where("overlap-param-gather"), "add --use-distributed-optimizer");
  }
  const bool tp = args.on("tp-comm-overlap", in.problems);
  if (job.parallel.tp > 1) w.tp_overlap = tp;
  if (tp && job.parallel.tp > 1 && !job.parallel.sequence_parallel) {
    in.problems.add("--tp-comm-overlap without --sequence-parallel", args.where("tp-comm-overlap"),
                    "add --sequence-parallel");
  }
  const bool blocking = args.on("no-overlap-p2p-communication", in.problems);
  if (job.parallel.vpp > 1) w.p2p_overlap = !blocking;
  const auto graphs =
      args.choice("cuda-graph-impl", {"none", "local", "transformer_engine", "full_iteration"}, in.problems);
  w.cuda_graphs = (graphs && *graphs != "none") || args.on("enable-cuda-graph", in.problems) ||
                  args.on("external-cuda-graph", in.problems);
  args.accept("te-rng-tracker");
  w.fused_cross_entropy = args.on("cross-entropy-loss-fusion", in.problems);
  w.fused_rope = !args.on("no-rope-fusion", in.problems);
  const double attention = args.number("attention-dropout", in.problems).value_or(0.1);
  w.dropout = attention > 0 || args.number("hidden-dropout", in.problems).value_or(0.1) > 0;
  args.accept("hidden-dropout");
}

void precision(Arguments& args, Interpretation& in) {
  const bool bf16 = args.on("bf16", in.problems), fp16 = args.on("fp16", in.problems);
  if (bf16 && fp16) {
    in.problems.add("--bf16 and --fp16 contradict each other", args.where("fp16"), "keep one of them");
  }
  Precision& out = in.launch.job.train.precision;
  out = bf16 ? Precision::bf16 : fp16 ? Precision::fp16 : Precision::f32;
  const bool fp8 = args.choice("fp8-format", {"e4m3", "hybrid"}, in.problems).has_value();
  const auto recipe =
      args.choice("fp8-recipe", {"tensorwise", "delayed", "mxfp8", "blockwise", "custom"}, in.problems);
  const bool fp4 = args.has("fp4-format");
  args.accept("fp4-recipe");
  if (fp8 && fp4)
    in.problems.add("--fp8-format and --fp4-format contradict each other", args.where("fp4-format"),
                    "keep one of them");
  if (fp4) out = Precision::nvfp4;
  if (fp8) {
    const std::string word = recipe.value_or("delayed");
    out = word == "mxfp8" ? Precision::mxfp8 : word == "blockwise" ? Precision::fp8_block : Precision::fp8;
    if (word == "delayed" || word == "custom")
      in.notes.push_back(fmt::format("--fp8-recipe {} is priced as tensorwise", word));
  }
}

void gradient_sizes(Arguments& args, Interpretation& in) {
  graph::Practice& w = in.launch.practice;
  const Precision p = in.launch.job.train.precision;
  const bool wide = args.on("accumulate-allreduce-grads-in-fp32", in.problems);
  const bool narrow = args.on("grad-reduce-in-bf16", in.problems);
  if (p == Precision::fp16) {
    w.gradient_bytes = w.gradient_reduce_bytes = wide ? 4 : 2;
  } else if (p != Precision::f32) {
    w.gradient_bytes = w.gradient_reduce_bytes = narrow ? 2 : 4;
  }
  if (narrow && wide) {
    in.problems.add("--grad-reduce-in-bf16 and --accumulate-allreduce-grads-in-fp32 contradict each other",
                    args.where("grad-reduce-in-bf16"), "keep one of them");
  }
  const bool aware = args.on("use-precision-aware-optimizer", in.problems);
  std::int32_t bytes = 0;
  for (const char* name : {"main-params-dtype", "exp-avg-dtype", "exp-avg-sq-dtype"}) {
    const auto type = args.choice(name, {"fp32", "fp16", "bf16", "fp8"}, in.problems);
    bytes += !aware || !type || *type == "fp32" ? 4 : *type == "fp8" ? 1 : 2;
  }
  w.optimizer_bytes = bytes;
  if (const auto type = args.choice("main-grads-dtype", {"fp32", "bf16"}, in.problems);
      aware && type && *type == "bf16")
    w.gradient_bytes = w.gradient_reduce_bytes = 2;
}

void recompute(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  const bool old = args.on("recompute-activations", in.problems);
  const auto kind = args.choice("recompute-granularity", {"full", "selective"}, in.problems);
  const auto method = args.choice("recompute-method", {"uniform", "block"}, in.problems);
  const auto layers = args.integer("recompute-num-layers", in.problems);
  const Argument* modules = args.find("recompute-modules");
  args.accept("distribute-saved-activations");
  if (old && kind == "full") {
    in.problems.add("--recompute-activations and --recompute-granularity full contradict each other",
                    args.where("recompute-activations"), "keep one of them");
  }
  if (kind == "full") {
    t.recompute = spec::Recompute::full;
    if (!method) {
      in.problems.add("--recompute-granularity full without --recompute-method",
                      args.where("recompute-granularity"),
                      "add --recompute-method uniform --recompute-num-layers 1");
    } else if (method == "block") {
      const std::int32_t stages = std::max(1, in.launch.job.parallel.pp * in.launch.job.parallel.vpp);
      if (layers.value_or(1) < in.launch.job.model.num_hidden_layers / stages)
        in.notes.push_back(fmt::format(
            "--recompute-method block of {} layers a stage is priced as full recomputation of all layers",
            layers.value_or(1)));
    } else if (layers.value_or(1) > 1) {
      in.notes.push_back(fmt::format("--recompute-num-layers {} is priced as 1", *layers));
    }
    return;
  }
  if (!old && !kind) {
    if (modules != nullptr) {
      in.problems.add("--recompute-modules has no effect without --recompute-granularity selective",
                      args.where("recompute-modules"), "add --recompute-granularity selective");
    }
    return;
  }
  t.recompute = spec::Recompute::selective;
  t.recompute_modules = modules != nullptr && !modules->values.empty()
                            ? modules->values
                            : std::vector<std::string>{"core_attn"};
  if (method)
    in.problems.add("--recompute-method with --recompute-granularity selective",
                    args.where("recompute-method"), "remove --recompute-method");
}

void dispatch(Arguments& args, Interpretation& in) {
  graph::Practice& w = in.launch.practice;
  const spec::ParallelSpec& p = in.launch.job.parallel;
  spec::MoeRecipe& r = in.launch.job.train.moe;
  const auto type = args.choice("moe-token-dispatcher-type",
                                {"allgather", "alltoall", "alltoall_seq", "flex"}, in.problems);
  const bool deep = args.on("moe-enable-deepep", in.problems);
  const std::string word = type.value_or("allgather");
  if (word == "allgather") r.dispatch = spec::DispatchForm::all_gather;
  if (word == "allgather" && p.ep > 1)
    in.notes.emplace_back("tokens go to all ranks (dispatcher allgather); the step is priced with alltoall");
  if (deep && word != "flex") {
    in.problems.add(fmt::format("--moe-enable-deepep with dispatcher {}", word),
                    args.where("moe-enable-deepep"), "add --moe-token-dispatcher-type flex");
  }
  const bool overlap = args.on("overlap-moe-expert-parallel-comm", in.problems);
  args.accept("delay-wgrad-compute");
  if (p.ep > 1) {
    w.ep_dedup = word == "flex";
    w.ep_overlap = overlap;
  }
  if (overlap && p.pp > 1 && p.vpp == 1) {
    in.problems.add("--overlap-moe-expert-parallel-comm with a pipeline and no virtual stages",
                    args.where("overlap-moe-expert-parallel-comm"),
                    "add --num-layers-per-virtual-pipeline-stage, or remove the overlap");
  }
  const bool shared = args.on("moe-shared-expert-overlap", in.problems);
  if (in.launch.job.model.moe->shared_intermediate_size > 0 && !(overlap && p.ep > 1))
    r.overlap_dispatch = shared;
  w.grouped_gemm = args.on("moe-grouped-gemm", in.problems);
  w.fused_permute = args.on("moe-permute-fusion", in.problems);
  w.fused_router = args.on("moe-router-fusion", in.problems);
}

void routing(Arguments& args, Interpretation& in) {
  spec::MoeRecipe& r = in.launch.job.train.moe;
  const auto type =
      args.choice("moe-router-load-balancing-type",
                  {"aux_loss", "seq_aux_loss", "global_aux_loss", "sinkhorn", "none"}, in.problems);
  const std::string word = type.value_or("aux_loss");
  r.aux_loss_coef = args.number("moe-aux-loss-coeff", in.problems).value_or(0.0);
  if (word == "seq_aux_loss") r.aux_loss_unit = spec::BalanceUnit::sequence;
  if (word == "global_aux_loss") r.aux_loss_unit = spec::BalanceUnit::global_batch;
  if (word == "sinkhorn") in.notes.emplace_back("sinkhorn routing is priced as top-k");
  const bool bias = args.on("moe-router-enable-expert-bias", in.problems);
  const auto rate = args.number("moe-router-bias-update-rate", in.problems);
  r.balancing = bias                                   ? spec::Balancing::bias
                : word == "none" || word == "sinkhorn" ? spec::Balancing::none
                                                       : spec::Balancing::loss;
  if (bias) r.bias_update_rate = rate.value_or(1e-3);
  if (word == "none") r.aux_loss_coef = 0.0;
  r.z_loss_coef = args.number("moe-z-loss-coeff", in.problems).value_or(0.0);
  r.router_jitter = args.number("moe-input-jitter-eps", in.problems).value_or(0.0);
  const auto factor = args.number("moe-expert-capacity-factor", in.problems);
  const auto policy = args.choice("moe-token-drop-policy", {"probs", "position"}, in.problems);
  const bool pad = args.on("moe-pad-expert-input-to-capacity", in.problems);
  if (policy) r.drop_policy = policy == "position" ? spec::DropPolicy::position : spec::DropPolicy::probs;
  if (factor && *factor > 0) {
    r.capacity_factor = *factor;
    if (!policy) r.drop_policy = spec::DropPolicy::probs;
    r.pad_to_capacity = pad;
  } else if (pad) {
    in.problems.add("--moe-pad-expert-input-to-capacity without a capacity",
                    args.where("moe-pad-expert-input-to-capacity"), "add --moe-expert-capacity-factor");
  }
  if (args.has("moe-layer-recompute"))
    in.notes.emplace_back("--moe-layer-recompute is not priced: use --recompute-modules moe");
  dispatch(args, in);
}

void optimizer(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  spec::OptimizerSpec& o = t.optimizer;
  const auto set = [&](std::string_view name, double& out) {
    if (const auto v = args.number(name, in.problems)) out = *v;
  };
  o.beta2 = 0.999;
  o.weight_decay = 0.01;
  set("lr", o.lr);
  set("min-lr", o.min_lr);
  set("adam-beta1", o.beta1);
  set("adam-beta2", o.beta2);
  set("adam-eps", o.eps);
  set("weight-decay", o.weight_decay);
  set("clip-grad", o.clip_grad);
  if (const auto kind = args.word("optimizer", in.problems); kind && *kind != "adam")
    in.notes.push_back(fmt::format("--optimizer {} is priced as adam", *kind));
  if (const auto style = args.word("lr-decay-style", in.problems)) {
    o.lr_decay = *style == "constant" ? spec::LrDecay::constant
                 : *style == "WSD"    ? spec::LrDecay::wsd
                                      : spec::LrDecay::cosine;
  }
  args.accept("lr-wsd-decay-style");
  o.lr_warmup_steps = args.integer("lr-warmup-iters", in.problems).value_or(0);
  o.lr_wsd_decay_steps = args.integer("lr-wsd-decay-iters", in.problems).value_or(0);
  if (const auto seed = args.integer("seed", in.problems)) t.seed = static_cast<std::uint64_t>(*seed);
  t.steps = std::max(args.integer("train-iters", in.problems).value_or(1),
                     o.lr_warmup_steps + o.lr_wsd_decay_steps);
  if (const auto c = args.number("mtp-loss-scaling-factor", in.problems)) t.mtp_loss_coef = *c;
}

}  // namespace

void interpret_megatron(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  check_megatron_model(args, in);
  layout(args, in);
  zero(args, in);
  overlaps(args, in);
  precision(args, in);
  gradient_sizes(args, in);
  recompute(args, in);
  if (in.launch.job.model.moe) {
    routing(args, in);
  } else if (in.launch.job.parallel.ep > 1) {
    in.problems.add(fmt::format("--expert-model-parallel-size {} with a model without experts",
                                in.launch.job.parallel.ep),
                    args.where("expert-model-parallel-size"), "remove it, or name the model with experts");
  }
  if (const spec::ParallelSpec& p = in.launch.job.parallel;
      in.launch.job.model.moe && p.tp > 1 && !p.sequence_parallel) {
    in.problems.add("experts with tensor parallelism need --sequence-parallel",
                    args.where("tensor-model-parallel-size"), "add --sequence-parallel");
  }
  optimizer(args, in);
  for (const char* name : {"seq-length", "micro-batch-size"}) {
    if (!args.has(name))
      in.problems.add(fmt::format("--{} is not given", name), args.file(), fmt::format("add --{}", name));
  }
  if (const auto v = args.integer("seq-length", in.problems)) t.sequence_length = *v;
  complete_batch(args,
                 {.tp = "tensor-model-parallel-size",
                  .micro_batch = "micro-batch-size",
                  .global_batch = "global-batch-size"},
                 {.micro = args.integer("micro-batch-size", in.problems).value_or(0),
                  .global = args.integer("global-batch-size", in.problems).value_or(0)},
                 in);
  if (args.has("rampup-batch-size")) in.notes.emplace_back("--rampup-batch-size is priced at the full batch");
  const std::int32_t instances = in.launch.machine.zero_group;
  const std::int32_t replicas = in.launch.job.parallel.dp * in.launch.job.parallel.cp;
  in.launch.machine.zero_group = 0;
  if (instances > 1 && replicas % instances == 0) in.launch.machine.zero_group = replicas / instances;
  if (instances > 1 && replicas % instances != 0) {
    in.problems.add(fmt::format("--num-distributed-optimizer-instances {} does not divide dp x cp = {}",
                                instances, replicas),
                    args.where("num-distributed-optimizer-instances"), "use " + divisors_text(replicas));
  }
}

}  // namespace tessera::frameworks
