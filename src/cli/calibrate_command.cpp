#include "cli/calibrate_command.h"

#include <fmt/format.h>
#include <sched.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "cli/calibrate_log.h"
#include "cli/calibrate_network.h"
#include "cli/calibrate_text.h"
#include "cost/engine_step.h"
#include "cost/machine_fit.h"
#include "exec/measure_machine.h"
#include "exec/measure_steps.h"
#include "plan/plan.h"
#include "sim/simulate.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

std::int32_t usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (::sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<std::int32_t>(std::max(1U, std::thread::hardware_concurrency()));
}

// A decoder of hidden 512 and 4 layers; with experts the MoE of docs/performance.md.
spec::Job small_job(bool experts) {
  spec::Job job;
  job.model.num_hidden_layers = 4;
  job.model.hidden_size = 512;
  job.model.intermediate_size = experts ? 1024 : 1408;
  job.model.num_attention_heads = job.model.num_key_value_heads = 8;
  job.model.head_dim = 64;
  job.model.vocab_size = 8192;
  job.model.max_position_embeddings = 256;
  if (experts) {
    job.model.family = spec::Family::mixtral;
    job.model.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
    job.train.moe.aux_loss_coef = 0.01;
  }
  job.train.steps = 1000;
  job.train.sequence_length = 256;
  job.train.micro_batch_size = 2;
  job.train.global_batch_size = 4;
  return job;
}

// 124M parameters, as GPT-2's small one.
spec::Job job_of_124m() {
  spec::Job job = small_job(false);
  job.model.num_hidden_layers = 12;
  job.model.hidden_size = 768;
  job.model.intermediate_size = 2048;
  job.model.num_attention_heads = job.model.num_key_value_heads = 12;
  job.model.vocab_size = 50257;
  job.model.tie_word_embeddings = true;
  job.train.sequence_length = 64;
  job.train.micro_batch_size = job.train.global_batch_size = 4;
  return job;
}

struct CheckCase {
  std::string name;
  spec::Job job;
};

std::vector<CheckCase> check_cases(std::int32_t cores, bool quick) {
  std::vector<CheckCase> all;
  const auto add = [&](std::string name, spec::Job job, spec::ParallelSpec p) {
    job.parallel = std::move(p);
    job.train.global_batch_size *= job.parallel.dp;
    if (job.parallel.world_size() <= cores) all.push_back({std::move(name), std::move(job)});
  };
  const spec::Job dense = small_job(false), moe = small_job(true);
  spec::Job sharded = dense, again = dense;
  sharded.train.zero_stage = 1;
  again.train.recompute = spec::Recompute::full;
  spec::ParallelSpec pipeline{.pp = 2};
  pipeline.schedule = "1f1b";
  add("dense, 1 rank", dense, {});
  add("dense, full recomputation", again, {});
  add("dense, dp 2", dense, {.dp = 2});
  add("dense, dp 2, ZeRO-1", sharded, {.dp = 2});
  add("dense, tp 2", dense, {.tp = 2});
  add("dense, pp 2", dense, pipeline);
  add("MoE, 1 rank", moe, {});
  add("MoE, dp 2, ep 2", moe, {.dp = 2, .ep = 2});
  add("MoE, dp 2", moe, {.dp = 2});
  add("MoE, tp 2", moe, {.tp = 2});
  add("MoE, pp 2", moe, pipeline);
  if (!quick) add("dense 124M, 1 rank", job_of_124m(), {});
  return all;
}

CheckResult check_one(const CheckCase& c, const cost::MachineModel& model, std::int32_t steps) {
  const plan::Plan plan = plan::make_plan(c.job);
  exec::MeasuredSteps steps_run = exec::measure_steps(plan, steps);
  // A measured histogram of the routing is the best that is known of an untrained mixture.
  const cost::EngineStep step = cost::engine_step({plan.job, plan.layout, plan.schedule}, model.cluster,
                                                  model.calibration, steps_run.routing);
  CheckResult r{.name = c.name, .predicted = sim::simulate(plan, step.work).seconds()};
  std::vector<double>& seconds = steps_run.seconds;
  std::ranges::sort(seconds);
  r.measured = seconds.front();
  r.median = seconds[seconds.size() / 2];
  r.tokens = static_cast<double>(c.job.train.global_batch_size * c.job.train.sequence_length);
  return r;
}

