// schedule, model, plan, simulate, validate and calibrate.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>

#include "cli/definitions.h"
#include "cli/framework_files.h"

namespace tessera::cli {

void add_question(CLI::App& c, QuestionFlags& f) {
  const auto positive = CLI::Range(std::int64_t{1}, kMost);
  c.add_option("--gbs", f.global_batch_size, "Sequences of a step (default: about 4 M tokens)")
      ->check(positive);
  c.add_option("--seq", f.sequence_length, "Tokens of a sequence (default: 4096, or the model's positions)")
      ->check(positive);
  c.add_option("--precision", f.precision, "bf16, fp16, fp8, fp8_block, mxfp8, nvfp4, f32 or f64")
      ->capture_default_str();
  c.add_option("--practice", f.practice, "How the software works")->capture_default_str();
  c.add_option(
       "--routing", f.routing,
       "Load of the experts: balanced, power:1.2, or a file of counts or of routing (train --dump-routing)")
      ->capture_default_str();
  c.add_option("--placement", f.placement,
               "Where experts live: a file of `tessera place`; the load of --routing then meets its slots");
  c.add_option("--capacity-factor", f.capacity_factor, "Of the experts (0: nothing is dropped)")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  c.add_option("--calibration", f.calibration, "Calibration file instead of the device's shipped one");
  c.add_option("--pin", f.pins, "Fix an axis or a choice, tp=8 or schedule=1f1b,zb-h1; may be repeated")
      ->type_name("NAME=VALUES")
      ->allow_extra_args(false);
}

namespace {

void add_schedule(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.schedule;
  CLI::App* c = add(app, "schedule", "Draw a pipeline schedule, check it and print its bubble",
                    "tessera schedule --kind zb-h1 --pp 4 --microbatches 8", f.json);
  c->add_option("--kind", f.kind, "naive, gpipe, 1f1b, interleaved, zb-h1, zb-v or combined-1f1b")
      ->capture_default_str();
  c->add_option("--pp", f.pp, "Pipeline ranks")
      ->check(CLI::Range(std::int64_t{1}, kMost))
      ->capture_default_str();
  c->add_option("--vpp", f.vpp, "Stages per rank (0: what the schedule needs)")
      ->check(CLI::Range(std::int64_t{0}, kMost))
      ->capture_default_str();
  c->add_option("--microbatches", f.microbatches, "Micro-batches per step")
      ->check(CLI::Range(std::int64_t{1}, kMost))
      ->capture_default_str();
  c->add_option("--forward", f.forward, "Time of F per rank")->capture_default_str();
  c->add_option("--backward-input", f.backward_input, "Time of I per rank")->capture_default_str();
  c->add_option("--backward-weight", f.backward_weight, "Time of W per rank")->capture_default_str();
  c->add_flag("--lowered", f.lowered, "With messages and gradient reductions");
  c->add_flag("--text", f.text, "The text form instead of the picture");
  c->callback([&] { code = schedule(f, terminal); });
}

void add_validate(CLI::App& app, AllFlags& all, int& code) {
  auto& f = all.validate;
  CLI::App* c =
      add(app, "validate", "Compare predictions with measured runs: errors, order of layouts, memory",
          "tessera validate validation/published_runs.csv --folds source --svg scatter.svg\n"
          "The columns of the file: validation/README.md.",
          f.json);
  c->add_option("runs", f.runs, "Measured runs (CSV)")->required();
  c->add_option("--csv", f.csv, "Write one line a row: measured, predicted, parts of the step, memory");
  c->add_option("--svg", f.svg, "Write the scatter plot of predicted against measured step time");
  c->add_flag("--markdown", f.markdown, "The tables as Markdown");
  c->add_option("--calibrations", f.calibrations,
                "Folder of calibration files to use beside the shipped ones");
  c->add_flag("--fit", f.fit, "Fit the constants of whole steps to all rows first");
  c->add_option("--folds", f.folds, "Predict each source, or each model, with constants fitted on the others")
      ->check(CLI::IsMember({"source", "model"}));
  c->add_option("--constants", f.constants, "Constants to fit (default: all)")->delimiter(',');
  c->add_flag("--from-shipped", f.from_shipped,
              "Start a fit from the calibration files, not from neutral values");
  c->add_option("--write-calibrations", f.write_calibrations, "Folder for the fitted calibration files");
  c->add_option("--threads", f.threads, "0: all cores")
      ->check(CLI::Range(std::int64_t{0}, kMost))
      ->capture_default_str();
  c->callback([&] { code = validate_runs(f); });
}

void add_model(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.model;
  CLI::App* c =
      add(app, "model", "What a model is: parameters, memory to train it, what bounds each of its operators",
          "tessera model mixtral-8x7b\n"
          "  tessera model llama-3-70b --operators --tokens 1,64,4096 --device a100-sxm-80gb",
          f.json);
  const auto positive = CLI::Range(std::int64_t{1}, kMost);
  c->add_option("model", f.model, "Shipped model by name, or a config.json or its folder")->required();
  c->add_option("--device", f.device, "Accelerator, by the name of its shipped calibration")
      ->capture_default_str();
  c->add_option("--calibration", f.calibration, "Calibration file instead of it");
  c->add_option("--precision", f.precision, "bf16, fp16, fp8, fp8_block, mxfp8, nvfp4, f32 or f64")
      ->capture_default_str();
  c->add_option("--practice", f.practice, "How the software works")->capture_default_str();
  c->add_option("--seq", f.sequence_length, "Tokens of a sequence (default: 4096, or the model's positions)")
      ->check(positive);
  c->add_flag("--operators", f.operators, "Also which operators arithmetic bounds, and which memory");
  c->add_option("--tokens", f.tokens, "Of a forward pass, several: a column each")
      ->check(positive)
      ->delimiter(',')
      ->capture_default_str();
  c->callback([&] { code = model(f, terminal); });
}

void add_plan(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.plan;
  CLI::App* c = add(app, "plan", "Find the fastest layouts that fit, what bounds them, and why not others",
                    "tessera plan llama-3-70b dgx-h100 --devices 256 --gbs 512 --seq 8192", f.json);
  c->add_option("model", f.model, "Shipped model by name, or a config.json or its folder")->required();
  c->add_option("cluster", f.cluster, "Shipped cluster by name, or a cluster YAML")->required();
  c->add_option("--devices", f.devices, "Devices in use (default: all of the cluster)")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  add_question(*c, f);
  c->add_option("--top", f.top, "Layouts in the list")->check(CLI::Range(1, 1000))->capture_default_str();
  c->add_option("--memory", f.memory, "Share of the usable memory that a plan may reserve")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  c->add_option("--threads", f.threads, "Of the search (default: all cores)")->check(CLI::Range(1, 1024));
  c->add_flag("--all-choices", f.all_choices, "Rank every choice for itself, not the best of each layout");
  c->add_flag("--closed-form", f.closed_form, "Do not time the best ones again with the simulator");
  c->add_option("--output", f.output, "Write the plan of the best one, for simulate and train");
  c->add_flag("--what-if", f.what_if, "What each single change of the best one brings");
  c->add_option("--against", f.against,
                "Compare the best one with this layout: tp=8,pp=4,mbs=1 (the rest 1, dp what is left)");
  add_framework_flags(*c, f);
  CLI::Option* robust =
      c->add_option("--robust", f.quantile,
                    "Also the best at a quantile (default 0.9) under slow nodes, a busy network and uneven "
                    "routing")
          ->type_name("[QUANTILE]")
          ->expected(0, 1);
  c->add_option("--scenarios", f.scenarios, "Of --robust")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  c->add_option("--network-spread", f.network_spread, "Of --robust: how busy the network gets, one sigma")
      ->check(CLI::Range(0.0, 1e3))
      ->capture_default_str();
  c->add_option("--uneven", f.routing_excess,
                "Of --robust: rows of the busiest expert beyond the mean, one sigma")
      ->check(CLI::Range(0.0, 1e3))
      ->capture_default_str();
  c->callback([&f, &code, &terminal, robust] {
    f.robust = robust->count() > 0;
    code = plan(f, terminal);
  });
}

void add_simulated_layout(CLI::App& c, SimulateFlags& f) {
  c.add_option("--model", f.model, "Instead of PLAN: a shipped model or a config.json, with the flags below");
  const std::pair<const char*, std::pair<std::optional<std::int32_t>*, const char*>> degrees[] = {
      {"--devices", {&f.devices, "Devices of the cluster (default: as its file says, or as PLAN needs)"}},
      {"--tp", {&f.tp, "Tensor-parallel ranks"}},
      {"--cp", {&f.cp, "Context-parallel ranks"}},
      {"--pp", {&f.pp, "Pipeline ranks"}},
      {"--vpp", {&f.vpp, "Stages per pipeline rank"}},
      {"--dp", {&f.dp, "Replicas (default: what the devices leave)"}},
      {"--ep", {&f.ep, "Expert-parallel ranks, folded over tp, cp and dp"}},
      {"--etp", {&f.etp, "Tensor-parallel ranks of an expert"}},
      {"--mbs", {&f.micro_batch_size, "Sequences of a micro-batch (default 1)"}}};
  for (const auto& [name, to] : degrees)
    c.add_option(name, *to.first, to.second)->check(CLI::Range(std::int64_t{1}, kMost));
  c.add_option("--zero", f.zero_stage, "ZeRO stage (default 1)")->check(CLI::Range(0, 3));
  c.add_option("--gbs", f.global_batch_size, "Sequences of a step")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  c.add_option("--seq", f.sequence_length, "Tokens of a sequence")->check(CLI::Range(std::int64_t{1}, kMost));
  c.add_option("--precision", f.precision, "bf16 (default), fp16, fp8, fp8_block, mxfp8, nvfp4, f32, f64");
  c.add_option("--schedule", f.schedule,
               "1f1b, interleaved, zb-h1, zb-v, combined-1f1b, gpipe, naive (default: by --vpp)");
  c.add_option("--recompute", f.recompute, "none, full, selective or selective:layernorm+moe_act");
  c.add_option("--order", f.order, "Of the axes: tp-cp-ep-dp-pp or tp-cp-ep-pp-dp");
  c.add_option("--capacity-factor", f.capacity_factor, "Of experts (default 0: nothing is dropped)")
      ->check(CLI::Range(0.0, 1e6));
  c.add_flag("--no-sequence-parallel", f.no_sequence_parallel, "Norms and residuals whole on every tp rank");
}

void add_simulate(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.simulate;
  CLI::App* c =
      add(app, "simulate", "Play one step of a plan: timeline, waterfall, memory over time",
          "tessera simulate plan.json dgx-h100 --trace step.json\n"
          "  tessera simulate --model llama-3-70b --cluster dgx-h100 --devices 64 --tp 4 --pp 4 --vpp 5 "
          "--cp 2 --gbs 128 --seq 8192\n"
          "docs/howto/simulate-a-plan.md tells how to read it.",
          f.json);
  c->add_option("plan", f.plan, "plan.json (of plan or train) or job.yaml");
  c->add_option("cluster", f.cluster, "Shipped cluster or its YAML");
  c->add_option("--cluster", f.cluster_flag, "The same, as a flag");
  c->add_option("--set", f.overrides, "Override a key of a job.yaml; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);
  add_simulated_layout(*c, f);
  c->add_option("--practice", f.practice,
                "How the software works (default: megatron-core; tessera for f32 and f64)");
  c->add_option(
      "--routing", f.routing,
      "Load of the experts: balanced, power:1.2, or a file of counts or of routing (train --dump-routing)");
  c->add_option("--placement", f.placement,
                "Where experts live: a file of `tessera place`; the load of --routing then meets its slots");
  c->add_option("--calibration", f.calibration, "Calibration file instead of the device's shipped one");
  c->add_option("--stragglers", f.stragglers, "Slow pipeline ranks, 0=1.2; may be repeated")
      ->type_name("RANK=FACTOR")
      ->allow_extra_args(false);
  c->add_flag("--shared-links", f.shared_links, "Messages and reductions of a device share its NIC");
  c->add_option("--trace", f.trace, "Write the timeline for ui.perfetto.dev");
  c->add_option("--trace-detail", f.trace_detail, "A span for each part of an action, or for each action")
      ->check(CLI::IsMember({"segments", "actions"}))
      ->capture_default_str();
  c->add_flag("--what-if", f.what_if, "What each single change of this plan brings");
  c->add_option("--against", f.against,
                "Compare this plan with this layout: tp=8,pp=4,mbs=1 (the rest 1, dp what is left)");
  c->callback([&] { code = simulate(f, terminal); });
}

std::string is_plain_name(const std::string& name) {
  const bool plain = !name.empty() && name.size() <= 100 && name.front() != '.' && name != "cluster" &&
                     std::ranges::all_of(name, [](char c) {
                       return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                              c == '-' || c == '_' || c == '.';
                     });
  return plain ? "" : "a name has letters, digits, - _ and . and is not \"cluster\"";
}

void add_calibrate(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.calibrate;
  CLI::App* c =
      add(app, "calibrate", "Measure this machine, or take measured runs: the calibration that predicts them",
          "tessera calibrate --output machine --check\n"
          "  tessera calibrate --from-log train.log --plan plan.json --name ours\n"
          "What the file holds: docs/formats/calibration.md.",
          f.json);
  c->add_option("--output", f.output, "Folder of NAME.yaml and cluster.yaml")->capture_default_str();
  c->add_option("--name", f.name, "Of the calibration and the cluster")
      ->check(CLI::Validator(is_plain_name, "NAME"))
      ->capture_default_str();
  c->add_option("--cores", f.cores, "Cores to measure on (0: all)")
      ->check(CLI::Range(std::int64_t{0}, kMost))
      ->capture_default_str();
  c->add_flag("--quick", f.quick, "Some seconds instead of half a minute; less exact");
  c->add_flag("--check", f.check, "Then train small models and compare the steps with their predictions");
  c->add_option("--check-steps", f.check_steps, "Steps of each; the fastest counts")
      ->check(CLI::Range(std::int64_t{1}, kMost))
      ->capture_default_str();
  c->add_option("--check-only", f.only, "Only the models whose line has this in its name: MoE, dp 2");
  c->add_flag("--markdown", f.markdown, "The tables as Markdown");
  c->add_option(
      "--machine", f.machine,
      "In several processes, to measure the network: folder that tessera calibrate wrote on a host");
  c->add_option("--from-log", f.from_log,
                "Fit to the log of a run of Megatron, torchtitan, DeepSpeed or NeMo; may be repeated")
      ->allow_extra_args(false);
  c->add_option("--plan", f.plan, "plan.json or job.yaml of the log's run; one for all logs, or one a log")
      ->allow_extra_args(false);
  c->add_option("--from-csv", f.from_csv, "Fit to measured runs in the columns that tessera validate reads");
  c->add_option("--cluster", f.cluster,
                "With --from-log: shipped cluster or its YAML, where the plan has none");
  c->add_option("--practice", f.practice, "With --from-log: how the software works (default: the plan's)");
  c->add_option("--base", f.base, "With --from-log: calibration file to start from");
  c->add_option("--constants", f.constants,
                "With runs: coefficients to fit (default: all that they identify)")
      ->delimiter(',');
  add_rendezvous(*c, f.launch.rendezvous);
  c->callback([&] { code = calibrate(f, terminal); });
}

}  // namespace

void add_planning(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  add_schedule(app, all, terminal, code);
  add_model(app, all, terminal, code);
  add_plan(app, all, terminal, code);
  add_emit(app, all, code);
  add_simulate(app, all, terminal, code);
  add_validate(app, all, code);
  add_calibrate(app, all, terminal, code);
}

}  // namespace tessera::cli
