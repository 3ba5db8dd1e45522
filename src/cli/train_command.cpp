#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <system_error>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/data_files.h"
#include "cli/progress_printer.h"
#include "cli/rebalance.h"
#include "cli/report_error.h"
#include "cli/stop_signals.h"
#include "cli/supervisor.h"
#include "cli/train_device.h"
#include "cli/weights.h"
#include "exec/generator.h"
#include "exec/trainer.h"
#include "graph/dispatch_form.h"
#include "place/formats.h"
#include "plan/plan.h"
#include "report/run_summary.h"
#include "schedule/simulate.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

std::vector<report::FileRow> files_of(const exec::RunSummary& s, const PreparedData& data,
                                      const fs::path& output) {
  std::vector<report::FileRow> rows;
  const auto add = [&](const char* what, const std::string& path) {
    if (!path.empty()) rows.push_back({what, path});
  };
  add("metrics, a line a step", s.metrics.string());
  add("trace, opens in ui.perfetto.dev", s.trace.string());
  add("routing, for tessera plan --routing", s.routing_dump.string());
  add("plan", output.empty() ? "" : (output / "plan.json").string());
  add("checkpoint", s.checkpoint.string());
  add("tokenizer", data.tokenizer_path);
  return rows;
}

void fill_speed(report::RunView& view, const exec::RunSummary& s, const TrainDevice& device) {
  view.speed.tokens_per_s = s.mean.tokens_per_second;
  view.speed.step = Seconds(s.mean.time.value / static_cast<double>(std::max<std::int64_t>(1, s.mean.step)));
  if (!device.peak) return;
  const std::int32_t busy = std::min(device.units, view.ranks);
  view.speed.mfu = s.mean.mfu;
  view.speed.mfu_full = s.mean.mfu_full;
  view.speed.hfu = s.mean.hfu;
  view.speed.peak = *device.peak * static_cast<double>(busy);
  view.speed.peak_source =
      fmt::format("{}, {} x {:.1f} GFLOP/s", device.peak_source, busy, device.peak->value * 1e-9);
}

void fill_bubble(report::RunView& view, const exec::RunSummary& s, const plan::Plan& plan) {
  if (plan.schedule.pp == 1) return;
  report::BubbleView b;
  b.fraction = s.mean.bubble;
  b.clock =
      s.mean.bubble_clock == exec::BubbleClock::wall ? report::BubbleClock::wall : report::BubbleClock::cpu;
  const Seconds unit(1.0);
  b.ideal = schedule::simulate(plan.schedule,
                               schedule::StageCosts::uniform(plan.schedule.num_stages(), unit, unit, unit))
                .bubble_fraction;
  b.schedule =
      fmt::format("{}, {} micro-batches", schedule::name(plan.schedule.kind), plan.num_microbatches());
  view.bubble = b;
}

report::RunView view_of(const exec::RunSummary& s, const plan::Plan& plan, const PreparedData& data,
                        const TrainDevice& device) {
  const spec::Job& job = plan.job;
  report::RunView view;
  view.title = job.output.folder.empty() ? "run" : fs::path(job.output.folder).filename().string();
  view.ranks = plan.layout.world_size();
  view.cores = device.units;
  view.seconds = s.seconds;
  view.first_step = s.first_step;
  view.losses = s.losses;
  view.unigram_entropy = data.unigram_entropy;
  if (s.validation_loss >= 0.0) view.validation_loss = s.validation_loss;
  view.validation_sequences = s.validation_sequences;
  if (data.validation != nullptr && s.validation_loss < 0.0 && !s.losses.empty()) {
    view.warnings.push_back(
        fmt::format("no validation loss: {} tokens are too few for one pass of {} sequences of {}; raise "
                    "data.validation_fraction",
                    data.validation->num_tokens(), std::int64_t{job.parallel.dp} * job.train.micro_batch_size,
                    job.train.sequence_length));
  }
  view.files = files_of(s, data, job.output.folder);
  if (s.losses.empty()) return view;  // nothing ran: no speed, no memory worth a line
  fill_speed(view, s, device);
  for (const exec::AxisUse& a : s.mean.axes) {
    view.axes.push_back(
        {.axis = std::string(a.axis), .bytes_per_step = a.bytes, .total = a.total, .exposed = a.exposed});
  }
  fill_bubble(view, s, plan);
  view.routing = routing_rows(s.routing);
  view.expert_moves = describe(s.moves);
  for (const exec::RankUse& r : s.ranks) {
    view.memory.push_back({.rank = r.rank.value, .planned = r.planned, .measured = r.measured});
  }
  return view;
}