// What products lose inside of a step, by the first of the checked models: the best of some steps.
void fit_step(cost::MachineModel& model, bool quick) {
  const plan::Plan plan = plan::make_plan(small_job(false));
  const std::vector<double> seconds = exec::measure_steps(plan, quick ? 1 : 6).seconds;
  cost::fit_sustained(model, {plan.job, plan.layout, plan.schedule}, *std::ranges::min_element(seconds));
}

nlohmann::ordered_json to_json(const cost::MachineModel& model, const std::vector<cost::FitRow>& fits,
                               const std::vector<CheckResult>& checks, const fs::path& calibration,
                               const fs::path& cluster) {
  nlohmann::ordered_json j = {{"calibration", calibration.string()}, {"cluster", cluster.string()}};
  j["peak"] = model.calibration.f32.peak;
  j["memory_bandwidth"] = model.calibration.memory_bandwidth;
  j["kernels"] = nlohmann::ordered_json::array();
  for (const cost::FitRow& r : fits) {
    j["kernels"].push_back({{"name", r.kernel},
                            {"sizes", r.count},
                            {"measured_seconds", r.measured_seconds},
                            {"fitted_seconds", r.fitted_seconds},
                            {"median_error", r.median_error},
                            {"worst_error", r.worst_error}});
  }
  j["steps"] = nlohmann::ordered_json::array();
  for (const CheckResult& r : checks) {
    j["steps"].push_back({{"name", r.name},
                          {"predicted_seconds", r.predicted},
                          {"measured_seconds", r.measured},
                          {"median_seconds", r.median},
                          {"error", r.error()}});
  }
  return j;
}

}  // namespace

int calibrate(const CalibrateFlags& flags, const Terminal& terminal) {
  if (!flags.from_log.empty() || !flags.from_csv.empty() || !flags.plan.empty()) {
    return calibrate_from_runs(flags, terminal);
  }
  const Launch launch = find_launch(flags.launch.rendezvous);
  if (launch.is_several()) return calibrate_network(launch, flags, terminal);
  if (!flags.machine.empty()) {
    throw Error(ErrorKind::config, "--machine is for the network between several processes, and this is one",
                "--machine " + flags.machine, "mpirun -n 2 --map-by node tessera calibrate --machine FOLDER");
  }
  const std::int32_t cores = flags.cores > 0 ? flags.cores : usable_cores();
  if (cores > usable_cores()) {
    throw Error(ErrorKind::config, fmt::format("cores={} but this process may use {}", cores, usable_cores()),
                "--cores", "use fewer, or allow the process more of them");
  }
  fs::create_directories(flags.output);  // before half a minute of work
  const auto say = [&](std::string_view what) {
    if (!flags.json) std::fprintf(stderr, "measuring %s\n", std::string(what).c_str());
  };
  const graph::MeasuredMachine machine = exec::measure_machine(
      {.cores = cores, .budget = Seconds(flags.quick ? 3.0 : 24.0), .on_progress = say});
  cost::MachineModel model = cost::fit_machine(machine, flags.name);
  const std::vector<cost::FitRow> fits = cost::fit_rows(model, machine);
  say("a training step");
  fit_step(model, flags.quick);
  const fs::path calibration = fs::path(flags.output) / (flags.name + ".yaml");
  const fs::path cluster = fs::path(flags.output) / "cluster.yaml";
  write_atomically(calibration, cost::to_yaml(model.calibration));
  write_atomically(cluster, spec::to_yaml(model.cluster));
  if (!flags.json) {
    std::printf(
        "%d cores: %.1f GFLOP/s of f32 a core, memory %.1f GB/s one core alone, %.1f GB/s each of all\n\n%s",
        cores, machine.fma_f32.value * 1e-9, machine.triad.value * 1e-9, machine.triad_all.value * 1e-9,
        fit_text(fits, flags, terminal).c_str());
    std::printf("\nproducts inside of a step run at %.1f %% of these rates\n",
                100.0 * model.calibration.sustained);
    std::printf("\nwrote %s and %s\n", calibration.c_str(), cluster.c_str());
    std::fflush(stdout);
  }
  std::vector<CheckResult> checks;
  if (flags.check) {
    for (const CheckCase& c : check_cases(cores, flags.quick)) {
      if (c.name.find(flags.only) == std::string::npos) continue;
      say("steps of " + c.name);
      checks.push_back(check_one(c, model, flags.check_steps));
    }
    if (!flags.json) std::printf("\n%s", check_text(checks, flags, terminal).c_str());
  }
  if (flags.json) std::printf("%s\n", to_json(model, fits, checks, calibration, cluster).dump().c_str());
  return 0;
}

}  // namespace tessera::cli
