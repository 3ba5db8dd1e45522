// DeepSpeed's configuration JSON: written and read. It says batch, optimizer, precision, ZeRO and AutoTP; all
// else of a plan lives in the user's code, and is carried.
#include <fmt/format.h>

#include <algorithm>

#include "base/math.h"
#include "base/text.h"
#include "frameworks/internal.h"

namespace tessera::frameworks {

namespace {

using spec::Precision;

constexpr const char* kMicro = "train_micro_batch_size_per_gpu";
constexpr const char* kBatch = "train_batch_size";
constexpr const char* kAccumulation = "gradient_accumulation_steps";
constexpr const char* kTp = "tensor_parallel.autotp_size";

bool is_16_bit(Precision p) {
  return p != Precision::f32 && p != Precision::f64;
}

std::string sum_type(std::int32_t bytes, Precision p) {
  return bytes == 4 ? "fp32" : p == Precision::fp16 ? "fp16" : "bf16";
}

// HF integrations fill "auto" in at run time.
void refuse_auto(Arguments& args, Interpretation& in) {
  for (const Argument& a : std::vector<Argument>(args.list())) {
    if (a.text() != "auto") continue;
    const bool matters = a.name == kMicro || a.name == kBatch || a.name == kAccumulation || a.name == kTp ||
                         a.name.starts_with("zero_optimization.stage");
    if (matters && a.name.find("stage3_") == std::string::npos) {
      in.problems.add(fmt::format("{} is \"auto\"", a.name), args.where(a.name),
                      "write the number that the run uses");
    }
  }
}

void read_precision(Arguments& args, Interpretation& in) {
  const auto on = [&](const char* name) {
    const Argument* a = args.find(name);
    return a != nullptr && a->text() != "auto" && args.on(name, in.problems);
  };
  const bool bf16 = on("bf16.enabled") || on("bfloat16.enabled"), fp16 = on("fp16.enabled");
  if (bf16 && fp16) {
    in.problems.add("bf16.enabled and fp16.enabled contradict each other", args.where("fp16.enabled"),
                    "keep one of them");
  }
  const bool asked_auto = args.has("bf16.enabled") && args.find("bf16.enabled")->text() == "auto";
  in.launch.job.train.precision = bf16 || (asked_auto && !fp16) ? Precision::bf16
                                  : fp16                        ? Precision::fp16
                                                                : Precision::f32;
  graph::Practice& w = in.launch.practice;
  const std::vector<std::string> types = {"fp32", "fp16", "bf16"};
  if (const auto t = args.choice("data_types.grad_accum_dtype", types, in.problems))
    w.gradient_bytes = t == "fp32" ? 4 : 2;
  if (const auto t = args.choice("communication_data_type", types, in.problems))
    w.gradient_reduce_bytes = t == "fp32" ? 4 : 2;
}

void read_zero(Arguments& args, Interpretation& in) {
  spec::Recipe& t = in.launch.job.train;
  const std::int64_t stage = args.integer("zero_optimization.stage", in.problems).value_or(0);
  if (stage < 0 || stage > 3) {
    in.problems.add(fmt::format("zero_optimization.stage is {}", stage),
                    args.where("zero_optimization.stage"), "use 0, 1, 2 or 3");
    return;
  }
  t.zero_stage = static_cast<std::int32_t>(stage);
  const Argument* overlap = args.find("zero_optimization.overlap_comm");
  // Absent: on for stage 3 alone.
  if (stage > 0 && (overlap == nullptr || overlap->text() != "auto"))
    in.launch.practice.grad_overlap =
        overlap != nullptr ? args.on("zero_optimization.overlap_comm", in.problems) : stage == 3;
  for (const char* part : {"offload_optimizer", "offload_param"}) {
    const std::string device = fmt::format("zero_optimization.{}.device", part);
    if (const auto where = args.word(device, in.problems); where && *where != "none")
      in.notes.push_back(
          fmt::format("{} {} is not priced: the step is that without offload", device, *where));
  }
  const std::int64_t group = args.integer("zero_optimization.mics_shard_size", in.problems).value_or(-1);
  const std::int64_t hpz = args.integer("zero_optimization.zero_hpz_partition_size", in.problems).value_or(1);
  if (group > 0)
    in.launch.machine.zero_group = static_cast<std::int32_t>(std::min<std::int64_t>(group, 1 << 20));
  if (hpz > 1) in.notes.push_back(fmt::format("zero_hpz_partition_size {} is not priced", hpz));
}

void read_optimizer(Arguments& args, Interpretation& in) {
  spec::OptimizerSpec& o = in.launch.job.train.optimizer;
  const auto set = [&](const char* name, double& out) {
    const Argument* a = args.find(name);
    if (a == nullptr || a->text() == "auto") return;
    if (const auto v = args.number(name, in.problems)) out = *v;
  };
  set("optimizer.params.lr", o.lr);
  set("optimizer.params.eps", o.eps);
  set("optimizer.params.weight_decay", o.weight_decay);
  set("gradient_clipping", o.clip_grad);
  args.accept("optimizer.type");
  const Argument* betas = args.find("optimizer.params.betas");
  if (betas != nullptr && betas->values.size() == 2) {
    Arguments two(args.file(), "");
    two.add({.name = "beta1", .values = {betas->values[0]}, .line = betas->line});
    two.add({.name = "beta2", .values = {betas->values[1]}, .line = betas->line});
    o.beta1 = two.number("beta1", in.problems).value_or(o.beta1);
    o.beta2 = two.number("beta2", in.problems).value_or(o.beta2);
  }
}

void read_batch(Arguments& args, Interpretation& in) {
  const auto value = [&](const char* name) {
    const Argument* a = args.find(name);
    return a == nullptr || a->text() == "auto" ? 0 : args.integer(name, in.problems).value_or(0);
  };
  const std::int64_t steps = value(kAccumulation);
  Batch batch{.micro = value(kMicro), .global = value(kBatch)};
  const spec::ParallelSpec& p = in.launch.job.parallel;
  const std::int64_t inner = std::int64_t{p.tp} * p.cp * p.pp;
  const std::int64_t dp = inner > 0 ? in.devices / inner : 0;
  if (batch.micro == 0 && batch.global > 0 && dp > 0 &&
      batch.global % (dp * std::max<std::int64_t>(1, steps)) == 0)
    batch.micro = batch.global / (dp * std::max<std::int64_t>(1, steps));
  if (batch.global == 0) batch.global = batch.micro * std::max<std::int64_t>(1, steps) * dp;
  if (batch.micro > 0 && steps > 0 && dp > 0 && batch.global != batch.micro * steps * dp) {
    in.problems.add(fmt::format("{} {} is not {} {} x {} {} x {} replicas", kBatch, batch.global, kMicro,
                                batch.micro, kAccumulation, steps, dp),
                    args.where(kBatch),
                    fmt::format("use {}, or leave one of the three out", batch.micro * steps * dp));
    return;
  }
  complete_batch(args, {.tp = kTp, .micro_batch = kMicro, .global_batch = kBatch}, batch, in);
}

}  // namespace

Settings deepspeed_settings(const Launch& l) {
  const spec::Recipe& t = l.job.train;
  const spec::ParallelSpec& p = l.job.parallel;
  Settings out;
  const std::int64_t together = t.micro_batch_size * p.dp;
  out.number("", kBatch, t.global_batch_size);
  out.number("", kMicro, t.micro_batch_size);
  if (together > 0 && t.global_batch_size % together == 0)
    out.number("", kAccumulation, t.global_batch_size / together);
  out.real("", "gradient_clipping", t.optimizer.clip_grad);
  out.text("", "optimizer.type", "AdamW");
  out.real("", "optimizer.params.lr", t.optimizer.lr);
  out.list.push_back({"",
                      "optimizer.params.betas",
                      ValueKind::list,
                      {fmt::format("{}", t.optimizer.beta1), fmt::format("{}", t.optimizer.beta2)}});
  out.real("", "optimizer.params.eps", t.optimizer.eps);
  out.real("", "optimizer.params.weight_decay", t.optimizer.weight_decay);
  out.boolean("", "bf16.enabled", is_16_bit(t.precision) && t.precision != Precision::fp16);
  out.boolean("", "fp16.enabled", t.precision == Precision::fp16);
  if (is_16_bit(t.precision)) {
    out.text("", "data_types.grad_accum_dtype", sum_type(l.practice.gradient_bytes, t.precision));
    out.text("", "communication_data_type", sum_type(l.practice.gradient_reduce_bytes, t.precision));
  }
  out.number("", "zero_optimization.stage", t.zero_stage);
  if (t.zero_stage > 0) out.boolean("", "zero_optimization.overlap_comm", l.practice.grad_overlap);
  if (t.zero_stage == 3 && l.machine.zero_group > 0)
    out.number("", "zero_optimization.mics_shard_size", l.machine.zero_group);
  if (p.tp > 1) out.number("", kTp, p.tp);
  return out;
}

void interpret_deepspeed(Arguments& args, Interpretation& in) {
  spec::ParallelSpec& p = in.launch.job.parallel;
  refuse_auto(args, in);
  if (!in.problems.empty()) return;
  const std::int64_t tp = args.integer(kTp, in.problems).value_or(p.tp);
  if (tp >= 1 && tp <= (1 << 20)) {
    p.tp = static_cast<std::int32_t>(tp);
  } else {
    in.problems.add(fmt::format("{} is {}", kTp, tp), args.where(kTp), "use a whole number from 1 on");
  }
  p.sequence_parallel = p.tp == 1;  // AutoTP keeps norms whole
  in.launch.job.train.optimizer.clip_grad = 0.0;
  if (in.launch.job.train.sequence_length == 0) {
    in.problems.add("DeepSpeed's JSON does not say how long a sequence is", args.file(),
                    "say it with --seq TOKENS");
  }
  read_batch(args, in);
  read_precision(args, in);
  read_zero(args, in);
  read_optimizer(args, in);
  if (args.find("activation_checkpointing.number_checkpoints") != nullptr ||
      args.find("activation_checkpointing.partition_activations") != nullptr)
    in.notes.emplace_back("whether activations are made again, the code of the model says: priced as none");
}

}  // namespace tessera::frameworks
