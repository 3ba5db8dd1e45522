// Why a choice has no place in a framework.
#include <fmt/format.h>

#include "frameworks/internal.h"

namespace tessera::frameworks {

namespace {

bool of_megatron(Framework f) {
  return f == Framework::megatron || f == Framework::megatron_bridge || f == Framework::nemo;
}

std::string why_schedule(Framework f, const Launch& l) {
  const std::string& s = l.job.parallel.schedule;
  if (of_megatron(f) && s == "combined-1f1b")
    return fmt::format(
        "{} has no word for the schedule combined-1f1b: --overlap-moe-expert-parallel-comm with "
        "virtual stages is its form of it; --pin schedule=1f1b,interleaved plans what it runs",
        title(f));
  if (of_megatron(f))
    return fmt::format(
        "{} runs 1F1B, or interleaved 1F1B with virtual stages, not {}: the plan's bubble is not what it "
        "will "
        "have; --pin schedule=1f1b,interleaved plans what it runs",
        title(f), s);
  if (f == Framework::torchtitan)
    return fmt::format(
        "torchtitan has no schedule {}; --pin schedule=1f1b,interleaved,zb-v plans what it runs", s);
  return fmt::format("DeepSpeed's PipelineModule runs 1F1B, not {}; --pin schedule=1f1b plans what it runs",
                     s);
}

std::string why_practice(Framework f, const Carried& c, const Launch& l) {
  if (c.key == "practice.ep_overlap" && of_megatron(f))
    return fmt::format(
        "the all-to-all of experts was priced under another micro-batch, which {} does with virtual stages "
        "or "
        "without a pipeline only: this layout (pp {}) will show it; --practice megatron-bridge prices that",
        title(f), l.job.parallel.pp);
  for (const Switch& s : switches()) {
    if (c.key.substr(9) != s.name) continue;
    return fmt::format("priced {} \"{}\", which {} has no argument for",
                       c.value == "true" ? "with" : "without", s.on, title(f));
  }
  return fmt::format("priced with {} = {}, which {} has no argument for", c.key.substr(9), c.value, title(f));
}

std::string why_in_code(Framework f, const Carried& c) {
  if (f == Framework::deepspeed) {
    if (c.key == "parallel.pp" || c.key == "parallel.vpp")
      return "pipeline stages are PipelineModule(num_stages=...) in the code of the model";
    if (c.key == "parallel.cp")
      return "context parallelism is the sequence_parallel_size of Ulysses, in the code";
    if (c.key == "parallel.ep" || c.key == "parallel.etp" || c.key.starts_with("moe."))
      return "experts are deepspeed.moe.layer.MoE(ep_size=..., capacity_factor=...) in the code of the model";
    if (c.key.starts_with("train.recompute"))
      return "activation checkpointing is switched on in the code of the model";
    if (c.key == "train.sequence_length") return "the length of a sequence is the data loader's";
    if (c.key == "parallel.sequence_parallel")
      return "AutoTP keeps norms and residuals whole on every tp rank: more memory than the plan";
  }
  if (f == Framework::torchtitan) {
    if (c.key == "parallel.sequence_parallel")
      return "torchtitan always cuts norms along the sequence with tp";
    if (c.key == "parallel.etp")
      return "torchtitan has etp of 1 or of tp only; --pin etp=1 plans what it runs";
    if (c.key == "train.zero_stage")
      return "torchtitan shards gradients too (ZeRO-2), or nothing; --pin zero=0,2,3 plans what it runs";
    if (c.key == "train.precision") return "torchtitan has bfloat16, float32, float8 (tensorwise) and mxfp8";
    if (c.key.starts_with("moe.")) return fmt::format("{} is the flavor's own in torchtitan", c.key);
  }
  return {};
}

}  // namespace

std::string_view argument_of(Framework f, std::string_view name_of_switch) {
  struct Row {
    Framework framework;
    std::string_view name, argument;
  };
  constexpr auto kMegatron = Framework::megatron;
  static constexpr Row kRows[] = {
      {kMegatron, "grad_overlap", "--overlap-grad-reduce"},
      {kMegatron, "param_overlap", "--overlap-param-gather"},
      {kMegatron, "tp_overlap", "--tp-comm-overlap"},
      {kMegatron, "p2p_overlap", "--no-overlap-p2p-communication"},
      {kMegatron, "ep_overlap", "--overlap-moe-expert-parallel-comm"},
      {kMegatron, "ep_dedup", "--moe-enable-deepep"},
      {kMegatron, "cp_all_to_all", "--cp-comm-type a2a"},
      {kMegatron, "fused_cross_entropy", "--cross-entropy-loss-fusion"},
      {kMegatron, "fused_permute", "--moe-permute-fusion"},
      {kMegatron, "fused_router", "--moe-router-fusion"},
      {kMegatron, "grouped_gemm", "--moe-grouped-gemm"},
      {kMegatron, "fused_rope", "--no-rope-fusion"},
      {kMegatron, "cuda_graphs", "--cuda-graph-impl"},
      {kMegatron, "dropout", "--attention-dropout and --hidden-dropout"},
      {Framework::torchtitan, "tp_overlap", "parallelism.enable_async_tensor_parallel"},
      {Framework::torchtitan, "ep_dedup", "parallelism.expert_parallel_comm_backend"},
      {Framework::torchtitan, "compiled", "compile.enable"},
      {Framework::deepspeed, "grad_overlap", "zero_optimization.overlap_comm"},
  };
  for (const Row& row : kRows) {
    if (row.framework == f && row.name == name_of_switch) return row.argument;
  }
  return {};
}

std::string why_carried(Framework f, const Carried& c, const Launch& l) {
  const spec::ParallelSpec& p = l.job.parallel;
  if (c.key == "train.zero_stage" && p.dp * p.cp == 1) return {};     // nothing to share
  if (c.key == "parallel.sequence_parallel" && p.tp == 1) return {};  // nothing to cut
  if (c.key == "parallel.dp" || c.key == "train.overlap_param_gather" ||
      c.key == "train.overlap_grad_reduce" || c.key == "parallel.overlap_p2p_comm" ||
      c.key == "parallel.tp_comm_overlap")
    return {};  // follows from the devices; practice.* says the same of the overlaps
  if (c.key == "parallel.schedule") return p.pp > 1 ? why_schedule(f, l) : std::string();
  if (c.key == "parallel.order") return fmt::format("{} has no order {} of the axes", title(f), p.order);
  if (c.key.starts_with("practice.")) return why_practice(f, c, l);
  if (std::string text = why_in_code(f, c); !text.empty()) return text;
  return fmt::format("{} has no argument for {} = {}", title(f), c.key, c.value);
}

}  // namespace tessera::frameworks
