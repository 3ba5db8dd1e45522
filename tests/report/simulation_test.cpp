// The pages of a simulated step: figures add up, strips show what ran, no line is wider than asked.
#include "report/simulation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <memory>

#include "base/text.h"
#include "cost/step.h"
#include "graph/practice.h"
#include "spec/presets.h"
#include "trace/chrome.h"

namespace tessera::report {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// Everything that a view points to.
struct Step {
  cost::Setup setup;
  cost::Candidate candidate;
  schedule::Schedule schedule;
  cost::StepWork work;
  sim::Result result;
  SimulationView view;
};

std::unique_ptr<Step> simulated(const char* model, const char* cluster, const cost::Candidate& c,
                                std::int64_t sequences, const sim::Options& options = {}) {
  auto s = std::make_unique<Step>();
  s->setup.model = spec::model_preset(model);
  s->setup.cluster = spec::with_devices(spec::cluster_preset(cluster), c.world_size());
  s->setup.calibration = cost::calibration(s->setup.cluster.device);
  s->setup.practice = graph::practice("megatron-core");
  s->setup.work = {.global_batch_size = sequences, .sequence_length = 4096};
  s->candidate = c;
  EXPECT_EQ(cost::why_invalid(s->setup, c), "");
  cost::StepModel step_model(s->setup);
  s->work = step_model.work(c);
  s->schedule = schedule::generate({.kind = c.schedule,
                                    .pp = c.pp,
                                    .vpp = c.vpp,
                                    .num_microbatches = static_cast<std::int32_t>(s->work.num_microbatches)});
  s->result = sim::simulate(s->schedule, s->work, options);
  s->view = {.setup = &s->setup,
             .candidate = &s->candidate,
             .schedule = &s->schedule,
             .work = &s->work,
             .result = &s->result,
             .cost = simulated_cost(s->result, step_model.predict(c)),
             .model = model};
  const cost::StageSplit cut(s->setup.model, c.pp * c.vpp);
  for (std::int32_t i = 0; i < cut.num_stages(); ++i) s->view.stage_layers.push_back(cut.layers(i));
  return s;
}

std::unique_ptr<Step> dense() {
  return simulated("llama-3-8b", "dgx-h100",
                   {.tp = 2, .dp = 4, .pp = 4, .vpp = 2, .schedule = schedule::Kind::interleaved}, 64);
}
std::unique_ptr<Step> mixture() {
  return simulated("qwen3-30b-a3b", "dgx-h100", {.dp = 16, .pp = 2, .ep = 16}, 64);
}

// Two ranks, F I W of 1 s each, one micro-batch.
struct Naive {
  schedule::Schedule schedule =
      schedule::generate({.kind = schedule::Kind::naive, .pp = 2, .num_microbatches = 1});
  cost::StepWork work;
  sim::Result result;
  Naive() {
    work.num_microbatches = 1;
    for (std::int32_t s = 0; s < 2; ++s) {
      cost::StageWork stage;
      stage.forward = {{.name = "f", .part = cost::Part::gemm, .seconds = 1, .exposed = 1}};
      stage.backward_input = {{.name = "i", .part = cost::Part::gemm, .seconds = 1, .exposed = 1}};
      stage.backward_weight = {{.name = "w", .part = cost::Part::gemm, .seconds = 1, .exposed = 1}};
      stage.forward_seconds = stage.backward_input_seconds = stage.backward_weight_seconds = 1;
      stage.saved_bytes = 30;
      stage.transient_bytes = 10;
      work.stages.push_back(stage);
    }
    work.static_bytes = {60, 40};
    result = sim::simulate(schedule, work);
  }
};

std::string cells(std::initializer_list<std::pair<const char*, int>> runs) {
  std::string out;
  for (const auto& [glyph, count] : runs) {
    for (int i = 0; i < count; ++i) out += glyph;
  }
  return out;
}

TEST(RankStrip, ShowsWhenEachRankComputesAndWaits) {
  const Naive n;
  ASSERT_NEAR(n.result.seconds(), 6.0, 1e-9);  // F F B B: rank 0 in [0, 1) and [4, 6), rank 1 in [1, 4)
  EXPECT_EQ(rank_strip(n.result, 0, 12), cells({{"\u2588", 2}, {"\u00b7", 6}, {"\u2588", 4}}));
  EXPECT_EQ(rank_strip(n.result, 1, 12), cells({{"\u00b7", 2}, {"\u2588", 6}, {"\u00b7", 4}}));
  EXPECT_EQ(rank_strip(n.result, 0, 0), "");
}

TEST(RankStrip, ShadesCommunicationThatNothingHides) {
  Naive n;
  for (cost::StageWork& stage : n.work.stages) {  // another second of exposed communication in each F
    stage.forward.push_back({.name = "gather",
                             .part = cost::Part::tp,
                             .axis = graph::Axis::tp,
                             .communication = true,
                             .seconds = 1,
                             .exposed = 1});
    stage.forward_seconds = 2;
  }
  n.result = sim::simulate(n.schedule, n.work);
  ASSERT_NEAR(n.result.seconds(), 8.0, 1e-9);
  EXPECT_EQ(rank_strip(n.result, 0, 8), cells({{"\u2588", 1}, {"\u2592", 1}, {"\u00b7", 4}, {"\u2588", 2}}));
}

TEST(RankStrip, IsEmptyWithoutATrace) {
  const Naive n;
  const sim::Result bare = sim::simulate(n.schedule, n.work, {.detail = sim::Detail::none});
  EXPECT_EQ(rank_strip(bare, 0, 12), "");
}

TEST(MemoryStrip, ShowsTheMostOfEachCell) {
  const Naive n;
  // Rank 0: 60 static; 100 in F, 90 kept until its B of [4, 6), in which it is 100 again.
  ASSERT_EQ(n.result.ranks[0].peak_bytes, 100.0);
  EXPECT_EQ(memory_strip(n.result.ranks[0], n.result.makespan, 100.0, 6),
            cells({{"\u2588", 2}, {"\u2588", 4}}));
  EXPECT_EQ(memory_strip(n.result.ranks[1], n.result.makespan, 100.0, 6),
            cells({{"\u2584", 1}, {"\u2587", 3}, {"\u2584", 2}}));
  EXPECT_EQ(memory_strip(n.result.ranks[0], n.result.makespan, 0.0, 6), "");
}

TEST(PeakParts, AreStaticActivationsAndTransientOfTheActionAtThePeak) {
  const Naive n;
  const PeakParts parts = peak_parts(n.schedule, n.work, 0, n.result.ranks[0]);
  EXPECT_EQ(parts.fixed, 60.0);
  EXPECT_EQ(parts.activations, 30.0);
  EXPECT_EQ(parts.transient, 10.0);
}

TEST(PeakParts, SumToThePeakOnEveryRankOfRealPlans) {
  for (const auto& s : {dense(), mixture()}) {
    for (std::int32_t r = 0; r < s->schedule.pp; ++r) {
      const sim::RankResult& rank = s->result.ranks[static_cast<std::size_t>(r)];
      const PeakParts p = peak_parts(s->schedule, s->work, r, rank);
      const double sum = p.fixed + p.activations + p.transient;
      EXPECT_TRUE(std::abs(sum - rank.peak_bytes) <= 1.0) << s->view.model << " rank " << r;
    }
  }
}

TEST(RankShares, SumToOneAndFollowTheCounters) {
  const Naive n;
  const RankShares first = rank_shares(n.result.ranks[0]);
  EXPECT_NEAR(first.busy, 0.5, 1e-12);
  EXPECT_NEAR(first.idle, 0.5, 1e-12);
  const auto s = mixture();
  for (const sim::RankResult& rank : s->result.ranks) {
    const RankShares shares = rank_shares(rank);
    EXPECT_NEAR(shares.busy + shares.exposed + shares.idle, 1.0, 1e-12);
    EXPECT_GT(shares.exposed, 0.0);
    EXPECT_GE(shares.idle, 0.0);
  }
}

TEST(SimulatedCost, HasPartsThatSumToTheStep) {
  for (const auto& s : {dense(), mixture()}) {
    EXPECT_NEAR(s->view.cost.seconds(), s->result.seconds(), 1e-9 * s->result.seconds());
    EXPECT_GT(s->view.cost.mfu(), 0.0);
    EXPECT_LT(s->view.cost.mfu(), s->view.cost.mfu_full());
  }
}

TEST(Bottleneck, NamesTheLargestLossAndWhatTheLayoutCosts) {
  const auto s = mixture();
  s->view.cost.parts.fill(0.0);
  s->view.cost.parts[static_cast<std::size_t>(cost::Part::ideal)] = 6.0;
  s->view.cost.parts[static_cast<std::size_t>(cost::Part::gemm)] = 2.0;
  s->view.cost.parts[static_cast<std::size_t>(cost::Part::ep)] = 1.5;
  s->view.cost.parts[static_cast<std::size_t>(cost::Part::bubble)] = 0.5;
  std::string text = simulation_bottleneck(s->view);
  EXPECT_THAT(text, HasSubstr("Bottleneck: matrix products below peak, 2.0 s of 10.0 s (20.0%)"));
  EXPECT_THAT(text, HasSubstr("Of what the layout decides: expert-parallel communication, 1.5 s"));
  EXPECT_THAT(text, HasSubstr("ep 16 spans 16 devices"));
  s->view.cost.parts[static_cast<std::size_t>(cost::Part::bubble)] = 4.5;
  text = simulation_bottleneck(s->view);
  EXPECT_THAT(text, HasSubstr("Bottleneck: pipeline bubble, 4.5 s of 14.0 s (32.1%)"));
  EXPECT_THAT(text, Not(HasSubstr("Of what the layout decides")));
}

TEST(Simulation, TraceReadsBackFromItsFileAsItWas) {
  const auto s = mixture();
  const auto path = std::filesystem::path(testing::TempDir()) / "simulation_trace.json";
  trace::write_chrome(path, s->result.trace);
  EXPECT_TRUE(trace::read_chrome(path) == trace::canonical(s->result.trace));
  EXPECT_GT(s->result.trace.spans.size(), 100U);
  std::filesystem::remove(path);
}

TEST(SimulationPage, HoldsItsWidthWithAndWithoutColour) {
  for (const auto& s : {dense(), mixture()}) {
    for (const std::int32_t width : {20, 44, 80, 120, 200}) {
      for (const bool color : {false, true}) {
        const Style style{.color = color, .width = width};
        for (const std::string& line : split(simulation_page(s->view, style), '\n')) {
          ASSERT_LE(display_width(line), width) << line;
          if (!color) {
            ASSERT_EQ(line.find('\x1b'), std::string::npos) << line;
            ASSERT_FALSE(line.ends_with(' ')) << "'" << line << "'";
          }
        }
      }
    }
  }
}

TEST(SimulationPage, HasALineForEveryPipelineRankAndEveryAxisInUse) {
  const auto s = dense();
  const std::string page = simulation_page(s->view, {.width = 120});
  for (const char* text :
       {"llama-3-8b: one step on 32 devices of dgx-h100", "tp 2 x cp 1 x dp 4 x pp 4", "MFU", "HFU",
        "emb+0-3 16-19", "12-15 28-31+head", "Communication of an average device", "Bottleneck: "}) {
    EXPECT_THAT(page, HasSubstr(text));
  }
  EXPECT_THAT(page, Not(HasSubstr("does not fit")));
}

TEST(SimulationPage, SaysWhichRanksDoNotFit) {
  const auto s = simulated("llama-3-70b", "dgx-h100", {.dp = 1, .pp = 4}, 16);
  const std::string page = simulation_page(s->view, {.width = 120});
  EXPECT_THAT(page, HasSubstr("does not fit: 4 of 4 pipeline ranks need more than the 84.4 GB"));
  EXPECT_THAT(page, HasSubstr("tessera plan lists what fits"));
}

}  // namespace
}  // namespace tessera::report