void add_sample(report::RunView& view, const spec::Job& job, const PreparedData& data,
                const fs::path& checkpoint) {
  if (job.output.sample_prompt.empty() || !data.tokenizer || checkpoint.empty()) return;
  exec::Generator generator(job.model, ckpt::CheckpointReader(checkpoint), job.train.sequence_length);
  const std::vector<std::int32_t> prompt = data.tokenizer->encode(job.output.sample_prompt);
  if (prompt.empty()) return;
  const auto text =
      generator.generate(prompt, {.max_new_tokens = job.output.sample_tokens, .seed = job.train.seed},
                         data.tokenizer->eos_id().value_or(-1));
  view.prompt = job.output.sample_prompt;
  view.sample = data.tokenizer->decode(text);
}

std::string ranks_text(std::int32_t ranks, const comm::ProcessWorld* world) {
  if (world == nullptr) return fmt::format("{} thread rank{}", ranks, ranks == 1 ? "" : "s");
  return fmt::format("{} ranks in {} process{} on {} host{}", ranks, world->processes(),
                     world->processes() == 1 ? "" : "es", world->hosts(), world->hosts() == 1 ? "" : "s");
}

void print_plan(const plan::Plan& plan, const PreparedData& data, const TrainDevice& device,
                const std::string& ranks) {
  std::printf("%s", plan::describe(plan).c_str());
  std::printf("data: %s\n", data.description.c_str());
  std::printf("machine: %s, %s\n\n", device.text.c_str(), ranks.c_str());
  std::fflush(stdout);
}

void print_json_summary(const exec::RunSummary& s, const report::RunView& view) {
  nlohmann::ordered_json j;
  j["summary"]["first_step"] = s.first_step;
  j["summary"]["steps"] = s.losses.size();
  if (const auto loss = report::final_loss(view)) j["summary"]["final_loss"] = *loss;
  j["summary"]["unigram_entropy"] = view.unigram_entropy.value_or(0.0);
  if (view.validation_loss) j["summary"]["validation_loss"] = *view.validation_loss;
  if (!s.losses.empty()) {
    j["summary"]["tokens_per_s"] = view.speed.tokens_per_s;
    j["summary"]["mfu"] = view.speed.mfu.value_or(0.0);
    j["summary"]["peak_flops"] = view.speed.peak.value_or(FlopsPerSecond(0)).value;
  }
  if (s.diverged_at >= 0) j["summary"]["diverged_at"] = s.diverged_at;
  if (s.left_by != 0) j["summary"]["left_by"] = signal_name(s.left_by);
  for (const exec::Divergence& d : s.divergences)
    j["summary"]["divergences"].push_back({{"step", d.step}, {"fault", d.fault}, {"where", d.where}});
  j["summary"]["warnings"] = view.warnings;
  j["summary"]["seconds"] = s.seconds.value;
  for (const report::FileRow& f : view.files) j["summary"]["files"].push_back(f.path);
  std::printf("%s\n", j.dump().c_str());
}

