// Routing statistics of a run: the same on every layout, equal to a count by hand over one rank's choices,
// and of what the run itself says it routed.
#include "exec/routing_dump.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "comm/thread_world.h"
#include "run.h"
#include "trace/routing_file.h"

namespace tessera::testing {
namespace {

using ::testing::HasSubstr;

struct Dumped {
  trace::RoutingStats stats;
  std::vector<exec::StepResult> steps;
};

Dumped dump_of(const spec::Job& job, std::int64_t steps, exec::RoutingDump::Options options) {
  const plan::Plan plan = plan::make_plan(job);
  const SyntheticTokens data(job.model.vocab_size, job.train.sequence_length);
  comm::ThreadWorld world({.size = plan.layout.world_size(), .timeout = Seconds(60)});
  Dumped out;
  world.run([&](Rank rank) {
    exec::RankEngine engine({.plan = &plan,
                             .data = &data,
                             .rank = rank,
                             .kernels = kernels::make_reference(),
                             .communicators = [&](std::span<const Rank> members, std::string_view label) {
                               return world.communicator(rank, members, label);
                             }});
    engine.initialise();
    exec::RoutingDump dump(plan, engine, options);
    for (std::int64_t s = 0; s < steps; ++s) {
      dump.begin_step(s);
      engine.train_step(s);
      dump.end_step(engine.last_result());
      (void)engine.evaluate(data, 0, job.parallel.dp * job.train.micro_batch_size);  // is not counted
      if (rank.value == 0) out.steps.push_back(engine.last_result());
    }
    trace::RoutingStats stats = dump.finish();
    if (rank.value == 0) {
      out.stats = std::move(stats);
    } else {
      EXPECT_EQ(stats, trace::RoutingStats());
    }
  });
  return out;
}

spec::Job job_of(spec::ParallelSpec parallel) {
  spec::Job job = small_job({.moe = true, .layers = 4});
  job.train.moe.capacity_factor = 1.25;
  job.parallel = parallel;
  return job;
}

TEST(RoutingDump, IsTheSameOnEveryLayout) {
  const exec::RoutingDump::Options options{.first_step = 0, .last_step = 3, .tokens = 100, .most_windows = 2};
  const Dumped one = dump_of(job_of({}), 3, options);
  EXPECT_EQ(one.stats.num_tokens, 3 * 64);
  EXPECT_EQ(one.stats.choice_tokens(), 2 * 64) << "the last two steps hold 100 tokens";
  const std::vector<std::pair<std::string, spec::ParallelSpec>> layouts = {
      {"tp2", {.tp = 2}},
      {"dp2 ep2", {.dp = 2, .ep = 2}},
      {"pp4", {.pp = 4, .schedule = "1f1b"}},
      {"pp2 vpp2", {.pp = 2, .vpp = 2, .schedule = "interleaved"}},
      {"zb-v", {.pp = 2, .vpp = 2, .schedule = "zb-v"}},
      {"tp2 dp2 pp2 ep2 etp2", {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .etp = 2, .schedule = "zb-h1"}},
      {"cp2", {.cp = 2}},
      {"tp2 cp2 dp2 ep2 etp2", {.tp = 2, .cp = 2, .dp = 2, .ep = 2, .etp = 2}},
  };
  for (const auto& [name, parallel] : layouts) {
    EXPECT_EQ(dump_of(job_of(parallel), 3, options).stats, one.stats) << name;
  }
}

TEST(RoutingDump, CountsWhatTheRunSaysItRouted) {
  const Dumped d = dump_of(job_of({.tp = 2, .pp = 2, .schedule = "1f1b"}), 3,
                           {.first_step = 0, .last_step = 3, .tokens = 1000, .most_windows = 3});
  ASSERT_EQ(d.stats.windows.size(), 3U);
  for (std::int32_t l = 0; l < 4; ++l) {
    for (std::int32_t e = 0; e < 8; ++e) {
      std::int64_t chosen = 0, dropped = 0;
      for (std::int64_t s = 0; s < 3; ++s) {
        chosen += d.steps[s].routing[l].chosen[e];
        dropped += d.steps[s].routing[l].dropped[e];
        EXPECT_EQ(d.stats.windows[s].chosen[l * 8 + e], d.steps[s].routing[l].chosen[e]);
      }
      EXPECT_EQ(d.stats.chosen_of(l)[e], chosen);
      EXPECT_EQ(d.stats.dropped_of(l)[e], dropped);
    }
  }
  // All steps are kept, so counting the choices again gives all of it.
  trace::RoutingStats again = d.stats;
  trace::count_choices(again);
  EXPECT_EQ(again, d.stats);
  EXPECT_EQ(d.stats.sequence_lengths, std::vector<std::int64_t>(48, 4));
  EXPECT_GT(std::accumulate(d.stats.dropped.begin(), d.stats.dropped.end(), 0), 0) << "the test drops tokens";
  const std::string file = trace::to_routing_file(d.stats);
  EXPECT_EQ(trace::parse_routing(std::as_bytes(std::span(file)), "f"), d.stats);
}

TEST(RoutingDump, OfARunThatEndsEarlyHoldsWhatRan) {
  const Dumped d = dump_of(job_of({.pp = 2, .schedule = "1f1b"}), 3,
                           {.first_step = 0, .last_step = 4, .tokens = 200, .most_windows = 16});
  EXPECT_EQ(d.stats.num_tokens, 3 * 64);
  EXPECT_EQ(d.stats.choice_tokens(), 3 * 64) << "all four were to be kept";
  const Dumped none = dump_of(job_of({}), 2, {.first_step = 0, .last_step = 4, .tokens = 64});
  EXPECT_EQ(none.stats.choice_tokens(), 0) << "only the fourth was";
  EXPECT_TRUE(none.stats.sequence_lengths.empty());
  Problems problems;
  trace::check_routing(d.stats, "d", problems);
  trace::check_routing(none.stats, "none", problems);
  EXPECT_TRUE(problems.empty()) << problems.list()[0].what;
}

TEST(RoutingDump, KeepsNoChoicesUnlessAsked) {
  const Dumped d = dump_of(job_of({.dp = 2}), 2, {.first_step = 0, .last_step = 2});
  EXPECT_TRUE(d.stats.choices.empty());
  EXPECT_EQ(d.stats.across.size(), 3U * 64);
}

TEST(RoutingDump, WhereExpertsChooseHoldsTheExpertsThatTookAToken) {
  const auto job = [](spec::ParallelSpec parallel) {
    spec::Job j = job_of(parallel);
    j.train.moe.router = spec::RouterChoice::expert_choice;
    j.train.moe.balancing = spec::Balancing::none;
    j.train.moe.aux_loss_coef = 0.0;
    return j;
  };
  const exec::RoutingDump::Options options{.first_step = 0, .last_step = 2, .tokens = 64};
  const Dumped one = dump_of(job({}), 2, options);
  EXPECT_EQ(one.stats.top_k, 8) << "any number of experts may take a token";
  Problems problems;
  trace::check_routing(one.stats, "one", problems);
  EXPECT_TRUE(problems.empty()) << problems.list()[0].what;
  EXPECT_NE(std::ranges::find(one.stats.choices, -1), one.stats.choices.end());
  EXPECT_EQ(dump_of(job({.tp = 2, .pp = 2, .ep = 2, .schedule = "1f1b"}), 2, options).stats, one.stats);
}

TEST(RoutingDump, OfADenseModelIsRefused) {
  try {
    (void)dump_of(small_job({.moe = false}), 1, {.first_step = 0, .last_step = 1});
    ADD_FAILURE() << "a dense model has no routing";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    EXPECT_THAT(e.what(), HasSubstr("no mixture of experts"));
    EXPECT_THAT(e.what(), HasSubstr("leave the flag out"));
  }
}

}  // namespace
}  // namespace tessera::testing
