// Many layouts of dense models and of mixtures, on every schedule: the closed form of a step against the
// simulator playing the same work.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "cost/step.h"
#include "graph/practice.h"
#include "sim/support.h"
#include "spec/presets.h"

namespace tessera::sim {
namespace {

struct Place {
  const char* model;
  const char* cluster;
  const char* practice;
  std::int32_t devices;
  std::int64_t sequences, length;
};
const Place kPlaces[] = {
    {"llama-3-8b", "dgx-h100", "megatron-core", 64, 512, 8192},
    {"llama-3-70b", "dgx-h100", "megatron-core", 256, 512, 8192},
    {"gpt3-175b", "dgx-a100", "megatron-2022", 512, 1024, 2048},
    {"llama-3.1-405b", "dgx-b200", "megatron-bridge", 1024, 1024, 8192},
    {"mixtral-8x7b", "dgx-h100", "megatron-core", 128, 256, 4096},
    {"qwen3-30b-a3b", "gb200-nvl72", "megatron-bridge-2026", 128, 512, 4096},
    {"deepseek-v3", "h800", "megatron-core", 1024, 4096, 4096},
    {"llama-3-8b", "dgx-a100", "fsdp2", 32, 64, 4096},
};

cost::Setup setup_of(const Place& p) {
  cost::Setup s;
  s.model = spec::model_preset(p.model);
  s.cluster = spec::with_devices(spec::cluster_preset(p.cluster), p.devices);
  s.calibration = cost::calibration(s.cluster.device);
  s.practice = graph::practice(p.practice);
  s.work = {.global_batch_size = p.sequences, .sequence_length = p.length};
  return s;
}

struct Pipeline {
  Kind kind;
  std::int32_t pp, vpp;
};
const Pipeline kPipelines[] = {
    {Kind::one_f_one_b, 1, 1}, {Kind::naive, 4, 1},       {Kind::gpipe, 4, 1},
    {Kind::one_f_one_b, 4, 1}, {Kind::one_f_one_b, 8, 1}, {Kind::one_f_one_b, 16, 1},
    {Kind::interleaved, 4, 2}, {Kind::interleaved, 4, 4}, {Kind::interleaved, 8, 2},
    {Kind::zb_h1, 4, 1},       {Kind::zb_h1, 8, 1},       {Kind::zb_v, 4, 2},
    {Kind::zb_v, 8, 2},
};

std::vector<cost::Candidate> candidates_of(const cost::Setup& s) {
  std::vector<cost::Candidate> out;
  for (const Pipeline& p : kPipelines) {
    cost::Candidate c{.tp = s.model.moe ? 1 : 4, .pp = p.pp, .vpp = p.vpp, .schedule = p.kind};
    if (s.practice.name == "fsdp2") c.tp = 1;
    c.dp = s.cluster.num_devices / (c.tp * c.pp);
    if (s.model.moe) c.ep = std::min(8, c.dp);
    c.zero_stage = s.practice.name == "fsdp2" ? 3 : 1;
    if (cost::why_invalid(s, c).empty()) out.push_back(c);
  }
  return out;
}

double simulated(const cost::Candidate& c, const cost::StepWork& work) {
  schedule::StageCosts costs;
  for (const cost::StageWork& stage : work.stages) {
    costs.forward.emplace_back(stage.forward_seconds);
    costs.backward_input.emplace_back(stage.backward_input_seconds);
    costs.backward_weight.emplace_back(stage.backward_weight_seconds);
  }
  return makespan(schedule::generate({.kind = c.schedule,
                                      .pp = c.pp,
                                      .vpp = c.vpp,
                                      .num_microbatches = static_cast<std::int32_t>(work.num_microbatches),
                                      .costs = costs}),
                  work);
}

// The closed form hides reductions under one micro-batch of backward. Interleaved stages hide more: the
// gradients of a rank's last stage are ready a round of micro-batches earlier. Where reductions are longer
// than that window, it is above the simulator. It knows nothing of the gaps that uneven stages leave in zb-v.
double allowed(const cost::Candidate& c, const cost::StepCost& price) {
  const double reductions = price[cost::Part::dp] / price.seconds();
  if (reductions >= 0.03) return 0.13;
  return c.schedule == Kind::zb_v ? 0.08 : 0.05;
}

TEST(StepModel, AgreesWithTheSimulatorOverModelsClustersAndSchedules) {
  std::set<Kind> kinds;
  std::vector<double> errors;
  for (const Place& p : kPlaces) {
    const cost::Setup setup = setup_of(p);
    cost::StepModel model(setup);
    for (const cost::Candidate& c : candidates_of(setup)) {
      const cost::StepCost price = model.predict(c);
      const double played = simulated(c, model.work(c));
      const double error = std::abs(price.seconds() / played - 1.0);
      EXPECT_TRUE(error <= allowed(c, price)) << fmt::format(
          "{} {}: closed form {:.3f} s, simulator {:.3f} s", p.model, to_text(c), price.seconds(), played);
      kinds.insert(c.schedule);
      errors.push_back(error);
    }
  }
  EXPECT_GE(errors.size(), 100U);
  EXPECT_EQ(kinds.size(), 6U);
  std::sort(errors.begin(), errors.end());
  EXPECT_TRUE(errors[errors.size() / 2] <= 0.01) << "median " << errors[errors.size() / 2];
  EXPECT_TRUE(errors[errors.size() * 9 / 10] <= 0.04) << "nine of ten " << errors[errors.size() * 9 / 10];
}

}  // namespace
}  // namespace tessera::sim
