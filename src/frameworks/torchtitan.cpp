// torchtitan's TOML keys: written and read.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>

#include "base/math.h"
#include "base/text.h"
#include "frameworks/internal.h"
#include "frameworks/torchtitan_stages.h"

namespace tessera::frameworks {

namespace {

using spec::Precision;

struct Flavor {
  std::string_view name, flavor;
  std::int32_t layers;
  std::int64_t hidden, vocabulary;
  std::int32_t experts;
};
// torchtitan's registered models (torchtitan/models, January 2026).
constexpr std::array<Flavor, 18> kFlavors = {{{"llama3", "8B", 32, 4096, 128256, 0},
                                              {"llama3", "70B", 80, 8192, 128256, 0},
                                              {"llama3", "405B", 126, 16384, 128256, 0},
                                              {"llama4", "17bx16e", 48, 5120, 202048, 16},
                                              {"llama4", "17bx128e", 48, 5120, 202048, 128},
                                              {"deepseek_v3", "16B", 27, 2048, 102400, 64},
                                              {"deepseek_v3", "236B", 60, 5120, 102400, 160},
                                              {"deepseek_v3", "671B", 61, 7168, 129280, 256},
                                              {"qwen3", "0.6B", 28, 1024, 151936, 0},
                                              {"qwen3", "1.7B", 28, 2048, 151936, 0},
                                              {"qwen3", "4B", 36, 2560, 151936, 0},
                                              {"qwen3", "8B", 36, 4096, 151936, 0},
                                              {"qwen3", "14B", 40, 5120, 151936, 0},
                                              {"qwen3", "32B", 64, 5120, 151936, 0},
                                              {"qwen3", "30B-A3B", 48, 2048, 151936, 128},
                                              {"qwen3", "235B-A22B", 94, 4096, 151936, 128},
                                              {"gpt_oss", "20b", 24, 2880, 201088, 32},
                                              {"gpt_oss", "120b", 36, 2880, 201088, 128}}};

std::int32_t experts_of(const spec::ModelSpec& m) {
  return m.moe ? m.moe->num_experts : 0;
}

void parallelism(const Launch& l, Settings& out) {
  const spec::ParallelSpec& p = l.job.parallel;
  const std::int32_t group = l.machine.zero_group, zero = l.job.train.zero_stage;
  std::int32_t shard = zero == 0 ? 1 : p.dp;
  if (zero > 0 && group > 0 && group % p.cp == 0 && p.dp % (group / p.cp) == 0) shard = group / p.cp;
  out.number("", "parallelism.data_parallel_replicate_degree", p.dp / shard);
  out.number("", "parallelism.data_parallel_shard_degree", shard);
  if (zero > 0) {
    out.text("", "parallelism.fsdp_reshard_after_forward", zero == 3 ? "always" : "never");
  } else if (p.cp > 1) {
    out.notes.emplace_back(
        "with context parallelism torchtitan shards the weights over the cp ranks, ZeRO or not");
  }
  out.number("", "parallelism.tensor_parallel_degree", p.tp);
  out.boolean("", "parallelism.enable_async_tensor_parallel", l.practice.tp_overlap && p.tp > 1);
  out.number("", "parallelism.context_parallel_degree", p.cp);
  out.number("", "parallelism.pipeline_parallel_degree", p.pp);
  write_torchtitan_stages(l, out);
  if (!l.job.model.moe) return;
  out.number("", "parallelism.expert_parallel_degree", p.ep);
  if (p.etp == 1 || p.etp == p.tp) out.number("", "parallelism.expert_tensor_parallel_degree", p.etp);
  out.text("", "parallelism.expert_parallel_comm_backend",
           l.practice.ep_dedup && p.ep > 1 ? "deepep" : "standard");
}

void precision(const Launch& l, Settings& out) {
  const auto converted = [&](const char* converter, const char* key, const char* recipe,
                             const char* grouped) {
    std::vector<std::string> converters = {converter};
    if (l.job.model.moe) converters.emplace_back(grouped);
    out.words("", "model.converters", converters);
    out.text("", key, recipe);
    if (l.job.model.moe) out.words("", fmt::format("{}.fqns", std::string_view(grouped)), {"experts"});
  };
  const Precision p = l.job.train.precision;
  out.text("", "training.mixed_precision_param",
           p == Precision::f32 || p == Precision::f64 ? "float32" : "bfloat16");
  out.text("", "training.mixed_precision_reduce", "float32");
  if (p == Precision::fp8)
    converted("quantize.linear.float8", "quantize.linear.float8.recipe_name", "tensorwise",
              "quantize.grouped_mm.float8");
  if (p == Precision::mxfp8)
    converted("quantize.linear.mx", "quantize.linear.mx.recipe_name", "mxfp8_cublas",
              "quantize.grouped_mm.mx");
}

void training(const Launch& l, Settings& out) {
  const spec::Recipe& t = l.job.train;
  const spec::OptimizerSpec& o = t.optimizer;
  const std::int64_t of_replica = t.global_batch_size / std::max(1, l.job.parallel.dp);
  out.number("", "training.seq_len", t.sequence_length);
  out.number("", "training.local_batch_size", l.job.parallel.pp > 1 ? of_replica : t.micro_batch_size);
  out.number("", "training.global_batch_size", t.global_batch_size);
  out.number("", "training.steps", t.steps);
  out.real("", "training.max_norm", o.clip_grad);
  precision(l, out);
  out.text("", "optimizer.name", "AdamW");
  out.real("", "optimizer.lr", o.lr);
  out.real("", "optimizer.beta1", o.beta1);
  out.real("", "optimizer.beta2", o.beta2);
  out.real("", "optimizer.eps", o.eps);
  out.real("", "optimizer.weight_decay", o.weight_decay);
  out.number("", "lr_scheduler.warmup_steps", o.lr_warmup_steps);
  out.text("", "lr_scheduler.decay_type", o.lr_decay == spec::LrDecay::cosine ? "cosine" : "linear");
  if (o.lr_decay == spec::LrDecay::constant) out.real("", "lr_scheduler.decay_ratio", 0.0);
  if (o.lr_decay == spec::LrDecay::wsd)
    out.real(
        "", "lr_scheduler.decay_ratio",
        static_cast<double>(o.lr_wsd_decay_steps) / static_cast<double>(std::max<std::int64_t>(1, t.steps)));
  out.real("", "lr_scheduler.min_lr_factor", o.lr > 0 ? o.min_lr / o.lr : 0.0);
  out.number("", "debug.seed", static_cast<std::int64_t>(t.seed));
}

void recompute(const Launch& l, Settings& out) {
  const spec::Recompute r = l.job.train.recompute;
  out.text("", "activation_checkpoint.mode",
           r == spec::Recompute::none   ? "none"
           : r == spec::Recompute::full ? "full"
                                        : "selective");
  if (r == spec::Recompute::selective) {
    out.text("", "activation_checkpoint.selective_ac_option", "op");
    out.notes.emplace_back(
        "torchtitan chooses operators to make again, not modules: selective keeps other tensors than the "
        "plan");
  }
}

void check_flavor(Arguments& args, Interpretation& in) {
  const spec::ModelSpec& m = in.launch.job.model;
  const std::string name = args.word("model.name", in.problems).value_or("llama3");
  const std::string flavor = args.word("model.flavor", in.problems).value_or("debugmodel");
  for (const Flavor& f : kFlavors) {
    if (f.name != name || f.flavor != flavor) continue;
    const auto differ = [&](const char* what, std::int64_t theirs, std::int64_t ours) {
      if (theirs == ours) return;
      in.problems.add(fmt::format("{} {} has {} {}, the model {}", name, flavor, theirs, what, ours),
                      args.where("model.flavor"), "name the model that the file trains");
    };
    differ("layers", f.layers, m.num_hidden_layers);
    differ("columns (hidden size)", f.hidden, m.hidden_size);
    differ("experts", f.experts, experts_of(m));
    return;
  }
  if (const auto [own, of_ours] = torchtitan_model(m); !own.empty()) {
    in.problems.add(fmt::format("the file trains {} {}, the model is {} {}", name, flavor, own, of_ours),
                    args.where("model.flavor"), "name the model that the file trains");
  } else {
    in.notes.push_back(
        fmt::format("what {} {} is, torchtitan's code says: taken as the model", name, flavor));
  }
}

void read_precision(Arguments& args, Interpretation& in) {
  Precision& p = in.launch.job.train.precision;
  const auto type = args.choice("training.mixed_precision_param", {"bfloat16", "float32"}, in.problems)
                        .value_or("bfloat16");
  p = type == "float32" ? Precision::f32 : Precision::bf16;
  args.accept("training.mixed_precision_reduce");
  const Argument* converters = args.find("model.converters");
  for (const char* name : {"quantize.linear.float8.recipe_name", "quantize.linear.mx.recipe_name",
                           "quantize.grouped_mm.float8.fqns", "quantize.grouped_mm.mx.fqns"})
    args.accept(name);
  if (converters != nullptr) {
    for (const std::string& c : converters->values) {
      if (c.find("float8") != std::string::npos && p != Precision::mxfp8) p = Precision::fp8;
      if (c.find("mx") != std::string::npos) p = Precision::mxfp8;
    }
  }
  if (args.word("training.dtype", in.problems) == "bfloat16") {
    graph::Practice& w = in.launch.practice;
    w.gradient_bytes = 2;
    w.optimizer_bytes = 4;
  }
}

void read_sharding(Arguments& args, Interpretation& in) {
  constexpr const char* kReplicate = "parallelism.data_parallel_replicate_degree";
  constexpr const char* kShard = "parallelism.data_parallel_shard_degree";
  const spec::ParallelSpec& p = in.launch.job.parallel;
  spec::Recipe& t = in.launch.job.train;
  const std::int64_t replicate = args.integer(kReplicate, in.problems).value_or(1);
  std::int64_t shard = args.integer(kShard, in.problems).value_or(-1);
  const auto policy =
      args.choice("parallelism.fsdp_reshard_after_forward", {"default", "always", "never"}, in.problems)
          .value_or("default");
  if (replicate >= 1 && shard == -1 && p.dp % replicate == 0) shard = p.dp / replicate;
  if (in.devices > 0 && (replicate < 1 || shard < 1 || replicate * shard != p.dp)) {
    in.problems.add(
        fmt::format("replicas {} x shards {} are not the {} data-parallel ranks that {} devices leave",
                    replicate, shard, p.dp, in.devices),
        args.where(args.has(kShard) ? kShard : kReplicate),
        fmt::format("use degrees whose product is {}", p.dp));
    return;
  }
  if (shard == 1) {
    t.zero_stage = 0;
    if (p.cp > 1) in.notes.emplace_back("shard degree 1 is priced as unsharded; torchtitan shards over cp");
    return;
  }
  t.zero_stage = policy == "never" || (policy == "default" && p.pp > 1) ? 2 : 3;
  if (replicate > 1) in.launch.machine.zero_group = static_cast<std::int32_t>(shard * p.cp);
}

void read_optimizer(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  spec::OptimizerSpec& o = t.optimizer;
  const auto set = [&](std::string_view name, double otherwise, double& out) {
    out = args.number(name, in.problems).value_or(otherwise);
  };
  set("optimizer.lr", 8e-4, o.lr);
  set("optimizer.beta1", 0.9, o.beta1);
  set("optimizer.beta2", 0.95, o.beta2);
  set("optimizer.eps", 1e-8, o.eps);
  set("optimizer.weight_decay", 0.1, o.weight_decay);
  set("training.max_norm", 1.0, o.clip_grad);
  args.accept("optimizer.name");
  t.steps = std::max<std::int64_t>(1, args.integer("training.steps", in.problems).value_or(10000));
  o.lr_warmup_steps = std::min(t.steps, args.integer("lr_scheduler.warmup_steps", in.problems).value_or(200));
  o.min_lr = o.lr * args.number("lr_scheduler.min_lr_factor", in.problems).value_or(0.0);
  args.accept("lr_scheduler.decay_type");
  if (const auto ratio = args.number("lr_scheduler.decay_ratio", in.problems)) {
    o.lr_decay = *ratio > 0 ? spec::LrDecay::wsd : spec::LrDecay::constant;
    if (*ratio > 0 && *ratio <= 1)
      o.lr_wsd_decay_steps = std::min<std::int64_t>(std::llround(*ratio * static_cast<double>(t.steps)),
                                                    t.steps - o.lr_warmup_steps);
  }
  if (const auto seed = args.integer("debug.seed", in.problems)) t.seed = static_cast<std::uint64_t>(*seed);
}

void read_batch(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  const spec::ParallelSpec& p = in.launch.job.parallel;
  const std::int64_t local = args.integer("training.local_batch_size", in.problems).value_or(8);
  const std::int64_t piece =
      args.integer("parallelism.pipeline_parallel_microbatch_size", in.problems).value_or(1);
  const std::int64_t global = args.integer("training.global_batch_size", in.problems).value_or(-1);
  const char* name = p.pp > 1 ? "parallelism.pipeline_parallel_microbatch_size" : "training.local_batch_size";
  Batch batch{.micro = p.pp > 1 ? piece : local, .global = global};
  if (global == -1) {
    const std::int64_t inner = std::int64_t{p.tp} * p.cp * p.pp;
    batch.global = in.devices > 0 && inner > 0 && inner <= in.devices ? local * (in.devices / inner) : local;
  }
  complete_batch(args,
                 {.tp = "parallelism.tensor_parallel_degree",
                  .micro_batch = name,
                  .global_batch = "training.global_batch_size"},
                 batch, in);
  const std::int64_t of_replica = t.global_batch_size / std::max(1, p.dp);
  if (p.pp > 1 && local != of_replica) {
    in.notes.push_back(fmt::format(
        "the pipeline is filled and drained for {} of {} sequences at a time; priced as filled once a step",
        local, of_replica));
  }
}

}  // namespace

std::pair<std::string, std::string> torchtitan_model(const spec::ModelSpec& m) {
  for (const Flavor& f : kFlavors) {
    if (f.layers == m.num_hidden_layers && f.hidden == m.hidden_size && f.vocabulary == m.vocab_size &&
        f.experts == experts_of(m))
      return {std::string(f.name), std::string(f.flavor)};
  }
  return {};
}

Settings torchtitan_settings(const Launch& l) {
  Settings out;
  if (const auto [model, flavor] = torchtitan_model(l.job.model); !model.empty()) {
    out.text("", "model.name", model);
    out.text("", "model.flavor", flavor);
  } else {
    out.notes.emplace_back(
        "torchtitan has no flavor of this model: register one and set model.name and model.flavor");
  }
  training(l, out);
  parallelism(l, out);
  recompute(l, out);
  out.boolean("", "compile.enable", l.practice.compiled);
  return out;
}

void interpret_torchtitan(Arguments& args, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  spec::Recipe& t = in.launch.job.train;
  graph::Practice& w = in.launch.practice;
  const auto degree = [&](std::string_view name, std::int32_t otherwise, std::int32_t& out) {
    const std::int64_t v = args.integer(name, in.problems).value_or(otherwise);
    if (v >= 1 && v <= (1 << 20)) {
      out = static_cast<std::int32_t>(v);
    } else {
      in.problems.add(fmt::format("{} is {}", name, v), args.where(name), "use a whole number from 1 on");
    }
  };
  check_flavor(args, in);
  degree("parallelism.tensor_parallel_degree", p.tp, p.tp);
  degree("parallelism.context_parallel_degree", p.cp, p.cp);
  degree("parallelism.pipeline_parallel_degree", p.pp, p.pp);
  degree("parallelism.expert_parallel_degree", p.ep, p.ep);
  degree("parallelism.expert_tensor_parallel_degree", p.etp, p.etp);
  if (!in.launch.job.model.moe) p.ep = p.etp = 1;
  t.sequence_length = args.integer("training.seq_len", in.problems).value_or(2048);
  read_torchtitan_stages(args, in);
  read_batch(args, in);
  read_sharding(args, in);
  read_precision(args, in);
  read_optimizer(args, in);
  const auto mode =
      args.choice("activation_checkpoint.mode", {"selective", "full", "memory_budget", "none"}, in.problems)
          .value_or("selective");
  args.accept("activation_checkpoint.selective_ac_option");
  t.recompute = mode == "none"   ? spec::Recompute::none
                : mode == "full" ? spec::Recompute::full
                                 : spec::Recompute::selective;
  if (t.recompute == spec::Recompute::selective) {
    t.recompute_modules = {"layernorm", "moe_act"};
    in.notes.push_back(
        fmt::format("activation checkpointing \"{}\" is priced as norms and activations made again", mode));
  }
  w.compiled = args.on("compile.enable", in.problems);
  const bool async = args.on("parallelism.enable_async_tensor_parallel", in.problems);
  if (p.tp > 1) w.tp_overlap = async;
  const auto backend =
      args.choice("parallelism.expert_parallel_comm_backend", {"standard", "deepep"}, in.problems);
  if (p.ep > 1) w.ep_dedup = backend == "deepep";
  if (args.has("pipeline_parallel_split_points"))
    in.notes.emplace_back("split points are not read: stages are taken as even");
}

}  // namespace tessera::frameworks
