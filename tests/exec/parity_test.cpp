// Any layout equals one rank: loss, gradient norm, every gradient, updated weights and router counts after
// three optimiser steps in f64, within 1e-10 of each tensor's largest value.
//
// The matrix: {dense, mixtral-like, with drops, tied} x every layout of 2, 4 and 8 ranks over tp, pp, dp, ep,
// etp x every schedule that fits x ZeRO off/on. The ordinary run takes an even sample of it (at least 500
// combinations); TESSERA_PARITY=all takes everything.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>

#include "run.h"

namespace tessera::testing {
namespace {

struct Combination {
  std::string model;
  spec::ParallelSpec parallel;
  std::int32_t zero_stage;
  [[nodiscard]] std::string text() const {
    return fmt::format("{} tp{} dp{} pp{} ep{} etp{} vpp{} {} zero{}", model, parallel.tp, parallel.dp,
                       parallel.pp, parallel.ep, parallel.etp, parallel.vpp, parallel.schedule, zero_stage);
  }
};

spec::Job job_of(const std::string& model) {
  spec::Job job = small_job({.moe = model != "dense" && model != "tied", .tied = model == "tied"});
  job.model.num_hidden_layers = 8;
  if (model == "drops") {
    job.train.moe.capacity_factor = 1.0;
    job.train.moe.drop_policy = spec::DropPolicy::probs;
    job.train.moe.aux_loss_unit = spec::BalanceUnit::sequence;
  }
  return job;
}

const RunResult& one_rank(const std::string& model) {
  static std::map<std::string, RunResult> cache;
  const auto it = cache.find(model);
  if (it != cache.end()) return it->second;
  return cache[model] = run_job(job_of(model));
}

std::vector<Combination> all_combinations() {
  std::vector<Combination> out;
  const auto schedules = [](std::int32_t pp) {
    std::vector<std::pair<std::string, std::int32_t>> s{
        {"naive", 1}, {"gpipe", 1}, {"1f1b", 1}, {"zb-h1", 1}};
    if (pp <= 4) {
      s.emplace_back("interleaved", 2);
      s.emplace_back("zb-v", 2);
    }
    return s;
  };
  for (const std::string model : {"dense", "moe", "drops", "tied"}) {
    const bool moe = model == "moe" || model == "drops";
    for (const std::int32_t world : {2, 4, 8}) {
      for (std::int32_t tp = 1; tp <= world; tp *= 2) {
        for (std::int32_t pp = 1; pp * tp <= world; pp *= 2) {
          const std::int32_t dp = world / tp / pp;
          for (std::int32_t ep = 1; ep <= (moe ? tp * dp : 1); ep *= 2) {
            for (std::int32_t etp = 1; etp * ep <= (moe ? tp * dp : 1); etp *= 2) {
              for (const auto& [schedule, vpp] : schedules(pp)) {
                for (const std::int32_t zero : {0, 1}) {
                  spec::ParallelSpec p{.tp = tp, .dp = dp, .pp = pp, .ep = ep, .etp = etp, .vpp = vpp};
                  p.schedule = schedule;
                  out.push_back({model, p, zero});
                }
              }
            }
          }
        }
      }
    }
  }
  return out;
}

void expect_equal_to_one_rank(const Combination& c) {
  spec::Job job = job_of(c.model);
  job.parallel = c.parallel;
  job.train.zero_stage = c.zero_stage;
  const RunResult& want = one_rank(c.model);
  const RunResult got = run_job(job, {.worker = c.zero_stage == 1});
  constexpr double kBound = 1e-10;
  std::string where;
  const double gradients = worst_difference(want.gradients, got.gradients, &where);
  EXPECT_TRUE(gradients <= kBound) << c.text() << ": gradient " << where << " off by " << gradients;
  const double weights = worst_difference(want.weights, got.weights, &where);
  EXPECT_TRUE(weights <= kBound) << c.text() << ": weight " << where << " off by " << weights;
  ASSERT_EQ(want.steps.size(), got.steps.size());
  for (std::size_t s = 0; s < want.steps.size(); ++s) {
    const auto near = [&](double a, double b, const char* what) {
      EXPECT_TRUE(std::abs(a - b) <= kBound * std::max(1.0, std::abs(a)))
          << c.text() << ": " << what << " of step " << s << " is " << b << ", one rank has " << a;
    };
    near(want.steps[s].ce_loss, got.steps[s].ce_loss, "loss");
    near(want.steps[s].aux_loss, got.steps[s].aux_loss, "balancing loss");
    near(want.steps[s].z_loss, got.steps[s].z_loss, "z-loss");
    near(want.steps[s].grad_norm, got.steps[s].grad_norm, "gradient norm");
    ASSERT_EQ(want.steps[s].routing.size(), got.steps[s].routing.size());
    for (std::size_t l = 0; l < want.steps[s].routing.size(); ++l) {
      EXPECT_EQ(want.steps[s].routing[l].chosen, got.steps[s].routing[l].chosen)
          << c.text() << " layer " << l;
      EXPECT_EQ(want.steps[s].routing[l].dropped, got.steps[s].routing[l].dropped)
          << c.text() << " layer " << l;
    }
  }
}

TEST(Parity, AnyLayoutEqualsOneRank) {
  const std::vector<Combination> all = all_combinations();
  const char* wanted = std::getenv("TESSERA_PARITY");
  const bool everything = wanted != nullptr && std::string(wanted) == "all";
  const std::size_t stride = everything ? 1 : std::max<std::size_t>(1, all.size() / 510);
  std::size_t ran = 0;
  for (std::size_t i = 0; i < all.size(); i += stride) {
    expect_equal_to_one_rank(all[i]);
    ++ran;
    if (HasFatalFailure() || HasFailure()) break;
  }
  fmt::print("parity: {} of {} combinations\n", ran, all.size());
  EXPECT_TRUE(HasFailure() || ran >= 500);
}

}  // namespace
}  // namespace tessera::testing
