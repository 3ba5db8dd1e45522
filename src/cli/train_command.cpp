#include <fmt/format.h>
#include <sched.h>

#include <cstdio>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/text.h"
#include "cli/commands.h"
#include "cli/data_files.h"
#include "exec/generator.h"
#include "exec/trainer.h"
#include "kernels/peak.h"
#include "plan/plan.h"
#include "report/progress.h"
#include "report/run_summary.h"
#include "report/strip.h"
#include "schedule/simulate.h"

namespace tessera::cli {

namespace fs = std::filesystem;

namespace {

std::int32_t available_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  return ::sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : 1;
}

// The progress line: rewritten in place for a person, every tenth of the run for a file.
class Progress {
 public:
  Progress(const spec::Job& job, const TrainFlags& flags, const Terminal& terminal)
      : job_(job), json_(flags.json), terminal_(terminal) {}

  void step(const exec::StepMetrics& m, std::int64_t first_step) {
    if (json_) {
      std::printf("%s\n", exec::to_json(m).c_str());
      std::fflush(stdout);
      return;
    }
    for (const std::string& w : m.warnings) {
      std::printf("%swarning (step %lld): %s\n", terminal_.interactive ? "\r\033[K" : "",
                  static_cast<long long>(m.step + 1), w.c_str());
      warnings.push_back(w);
    }
    seconds_ += m.time.value;
    const std::int64_t done = m.step + 1;
    const std::int64_t ran = done - first_step;
    const std::int64_t stride = std::max<std::int64_t>(1, job_.train.steps / 20);
    if (!terminal_.interactive && done % stride != 0 && done != job_.train.steps && ran != 1) return;
    report::ProgressState p;
    p.step = done;
    p.steps = job_.train.steps;
    p.loss = m.result.ce_loss;
    p.tokens_per_s = m.tokens_per_second;
    p.seconds_left =
        Seconds(seconds_ / static_cast<double>(ran) * static_cast<double>(job_.train.steps - done));
    p.strip = strip(m);
    p.mfu = m.mfu;
    p.grad_norm = m.result.grad_norm;
    p.lr = m.result.lr;
    const std::string line = report::progress_line(p, terminal_.style);
    if (terminal_.interactive) {
      std::printf("\r\033[K%s", line.c_str());
      if (done == job_.train.steps) std::printf("\n");
    } else {
      std::printf("%s\n", line.c_str());
    }
    std::fflush(stdout);
  }
  std::vector<std::string> warnings;

