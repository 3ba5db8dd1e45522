// The training loop as a user meets it: a resumed run is the uninterrupted one to the bit, on another layout
// within the parity bound; what it writes can be read; a run that is killed at any moment goes on from its
// last checkpoint.
#include "exec/trainer.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <fstream>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/random.h"
#include "ckpt/checkpoint.h"
#include "exec/generator.h"
#include "in_folder.h"
#include "run.h"
#include "slots.h"
#include "trace/chrome.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;

class Trainer : public InFolder {};

std::shared_ptr<const data::TokenSource> tokens(std::int64_t count) {
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<std::int32_t>(uniform_below(40, 3, 5, static_cast<std::uint64_t>(i))));
  }
  return std::make_shared<data::MemoryTokens>(ids);
}

spec::Job job_in(const fs::path& folder, std::int64_t steps) {
  spec::Job job = small_job({.moe = true});
  job.train.steps = 12;                                           // the learning rate follows the whole run
  job.train.moe.aux_loss_unit = spec::BalanceUnit::global_batch;  // looks back at the step before
  job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .schedule = "1f1b"};
  job.checkpoint = {.folder = (folder / "checkpoints").string(), .every = 4, .keep = 3};
  job.output.folder = (folder / "out").string();
  job.train.steps = steps;
  job.train.optimizer.lr_decay = spec::LrDecay::constant;
  return job;
}

exec::RunSummary run(const spec::Job& job) {
  return exec::train(plan::make_plan(job),
                     {.train = tokens(2000),
                      .validation = tokens(200),
                      .cores = 2,
                      .peak_per_core = FlopsPerSecond(1e11),
                      .output = job.output.folder},
                     {});
}

GlobalTensors weights_in(const fs::path& checkpoint, const spec::ModelSpec& model) {
  const ckpt::CheckpointReader reader(checkpoint);
  const layout::Layout one = layout::make_layout(model, {}, layout::Placement::loop);
  GlobalTensors out;
  for (const layout::ParamSpec& p : layout::parameters(model, one, Rank(0))) {
    if (p.tied_copy) continue;
    for (const char* prefix : {"", "optimizer.m.", "optimizer.v."}) {
      std::vector<double>& values = out[prefix + p.name];
      values.resize(p.num_elements());
      reader.read({.name = prefix + p.name,
                   .num_dims = p.num_dims,
                   .global = p.global,
                   .slice = p.slice,
                   .data = tensor::Tensor(values.data(), tensor::DType::f64, {p.num_elements()})});
    }
  }
  return out;
}

TEST_F(Trainer, ResumeOnTheSameLayoutIsBitIdenticalAndOnAnyOtherWithinTheParityBound) {
  const spec::Job whole = job_in(root_ / "whole", 12);
  const exec::RunSummary uninterrupted = run(whole);
  ASSERT_EQ(uninterrupted.losses.size(), 12U);
  const GlobalTensors want = weights_in(uninterrupted.checkpoint, whole.model);
  const std::vector<std::pair<std::string, spec::ParallelSpec>> layouts = {
      {"same", whole.parallel},
      {"one", {}},
      {"dp4", {.dp = 4, .ep = 4}},
      {"pp4", {.pp = 4, .schedule = "zb-h1"}},
      {"tp4", {.tp = 4, .etp = 2, .schedule = "gpipe"}},
      {"cp2", {.cp = 2, .dp = 2, .pp = 2, .ep = 4, .schedule = "1f1b"}},
      {"placed", {.dp = 4, .ep = 4, .expert_slots = shuffled_slots(whole.model, 11)}},
  };
  for (const auto& [name, parallel] : layouts) {
    for (const std::int32_t zero : {0, 1, 2, 3}) {
      if (zero == 2 && name != "same") continue;  // reads and writes what 1 and 3 do
      const fs::path folder = root_ / fmt::format("{}{}", name, zero);
      spec::Job first = job_in(folder, 8);
      ASSERT_EQ(run(first).losses.size(), 8U);
      spec::Job rest = job_in(folder, 12);
      rest.parallel = parallel;
      rest.train.zero_stage = zero;
      const exec::RunSummary resumed = run(rest);
      EXPECT_EQ(resumed.first_step, 8) << name;
      ASSERT_EQ(resumed.losses.size(), 4U) << name;
      const GlobalTensors got = weights_in(resumed.checkpoint, rest.model);
      std::string where;
      const double error = worst_difference(want, got, &where);
      const bool same = name == "same" && zero == 0;
      EXPECT_TRUE(error <= (same ? 0.0 : 1e-10))
          << name << " zero " << zero << ": " << where << " off by " << error;
      if (same) {
        EXPECT_EQ(std::vector<double>(uninterrupted.losses.begin() + 8, uninterrupted.losses.end()),
                  resumed.losses);
      }
    }
  }
}

