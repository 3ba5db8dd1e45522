// What the engine refuses of a job that can be planned.
#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "spec/internal.h"

namespace tessera::spec {

namespace {

void check_precision(const Recipe& t, Checker& c, EngineOn on) {
  const bool exact = t.precision == Precision::f32 || t.precision == Precision::f64;
  if (on == EngineOn::cpu) {
    c.check(exact, {"train.precision"},
            fmt::format("precision={}: the engine computes in f32 and f64{}", name(t.precision),
                        t.precision == Precision::bf16 ? " on CPUs" : ""),
            t.precision == Precision::bf16
                ? "use precision: f32, a GPU (--device cuda), or plan this job only"
                : "use precision: f32, or plan this job only");
    return;
  }
  c.check(exact || t.precision == Precision::bf16, {"train.precision"},
          fmt::format("precision={}: the engine computes in bf16, f32 and f64 on GPUs", name(t.precision)),
          "use precision: bf16, or plan this job only");
  c.check(t.moe.router_jitter == 0.0, {"moe.router_jitter"},
          fmt::format("router_jitter={}: the engine has no jitter on GPUs", t.moe.router_jitter),
          "use router_jitter: 0, or train on CPUs");
}

void check_recipe(const Recipe& t, Checker& c) {
  std::vector<std::string> modules = t.recompute_modules;
  std::ranges::sort(modules);
  c.check(modules.empty() || modules == std::vector<std::string>{"layernorm", "moe_act"},
          {"train.recompute_modules"},
          fmt::format("recompute_modules=[{}]: the engine makes norms and activations again, together",
                      join(t.recompute_modules, ", ")),
          "remove recompute_modules, or use [layernorm, moe_act]");
}

void check_parallel(const ParallelSpec& p, Checker& c) {
  c.check(p.sequence_parallel || p.tp <= 1, {"parallel.sequence_parallel", "parallel.tp"},
          fmt::format("sequence_parallel=false with tp={}: the engine always cuts norms along the sequence",
                      p.tp),
          "use sequence_parallel: true, or tp=1");
  c.check(std::ranges::all_of(p.stage_layers, [](std::int32_t n) { return n >= 1; }),
          {"parallel.stage_layers"},
          fmt::format("stage_layers=[{}]: the engine has no stages without a layer",
                      fmt::join(p.stage_layers, ", ")),
          "give every stage at least 1 layer");
  const ParallelSpec plain;
  c.check(p.order == plain.order, {"parallel.order"},
          fmt::format("order={}: the engine numbers its ranks one way only", p.order),
          fmt::format("use order: {}", plain.order));
}

void check_mtp(const Job& job, Checker& c) {
  const std::int32_t depth = job.model.num_nextn_predict_layers;
  if (depth == 0) return;
  const Recipe& t = job.train;
  c.check(t.mtp_loss_coef > 0.0, {"model", "train.mtp_loss_coef"},
          fmt::format("without train.mtp_loss_coef the engine does not train MTP layers "
                      "(num_nextn_predict_layers={})",
                      depth),
          "set train.mtp_loss_coef to train them (0.3 for most of DeepSeek-V3's training), or "
          "num_nextn_predict_layers: 0 in the model (its config.json) to train the main model alone");
  c.check(job.model.family == Family::deepseek_v3, {"model"},
          fmt::format("num_nextn_predict_layers={} in a model of family {}: only deepseek_v3 has MTP layers",
                      depth, name(job.model.family)),
          "set model.num_nextn_predict_layers: 0");
  c.check(
      depth < t.sequence_length, {"train.sequence_length", "model"},
      fmt::format("sequence_length={} leaves nothing to predict for MTP layer {}", t.sequence_length, depth),
      fmt::format("use at least {}", depth + 1));
  c.check(t.moe.aux_loss_normalisation != AuxNormalisation::huggingface || t.moe.aux_loss_coef == 0.0,
          {"moe.aux_loss_normalisation", "model"},
          "aux_loss_normalisation=huggingface is a product over the layers of the main model, and MTP layers "
          "have a balancing loss of their own",
          "use aux_loss_normalisation: tessera");
}

}  // namespace

void check_engine(const Job& job, Checker& c, EngineOn on) {
  check_precision(job.train, c, on);
  check_recipe(job.train, c);
  check_parallel(job.parallel, c);
  // A dynamic base grows with the sequence.
  if (job.model.rope_scaling.kind != RopeKind::dynamic) check_positions(job, c);
  if (!c.sound({"model"})) return;
  check_model_trains(job.model, c, "model");
  check_mtp(job, c);
  if (c.sound({"parallel.tp", "parallel.cp"}) && job.parallel.tp >= 1 && job.parallel.cp >= 1)
    check_tp(job, c, JobUse::train);
}

void check_engine_runs(const Job& job, std::string_view where, Problems& problems, EngineOn on) {
  Checker checker([&](std::string_view key) { return fmt::format("{}: {}", where, key); }, {}, problems);
  check_engine(job, checker, on);
}

void require_engine_runs(const Job& job, std::string_view where, EngineOn on) {
  Problems problems;
  check_engine_runs(job, where, problems, on);
  problems.throw_if_any();
}

}  // namespace tessera::spec
