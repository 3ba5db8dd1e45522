// The step model's closed forms against the simulator playing the same work.
#include <gtest/gtest.h>

#include <cstdio>

#include "cost/step.h"
#include "graph/practice.h"
#include "sim/support.h"
#include "spec/presets.h"

namespace tessera::sim {
namespace {

using cost::Part;

struct Case {
  const char* model;
  const char* cluster;
  const char* practice;
  std::int32_t devices;
  std::int64_t sequences, length;
  cost::Candidate candidate;
  double allowed;  // of the difference
};

std::vector<Case> cases() {
  return {
      {"llama-3-8b", "dgx-h100", "megatron-core", 64, 128, 8192, {.cp = 2, .dp = 32}, 0.015},
      {"llama-3-70b",
       "dgx-h100",
       "megatron-core",
       64,
       128,
       8192,
       {.tp = 4, .cp = 2, .dp = 2, .pp = 4, .vpp = 5, .schedule = Kind::interleaved},
       0.01},
      {"llama-3-70b", "dgx-h100", "megatron-core", 1024, 2048, 8192, {.tp = 8, .dp = 32, .pp = 4}, 0.015},
      {"gpt3-175b", "dgx-a100", "megatron-core", 1024, 1536, 2048, {.tp = 8, .dp = 16, .pp = 8}, 0.015},
      {"gpt3-175b", "dgx-a100", "megatron-core", 1024, 1536, 2048, {.tp = 8, .dp = 8, .pp = 16}, 0.015},
      {"gpt3-175b",
       "dgx-a100",
       "megatron-core",
       1024,
       1536,
       2048,
       {.tp = 8, .dp = 16, .pp = 8, .schedule = Kind::zb_h1},
       0.01},
      // Messages and uneven stages fall into gaps that the closed form does not see.
      {"gpt3-175b",
       "dgx-a100",
       "megatron-core",
       1024,
       1536,
       2048,
       {.tp = 8, .dp = 16, .pp = 8, .vpp = 2, .schedule = Kind::zb_v},
       0.04},
      {"llama-3-8b", "dgx-h100", "fsdp2", 64, 128, 8192, {.dp = 64, .zero_stage = 3}, 0.02},
      {"deepseek-v3",
       "dgx-h100",
       "megatron-core",
       1024,
       8192,
       4096,
       {.dp = 64, .pp = 16, .ep = 64, .micro_batch_size = 1},
       0.04},
  };
}

TEST(StepModel, AgreesWithTheSimulatorOfItsWork) {
  for (const Case& c : cases()) {
    cost::Setup setup;
    setup.model = spec::model_preset(c.model);
    setup.cluster = spec::with_devices(spec::cluster_preset(c.cluster), c.devices);
    setup.calibration = cost::calibration(setup.cluster.device);
    setup.practice = graph::practice(c.practice);
    setup.work = {.global_batch_size = c.sequences, .sequence_length = c.length};
    ASSERT_EQ(cost::why_invalid(setup, c.candidate), "");
    cost::StepModel model(setup);
    const cost::StepCost price = model.predict(c.candidate);
    const cost::StepWork work = model.work(c.candidate);
    schedule::StageCosts costs;
    for (const cost::StageWork& stage : work.stages) {
      costs.forward.emplace_back(stage.forward_seconds);
      costs.backward_input.emplace_back(stage.backward_input_seconds);
      costs.backward_weight.emplace_back(stage.backward_weight_seconds);
    }
    const Schedule s =
        schedule::generate({.kind = c.candidate.schedule,
                            .pp = c.candidate.pp,
                            .vpp = c.candidate.vpp,
                            .num_microbatches = static_cast<std::int32_t>(work.num_microbatches),
                            .costs = costs});
    const Result r = simulate(s, work);
    const std::string what = std::string(c.model) + " " + to_text(c.candidate);
    std::printf("%-65s model %7.3f s  simulator %7.3f s  %+.1f %%\n", what.c_str(), price.seconds(),
                r.seconds(), 100 * (r.seconds() / price.seconds() - 1));
    EXPECT_TRUE(std::abs(r.seconds() / price.seconds() - 1) <= c.allowed) << what;
    const auto parts = r.waterfall(price);
    double sum = 0;
    for (const double part : parts) sum += part;
    EXPECT_NEAR(sum, r.seconds(), 1e-9 * r.seconds());
    for (const Part p : {Part::ideal, Part::gemm, Part::attention, Part::memory_bound, Part::tp, Part::ep}) {
      EXPECT_NEAR(parts[static_cast<std::size_t>(p)], price[p], 1e-6 * r.seconds()) << what << ' ' << name(p);
    }
    double peak = 0;
    for (const RankResult& rank : r.ranks) peak = std::max(peak, rank.peak_bytes);
    EXPECT_TRUE(std::abs(peak / price.memory.allocated() - 1) <= 0.02) << what;
  }
}

}  // namespace
}  // namespace tessera::sim