 private:
  // Load of the experts, all layers together.
  [[nodiscard]] std::string strip(const exec::StepMetrics& m) const {
    if (m.routing.empty()) return {};
    std::vector<double> load(m.routing[0].chosen.size(), 0.0);
    for (const exec::RoutingFigures& r : m.routing) {
      for (std::size_t e = 0; e < load.size(); ++e) load[e] += static_cast<double>(r.chosen[e]);
    }
    return report::heat_strip(load, terminal_.style, 16);
  }
  const spec::Job& job_;
  bool json_;
  const Terminal& terminal_;
  double seconds_ = 0.0;
};

std::vector<report::FileRow> files_of(const exec::RunSummary& s, const PreparedData& data,
                                      const fs::path& output) {
  std::vector<report::FileRow> rows;
  const auto add = [&](const char* what, const std::string& path) {
    if (!path.empty()) rows.push_back({what, path});
  };
  add("metrics, a line a step", s.metrics.string());
  add("trace, opens in ui.perfetto.dev", s.trace.string());
  add("plan", output.empty() ? "" : (output / "plan.json").string());
  add("checkpoint", s.checkpoint.string());
  add("tokenizer", data.tokenizer_path);
  return rows;
}

void fill_speed(report::RunView& view, const exec::RunSummary& s, const kernels::Peaks& peaks,
                const spec::Job& job) {
  const std::int32_t busy_cores = std::min(view.cores, view.ranks);
  const bool f64 = job.train.precision == spec::Precision::f64;
  const FlopsPerSecond peak = f64 ? peaks.fma_f64 : peaks.fma_f32;
  view.speed.tokens_per_s = s.mean.tokens_per_second;
  view.speed.step = Seconds(s.mean.time.value / static_cast<double>(std::max<std::int64_t>(1, s.mean.step)));
  view.speed.mfu = s.mean.mfu;
  view.speed.mfu_full = s.mean.mfu_full;
  view.speed.hfu = s.mean.hfu;
  view.speed.peak = peak * static_cast<double>(busy_cores);
  view.speed.peak_source = fmt::format("measured {} FMA peak ({}), {} x {:.1f} GFLOP/s", f64 ? "f64" : "f32",
                                       kernels::instruction_set(), busy_cores, peak.value * 1e-9);
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
                        const kernels::Peaks& peaks, std::int32_t cores) {
  const spec::Job& job = plan.job;
  report::RunView view;
  view.title = job.output.folder.empty() ? "run" : fs::path(job.output.folder).filename().string();
  view.ranks = plan.layout.world_size();
  view.cores = cores;
  view.seconds = s.seconds;
  view.first_step = s.first_step;
  view.losses = s.losses;
  view.unigram_entropy = data.unigram_entropy;
  if (s.validation_loss >= 0.0) view.validation_loss = s.validation_loss;
  view.validation_sequences = s.validation_sequences;
  fill_speed(view, s, peaks, job);
  for (const exec::AxisUse& a : s.mean.axes) {
    view.axes.push_back(
        {.axis = std::string(a.axis), .bytes_per_step = a.bytes, .total = a.total, .exposed = a.exposed});
  }
  fill_bubble(view, s, plan);
  for (const exec::RoutingFigures& r : s.routing) {
    view.routing.push_back({.layer = r.layer,
                            .load = {r.chosen.begin(), r.chosen.end()},
                            .max_over_mean = r.max_over_mean,
                            .cv = r.cv,
                            .entropy = r.entropy,
                            .dead = r.dead,
                            .drop_rate = r.drop_rate});
  }
  for (const exec::RankUse& r : s.ranks) {
    view.memory.push_back({.rank = r.rank.value, .planned = r.planned, .measured = r.measured});
  }
  view.files = files_of(s, data, job.output.folder);
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

void print_plan(const plan::Plan& plan, const PreparedData& data, const kernels::Peaks& peaks,
                std::int32_t cores) {
  std::printf("%s", plan::describe(plan).c_str());
  std::printf("data: %s\n", data.description.c_str());
  std::printf("machine: %d cores, %.1f GFLOP/s f32 FMA peak per core (%s), %d thread ranks\n\n", cores,
              peaks.fma_f32.value * 1e-9, std::string(kernels::instruction_set()).c_str(),
              plan.layout.world_size());
  std::fflush(stdout);
}

void print_json_summary(const exec::RunSummary& s, const report::RunView& view) {
  nlohmann::ordered_json j;
  j["summary"]["first_step"] = s.first_step;
  j["summary"]["steps"] = s.losses.size();
  j["summary"]["final_loss"] = report::final_loss(view).value_or(0.0);
  j["summary"]["unigram_entropy"] = view.unigram_entropy.value_or(0.0);
  if (view.validation_loss) j["summary"]["validation_loss"] = *view.validation_loss;
  j["summary"]["tokens_per_s"] = view.speed.tokens_per_s;
  j["summary"]["mfu"] = view.speed.mfu.value_or(0.0);
  j["summary"]["seconds"] = s.seconds.value;
  for (const report::FileRow& f : view.files) j["summary"]["files"].push_back(f.path);
  std::printf("%s\n", j.dump().c_str());
}

}  // namespace

int train(const TrainFlags& flags, const Terminal& terminal) {
  const spec::Job job = spec::read_job(flags.job, flags.overrides);
  if (flags.print_config) {
    std::printf("%s", spec::to_yaml(job).c_str());
    return 0;
  }
  const plan::Plan plan = plan::make_plan(job);
  if (flags.dry_run) {
    std::printf("%s\n%s", plan::describe(plan).c_str(), plan::describe(exec::plan_memory(plan)).c_str());
    return 0;
  }
  const PreparedData data = prepare_data(job);
  const kernels::Peaks peaks = kernels::measure_peaks();
  const std::int32_t cores = available_cores();
  if (!flags.json) print_plan(plan, data, peaks, cores);
  const fs::path output = job.output.folder;
  if (!output.empty()) {
    fs::create_directories(output);
    plan::write_plan(output / "plan.json", plan);
  }
  Progress progress(job, flags, terminal);
  std::int64_t first_step = 0;
  const bool f64 = job.train.precision == spec::Precision::f64;
  const exec::RunSummary summary =
      exec::train(plan,
                  {.train = data.train,
                   .validation = data.validation,
                   .cores = cores,
                   .peak_per_core = f64 ? peaks.fma_f64 : peaks.fma_f32,
                   .output = output,
                   .start_from = flags.start_from},
                  {.on_start =
                       [&](std::int64_t step) {
                         first_step = step;
                         if (step > 0 && !flags.json) {
                           std::printf("resumed after step %lld from %s\n", static_cast<long long>(step),
                                       job.checkpoint.folder.c_str());
                         }
                       },
                   .on_step = [&](const exec::StepMetrics& m) { progress.step(m, first_step); }});
  report::RunView view = view_of(summary, plan, data, peaks, cores);
  view.warnings = progress.warnings;
  if (flags.json) {
    print_json_summary(summary, view);
    return 0;
  }
  add_sample(view, job, data, summary.checkpoint);
  std::printf("\n%s", report::render(view, terminal.style).c_str());
  return 0;
}

}  // namespace tessera::cli