// The model of the weights against the job's: another shape is an error, another constant a warning.
void check_model(const ckpt::WeightSource& source, const spec::ModelSpec& model, const spec::ModelSpec& job,
                 const std::string& where, const std::string& mend) {
  const std::vector<std::string> keys = differences(model, job);
  try {
    ckpt::check_weights(source, job);
  } catch (const Error& e) {
    const std::string what = keys.empty() ? e.problems().front().what : join(keys, "; ");
    throw Error(ErrorKind::config, "the weights are of another model than the job's: " + what, where, mend);
  }
  for (const std::string& key : keys) warn(fmt::format("{}: {} as in the job", where, key));
}

std::shared_ptr<const ckpt::CheckpointReader> open_resume(const spec::Job& job,
                                                          std::vector<std::string>& skipped) {
  const fs::path folder = job.checkpoint.folder;
  if (folder.empty() || !fs::is_directory(folder)) return nullptr;
  std::shared_ptr<const ckpt::CheckpointReader> newest = ckpt::open_latest_checkpoint(folder, &skipped);
  if (!newest && skipped.empty()) return nullptr;
  if (!job.checkpoint.resume) {
    throw Error(ErrorKind::config,
                "checkpoint.resume is false, but the folder holds checkpoints of another run",
                "checkpoint.folder: " + folder.string(), "give a new folder, or remove this one first");
  }
  if (!newest) {
    warn_skipped(skipped);
    throw Error(ErrorKind::io, fmt::format("all {} checkpoints of the folder are damaged", skipped.size()),
                "checkpoint.folder: " + folder.string(),
                "restore one from a copy, or remove the folder to begin again");
  }
  Problems problems;
  const std::string where = newest->folder().string();
  const spec::ModelSpec model = spec::parse_hf_config(newest->meta().hf_config, where, problems);
  problems.throw_if_any();
  check_model(*newest, model, job.model, where,
              "train the model of the checkpoint, or give another checkpoint.folder");
  return newest;
}

std::shared_ptr<const ckpt::WeightSource> open_start(const TrainFlags& flags, const spec::Job& job) {
  if (flags.start_from.empty()) return nullptr;
  const auto mtp =
      job.model.num_nextn_predict_layers > 0 ? ckpt::MtpLayers::keep : ckpt::MtpLayers::leave_out;
  const Weights w = open_weights(flags.start_from, mtp);
  // The source may hold MTP layers that the job does not train.
  spec::ModelSpec have = w.model;
  spec::ModelSpec want = job.model;
  have.num_nextn_predict_layers = w.mtp_layers;
  want.num_nextn_predict_layers = std::max(want.num_nextn_predict_layers, w.mtp_layers);
  check_model(*w.source, have, want, "--start-from " + flags.start_from,
              "give the job the model of these weights, for example model: {config: FOLDER}");
  return w.source;
}

void make_folder(const char* key, const fs::path& folder) {
  if (folder.empty()) return;
  std::error_code code;
  fs::create_directories(folder, code);
  if (!code && ::access(folder.c_str(), W_OK | X_OK) != 0) code = {errno, std::generic_category()};
  if (!code) return;
  throw Error(ErrorKind::io, "cannot write into the folder: " + code.message(),
              fmt::format("{}: {}", key, folder.string()), "give another folder, or mend its permissions");
}

// Before the run, not after hours of it.
void check_dump(const TrainFlags& flags, const spec::Job& job) {
  if (flags.dump_routing.empty() && flags.dump_routing_tokens > 0) {
    throw Error(
        ErrorKind::config,
        fmt::format("the choices of {} tokens are to be kept, but no file", flags.dump_routing_tokens),
        "--dump-routing-tokens", "give --dump-routing FILE too");
  }
  if (flags.dump_routing.empty()) return;
  if (!job.model.moe) {
    throw Error(ErrorKind::config, "the model has no mixture of experts: there is no routing to write",
                "--dump-routing " + flags.dump_routing, "leave the flag out, or train a model with experts");
  }
  const fs::path folder = fs::path(flags.dump_routing).parent_path();
  make_folder("--dump-routing", folder);
  if (fs::is_directory(flags.dump_routing)) {
    throw Error(ErrorKind::config, "the routing file is a folder", "--dump-routing " + flags.dump_routing,
                "give the name of a file in it");
  }
}

