// The engine over several processes equals the engine over threads to the bit: losses, gradients and weights
// after two steps in f64, over the layouts of as many ranks as mpirun started.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "comm/mpi/world.h"
#include "exec/run.h"

namespace tessera::testing {
namespace {

struct Case {
  std::string model;
  spec::ParallelSpec parallel;
  std::int32_t zero_stage = 0;
  [[nodiscard]] std::string text() const {
    return fmt::format("{} tp{} cp{} dp{} pp{} ep{} etp{} vpp{} {} zero{}", model, parallel.tp, parallel.cp,
                       parallel.dp, parallel.pp, parallel.ep, parallel.etp, parallel.vpp, parallel.schedule,
                       zero_stage);
  }
};

// Of what tp and pp leave, sequences are cut once over half or a third of the ranks and once over none; with
// sliced experts not at all, to keep the test short.
std::vector<std::int32_t> context_parallel(std::int32_t ranks) {
  for (const std::int32_t cp : {2, 3})
    if (ranks % cp == 0) return {1, cp};
  return {1};
}

// Every layout of the models, each with the next schedule and ZeRO stage in turn.
std::vector<Case> cases(std::int32_t world) {
  const std::vector<std::pair<std::string, std::int32_t>> schedules = {
      {"1f1b", 1}, {"zb-h1", 1}, {"interleaved", 2}, {"zb-v", 2}, {"gpipe", 1}, {"combined-1f1b", 1}};
  std::vector<Case> out;
  std::size_t turn = 0;
  for (const std::string model : {"dense", "tied", "moe", "drops"}) {
    const bool moe = model == "moe" || model == "drops";
    for (std::int32_t tp = 1; tp <= world; ++tp) {
      for (std::int32_t pp = 1; pp * tp <= world; ++pp) {
        if (world % (tp * pp) != 0) continue;
        const std::int32_t ranks = world / pp;
        for (std::int32_t ep = 1; ep <= (moe ? ranks : 1); ++ep) {
          for (std::int32_t etp = 1; etp * ep <= (moe ? ranks : 1); ++etp) {
            if (ranks % (ep * etp) != 0) continue;
            for (const std::int32_t cp : context_parallel(etp == 1 ? ranks / tp : 1)) {
              const auto& [schedule, vpp] = schedules[pp == 1 ? 0 : turn % schedules.size()];
              const auto zero = static_cast<std::int32_t>(turn / 2 % 4);
              ++turn;
              spec::ParallelSpec p{.tp = tp, .cp = cp, .dp = ranks / tp / cp, .pp = pp, .ep = ep, .etp = etp};
              p.vpp = vpp;
              p.overlap_p2p_comm = turn / 2 % 3 != 0;
              p.tp_comm_overlap = turn / 2 % 2 == 0;
              p.schedule = schedule;
              out.push_back({model, p, zero});
            }
          }
        }
      }
    }
  }
  return out;
}

// Every dimension that a degree cuts is a multiple of the world.
spec::Job job_of(const Case& c, std::int32_t world) {
  const bool moe = c.model == "moe" || c.model == "drops";
  spec::Job job = small_job({.moe = moe, .tied = c.model == "tied"});
  spec::ModelSpec& m = job.model;
  m.num_hidden_layers = std::max(2, c.parallel.pp * c.parallel.vpp);
  m.hidden_size = 10;
  m.num_attention_heads = 2 * world;
  m.num_key_value_heads = world;
  m.intermediate_size = 2 * world;
  m.vocab_size = 6 * world;
  if (moe) m.moe->num_experts = 2 * world;
  spec::Recipe& r = job.train;
  r.sequence_length = c.parallel.cp > 1 ? 2 * world : world;
  r.global_batch_size = 2 * world;
  r.micro_batch_size = 1;
  r.bucket_bytes = 2000;
  r.zero_stage = c.zero_stage;
  if (c.model == "drops") r.moe.capacity_factor = 1.0;
  job.parallel = c.parallel;
  return job;
}

// What this process holds of `got` (NaN elsewhere) has the bits of `want`.
void expect_bits(const GlobalTensors& want, const GlobalTensors& got, const std::string& what) {
  for (const auto& [name, values] : got) {
    const auto it = want.find(name);
    ASSERT_TRUE(it != want.end()) << what << ": " << name;
    ASSERT_EQ(it->second.size(), values.size()) << what << ": " << name;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (std::isnan(values[i])) continue;
      ASSERT_EQ(std::memcmp(&values[i], &it->second[i], sizeof(double)), 0)
          << what << ": " << name << " element " << i << " is " << values[i] << ", wanted " << it->second[i];
    }
  }
}

TEST(EngineOverProcesses, EqualsTheEngineOverThreadsToTheBitOnEveryLayout) {
  comm::ProcessWorld& world = *comm::mpi_world();
  const std::vector<Case> all = cases(world.size());
  ASSERT_GE(all.size(), 30U);
  bool worker = false;
  for (const Case& c : all) {
    const spec::Job job = job_of(c, world.size());
    worker = !worker;
    const RunResult want = run_job(job, {.steps = 2, .worker = worker});
    const RunResult got = run_job(job, {.steps = 2, .worker = worker, .world = &world});
    expect_bits(want.gradients, got.gradients, c.text() + ", gradient");
    expect_bits(want.weights, got.weights, c.text() + ", weight");
    if (world.process() != 0) continue;
    ASSERT_FALSE(got.weights.empty());
    ASSERT_EQ(want.steps.size(), got.steps.size());
    for (std::size_t s = 0; s < want.steps.size(); ++s) {
      EXPECT_EQ(want.steps[s].ce_loss, got.steps[s].ce_loss) << c.text() << ", step " << s;
      EXPECT_EQ(want.steps[s].grad_norm, got.steps[s].grad_norm) << c.text() << ", step " << s;
    }
  }
}

}  // namespace
}  // namespace tessera::testing
