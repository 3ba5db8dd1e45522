// Every form of routing and balancing on many layouts equals one rank over three optimiser steps in f64; how
// the bias of the choice moves; what the named normalisations weigh.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>

#include "run.h"

namespace tessera::testing {
namespace {

struct Form {
  std::string name;
  void (*change)(spec::Job&);
  bool one_stage = false;
  friend void PrintTo(const Form& f, std::ostream* out) { *out << f.name; }
};

void without_balancing(spec::Job& job) {
  job.train.moe.balancing = spec::Balancing::none;
  job.train.moe.aux_loss_coef = 0.0;
}
void by_bias(spec::Job& job) {
  job.train.moe.balancing = spec::Balancing::bias;
  job.train.moe.aux_loss_coef = 0.0;
  job.train.moe.bias_update_rate = 0.05;
  job.model.moe->score_correction_bias = true;
}

const std::vector<Form>& forms() {
  static const std::vector<Form> list = {
      {"none", without_balancing},
      {"bias", by_bias},
      {"centred_bias_and_loss",
       [](spec::Job& job) {
         by_bias(job);
         job.train.moe.bias_update_centred = true;
         job.train.moe.aux_loss_coef = 0.02;
         job.train.moe.aux_loss_unit = spec::BalanceUnit::sequence;
       }},
      {"hash",
       [](spec::Job& job) {
         without_balancing(job);
         job.train.moe.router = spec::RouterChoice::hash;
       }},
      {"expert_choice",
       [](spec::Job& job) {
         without_balancing(job);
         job.train.moe.router = spec::RouterChoice::expert_choice;
         job.train.moe.capacity_factor = 1.5;
       }},
      {"jitter", [](spec::Job& job) { job.train.moe.router_jitter = 0.1; }},
      {"padded",
       [](spec::Job& job) {
         job.train.moe.capacity_factor = 1.0;
         job.train.moe.pad_to_capacity = true;
         job.train.moe.drop_policy = spec::DropPolicy::probs;
       }},
      {"huggingface",
       [](spec::Job& job) {
         job.train.moe.aux_loss_normalisation = spec::AuxNormalisation::huggingface;
         job.train.recompute = spec::Recompute::full;
       },
       true},
      {"huggingface_global",
       [](spec::Job& job) {
         job.train.moe.aux_loss_normalisation = spec::AuxNormalisation::huggingface;
         job.train.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
       }},
  };
  return list;
}

spec::Job job_with(const Form& form) {
  spec::Job job = small_job({.moe = true, .layers = 2});
  job.train.precision = spec::Precision::f64;
  job.train.moe.aux_loss_coef = 0.05;
  form.change(job);
  return job;
}

class RoutingForms : public ::testing::TestWithParam<Form> {};
INSTANTIATE_TEST_SUITE_P(All, RoutingForms, ::testing::ValuesIn(forms()),
                         [](const auto& info) { return info.param.name; });

TEST_P(RoutingForms, OnAnyLayoutEqualOneRank) {
  const RunResult one = run_job(job_with(GetParam()));
  for (const spec::ParallelSpec& p :
       {spec::ParallelSpec{.tp = 2, .ep = 2}, spec::ParallelSpec{.dp = 2, .etp = 2},
        spec::ParallelSpec{.tp = 2, .dp = 2, .ep = 2, .etp = 2},
        spec::ParallelSpec{.tp = 2, .dp = 2, .ep = 4},
        spec::ParallelSpec{.dp = 2, .pp = 2, .ep = 2, .schedule = "zb-h1"}}) {
    if (GetParam().one_stage && p.pp > 1) continue;
    spec::Job job = job_with(GetParam());
    job.parallel = p;
    expect_parity(
        one, run_job(job),
        fmt::format("{} tp{} dp{} pp{} ep{} etp{}", GetParam().name, p.tp, p.dp, p.pp, p.ep, p.etp));
  }
}

// The biases of all layers after `steps`.
std::vector<double> biases_after(const spec::Job& job, std::int64_t steps) {
  std::vector<double> biases;
  (void)run_job(job, {.steps = steps, .inspect = [&](exec::RankEngine& engine) {
                        if (engine.rank().value != 0) return;
                        for (exec::Stage& stage : engine.stages()) {
                          for (const exec::Stage::Mixture& m : stage.mixtures()) {
                            const auto b = m.moe->correction_E();
                            if (b.empty()) continue;
                            for (const double x : b.span<double>()) biases.push_back(x);
                          }
                        }
                      }});
  return biases;
}

TEST(BiasBalancing, MovesOncePerStepByTheRate) {
  spec::Job job = job_with({"bias", by_bias});
  job.train.optimizer.lr = 0.0;
  job.train.moe.balancing = spec::Balancing::none;  // the bias stays
  job.train.moe.bias_update_rate = 0.0;
  const std::vector<double> still = biases_after(job, 10);
  for (const double b : still) EXPECT_EQ(b, 0.0);
  job.train.moe.balancing = spec::Balancing::bias;
  job.train.moe.bias_update_rate = 1.0 / 512.0;
  const std::vector<double> moved = biases_after(job, 10);
  EXPECT_EQ(moved.size(), still.size());
  bool any = false;
  for (const double b : moved) {
    EXPECT_EQ(b * 512.0, std::round(b * 512.0)) << "whole steps of the rate";
    EXPECT_LE(std::abs(b), 10.0 / 512.0);
    any = any || b != 0.0;
  }
  EXPECT_TRUE(any);
}

TEST(AuxNormalisation, NamesWeighTheSameChoicesDifferently) {
  const auto aux_of = [](spec::AuxNormalisation n, spec::BalanceUnit unit, std::int32_t dp) {
    spec::Job job = job_with({"", [](spec::Job& j) { j.model.num_hidden_layers = 4; }});
    job.train.moe.aux_loss_normalisation = n;
    job.train.moe.aux_loss_unit = unit;
    job.parallel.dp = dp;
    return run_job(job, {.steps = 1}).steps.front().aux_loss;
  };
  using spec::AuxNormalisation;
  using spec::BalanceUnit;
  const double ours = aux_of(AuxNormalisation::tessera, BalanceUnit::micro_batch, 1);
  EXPECT_EQ(aux_of(AuxNormalisation::megatron, BalanceUnit::micro_batch, 1), ours);
  // Four layers, top-2: c a layer at balance, and more when uneven, against c k once.
  EXPECT_GE(ours, 4 * 0.05 * 0.99);
  const double joined = aux_of(AuxNormalisation::huggingface, BalanceUnit::micro_batch, 1);
  EXPECT_GE(joined, 2 * 0.05 * 0.99);
  EXPECT_LT(joined, 0.7 * ours);
  // In the first step of the global unit all frequencies are uniform: the factors alone differ.
  const double global = aux_of(AuxNormalisation::tessera, BalanceUnit::global_batch, 2);
  EXPECT_NEAR(global, 4 * 0.05, 1e-12);
  EXPECT_NEAR(aux_of(AuxNormalisation::megatron, BalanceUnit::global_batch, 2), global / 2, 1e-12);
  EXPECT_NEAR(aux_of(AuxNormalisation::huggingface, BalanceUnit::global_batch, 2), 2 * 0.05, 1e-12);
}

}  // namespace
}  // namespace tessera::testing