// What a run begins with. Nothing is written before all of it is known to be good, but for the tokens.
struct Prepared {
  std::shared_ptr<const ckpt::CheckpointReader> resume;
  std::shared_ptr<const ckpt::WeightSource> start;
  std::vector<std::string> notes;  // warnings to repeat at the end
  PreparedData data;
};

Prepared prepare(const spec::Job& job, const TrainFlags& flags) {
  Prepared p;
  check_data(job);
  check_dump(flags, job);
  std::vector<std::string> skipped;
  p.resume = open_resume(job, skipped);
  for (const std::string& s : skipped) p.notes.push_back("skipped a damaged checkpoint: " + s);
  if (p.resume && !flags.start_from.empty()) {
    p.notes.push_back("--start-from is not used: the run goes on from " + p.resume->folder().string());
  } else {
    p.start = open_start(flags, job);
  }
  if (!job.output.sample_prompt.empty() && job.checkpoint.folder.empty()) {
    p.notes.emplace_back(
        "output.sample_prompt is not used: the sample is made from a checkpoint, and "
        "checkpoint.folder is not given");
  } else if (!job.output.sample_prompt.empty() && job.data.text.empty() && job.data.tokenizer.empty()) {
    p.notes.emplace_back("output.sample_prompt is not used: it needs data.tokenizer");
  }
  for (const std::string& note : p.notes) warn(note);
  make_folder("output.folder", job.output.folder);
  make_folder("checkpoint.folder", job.checkpoint.folder);
  p.data = prepare_data(job);
  return p;
}

void print_start(const spec::Job& job, const Prepared& p) {
  const std::int64_t done = p.resume ? p.resume->meta().step : 0;
  if (p.start) std::printf("first weights from the folder of --start-from\n");
  if (p.resume) {
    std::printf("resumed after step %lld from %s\n", static_cast<long long>(done),
                p.resume->folder().c_str());
  }
  if (done >= job.train.steps) {
    std::printf("nothing to train: the checkpoint has done %lld steps and train.steps is %lld\n",
                static_cast<long long>(done), static_cast<long long>(job.train.steps));
  }
  std::fflush(stdout);
}

int print_diverged(const exec::RunSummary& s, const spec::Job& job) {
  std::fflush(stdout);
  const exec::Divergence& d = s.divergences.back();
  const std::string rest = s.checkpoint.empty()
                               ? "no checkpoint was written before"
                               : "started again, the run goes on from " + s.checkpoint.string();
  const bool patient = job.train.divergence.action != spec::OnDivergence::stop;
  const std::string limit =
      patient ? fmt::format(", as often as train.max_divergences={} allows", job.train.divergence.most) : "";
  std::fputs(
      fmt::format("tessera: training\nstep {} diverged: {}; its update was not made, and the run stopped{}\n"
                  "  where: {}; step {}, lr {:.3g}\n"
                  "  mend: lower train.lr ({:.3g}), raise train.lr_warmup_steps ({}), or set "
                  "train.on_divergence: {}; {}\n",
                  s.diverged_at + 1, d.fault, limit, d.where, s.diverged_at + 1, s.mean.result.lr,
                  job.train.optimizer.lr, job.train.optimizer.lr_warmup_steps,
                  patient ? "stop, and look at the data there" : "skip or rollback", rest)
          .c_str(),
      stderr);
  return kDiverged;
}

int print_left(const exec::RunSummary& s) {
  std::fflush(stdout);
  const auto steps = s.first_step + std::ssize(s.losses);
  std::fputs(fmt::format("tessera: left after step {} by {}: {}\n", steps, signal_name(s.left_by),
                         s.checkpoint.empty()
                             ? "nothing is kept, as the job has no checkpoint.folder"
                             : fmt::format("the same command goes on from {}", s.checkpoint.string()))
                 .c_str(),
             stderr);
  return kLeft;
}

