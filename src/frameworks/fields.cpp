// Megatron-LM's arguments as the fields of Megatron-Bridge and NeMo, which stand on the same library.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <string_view>

#include "base/text.h"
#include "frameworks/internal.h"

namespace tessera::frameworks {

namespace {

enum class As : std::uint8_t { same, negated, dropped };
struct Row {
  std::string_view flag, bridge, nemo;
  As as = As::same;
};
// "model": the field of that name with underscores. Empty: no place.
constexpr std::string_view kModel = "model";
constexpr std::array<Row, 46> kRows = {{
    {"micro-batch-size", "train.micro_batch_size", "data.micro_batch_size"},
    {"global-batch-size", "train.global_batch_size", "data.global_batch_size"},
    {"train-iters", "train.train_iters", "trainer.max_steps"},
    {"seed", "rng.seed", "data.seed"},
    {"optimizer", "", "", As::dropped},  // adam is theirs too
    {"lr", "optimizer.lr", "optim.config.lr"},
    {"min-lr", "optimizer.min_lr", "optim.lr_scheduler.min_lr"},
    {"adam-beta1", "optimizer.adam_beta1", "optim.config.adam_beta1"},
    {"adam-beta2", "optimizer.adam_beta2", "optim.config.adam_beta2"},
    {"adam-eps", "optimizer.adam_eps", "optim.config.adam_eps"},
    {"weight-decay", "optimizer.weight_decay", "optim.config.weight_decay"},
    {"clip-grad", "optimizer.clip_grad", "optim.config.clip_grad"},
    {"lr-decay-style", "scheduler.lr_decay_style", ""},
    {"lr-wsd-decay-style", "scheduler.lr_wsd_decay_style", ""},
    {"lr-wsd-decay-iters", "scheduler.lr_wsd_decay_iters", ""},
    {"lr-warmup-iters", "scheduler.lr_warmup_iters", "optim.lr_scheduler.warmup_steps"},
    {"bf16", "mixed_precision.bf16", "trainer.plugins.bf16"},
    {"fp16", "mixed_precision.fp16", "trainer.plugins.fp16"},
    {"fp8-format", "mixed_precision.fp8", "trainer.plugins.fp8"},
    {"fp8-recipe", "mixed_precision.fp8_recipe", "trainer.plugins.fp8_recipe"},
    {"fp4-format", "mixed_precision.fp4", "model.config.fp4"},
    {"fp4-recipe", "mixed_precision.fp4_recipe", "model.config.fp4_recipe"},
    {"grad-reduce-in-bf16", "mixed_precision.grad_reduce_in_fp32", "trainer.strategy.ddp.grad_reduce_in_fp32",
     As::negated},
    {"accumulate-allreduce-grads-in-fp32", "mixed_precision.grad_reduce_in_fp32",
     "trainer.strategy.ddp.grad_reduce_in_fp32"},
    {"use-distributed-optimizer", "ddp.use_distributed_optimizer",
     "trainer.strategy.ddp.use_distributed_optimizer"},
    {"use-megatron-fsdp", "ddp.use_megatron_fsdp", "trainer.strategy.ddp.use_megatron_fsdp"},
    {"data-parallel-sharding-strategy", "ddp.data_parallel_sharding_strategy",
     "trainer.strategy.ddp.data_parallel_sharding_strategy"},
    {"num-distributed-optimizer-instances", "ddp.num_distributed_optimizer_instances",
     "trainer.strategy.num_distributed_optimizer_instances"},
    {"ckpt-format", "", "", As::dropped},
    {"use-precision-aware-optimizer", "optimizer.use_precision_aware_optimizer", ""},
    {"exp-avg-dtype", "", ""},
    {"exp-avg-sq-dtype", "", ""},
    {"overlap-grad-reduce", "ddp.overlap_grad_reduce", "trainer.strategy.ddp.overlap_grad_reduce"},
    {"overlap-param-gather", "ddp.overlap_param_gather", "trainer.strategy.ddp.overlap_param_gather"},
    {"tp-comm-overlap", "comm_overlap.tp_comm_overlap", "model.config.tp_comm_overlap"},
    {"no-overlap-p2p-communication", "comm_overlap.overlap_p2p_comm", "model.config.overlap_p2p_comm",
     As::negated},
    {"use-tp-pp-dp-mapping", "dist.use_tp_pp_dp_mapping", "trainer.strategy.use_tp_pp_dp_mapping"},
    {"no-rope-fusion", "model.apply_rope_fusion", "model.config.apply_rope_fusion", As::negated},
    {"untie-embeddings-and-output-weights", "model.share_embeddings_and_output_weights",
     "model.config.share_embeddings_and_output_weights", As::negated},
    {"disable-bias-linear", "model.add_bias_linear", "model.config.add_bias_linear", As::negated},
    {"group-query-attention", "", "", As::dropped},  // follows from num_query_groups
    {"swiglu", "model.gated_linear_unit", "model.config.gated_linear_unit"},
    {"norm-epsilon", "model.layernorm_epsilon", "model.config.layernorm_epsilon"},
    {"num-experts", "model.num_moe_experts", "model.config.num_moe_experts"},
    {"max-position-embeddings", "", "", As::dropped},  // follows from seq_length
    {"te-rng-tracker", "model.use_te_rng_tracker", ""},
}};
// Fields that NeMo's strategy has beside the model's own.
constexpr std::array<std::string_view, 8> kOfStrategy = {"tensor_model_parallel_size",
                                                         "pipeline_model_parallel_size",
                                                         "virtual_pipeline_model_parallel_size",
                                                         "context_parallel_size",
                                                         "sequence_parallel",
                                                         "expert_model_parallel_size",
                                                         "expert_tensor_parallel_size",
                                                         "pipeline_model_parallel_layout"};

std::string underscored(std::string_view flag) {
  std::string out(flag);
  std::ranges::replace(out, '-', '_');
  return out;
}

std::string field_of(std::string_view flag, Framework f) {
  const std::string name = underscored(flag);
  if (f == Framework::megatron_bridge) return fmt::format("{}.{}", kModel, name);
  const bool strategy = std::ranges::find(kOfStrategy, name) != kOfStrategy.end();
  if (strategy) return "trainer.strategy." + name;
  return name == "seq_length" ? "data.seq_length" : fmt::format("{}.config.{}", kModel, name);
}

// "([0]*3+[1]*58)" as a list: configurations do not compute it.
std::vector<std::string> written_out(const std::string& pattern) {
  std::vector<std::string> out;
  for (const std::string& run : split(pattern.substr(1, pattern.size() - 2), '+')) {
    const std::size_t star = run.find('*');
    const std::int64_t times = std::stoll(run.substr(star + 1));
    out.insert(out.end(), static_cast<std::size_t>(times), run.substr(1, star - 2));
  }
  return out;
}

Setting as_field(const Setting& s, std::string path, As as) {
  Setting out = s;
  out.section.clear();
  out.name = std::move(path);
  if (s.name == "moe-layer-freq") {
    out.kind = ValueKind::list;
    out.values = written_out(s.values.front());
  }
  if (out.kind == ValueKind::flag) {
    out.kind = ValueKind::boolean;
    out.values = {as == As::negated ? "false" : "true"};
  }
  return out;
}

}  // namespace

Settings as_fields(const Settings& megatron, Framework f) {
  const ArgumentList list = argument_list(f);
  Settings out;
  out.notes = megatron.notes;
  std::vector<std::string> lost;
  for (const Setting& s : megatron.list) {
    const auto row = std::ranges::find(kRows, s.name, &Row::flag);
    if (row != kRows.end() && row->as == As::dropped) continue;
    const std::string path = row == kRows.end() ? field_of(s.name, f)
                                                : std::string(f == Framework::nemo ? row->nemo : row->bridge);
    if (s.name == "num-layers-per-virtual-pipeline-stage") continue;  // written as the number of stages
    if (path.empty() || !list.has(path)) {
      lost.push_back("--" + s.name + (s.values.empty() ? "" : " " + join(s.values, " ")));
    } else {
      out.list.push_back(as_field(s, path, row == kRows.end() ? As::same : row->as));
    }
  }
  if (!lost.empty())
    out.notes.push_back(fmt::format("{} is not told the same way: set what these mean in its own code: {}",
                                    title(f), join(lost, ", ")));
  return out;
}

}  // namespace tessera::frameworks
