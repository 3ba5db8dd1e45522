// A launch as Megatron-LM's arguments.
#include <fmt/format.h>

#include "base/text.h"
#include "frameworks/internal.h"

namespace tessera::frameworks {

namespace {

using spec::Precision;

constexpr const char* kParallel = "PARALLEL_ARGS";
constexpr const char* kTrain = "TRAINING_ARGS";
constexpr const char* kMoe = "MOE_ARGS";

// Stages one behind the other as the argument takes them: E, L, m and t of embedding, loss, MTP and layers.
std::string stage_layout(const Launch& l) {
  const auto& counts = l.job.parallel.stage_layers;
  std::vector<std::string> stages;
  for (std::size_t s = 0; s < counts.size(); ++s) {
    std::string stage = s == 0 ? "E" : "";
    if (counts[s] > 0) stage += counts[s] == 1 ? "t" : fmt::format("t*{}", counts[s]);
    if (s + 1 == counts.size()) {
      if (const auto mtp = l.job.model.num_nextn_predict_layers; mtp > 0) stage += fmt::format(",m*{}", mtp);
      stage += stage.empty() ? "L" : ",L";
    }
    stages.push_back(std::move(stage));
  }
  std::string out;
  for (std::size_t s = 0; s < stages.size();) {
    std::size_t run = s + 1;
    while (run + 1 < stages.size() && stages[run] == stages[s]) ++run;
    if (run - s >= 3) {
      out += fmt::format("({}|)*{}{}", stages[s], run - s, stages[run].starts_with(",") ? "" : ",");
      s = run;
    } else {
      out += stages[s] + (s + 1 < stages.size() ? "|" : "");
      ++s;
    }
  }
  return out;
}

void stages(const Launch& l, Settings& out) {
  const spec::ParallelSpec& p = l.job.parallel;
  const std::int32_t n = p.pp * p.vpp, layers = l.job.model.num_hidden_layers;
  if (!p.stage_layers.empty()) {
    out.text(kParallel, "pipeline-model-parallel-layout", stage_layout(l));
  } else if (p.vpp > 1 && layers % n == 0) {
    out.number(kParallel, "num-layers-per-virtual-pipeline-stage", layers / n);
  } else if (p.vpp > 1) {
    out.number(kParallel, "num-virtual-stages-per-pipeline-rank", p.vpp);
  }
}

void layout(const Launch& l, Settings& out) {
  const spec::ParallelSpec& p = l.job.parallel;
  out.number(kParallel, "tensor-model-parallel-size", p.tp);
  out.number(kParallel, "pipeline-model-parallel-size", p.pp);
  stages(l, out);
  out.number(kParallel, "context-parallel-size", p.cp);
  if (p.cp > 1) out.text(kParallel, "cp-comm-type", l.practice.cp_all_to_all ? "a2a" : "p2p");
  if (l.job.model.moe) {
    out.number(kParallel, "expert-model-parallel-size", p.ep);
    out.number(kParallel, "expert-tensor-parallel-size", p.etp);
  }
  if (p.sequence_parallel && p.tp > 1) out.flag(kParallel, "sequence-parallel");
  if (p.order == "tp-cp-ep-pp-dp") out.flag(kParallel, "use-tp-pp-dp-mapping");
}

void zero(const Launch& l, Settings& out) {
  const spec::Recipe& t = l.job.train;
  const std::int32_t group = l.machine.zero_group;
  if (t.zero_stage >= 1) out.flag(kParallel, "use-distributed-optimizer");
  if (t.zero_stage >= 2) {
    out.flag(kParallel, "use-megatron-fsdp");
    out.text(kParallel, "data-parallel-sharding-strategy",
             t.zero_stage == 2 ? "optim_grads" : "optim_grads_params");
    out.text(kParallel, "ckpt-format", "fsdp_dtensor");
  }
  const std::int32_t replicas = l.job.parallel.dp * l.job.parallel.cp;
  if (t.zero_stage >= 1 && group > 0 && group < replicas && replicas % group == 0)
    out.number(kParallel, "num-distributed-optimizer-instances", replicas / group);
}

void overlaps(const Launch& l, Settings& out) {
  const graph::Practice& w = l.practice;
  const spec::ParallelSpec& p = l.job.parallel;
  if (w.grad_overlap) out.flag(kParallel, "overlap-grad-reduce");
  if (w.param_overlap && w.grad_overlap && l.job.train.zero_stage >= 1)
    out.flag(kParallel, "overlap-param-gather");
  if (w.tp_overlap && p.tp > 1 && p.sequence_parallel) out.flag(kParallel, "tp-comm-overlap");
  if (!w.p2p_overlap && p.vpp > 1) out.flag(kParallel, "no-overlap-p2p-communication");
  if (w.cuda_graphs) {
    out.text(kTrain, "cuda-graph-impl", "transformer_engine");
    out.flag(kTrain, "te-rng-tracker");
  }
  if (w.fused_cross_entropy) out.flag(kTrain, "cross-entropy-loss-fusion");
  if (!w.fused_rope) out.flag(kTrain, "no-rope-fusion");
  out.real(kTrain, "attention-dropout", w.dropout ? 0.1 : 0.0);
  out.real(kTrain, "hidden-dropout", w.dropout ? 0.1 : 0.0);
}

void precision(const Launch& l, Settings& out) {
  const graph::Practice& w = l.practice;
  const Precision p = l.job.train.precision;
  const auto fp8 = [&](const char* format, const char* recipe) {
    out.flag(kTrain, "bf16");
    out.text(kTrain, "fp8-format", format);
    out.text(kTrain, "fp8-recipe", recipe);
  };
  switch (p) {
    case Precision::f32:
    case Precision::f64:
      return;
    case Precision::bf16:
      out.flag(kTrain, "bf16");
      break;
    case Precision::fp16:
      out.flag(kTrain, "fp16");
      if (w.gradient_bytes == 4) out.flag(kTrain, "accumulate-allreduce-grads-in-fp32");
      break;
    case Precision::fp8:
      fp8("hybrid", "tensorwise");
      break;
    case Precision::fp8_block:
      fp8("e4m3", "blockwise");
      break;
    case Precision::mxfp8:
      fp8("e4m3", "mxfp8");
      break;
    case Precision::nvfp4:
      out.flag(kTrain, "bf16");
      out.text(kTrain, "fp4-format", "e2m1");
      out.text(kTrain, "fp4-recipe", "nvfp4");
      break;
  }
  if (p != Precision::fp16 && w.gradient_bytes == 2 && w.gradient_reduce_bytes == 2)
    out.flag(kTrain, "grad-reduce-in-bf16");
  if (w.optimizer_bytes == 8) {
    out.flag(kTrain, "use-precision-aware-optimizer");
    out.text(kTrain, "exp-avg-dtype", "bf16");
    out.text(kTrain, "exp-avg-sq-dtype", "bf16");
  }
}

void recompute(const Launch& l, Settings& out) {
  switch (l.job.train.recompute) {
    case spec::Recompute::none:
      break;
    case spec::Recompute::selective:
      out.text(kTrain, "recompute-granularity", "selective");
      out.words(kTrain, "recompute-modules", l.job.train.recompute_modules);
      break;
    case spec::Recompute::full:
      out.text(kTrain, "recompute-granularity", "full");
      out.text(kTrain, "recompute-method", "uniform");
      out.number(kTrain, "recompute-num-layers", 1);
      break;
  }
}

std::string balancing_type(const spec::MoeRecipe& r) {
  if (r.balancing == spec::Balancing::none) return "none";
  if (r.balancing == spec::Balancing::bias && r.aux_loss_coef == 0.0) return "none";
  switch (r.aux_loss_unit) {
    case spec::BalanceUnit::sequence:
      return "seq_aux_loss";
    case spec::BalanceUnit::micro_batch:
      return "aux_loss";
    case spec::BalanceUnit::global_batch:
      return "global_aux_loss";
  }
  return "";
}

void dispatch(const Launch& l, Settings& out) {
  const spec::ParallelSpec& p = l.job.parallel;
  const graph::Practice& w = l.practice;
  if (l.job.train.moe.dispatch == spec::DispatchForm::all_gather) {
    out.text(kMoe, "moe-token-dispatcher-type", "allgather");
  } else if (w.ep_dedup && p.ep > 1) {
    out.text(kMoe, "moe-token-dispatcher-type", "flex");
    out.flag(kMoe, "moe-enable-deepep");
  } else {
    out.text(kMoe, "moe-token-dispatcher-type", "alltoall");
  }
  // It pairs micro-batches of one stage with those of another on the same rank: virtual stages, or one stage.
  if (w.ep_overlap && p.ep > 1 && (p.pp == 1 || p.vpp > 1)) {
    out.flag(kMoe, "overlap-moe-expert-parallel-comm");
    out.flag(kMoe, "delay-wgrad-compute");
  } else if (l.job.train.moe.overlap_dispatch && l.job.model.moe->shared_intermediate_size > 0) {
    out.flag(kMoe, "moe-shared-expert-overlap");
  }
  if (w.grouped_gemm) out.flag(kMoe, "moe-grouped-gemm");
  if (w.fused_permute) out.flag(kMoe, "moe-permute-fusion");
  if (w.fused_router) out.flag(kMoe, "moe-router-fusion");
}

void routing(const Launch& l, Settings& out) {
  const spec::MoeRecipe& r = l.job.train.moe;
  const std::string type = balancing_type(r);
  out.text(kMoe, "moe-router-load-balancing-type", type);
  if (type != "none") out.real(kMoe, "moe-aux-loss-coeff", r.aux_loss_coef);
  if (r.balancing == spec::Balancing::bias) {
    out.flag(kMoe, "moe-router-enable-expert-bias");
    out.real(kMoe, "moe-router-bias-update-rate", r.bias_update_rate);
  }
  if (r.z_loss_coef > 0) out.real(kMoe, "moe-z-loss-coeff", r.z_loss_coef);
  if (r.router_jitter > 0) out.real(kMoe, "moe-input-jitter-eps", r.router_jitter);
  if (r.capacity_factor > 0 || r.drop_policy == spec::DropPolicy::probs)
    out.text(kMoe, "moe-token-drop-policy",
             r.drop_policy == spec::DropPolicy::position ? "position" : "probs");
  if (r.capacity_factor > 0) {
    out.real(kMoe, "moe-expert-capacity-factor", r.capacity_factor);
    if (r.pad_to_capacity) out.flag(kMoe, "moe-pad-expert-input-to-capacity");
  }
  dispatch(l, out);
}

void optimizer(const Launch& l, Settings& out) {
  const spec::Recipe& t = l.job.train;
  const spec::OptimizerSpec& o = t.optimizer;
  out.number(kTrain, "micro-batch-size", t.micro_batch_size);
  out.number(kTrain, "global-batch-size", t.global_batch_size);
  out.number(kTrain, "seq-length", t.sequence_length);
  out.number(kTrain, "train-iters", t.steps);
  out.number(kTrain, "seed", static_cast<std::int64_t>(t.seed));
  out.text(kTrain, "optimizer", "adam");
  out.real(kTrain, "lr", o.lr);
  out.real(kTrain, "min-lr", o.min_lr);
  out.real(kTrain, "adam-beta1", o.beta1);
  out.real(kTrain, "adam-beta2", o.beta2);
  out.real(kTrain, "adam-eps", o.eps);
  out.real(kTrain, "weight-decay", o.weight_decay);
  out.real(kTrain, "clip-grad", o.clip_grad);
  switch (o.lr_decay) {
    case spec::LrDecay::constant:
      out.text(kTrain, "lr-decay-style", "constant");
      break;
    case spec::LrDecay::cosine:
      out.text(kTrain, "lr-decay-style", "cosine");
      break;
    case spec::LrDecay::wsd:
      out.text(kTrain, "lr-decay-style", "WSD");
      out.text(kTrain, "lr-wsd-decay-style", "linear");
      out.number(kTrain, "lr-wsd-decay-iters", o.lr_wsd_decay_steps);
      break;
  }
  if (o.lr_warmup_steps > 0) out.number(kTrain, "lr-warmup-iters", o.lr_warmup_steps);
}

}  // namespace

void Settings::real(std::string section, std::string name, double v) {
  std::string text = fmt::format("{}", v);
  if (text.find_first_not_of("-0123456789") == std::string::npos) text += ".0";
  list.push_back({std::move(section), std::move(name), ValueKind::number, {std::move(text)}});
}

Settings megatron_settings(const Launch& l) {
  Settings out;
  megatron_model(l, out);
  if (l.job.model.moe) routing(l, out);
  layout(l, out);
  zero(l, out);
  optimizer(l, out);
  precision(l, out);
  recompute(l, out);
  overlaps(l, out);
  return out;
}

}  // namespace tessera::frameworks