int print_dry_run(const plan::Plan& plan, const TrainFlags& flags) {
  const auto memory = [&] {
    const TrainDevice device =
        open_device(flags.device, exec::dtype_of(plan.job.train.precision), {.measured = false});
    return plan::describe(exec::plan_memory(plan, device.compute.kernels));
  };
  const std::string text = flags.json ? plan::to_json(plan) : plan::describe(plan) + "\n" + memory();
  std::printf("%s%s", text.c_str(), text.ends_with('\n') ? "" : "\n");
  return 0;
}

int print_config(const spec::Job& job, bool json) {
  const std::string text = json ? spec::to_json(job) : spec::to_yaml(job);
  std::printf("%s%s", text.c_str(), text.ends_with('\n') ? "" : "\n");
  return 0;
}

void read_placement(spec::Job& job, const TrainFlags& flags) {
  const std::string where = "--placement " + flags.placement;
  if (!job.model.moe) {
    throw Error(ErrorKind::config, "the model has no experts to place", where, "leave the flag out");
  }
  if (!job.parallel.expert_slots.empty()) {
    throw Error(ErrorKind::config, "the job has parallel.expert_slots already", where, "keep one of them");
  }
  const std::int32_t experts = job.model.moe->num_experts;
  const place::Machine machine{
      .nodes = graph::nodes_of_ep(job.parallel), .gpus = job.parallel.ep, .slots = experts};
  const place::Placement p = place::read_placement(
      flags.placement, {.machine = machine, .num_experts = experts, .layers = spec::moe_layers(job.model)});
  for (const place::LayerMap& map : p.maps)
    job.parallel.expert_slots.insert(job.parallel.expert_slots.end(), map.begin(), map.end());
}

// With the slots of --placement, and those that --rebalance begins with.
spec::Job read_placed_job(const TrainFlags& flags) {
  spec::Job job = spec::read_job(flags.job, flags.overrides, use_on(flags.device));
  if (!flags.placement.empty()) read_placement(job, flags);
  prepare_rebalancing(job, flags);
  return job;
}

struct Processes {
  const Launch& launch;
  comm::ProcessWorld* world;  // null: this one alone
};

// One process at a time where files are made that the others then find: the first.
int train_plan(const plan::Plan& plan, const TrainFlags& flags, const Terminal& terminal,
               const Processes& processes, StopSignals& signals) {
  const spec::Job& job = plan.job;
  comm::ProcessWorld* const world = processes.world;
  const bool leads = world == nullptr || world->process() == 0;
  if (!leads) world->run([](Rank) {});
  const Prepared p = prepare(job, flags);
  const TrainDevice device = open_device(flags.device, exec::dtype_of(job.train.precision),
                                         {.hosts = world == nullptr ? 1 : world->hosts(),
                                          .gpu_shift = shift_of_local_ranks(processes.launch, world),
                                          .measured = leads,
                                          .timeout = Seconds(flags.launch.timeout)});
  if (world != nullptr && leads) world->run([](Rank) {});
  if (!flags.json) {
    print_plan(plan, p.data, device, ranks_text(plan.layout.world_size(), world));
    print_start(job, p);
  }
  const fs::path output = job.output.folder;
  if (leads && !output.empty()) plan::write_plan(output / "plan.json", plan);
  exec::RunSummary summary;
  std::vector<std::string> warnings = p.notes;
  {
    ProgressPrinter progress(job, flags, terminal);
    signals.arm();
    summary = exec::train(plan,
                          {.compute = device.compute,
                           .world = world,
                           .train = p.data.train,
                           .validation = p.data.validation,
                           .cores = device.units,
                           .peak_per_core = device.peak.value_or(FlopsPerSecond(std::nan(""))),
                           .output = output,
                           .dump_routing = flags.dump_routing,
                           .dump_routing_tokens = flags.dump_routing_tokens,
                           .resume = p.resume,
                           .start_weights = p.start,
                           .rebalancing = rebalancing_of(job, flags),
                           .leave = &signals.asked()},
                          {.on_start = [&](std::int64_t step) { progress.start(step); },
                           .on_step = [&](const exec::StepMetrics& m) { progress.step(m); }});
    signals.disarm();
    warnings.insert(warnings.end(), progress.warnings().begin(), progress.warnings().end());
    warnings.insert(warnings.end(), summary.notes.begin(), summary.notes.end());
  }
  if (!leads) return 0;  // the first process has the summary, and the exit code
  report::RunView view = view_of(summary, plan, p.data, device);
  view.warnings.insert(view.warnings.begin(), warnings.begin(), warnings.end());
  if (flags.json) {
    print_json_summary(summary, view);
  } else {
    if (summary.diverged_at < 0 && summary.left_by == 0) add_sample(view, job, p.data, summary.checkpoint);
    std::printf("\n%s", report::render(view, terminal.style).c_str());
  }
  if (summary.diverged_at >= 0) return print_diverged(summary, job);
  return summary.left_by == 0 ? 0 : print_left(summary);
}

