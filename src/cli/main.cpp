// The only main: arguments, the terminal, errors and exit codes.
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/text.h"
#include "cli/calibrate_command.h"
#include "cli/commands.h"
#include "cli/place_command.h"
#include "cli/plan_command.h"
#include "cli/report_error.h"
#include "cli/routing_command.h"

namespace {

using tessera::cli::Terminal;

constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();

Terminal read_terminal() {
  Terminal t;
  t.style.width = 100;
  if (tessera::cli::is_launched()) return t;  // what looks like a terminal is a pipe of mpirun
  t.interactive = ::isatty(STDOUT_FILENO) == 1;
  winsize size{};
  const bool known = ::ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  if (known) t.style.width = std::max<std::int32_t>(40, size.ws_col);
  t.style.color = t.interactive && std::getenv("NO_COLOR") == nullptr;
  return t;
}

// Adds one command: its flags go into `flags`, its body runs in the callback.
template <class Flags>
CLI::App* add(CLI::App& app, const char* name, const char* what, const char* example, Flags& flags) {
  CLI::App* command = app.add_subcommand(name, what);
  command->footer(std::string("Example:\n  ") + example);
  command->add_flag("--json", flags.json, "Machine-readable output");
  return command;
}

struct AllFlags {
  tessera::cli::TrainFlags train;
  tessera::cli::GenerateFlags generate;
  tessera::cli::EvaluateFlags evaluate;
  tessera::cli::ConvertFlags convert;
  tessera::cli::TokenizeFlags tokenize;
  tessera::cli::ScheduleFlags schedule;
  tessera::cli::PlanFlags plan;
  tessera::cli::SimulateFlags simulate;
  tessera::cli::ValidateFlags validate;
  tessera::cli::CalibrateFlags calibrate;
  tessera::cli::RoutingFlags routing;
  tessera::cli::PlaceFlags place;
};

void add_train(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.train;
  CLI::App* c =
      add(app, "train", "Run the plan of a job: ranks are threads of this machine, or processes of mpirun",
          "tessera train examples/demo/job.yaml --set train.steps=50\n"
          "  mpirun -n 4 tessera train job.yaml\n"
          "Keys of a job: docs/formats/job.md, or --print-config for all with their values.",
          f);
  c->add_option("job", f.job, "Job file (YAML)")->required();
  c->add_option("--set", f.overrides, "Override a key of the job; may be repeated")
      ->type_name("KEY=VALUE")
      ->allow_extra_args(false);  // one value each: the job may come behind it
  c->add_option("--start-from", f.start_from,
                "Take the first weights from a Hugging Face folder or a checkpoint");
  c->add_option("--placement", f.placement,
                "Where experts live: a file of `tessera place` for the job's expert ranks and nodes");
  c->add_option("--dump-routing", f.dump_routing,
                "Write what the tokens chose: counts and pairs of experts, a file for plan --routing");
  c->add_option("--dump-routing-tokens", f.dump_routing_tokens,
                "Keep every choice of so many last tokens in it")
      ->check(CLI::Range(std::int64_t{0}, kMost));
  c->add_option("--ranks-per-process", f.launch.ranks_per_process,
                "Under mpirun: ranks that are threads of each process (default 1)")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  c->add_flag("--fast-reductions", f.launch.fast_reductions,
              "Under mpirun: sums by MPI's own algorithms, in an order that may differ from run to run");
  c->add_option("--comm-timeout", f.launch.timeout, "Under mpirun: seconds that a rank waits for another")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
  c->add_option("--lost-after", f.launch.silence,
                "Under mpirun: seconds without a sign of life after which a process counts as lost")
      ->check(CLI::Range(0.1, 1e9))
      ->capture_default_str();
  c->add_flag("--show-routing", f.show_routing, "Print the heat map of the experts while training");
  c->add_flag("--dry-run", f.dry_run, "Check the job, print plan and memory per rank, stop");
  c->add_flag("--print-config", f.print_config, "Print the whole job as it will run, stop");
  c->callback([&] { code = tessera::cli::train(f, terminal); });
}

void add_ranks(CLI::App& c, tessera::cli::RankFlags& f) {
  c.add_option("--tp", f.tp, "Tensor-parallel ranks (threads)")->capture_default_str();
  c.add_option("--ep", f.ep, "Expert-parallel ranks, folded over tp and dp")->capture_default_str();
  c.add_option("--etp", f.etp, "Ranks that cut an expert's width")->capture_default_str();
  c.add_option("--dp", f.dp, "Copies of the dense layers (default: what ep and etp need)");
}

void add_sampling(CLI::App& c, tessera::cli::GenerateFlags& f) {
  c.add_option("--max-new-tokens", f.max_new_tokens, "Tokens to add")->capture_default_str();
  c.add_option("--temperature", f.temperature, "0 takes the likeliest token")->capture_default_str();
  c.add_option("--top-k", f.top_k, "Candidates per token (0: all)")->capture_default_str();
  c.add_option("--top-p", f.top_p, "Fewest candidates that have this much probability together")
      ->capture_default_str();
  c.add_option("--seed", f.seed, "Of the random choice")->capture_default_str();
  c.add_option("--stop", f.stop, "Text that ends a sequence and is cut off; may be repeated")
      ->allow_extra_args(false);
  c.add_option("--stop-id", f.stop_ids, "Token that ends a sequence; may be repeated")
      ->allow_extra_args(false);
  c.add_flag("--ignore-end", f.ignore_end, "Go on behind the tokenizer's end of text");
}

void add_generate(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.generate;
  CLI::App* c = add(app, "generate", "Continue texts with a trained model",
                    "tessera generate runs/demo/checkpoints --tokenizer runs/demo/tokenizer.model "
                    "--prompt \"It was a truth\"",
                    f);
  c->add_option("checkpoint", f.checkpoint, "Checkpoint folder (its newest step) or Hugging Face folder")
      ->required();
  c->add_option("--tokenizer", f.tokenizer,
                "sentencepiece .model, tokenizer.json, or a folder with one (default: the checkpoint's)");
  c->add_option("--prompt", f.prompts, "Text to continue; may be repeated")->allow_extra_args(false);
  c->add_option("--prompts", f.prompts_file, "File with a prompt a line, or JSON lines {\"prompt\": ...}");
  add_sampling(*c, f);
  c->add_option("--context", f.context, "Most tokens of prompt and text (0: the model's positions)")
      ->capture_default_str();
  c->add_flag("--slide", f.slide, "Forget the oldest tokens when the context is full instead of stopping");
  c->add_flag("--begin", f.begin, "Put the tokenizer's begin-of-text token in front of each prompt");
  c->add_option("--batch", f.batch, "Sequences at once (0: all prompts, at most 8)")->capture_default_str();
  c->add_option("--chunk", f.chunk, "Most prompt tokens that go through the model at once")
      ->capture_default_str();
  add_ranks(*c, f.ranks);
  c->add_flag("--bandwidth", f.bandwidth, "Measure the memory's bandwidth too and print the share in use");
  c->callback([&] { code = tessera::cli::generate(f, terminal); });
}

void add_eval(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.evaluate;
  CLI::App* c = add(app, "eval", "Score a text with a trained model: loss, perplexity, bits per byte",
                    "tessera eval runs/demo/checkpoints text.txt --tokenizer runs/demo/tokenizer.model", f);
  c->add_option("checkpoint", f.checkpoint, "Checkpoint folder (its newest step) or Hugging Face folder")
      ->required();
  c->add_option("text", f.text, "UTF-8 text; a form feed ends a document")->required();
  c->add_option("--tokenizer", f.tokenizer,
                "sentencepiece .model, tokenizer.json, or a folder with one (default: the checkpoint's)");
  c->add_option("--context", f.context, "Tokens of a window (0: as trained)")->capture_default_str();
  c->add_option("--stride", f.stride, "Tokens from one window to the next (0: the context)")
      ->capture_default_str();
  c->add_option("--batch", f.batch, "Windows of one replica at once")->capture_default_str();
  c->add_flag("--begin", f.begin, "Put the tokenizer's begin-of-text token in front of each document");
  add_ranks(*c, f.ranks);
  c->callback([&] { code = tessera::cli::evaluate(f, terminal); });
}

void add_data(CLI::App& app, AllFlags& all, int& code) {
  auto& v = all.convert;
  CLI::App* convert = add(app, "convert", "Hugging Face folder <-> Tessera checkpoint",
                          "tessera convert runs/demo/checkpoints hf-model", v);
  convert->add_option("from", v.from, "Checkpoint folder or Hugging Face folder")->required();
  convert->add_option("to", v.to, "Folder to write; must not exist")->required();
  convert->add_option("--upcycle", v.upcycle,
                      "Make a mixture of experts of a dense model, as a Hugging Face folder: "
                      "experts=8,top_k=2[,noise=0.01][,seed=1]");
  convert->callback([&] { code = tessera::cli::convert(v); });
  auto& t = all.tokenize;
  CLI::App* tokenize =
      add(app, "tokenize", "Text to a Megatron token file, with a trained or given tokenizer",
          "tessera tokenize text.txt --vocab-size 4096 --tokenizer t.model --output tokens", t);
  tokenize->add_option("text", t.text, "UTF-8 text; a form feed ends a document")->required();
  tokenize
      ->add_option(
          "--tokenizer", t.tokenizer,
          "sentencepiece .model, tokenizer.json or a folder with one; with --vocab-size the .model to write")
      ->required();
  tokenize->add_option("--vocab-size", t.vocab_size, "Train a tokenizer of this size first")
      ->check(CLI::Range(std::int64_t{1}, kMost));
  tokenize->add_option("--output", t.output, "Prefix of the .bin and .idx written")->required();
  tokenize->callback([&] { code = tessera::cli::tokenize(t); });
}

void add_schedule(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.schedule;
  CLI::App* c = add(app, "schedule", "Draw a pipeline schedule, check it and print its bubble",
                    "tessera schedule --kind zb-h1 --pp 4 --microbatches 8", f);
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
  c->callback([&] { code = tessera::cli::schedule(f, terminal); });
}

void add_validate(CLI::App& app, AllFlags& all, int& code) {
  auto& f = all.validate;
  CLI::App* c =
      add(app, "validate", "Compare predictions with measured runs: errors, order of layouts, memory",
          "tessera validate validation/published_runs.csv --folds source --svg scatter.svg\n"
          "The columns of the file: validation/README.md.",
          f);
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
  c->callback([&] { code = tessera::cli::validate_runs(f); });
}

void add_plan(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.plan;
  CLI::App* c = add(app, "plan", "Find the fastest layouts that fit, what bounds them, and why not others",
                    "tessera plan llama-3-70b dgx-h100 --devices 256 --gbs 512 --seq 8192", f);
  const auto positive = CLI::Range(std::int64_t{1}, kMost);
  c->add_option("model", f.model, "Shipped model by name, or a config.json or its folder")->required();
  c->add_option("cluster", f.cluster, "Shipped cluster by name, or a cluster YAML")->required();
  c->add_option("--devices", f.devices, "Devices in use (default: all of the cluster)")->check(positive);
  c->add_option("--gbs", f.global_batch_size, "Sequences of a step (default: about 4 M tokens)")
      ->check(positive);
  c->add_option("--seq", f.sequence_length, "Tokens of a sequence (default: 4096, or the model's positions)")
      ->check(positive);
  c->add_option("--precision", f.precision, "bf16, fp16, fp8, fp8_block, mxfp8, nvfp4, f32 or f64")
      ->capture_default_str();
  c->add_option("--practice", f.practice, "How the software works")->capture_default_str();
  c->add_option(
       "--routing", f.routing,
       "Load of the experts: balanced, power:1.2, or a file of counts or of routing (train --dump-routing)")
      ->capture_default_str();
  c->add_option("--capacity-factor", f.capacity_factor, "Of the experts (0: nothing is dropped)")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  c->add_option("--calibration", f.calibration, "Calibration file instead of the device's shipped one");
  c->add_option("--pin", f.pins, "Fix an axis or a choice, tp=8 or schedule=1f1b,zb-h1; may be repeated")
      ->type_name("NAME=VALUES")
      ->allow_extra_args(false);
  c->add_option("--top", f.top, "Layouts in the list")->check(CLI::Range(1, 1000))->capture_default_str();
  c->add_option("--memory", f.memory, "Share of the usable memory that a plan may reserve")
      ->check(CLI::Range(0.01, 1.0))
      ->capture_default_str();
  c->add_option("--threads", f.threads, "Of the search (default: all cores)")->check(CLI::Range(1, 1024));
  c->add_flag("--all-choices", f.all_choices, "Rank every choice for itself, not the best of each layout");
  c->add_flag("--closed-form", f.closed_form, "Do not time the best ones again with the simulator");
  c->add_option("--output", f.output, "Write the plan of the best one, for simulate and train");
  c->callback([&] { code = tessera::cli::plan(f, terminal); });
}

void add_simulated_layout(CLI::App& c, tessera::cli::SimulateFlags& f) {
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
          f);
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
  c->add_option("--calibration", f.calibration, "Calibration file instead of the device's shipped one");
  c->add_option("--stragglers", f.stragglers, "Slow pipeline ranks, 0=1.2; may be repeated")
      ->type_name("RANK=FACTOR")
      ->allow_extra_args(false);
  c->add_flag("--shared-links", f.shared_links, "Messages and reductions of a device share its NIC");
  c->add_option("--trace", f.trace, "Write the timeline for ui.perfetto.dev");
  c->add_option("--trace-detail", f.trace_detail, "A span for each part of an action, or for each action")
      ->check(CLI::IsMember({"segments", "actions"}))
      ->capture_default_str();
  c->callback([&] { code = tessera::cli::simulate(f, terminal); });
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
  CLI::App* c = add(app, "calibrate", "Measure this machine: the calibration and cluster that predict it",
                    "tessera calibrate --output machine --check\n"
                    "What the file holds: docs/formats/calibration.md.",
                    f);
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
  c->callback([&] { code = tessera::cli::calibrate(f, terminal); });
}

