#include "cli/calibrate_network.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/text.h"
#include "cli/calibrate_text.h"
#include "cli/launch.h"
#include "cost/engine_step.h"
#include "cost/network_fit.h"
#include "exec/measure_network.h"
#include "exec/measure_steps.h"
#include "plan/plan.h"
#include "sim/simulate.h"

namespace tessera::cli {
namespace {

namespace fs = std::filesystem;

// Small enough that a slow network moves its gradients in a second. Its embedding, whose gradients are
// complete last, is a small part.
spec::Job network_job(bool experts) {
  spec::Job job;
  job.model.num_hidden_layers = 4;
  job.model.hidden_size = 256;
  job.model.intermediate_size = experts ? 352 : 704;
  job.model.num_attention_heads = job.model.num_key_value_heads = 4;
  job.model.head_dim = 64;
  job.model.vocab_size = 1024;
  job.model.max_position_embeddings = 256;
  if (experts) {
    job.model.family = spec::Family::mixtral;
    job.model.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
    job.train.moe.aux_loss_coef = 0.01;
  }
  job.train.steps = 1000;
  job.train.sequence_length = 256;
  job.train.micro_batch_size = 2;
  job.train.global_batch_size = 16;
  job.train.bucket_bytes = std::int64_t{1} << 20;
  return job;
}

struct NetworkCase {
  std::string name;
  spec::Job job;
};

class Cases {
 public:
  explicit Cases(std::int32_t world) : world_(world) {}

  struct Change {
    std::int64_t micro_batch = 2;
    std::int32_t zero = 0;
    std::int64_t batch = 16;
    std::int32_t layers = 4;
    bool overlap = true;
  };
  void add(std::string name, bool experts, const spec::ParallelSpec& p, const Change& change) {
    spec::Job job = network_job(experts);
    job.parallel = p;
    job.train.micro_batch_size = static_cast<std::int32_t>(change.micro_batch);
    job.train.global_batch_size = static_cast<std::int32_t>(change.batch);
    job.train.zero_stage = change.zero;
    job.model.num_hidden_layers = change.layers;
    job.train.overlap_grad_reduce = change.overlap;
    const std::int32_t size = p.world_size();
    if (size == world_ || size == 1) all_.push_back({std::move(name), std::move(job)});
  }
  static spec::ParallelSpec pipeline(const char* schedule, std::int32_t vpp = 1) {
    spec::ParallelSpec p{.pp = 2};
    p.vpp = vpp;
    p.schedule = schedule;
    return p;
  }
  [[nodiscard]] std::vector<NetworkCase> take() { return std::move(all_); }