int supervise_job(const Launch& launch, const TrainFlags& flags, const spec::Job& job) {
  if (launch.is_several()) {
    throw Error(
        ErrorKind::config, "one process of several cannot start the others again",
        flags.restarts > 0 ? "--restarts" : "--launch",
        "start tessera train --restarts N --launch 'mpirun -n 4' JOB without a launcher, or put the job back "
        "into the queue");
  }
  if (flags.restarts > 0 && job.checkpoint.folder.empty()) {
    throw Error(ErrorKind::config, "a restart would begin again: the job has no checkpoint.folder",
                "--restarts", "add checkpoint.folder and checkpoint.every");
  }
  if (flags.restarts > 0 && job.checkpoint.every == 0)
    warn("checkpoint.every is 0: a restart begins again, unless the run was asked to leave before");
  return supervise({.restarts = flags.restarts,
                    .launcher = flags.launcher,
                    .arguments = flags.arguments,
                    .checkpoints = job.checkpoint.folder});
}

}  // namespace

int train(const TrainFlags& flags, const Terminal& terminal) {
  const Launch launch = find_launch(flags.launch.rendezvous);
  if (!fs::is_regular_file(flags.job)) {
    throw Error(ErrorKind::config, "there is no such job file", flags.job,
                "give the path of a job in YAML; examples/demo/job.yaml is one");
  }
  const spec::Job job = read_placed_job(flags);
  if (flags.print_config) return launch.is_first() ? print_config(job, flags.json) : 0;
  require_device(flags.device);
  const plan::Plan plan = plan::make_plan(job);
  if (flags.dry_run) return launch.is_first() ? print_dry_run(plan, flags) : 0;
  if (flags.restarts > 0 || !flags.launcher.empty()) return supervise_job(launch, flags, job);
  if (!launch.is_several()) {
    if (flags.launch.ranks_per_process > 0 && flags.launch.ranks_per_process != plan.layout.world_size())
      throw Error(ErrorKind::config,
                  fmt::format("one process of {} ranks, but the job has {}", flags.launch.ranks_per_process,
                              plan.layout.world_size()),
                  "--ranks-per-process",
                  "start the processes with mpirun, torchrun or srun, or leave the flag out");
    StopSignals signals({});
    return train_plan(plan, flags, terminal, {launch, nullptr}, signals);
  }
  return run_launched(launch, flags.launch, plan.layout.world_size(),
                      [&](comm::ProcessWorld& world, StopSignals& signals) {
                        return train_plan(plan, flags, terminal, {launch, &world}, signals);
                      });
}

}  // namespace tessera::cli