// How to read a table without names.
template <class Flags>
void add_table(CLI::App& c, Flags& f) {
  c.add_option("--content", f.content, "Of a table without names: counts or choices")
      ->check(CLI::IsMember({"auto", "counts", "choices"}))
      ->capture_default_str();
  c.add_option("--order", f.order, "Of a table of choices: layers first or tokens first")
      ->check(CLI::IsMember({"auto", "layers", "tokens"}))
      ->capture_default_str();
  c.add_option("--experts", f.experts, "Of a layer, where the file does not say it (0: the largest id + 1)")
      ->check(CLI::Range(0, 16384))
      ->capture_default_str();
  c.add_option("--first-layer", f.first_layer, "Model index of a table's first layer")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

void add_routing(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.routing;
  CLI::App* c =
      add(app, "routing", "Show which experts tokens chose, of a routing file of any program; convert it",
          "tessera routing runs/a/routing.safetensors\n"
          "  tessera routing topk.npy --experts 64 --first-layer 1 --convert routing.safetensors\n"
          "The files that can be read: docs/formats/routing.md.",
          f);
  c->add_option("file", f.file, "Routing file, or TensorRT-LLM's folder of expert statistics")->required();
  c->add_option("--convert", f.convert, "Write it as a Tessera routing file");
  add_table(*c, f);
  c->add_option("--pairs", f.pairs, "Most co-active pairs shown of a layer")
      ->check(CLI::Range(0, 100))
      ->capture_default_str();
  c->callback([&] { code = tessera::cli::routing(f, terminal); });
}

void add_place_files(CLI::App& c, tessera::cli::PlaceFlags& f) {
  c.add_option("--output", f.output, "Write the placement (docs/formats/placement.md)");
  c.add_option("--sglang", f.sglang, "Write it for SGLang --init-expert-location");
  c.add_option("--model-layers", f.model_layers,
               "Layers of the whole model, for --sglang (0: up to the last)")
      ->check(CLI::Range(0, 4096))
      ->capture_default_str();
  c.add_option("--vllm", f.vllm, "Write it for vLLM's initial_expert_map_path");
  c.add_option("--vllm-ranks", f.vllm_ranks, "Write it for vLLM's --expert-placement-file; needs --one-map");
  c.add_option("--vllm-ascend", f.vllm_ascend, "Write it for vllm-ascend's expert_map_path");
  c.add_option("--tensorrt-llm", f.tensorrt_llm, "Write it for TensorRT-LLM's load balancer");
  c.add_option("--svg", f.svg, "Draw the load of every GPU before and after");
}

void add_place_search(CLI::App& c, tessera::cli::PlaceFlags& f) {
  c.add_option("--method", f.method,
               "seconds, balance, relaxed, traffic, published, published-global, contiguous, random")
      ->capture_default_str();
  c.add_option("--groups", f.groups, "Groups of experts, for relaxed and published (0: as many as nodes)")
      ->capture_default_str();
  c.add_option("--cap", f.cap, "Load of a node above the mean, for traffic")->capture_default_str();
  c.add_flag("--robust", f.robust, "Place for all load windows at once, not for their sum");
  c.add_option("--windows", f.windows, "Cut the tokens into so many windows where the file has none")
      ->check(CLI::Range(0, 1000));
  c.add_option("--hold-out", f.hold_out,
               "Judge on it, do not see it: a window, or a share of the tokens (0.5)");
  c.add_option("--skip-tokens", f.skip_tokens, "Leave out so many first tokens of every sequence")
      ->check(CLI::Range(0, 1 << 20));
  c.add_flag("--one-map", f.one_map, "The same map in all layers");
  c.add_flag("--cover", f.cover, "Tokens prefer replicas on nodes that they reach anyway");
  c.add_option("--current", f.current, "Placement that is deployed now: moves count");
  c.add_option("--most-moved", f.most_moved, "Share of a layer's slots that may change, of --current")
      ->capture_default_str();
  c.add_option("--effort", f.effort, "Steps of the searches, times this")
      ->check(CLI::Range(0.01, 1000.0))
      ->capture_default_str();
  c.add_option("--seed", f.seed, "Of the searches")->capture_default_str();
  c.add_option("--threads", f.threads, "Of the searches (0: all cores); the result is the same")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void add_place(CLI::App& app, AllFlags& all, const Terminal& terminal, int& code) {
  auto& f = all.place;
  CLI::App* c =
      add(app, "place", "Place experts on GPUs from routing statistics: even load, little traffic, few moves",
          "tessera place routing.safetensors --nodes 4 --slots-per-gpu 9 --output placement.json\n"
          "  tessera place topk.npy --experts 64 --nodes 4 --method traffic --hold-out 0.5\n"
          "How to read it: docs/howto/place-experts.md.",
          f);
  c->add_option("stats", f.stats, "Routing file of any program (docs/formats/routing.md)")->required();
  c->add_option("--nodes", f.nodes, "Nodes of the expert-parallel group")->check(CLI::Range(1, 1 << 16));
  c->add_option("--gpus-per-node", f.gpus_per_node, "(default: the cluster's)")
      ->check(CLI::Range(1, 1 << 10));
  c->add_option("--slots-per-gpu", f.slots_per_gpu,
                "Experts that a GPU holds of a layer (default: the fewest)")
      ->check(CLI::Range(1, 1 << 14));
  c->add_option("--cluster", f.cluster, "Preset or YAML: bandwidths and GPU, for seconds")
      ->capture_default_str();
  c->add_option("--model", f.model, "Preset or config.json: sizes of experts, for seconds")
      ->capture_default_str();
  c->add_option("--tokens-per-gpu", f.tokens_per_gpu, "Of a step, for seconds")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  c->add_option("--steps-between", f.steps_between, "Steps that share the cost of moving experts once")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  add_place_search(*c, f);
  add_place_files(*c, f);
  c->add_flag("--pareto", f.pareto, "Print the front of computing, network and moved slots");
  c->add_flag("--by-layer", f.by_layer, "Print a line a layer");
  add_table(*c, f);
  c->callback([&] { code = tessera::cli::place(f, terminal); });
}

std::vector<std::string> names_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* c : app.get_subcommands({})) names.push_back(c->get_name());
  return names;
}