 private:
  std::int32_t world_;
  std::vector<NetworkCase> all_;
};

// All but those of overlap train the same batch, so that their steps can be ranked.
std::vector<NetworkCase> network_cases(std::int32_t world) {
  Cases c(world);
  c.add("dense, 1 rank", false, {}, {});
  c.add("MoE, 1 rank", true, {}, {});
  c.add("dense, dp 2", false, {.dp = 2}, {});
  c.add("dense, dp 2, micro-batch 8", false, {.dp = 2}, {.micro_batch = 8});
  c.add("dense, dp 2, ZeRO-1", false, {.dp = 2}, {.zero = 1});
  c.add("dense, tp 2", false, {.tp = 2}, {});
  c.add("dense, tp 2, micro-batch 8", false, {.tp = 2}, {.micro_batch = 8});
  c.add("dense, pp 2, 1F1B", false, Cases::pipeline("1f1b"), {});
  c.add("dense, pp 2, 1F1B, micro-batch 4", false, Cases::pipeline("1f1b"), {.micro_batch = 4});
  c.add("dense, pp 2, GPipe", false, Cases::pipeline("gpipe"), {});
  c.add("dense, pp 2, ZB-H1", false, Cases::pipeline("zb-h1"), {});
  c.add("dense, pp 2, interleaved", false, Cases::pipeline("interleaved", 2), {});
  c.add("MoE, dp 2", true, {.dp = 2}, {});
  c.add("MoE, dp 2, ep 2", true, {.dp = 2, .ep = 2}, {});
  c.add("MoE, tp 2, etp 2", true, {.tp = 2, .etp = 2}, {});
  c.add("MoE, pp 2, 1F1B", true, Cases::pipeline("1f1b"), {});
  // Layers enough that the last one's gradients, which nothing hides, are a small part.
  for (const std::int64_t sequences : {8, 24}) {
    for (const bool on : {true, false}) {
      c.add(fmt::format("overlap {}, {} tokens", on ? "on" : "off", sequences * 256), false, {.dp = 2},
            {.micro_batch = sequences, .batch = 2 * sequences, .layers = 12, .overlap = on});
    }
  }
  c.add("dense, tp 2, dp 2", false, {.tp = 2, .dp = 2}, {});
  spec::ParallelSpec two = Cases::pipeline("1f1b");
  two.tp = 2;
  c.add("dense, tp 2, pp 2", false, two, {});
  two.tp = 1;
  two.dp = 2;
  c.add("dense, dp 2, pp 2", false, two, {});
  c.add("MoE, dp 4, ep 2", true, {.dp = 4, .ep = 2}, {});
  c.add("dense, dp 4", false, {.dp = 4}, {});
  spec::ParallelSpec nodes{.dp = 4, .ep = 4};
  c.add("MoE, dp 4, ep 4", true, nodes, {});
  nodes.ranks_per_node = 2;
  c.add("MoE, dp 4, ep 4, hierarchical", true, nodes, {});
  return c.take();
}

struct NetworkResult {
  CheckResult check;
  std::vector<exec::AxisUse> axes;  // of the fastest step
};

double predict(const plan::Plan& plan, const cost::MachineModel& model, const graph::RoutingCounts& routing) {
  const cost::EngineJob job{plan.job, plan.layout, plan.schedule};
  const cost::EngineStep step = cost::engine_step(job, model.cluster, model.calibration, routing);
  sim::Options options;
  options.num_buckets = cost::num_buckets(job, step.work);
  return sim::simulate(plan, step.work, options).seconds();
}

exec::MeasuredSteps measure(const plan::Plan& plan, std::int32_t steps, comm::ProcessWorld& world) {
  if (plan.layout.world_size() > 1) return exec::measure_steps(plan, steps, {.world = &world});
  world.run([](Rank) {});  // alone, but at the same time on every host
  exec::MeasuredSteps measured = exec::measure_steps(plan, steps);
  world.run([](Rank) {});
  return measured;
}

cost::MachineModel read_machine(const std::string& folder) {
  cost::MachineModel model;
  model.cluster = spec::read_cluster(fs::path(folder) / "cluster.yaml");
  model.calibration = cost::read_calibration(fs::path(folder) / (model.cluster.device + ".yaml"));
  return model;
}

// The network between hosts beside what the machine's files say; on one host those files alone.
struct Network {
  cost::MachineModel model;
  graph::MeasuredNetwork measured;
  std::vector<cost::FitRow> fits;
};

Network measure_and_fit(const CalibrateFlags& flags, comm::ProcessWorld& world) {
  Network n{.model = read_machine(flags.machine), .measured = {}, .fits = {}};
  if (world.hosts() < 2) return n;
  if (!flags.json) std::fprintf(stderr, "measuring the network between %d hosts\n", world.hosts());
  n.measured = exec::measure_network(world, world.hosts(), {.seconds = Seconds(flags.quick ? 0.05 : 0.25)});
  if (world.process() != 0) return n;
  n.model = cost::fit_network(n.model, n.measured, flags.name);
  n.fits = cost::fit_rows(n.model, n.measured);
  return n;
}

void write_files(const CalibrateFlags& flags, const cost::MachineModel& model) {
  fs::create_directories(flags.output);
  write_atomically(fs::path(flags.output) / (flags.name + ".yaml"), cost::to_yaml(model.calibration));
  write_atomically(fs::path(flags.output) / "cluster.yaml", spec::to_yaml(model.cluster));
}

// Two ranks on as many hosts have a core each, for which the machine was measured.
bool has_cores(const Network& n, comm::ProcessWorld& world) {
  return world.size() == world.hosts() && n.measured.ranks_per_host == 1;
}

NetworkResult check_one(const NetworkCase& c, Network& n, const CalibrateFlags& flags,
                        comm::ProcessWorld& world) {
  const plan::Plan plan = plan::make_plan(c.job);
  // What others are fitted to is measured longer.
  const std::int32_t times = plan.layout.world_size() == 1 ? 3 : 1;
  exec::MeasuredSteps run = measure(plan, times * flags.check_steps, world);
  NetworkResult r;
  if (world.process() != 0) return r;
  const auto best = static_cast<std::size_t>(std::ranges::min_element(run.seconds) - run.seconds.begin());
  r.axes = run.each[best].axes;
  r.check.name = c.name;
  r.check.measured = run.seconds[best];
  std::vector<double> sorted = run.seconds;
  std::ranges::sort(sorted);
  r.check.median = sorted[sorted.size() / 2];
  r.check.tokens = static_cast<double>(c.job.train.global_batch_size * c.job.train.sequence_length);
  if (!has_cores(n, world)) return r;
  // What products lose inside of a step, by the first model: one rank, no network.
  if (c.name == "dense, 1 rank")
    cost::fit_sustained(n.model, {plan.job, plan.layout, plan.schedule}, r.check.measured);
  r.check.predicted = predict(plan, n.model, run.routing);
  return r;
}

using Json = nlohmann::ordered_json;

Json to_json(const Network& n, const std::vector<NetworkResult>& results, const CalibrateFlags& flags) {
  Json j = {{"output", flags.output}};
  if (!n.fits.empty()) {
    const spec::TierSpec& tier = n.model.cluster.tiers.back();
    j["network"] = {{"bandwidth", tier.bandwidth.value * n.measured.ranks_per_host},
                    {"latency_seconds", tier.latency.value},
                    {"compute_slowdown", n.measured.compute_slowdown},
                    {"transfer_slowdown", n.measured.transfer_slowdown}};
    if (n.measured.reduced.value > 0) {
      j["all_reduce"] = {{"bytes", n.measured.reduced.value},
                         {"flat_seconds", n.measured.flat_all_reduce.value},
                         {"hierarchical_seconds", n.measured.hierarchical_all_reduce.value}};
    }
    j["calls"] = Json::array();
    for (const graph::MeasuredOp& m : n.measured.ops)
      j["calls"].push_back(
          {{"name", m.op.name}, {"bytes_sent", m.op.bytes_sent.value}, {"seconds", m.seconds.value}});
    j["fits"] = Json::array();
    for (const cost::FitRow& r : n.fits)
      j["fits"].push_back(
          {{"name", r.kernel}, {"median_error", r.median_error}, {"worst_error", r.worst_error}});
  }
  j["steps"] = Json::array();
  for (const NetworkResult& r : results) {
    Json step = {{"name", r.check.name}};
    if (r.check.predicted > 0.0) step["predicted_seconds"] = r.check.predicted;
    step["measured_seconds"] = r.check.measured;
    step["median_seconds"] = r.check.median;
    step["axes"] = Json::object();
    for (const exec::AxisUse& a : r.axes)
      step["axes"][std::string(a.axis)] = {{"sent_bytes", a.bytes.value},
                                           {"total_seconds", a.total.value},
                                           {"exposed_seconds", a.exposed.value}};
    j["steps"].push_back(std::move(step));
  }
  return j;
}

void print(const Network& n, const std::vector<NetworkResult>& results, const CalibrateFlags& flags,
           const Terminal& terminal) {
  if (!n.fits.empty()) {
    const spec::TierSpec& tier = n.model.cluster.tiers.back();
    std::printf("network: %.1f MB/s of a host, each direction; latency %.0f us\n",
                tier.bandwidth.value * n.measured.ranks_per_host * 1e-6, tier.latency.value * 1e6);
    std::printf("beside an all-reduce compute loses %.1f %%, and the all-reduce takes %.1f %% longer\n\n",
                100.0 * n.measured.compute_slowdown, 100.0 * n.measured.transfer_slowdown);
    if (n.measured.reduced.value > 0) {
      std::printf("an all-reduce of %.1f MB over all ranks: one ring %.1f ms, by hosts %.1f ms\n\n",
                  static_cast<double>(n.measured.reduced.value) * 1e-6,
                  n.measured.flat_all_reduce.value * 1e3, n.measured.hierarchical_all_reduce.value * 1e3);
    }
    std::printf("%s\nwrote %s/%s.yaml and %s/cluster.yaml\n", fit_text(n.fits, flags, terminal).c_str(),
                flags.output.c_str(), flags.name.c_str(), flags.output.c_str());
  }
  if (results.empty()) return;
  std::vector<CheckResult> checks;
  for (const NetworkResult& r : results) checks.push_back(r.check);
  std::printf("\n%s", check_text(checks, flags, terminal).c_str());
}

// only: parts of names with ; between them.
bool is_asked_for(const std::string& name, const std::string& only) {
  return std::ranges::any_of(split(only, ';'),
                             [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

int run(const CalibrateFlags& flags, const Terminal& terminal, comm::ProcessWorld& world) {
  Network n = measure_and_fit(flags, world);
  std::vector<NetworkResult> results;
  if (flags.check) {
    for (const NetworkCase& c : network_cases(world.size())) {
      if (!is_asked_for(c.name, flags.only)) continue;
      if (!flags.json) std::fprintf(stderr, "steps of %s\n", c.name.c_str());
      results.push_back(check_one(c, n, flags, world));
    }
  }
  if (world.process() != 0) return 0;
  if (!n.fits.empty()) write_files(flags, n.model);
  if (flags.json) {
    std::printf("%s\n", to_json(n, results, flags).dump().c_str());
  } else {
    print(n, results, flags, terminal);
  }
  return 0;
}

}  // namespace

int calibrate_network(const Launch& launch, const CalibrateFlags& flags, const Terminal& terminal) {
  if (flags.machine.empty()) {
    throw Error(
        ErrorKind::config,
        "in several processes tessera calibrate measures the network, and needs the files of a machine",
        name(launch.by),
        "first, in one process: tessera calibrate --output machine; then in several: --machine machine "
        "--output network");
  }
  return run_launched(launch, flags.launch, 0,
                      [&](comm::ProcessWorld& world, StopSignals&) { return run(flags, terminal, world); });
}

}  // namespace tessera::cli
