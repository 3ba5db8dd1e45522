// Worlds of 3, 5, 6 and 7 ranks equal one rank: every way to cut them over tp, dp and pp under every
// schedule, with expert groups that lie across replicas, uneven stages, several chunks a rank, and fewer
// micro-batches than stages. Three steps in f64, within 1e-10.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "base/random.h"
#include "run.h"

namespace tessera::testing {
namespace {

struct Sizes {
  std::int32_t world = 1;
  std::int32_t layers = 1;
  std::int64_t batch = 1;
  friend auto operator<=>(const Sizes&, const Sizes&) = default;
};

// Every dimension that a degree cuts is a multiple of the world, so any divisor of it fits.
spec::Job job_for(const std::string& model, const Sizes& sizes) {
  const std::int32_t world = sizes.world;
  const bool moe = model == "position" || model == "probs" || model == "global";
  spec::Job job = small_job({.moe = moe, .tied = model == "tied"});
  spec::ModelSpec& m = job.model;
  m.num_hidden_layers = sizes.layers;
  m.hidden_size = 10;
  m.num_attention_heads = 2 * world;
  m.num_key_value_heads = world;
  m.intermediate_size = 2 * world;
  m.vocab_size = 6 * world;
  if (moe) m.moe->num_experts = world;
  spec::Recipe& r = job.train;
  r.sequence_length = world;
  r.global_batch_size = sizes.batch;
  r.micro_batch_size = 1;
  r.bucket_bytes = 2000;
  if (model == "position") r.moe.capacity_factor = 0.75;
  if (model == "probs") {
    r.moe.capacity_factor = 1.25;
    r.moe.drop_policy = spec::DropPolicy::probs;
    r.moe.aux_loss_unit = spec::BalanceUnit::sequence;
  }
  if (model == "global") r.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
  return job;
}

const RunResult& one_rank(const std::string& model, const Sizes& sizes) {
  static std::map<std::pair<std::string, Sizes>, RunResult> cache;
  const auto [it, is_new] = cache.try_emplace({model, sizes});
  if (is_new) it->second = run_job(job_for(model, sizes));
  return it->second;
}

// One layer a stage, and the rest of the layers on one of them.
std::vector<std::int32_t> lopsided(std::int32_t layers, std::int32_t stages, std::uint64_t pick) {
  std::vector<std::int32_t> cut(static_cast<std::size_t>(stages), 1);
  cut[pick % cut.size()] = layers - stages + 1;
  return cut;
}

struct Choice {
  explicit Choice(const std::string& name) : stream(stream_of(name)) {}
  std::uint64_t below(std::uint64_t n) { return uniform_below(n, 23, stream, counter++); }
  template <class T>
  T of(std::vector<T> values) {
    return values[below(values.size())];
  }
  std::uint64_t stream;
  std::uint64_t counter = 0;
};

std::vector<std::int32_t> divisors(std::int32_t n) {
  std::vector<std::int32_t> d;
  for (std::int32_t i = 1; i <= n; ++i) {
    if (n % i == 0) d.push_back(i);
  }
  return d;
}

// What the layout leaves open is chosen by its name, the same in every run.
void expect_one(std::int32_t world, spec::ParallelSpec p) {
  Choice choice(fmt::format("tp{} dp{} pp{} vpp{} {}", p.tp, p.dp, p.pp, p.vpp, p.schedule));
  const auto model = choice.of<std::string>({"dense", "tied", "position", "probs", "global"});
  const auto m = static_cast<std::int32_t>(p.pp > 1 ? choice.of<std::int32_t>({1, 2, p.pp - 1, p.pp, 7})
                                                    : choice.of<std::int32_t>({1, 3}));
  const Sizes sizes{.world = world,
                    .layers = std::max(3, p.pp * p.vpp + 1 + static_cast<std::int32_t>(choice.below(4))),
                    .batch = std::int64_t{m} * p.dp};
  spec::Job job = job_for(model, sizes);
  if (job.model.moe) {
    p.ep = choice.of(divisors(p.tp * p.dp));
    p.etp = choice.of(divisors(p.tp * p.dp / p.ep));
  }
  if (choice.below(4) == 0) {
    p.stage_layers = lopsided(sizes.layers, p.pp * p.vpp, choice.below(100));
  }
  job.parallel = p;
  job.train.zero_stage = static_cast<std::int32_t>(choice.below(4));
  const std::vector<spec::Recompute> recompute = {spec::Recompute::none, spec::Recompute::selective,
                                                  spec::Recompute::full};
  job.train.recompute = choice.of(recompute);
  const std::string text =
      fmt::format("{} tp{} dp{} pp{} ep{} etp{} vpp{} {} m{} zero{} cut [{}]", model, p.tp, p.dp, p.pp, p.ep,
                  p.etp, p.vpp, p.schedule, m, job.train.zero_stage, fmt::join(p.stage_layers, ", "));
  expect_parity(one_rank(model, sizes), run_job(job, {.worker = choice.below(4) == 0}), text);
}

class OddWorld : public ::testing::TestWithParam<std::int32_t> {};

TEST_P(OddWorld, EqualsOneRankOnEveryLayoutUnderEverySchedule) {
  const std::int32_t world = GetParam();
  std::int32_t ran = 0;
  for (const std::int32_t tp : divisors(world)) {
    for (const std::int32_t pp : divisors(world / tp)) {
      std::vector<std::pair<std::string, std::int32_t>> schedules = {
          {"naive", 1}, {"gpipe", 1}, {"1f1b", 1}, {"zb-h1", 1}, {"interleaved", 2}, {"zb-v", 2}};
      if (pp <= 3) schedules.emplace_back("interleaved", 3);
      if (pp <= 2) schedules.emplace_back("interleaved", 4);
      for (const auto& [schedule, vpp] : schedules) {
        spec::ParallelSpec p{.tp = tp, .dp = world / tp / pp, .pp = pp, .vpp = vpp};
        p.schedule = schedule;
        expect_one(world, p);
        ++ran;
        if (HasFailure()) return;
      }
    }
  }
  fmt::print("{} ranks: {} runs\n", world, ran);
}

INSTANTIATE_TEST_SUITE_P(Ranks, OddWorld, ::testing::Values(3, 5, 6, 7),
                         [](const auto& info) { return fmt::format("of_{}", info.param); });

}  // namespace
}  // namespace tessera::testing
