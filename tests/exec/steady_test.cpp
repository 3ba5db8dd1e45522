// A steady step costs no heap allocation and no page fault, and a run takes the memory that was planned.
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <limits>
#include <mutex>

#include "comm/thread_world.h"
#include "run.h"
#include "support/allocation_count.h"

namespace tessera::testing {
namespace {

std::int64_t thread_faults() {
  rusage usage{};
  ::getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_minflt + usage.ru_majflt;
}

// Runs body(engine) on every rank of the plan, with reductions beside compute.
void with_engines(const plan::Plan& plan, const std::function<void(exec::RankEngine&)>& body) {
  const SyntheticTokens data(plan.job.model.vocab_size, plan.job.train.sequence_length);
  comm::ThreadWorld world({.size = plan.layout.world_size()});
  world.run([&](Rank rank) {
    comm::CommWorker worker({.on_unwind = [&] { world.abort(rank, "left"); }});
    exec::RankEngine engine(
        {.plan = &plan,
         .data = &data,
         .rank = rank,
         .kernels = kernels::make_cpu(),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(rank, members, label); },
         .worker = &worker});
    engine.initialise();
    body(engine);
  });
}

struct Steady {
  std::string name;
  spec::ParallelSpec parallel;
  void (*change)(spec::Job&);
};

class SteadyStep : public ::testing::TestWithParam<Steady> {};

TEST_P(SteadyStep, NeitherAllocatesNorFaultsAPage) {
  spec::Job job = small_job({.moe = true, .layers = 8});
  job.train.precision = spec::Precision::f32;
  job.parallel = GetParam().parallel;
  GetParam().change(job);
  std::mutex mutex;
  with_engines(plan::make_plan(job), [&](exec::RankEngine& engine) {
    for (std::int64_t s = 0; s < 3; ++s) engine.train_step(s);
    const std::int64_t allocations = test::allocations;
    // The kernel may move a page under anyone; a step that faults by itself does so in every window.
    std::int64_t faulted = std::numeric_limits<std::int64_t>::max();
    for (std::int64_t window = 0; window < 3; ++window) {
      const std::int64_t faults = thread_faults();
      for (std::int64_t s = 0; s < 3; ++s) engine.train_step(3 + 3 * window + s);
      faulted = std::min(faulted, thread_faults() - faults);
    }
    const std::int64_t allocated = test::allocations - allocations;
    const std::lock_guard lock(mutex);
    EXPECT_EQ(allocated, 0) << "rank " << engine.rank().value;
    EXPECT_EQ(faulted, 0) << "rank " << engine.rank().value;
  });
}

INSTANTIATE_TEST_SUITE_P(
    Plans, SteadyStep,
    ::testing::Values(
        Steady{"one_rank", {}, [](spec::Job&) {}},
        Steady{"tp2_dp2_pp2_ep2", {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, [](spec::Job&) {}},
        Steady{"zero_1", {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, [](spec::Job& j) { j.train.zero_stage = 1; }},
        Steady{"zero_2", {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, [](spec::Job& j) { j.train.zero_stage = 2; }},
        Steady{"zero_3", {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, [](spec::Job& j) { j.train.zero_stage = 3; }},
        Steady{"zb_v_drops",
               {.dp = 2, .pp = 2, .ep = 2, .vpp = 2, .schedule = "zb-v"},
               [](spec::Job& j) { j.train.moe.capacity_factor = 1.0; }},
        Steady{"hierarchical_beside",
               {.dp = 4, .ep = 4, .ranks_per_node = 2, .schedule = "combined-1f1b"},
               [](spec::Job&) {}},
        Steady{"cp2_dp2_pp2_ep2",
               {.cp = 2, .dp = 2, .pp = 2, .ep = 2},
               [](spec::Job& j) { j.train.moe.capacity_factor = 1.0; }},
        Steady{"mtp",
               {.tp = 2, .dp = 2, .ep = 2},
               [](spec::Job& j) {
                 j.model = mtp_model(1);
                 j.train.mtp_loss_coef = 0.3;
               }},
        Steady{"full_recompute",
               {.pp = 2, .schedule = "zb-h1"},
               [](spec::Job& j) { j.train.recompute = spec::Recompute::full; }}),
    [](const auto& info) { return info.param.name; });

// Resident bytes of the process, from the kernel.
std::int64_t resident_bytes() {
  std::ifstream in("/proc/self/statm");
  std::int64_t total = 0;
  std::int64_t resident = 0;
  in >> total >> resident;
  return resident * ::sysconf(_SC_PAGESIZE);
}

TEST(Memory, ResidentMemoryOfAStepIsWithinThreePercentOfThePlan) {
  spec::Job job = small_job({.moe = true});
  job.train.precision = spec::Precision::f32;
  job.model.hidden_size = 256;
  job.model.intermediate_size = 512;
  job.model.head_dim = 16;
  job.model.vocab_size = 8192;
  job.train.sequence_length = 64;
  job.parallel = {.tp = 2, .pp = 2, .ep = 2};
  const plan::Plan plan = plan::make_plan(job);
  std::int64_t planned = 0;
  for (const plan::RankMemory& m : exec::plan_memory(plan).ranks) planned += m.total().value;
  const std::int64_t before = resident_bytes();
  std::int64_t after = 0;
  with_engines(plan, [&](exec::RankEngine& engine) {
    for (std::int64_t step = 0; step < 2; ++step) engine.train_step(step);
    engine.comms().world->barrier();
    if (engine.rank().value == 0) after = resident_bytes();
    engine.comms().world->barrier();
    EXPECT_EQ(engine.planned_memory(), engine.measured_memory());
  });
  const double ratio = static_cast<double>(after - before) / static_cast<double>(planned);
  fmt::print("planned {:.1f} MiB, resident growth {:.1f} MiB ({:+.1f}%)\n",
             static_cast<double>(planned) / 1048576.0, static_cast<double>(after - before) / 1048576.0,
             100.0 * (ratio - 1.0));
  EXPECT_GT(ratio, 0.97);
  EXPECT_LT(ratio, 1.03);
}

}  // namespace
}  // namespace tessera::testing