std::vector<std::string> flags_of(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* o : app.get_options()) {
    for (const std::string& name : o->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

// What the parser says, with the nearest known word and where to read more.
tessera::Error wrong_use(const CLI::App& app, const CLI::ParseError& e,
                         const std::vector<std::string>& args) {
  using tessera::ErrorKind;
  const std::vector<std::string> commands = names_of(app);
  if (args.empty()) {
    return {ErrorKind::config, "no command is given", "tessera",
            "use one of " + tessera::join(commands, ", ") + "; tessera --help tells what they do"};
  }
  const auto parsed = app.get_subcommands();
  if (parsed.empty()) {
    const std::string near = tessera::nearest(args[0], commands);
    return {ErrorKind::config, "there is no command or flag \"" + args[0] + "\"", "tessera " + args[0],
            near.empty() ? "use one of " + tessera::join(commands, ", ") : "did you mean " + near + "?"};
  }
  const CLI::App& command = *parsed.front();
  const std::string help = "tessera " + command.get_name() + " --help lists the arguments";
  for (const std::string& arg : command.remaining()) {
    const std::string near = tessera::nearest(arg, flags_of(command));
    const bool flag = arg.starts_with("-");
    return {ErrorKind::config, (flag ? "unknown flag \"" : "one argument too many: \"") + arg + "\"",
            "tessera " + command.get_name(), near.empty() ? help : "did you mean " + near + "? " + help};
  }
  return {ErrorKind::config, e.what(), "tessera " + command.get_name(), help};
}

int run(int argc, char** argv) {
  CLI::App app{"Tessera trains dense and mixture-of-experts language models in 4D parallelism", "tessera"};
  app.require_subcommand(1);
  app.set_version_flag("--version", TESSERA_VERSION);
  app.footer("Exit codes: 0 good, 1 failed, 2 wrong use.");
  AllFlags all;
  const Terminal terminal = read_terminal();
  int code = 0;
  add_train(app, all, terminal, code);
  add_generate(app, all, terminal, code);
  add_eval(app, all, terminal, code);
  add_data(app, all, code);
  add_schedule(app, all, terminal, code);
  add_plan(app, all, terminal, code);
  add_simulate(app, all, terminal, code);
  add_validate(app, all, code);
  add_calibrate(app, all, terminal, code);
  add_routing(app, all, terminal, code);
  add_place(app, all, terminal, code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);  // help and version
    throw wrong_use(app, e, std::vector<std::string>(argv + 1, argv + argc));
  }
  return code;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    return run(argc, argv);
  } catch (...) {
    // Most likely the first process tells the same, and mpirun ends this one meanwhile.
    if (!tessera::cli::is_first()) std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    return tessera::cli::print_error(tessera::cli::as_error(std::current_exception()));
  }
}