TEST_F(Trainer, ARunMayBeginToBalanceOverTheGlobalBatchWhenItResumes) {
  spec::Job first = job_in(root_, 4);
  first.train.moe.aux_loss_unit = spec::BalanceUnit::micro_batch;  // stores no frequencies
  ASSERT_EQ(run(first).losses.size(), 4U);
  const exec::RunSummary resumed = run(job_in(root_, 6));
  EXPECT_EQ(resumed.first_step, 4);
  EXPECT_EQ(resumed.losses.size(), 2U);
}

TEST_F(Trainer, WritesMetricsTracePlanAndCheckpointThatReadBack) {
  const spec::Job job = job_in(root_, 6);
  const exec::RunSummary summary = run(job);
  std::ifstream in(summary.metrics);
  std::string line;
  std::int64_t step = 0;
  while (std::getline(in, line)) {
    const auto j = nlohmann::json::parse(line);
    EXPECT_EQ(j["step"], step);
    EXPECT_EQ(j["loss"].get<double>(), summary.losses[step]);
    EXPECT_EQ(j["bubble_clock"], "cpu");
    EXPECT_GT(j["axes"]["tp"]["sent_bytes"].get<std::int64_t>(), 0);
    EXPECT_GT(j["axes"]["ep"]["sent_bytes"].get<std::int64_t>(), 0);
    EXPECT_EQ(j["layers"].size(), 4U);
    std::int64_t choices = 0;
    for (const std::int64_t n : j["layers"][0]["load"]) choices += n;
    EXPECT_EQ(choices, 2 * 16 * 4);  // top-2 of every token of the global batch
    ++step;
  }
  EXPECT_EQ(step, 6);
  const trace::Trace trace = trace::read_chrome(summary.trace);
  std::set<std::int32_t> ranks;
  for (const trace::Span& s : trace.spans) ranks.insert(s.rank.value);
  EXPECT_EQ(ranks.size(), 8U);
  EXPECT_EQ(ckpt::CheckpointReader(summary.checkpoint).meta().step, 6);
  EXPECT_GT(summary.validation_loss, 0.0);
  for (const exec::RankUse& r : summary.ranks) EXPECT_EQ(r.planned, r.measured) << "rank " << r.rank.value;
}

TEST_F(Trainer, GeneratorContinuesFromAnyLayoutsCheckpointDeterministically) {
  const spec::Job job = job_in(root_, 4);
  const exec::RunSummary summary = run(job);
  exec::Generator generator(job.model, ckpt::CheckpointReader(summary.checkpoint), 16);
  const std::vector<std::int32_t> prompt = {1, 2, 3};
  const auto a = generator.generate(prompt, {.max_new_tokens = 20, .seed = 4});
  EXPECT_EQ(a.size(), 20U);
  EXPECT_EQ(a, generator.generate(prompt, {.max_new_tokens = 20, .seed = 4}));
  EXPECT_NE(a, generator.generate(prompt, {.max_new_tokens = 20, .seed = 5}));
  const auto greedy = generator.generate(prompt, {.max_new_tokens = 1, .temperature = 0.0});
  const std::vector<float> logits = generator.next_logits(prompt);
  EXPECT_EQ(greedy.at(0), std::ranges::max_element(logits) - logits.begin());
}

// A child trains; the parent kills it at random moments until it is done. Its losses must be those of a run
// never killed.
TEST_F(Trainer, KilledAtRandomMomentsItGoesOnToTheSameLosses) {
  spec::Job job = job_in(root_ / "killed", 40);
  job.checkpoint.every = 1;
  job.checkpoint.keep = 1;
  spec::Job calm = job;
  calm.checkpoint = {};
  calm.output.folder = (root_ / "calm").string();
  const exec::RunSummary want = run(calm);
  std::int32_t kills = 0;
  bool done = false;
  for (std::uint64_t attempt = 0; attempt < 400 && !done; ++attempt) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      try {
        (void)run(job);
        ::_exit(0);
      } catch (const std::exception& e) {
        fmt::print(stderr, "child: {}\n", e.what());
        ::_exit(1);
      }
    }
    const auto pause = static_cast<std::int64_t>(20 + 60 * uniform(9, 1, attempt));
    const std::int64_t until = wall_ns() + pause * 1'000'000;
    int status = 0;
    pid_t ended = 0;
    // From the 56th attempt on it may finish.
    while (ended == 0 && (attempt > 55 || wall_ns() < until)) {
      ended = ::waitpid(child, &status, WNOHANG);
      if (ended == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (ended == 0) {
      ASSERT_EQ(::kill(child, SIGKILL), 0);
      ASSERT_EQ(::waitpid(child, &status, 0), child);
      ++kills;
      continue;
    }
    ASSERT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "attempt " << attempt;
    done = true;
  }
  EXPECT_TRUE(done);
  fmt::print("killed {} times\n", kills);
  const GlobalTensors got = weights_in(*ckpt::latest_checkpoint(job.checkpoint.folder), job.model);
  spec::Job again = job_in(root_ / "again", 40);
  again.checkpoint.every = 0;
  const GlobalTensors weights = weights_in(run(again).checkpoint, job.model);
  EXPECT_EQ(weights, got);
  EXPECT_EQ(want.losses.size(), 40U);
}

}  // namespace
}  // namespace tessera::testing
