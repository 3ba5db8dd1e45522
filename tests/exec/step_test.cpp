// What a step computes, against its formulas: the losses of a model whose weights are all zero, and AdamW
// with warm-up, decay and clipping by hand. Parity alone cannot see a factor that every layout shares.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <thread>

#include "run.h"

namespace tessera::testing {
namespace {

// Zero weights: every logit is 0, so each token costs log(vocab), the router's softmax is uniform over its E
// experts, log-sum-exp is log(E), and E * sum f_e P_e is 1 in every balancing unit of every layer.
TEST(Step, LossesOfZeroWeightsFollowTheirFormulasForEveryUnitAndMicroBatchSize) {
  using spec::BalanceUnit;
  for (const BalanceUnit unit :
       {BalanceUnit::sequence, BalanceUnit::micro_batch, BalanceUnit::global_batch}) {
    for (const std::int64_t size : {1, 2, 4}) {
      for (const spec::ParallelSpec& p :
           std::vector<spec::ParallelSpec>{{}, {.tp = 2, .dp = 2, .ep = 4}, {.dp = 2, .pp = 2}}) {
        spec::Job job = small_job({.moe = true});
        job.train.moe.aux_loss_unit = unit;
        job.train.micro_batch_size = size;
        job.parallel = p;
        const auto zero = [](exec::RankEngine& engine) {
          engine.store().initialise(1, 0.0);
          engine.weights_changed();
        };
        const RunResult got = run_job(job, {.steps = 1, .ignore_every = 3, .start = zero});
        const std::string what = fmt::format("unit {} size {} dp {}", static_cast<int>(unit), size, p.dp);
        const double layers = job.model.num_hidden_layers;
        const double experts = std::log(8.0);
        EXPECT_NEAR(got.steps[0].ce_loss, std::log(40.0), 1e-12) << what;
        EXPECT_NEAR(got.steps[0].aux_loss, layers * job.train.moe.aux_loss_coef, 1e-12) << what;
        EXPECT_NEAR(got.steps[0].z_loss, layers * job.train.moe.z_loss_coef * experts * experts, 1e-12)
            << what;
        for (const exec::LayerRouting& r : got.steps[0].routing) {
          EXPECT_EQ(r.tokens, 16 * 4) << what;
          EXPECT_EQ(r.chosen, (std::vector<std::int64_t>{64, 64, 0, 0, 0, 0, 0, 0})) << what;
          EXPECT_NEAR(r.entropy, experts, 1e-12) << what;
        }
      }
    }
  }
}

// The same 16 sequences in every step.
class OneBatch : public SyntheticTokens {
 public:
  using SyntheticTokens::SyntheticTokens;
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    SyntheticTokens::fill(index % 16, ids, targets);
  }
};

// The unit global_batch takes the expert frequencies of the step before: with the same batch and (almost) no
// learning, its second step has the loss of one micro-batch that is the whole batch.
TEST(Step, GlobalBalanceUsesTheFrequenciesOfTheStepBefore) {
  spec::Job whole = small_job({.moe = true});
  whole.train.micro_batch_size = 16;
  whole.train.optimizer.lr = 1e-300;
  const OneBatch data(whole.model.vocab_size, whole.train.sequence_length);
  const double want = run_job(whole, {.steps = 1, .data = &data}).steps[0].aux_loss;
  const double uniform = whole.model.num_hidden_layers * whole.train.moe.aux_loss_coef;
  ASSERT_GT(std::abs(want - uniform), 1e-6);
  spec::Job job = small_job({.moe = true});
  job.train.optimizer.lr = 1e-300;
  job.train.moe.aux_loss_unit = spec::BalanceUnit::global_batch;
  job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2};
  const RunResult got = run_job(job, {.steps = 2, .data = &data});
  EXPECT_NEAR(got.steps[0].aux_loss, uniform, 1e-12);
  EXPECT_NEAR(got.steps[1].aux_loss, want, 1e-12);
}

TEST(Step, UpdatesByAdamWWithWarmUpDecayAndClipping) {
  spec::Job job = small_job({});
  spec::OptimizerSpec& o = job.train.optimizer;
  o.lr_warmup_steps = 2;
  o.lr_decay = spec::LrDecay::constant;
  o.weight_decay = 0.1;
  const std::vector<RunResult> after = {run_job(job, {.steps = 0}), run_job(job, {.steps = 1}),
                                        run_job(job, {.steps = 2})};
  for (const auto& [name, first] : after[0].weights) {
    const double decay = name.ends_with("norm.weight") ? 0.0 : o.weight_decay;
    for (std::size_t i = 0; i < first.size(); ++i) {
      double m = 0.0;
      double v = 0.0;
      double w = first[i];
      for (std::size_t t = 1; t <= 2; ++t) {
        const double norm = after[t].steps.back().grad_norm;
        ASSERT_GT(norm, o.clip_grad);  // clipped
        const double g = after[t].gradients.at(name)[i] * o.clip_grad / (norm + 1e-6);
        const double lr = o.lr * static_cast<double>(t) / 2.0;
        m = o.beta1 * m + (1.0 - o.beta1) * g;
        v = o.beta2 * v + (1.0 - o.beta2) * g * g;
        const double n = static_cast<double>(t);
        const double step =
            m / (1.0 - std::pow(o.beta1, n)) / (std::sqrt(v / (1.0 - std::pow(o.beta2, n))) + o.eps);
        w -= lr * (step + decay * w);
        ASSERT_NEAR(after[t].weights.at(name)[i], w, 1e-12)
            << name << " element " << i << " after step " << t;
      }
    }
  }
}

// Takes its time, so that the ranks that read it fall behind.
class SlowTokens : public SyntheticTokens {
 public:
  using SyntheticTokens::SyntheticTokens;
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    SyntheticTokens::fill(index, ids, targets);
  }
};

// Also when the first stage is passes ahead of the last: it must not write over what was not yet received.
TEST(Evaluate, GivesTheLossOfTheTrainingStepOnAnyLayout) {
  spec::Job job = small_job({.moe = true});
  const double want = run_job(job, {.steps = 1, .ignore_every = 3}).steps[0].ce_loss;
  for (const spec::ParallelSpec& p : std::vector<spec::ParallelSpec>{
           {}, {.pp = 2}, {.tp = 2, .dp = 2, .pp = 2, .ep = 2}, {.pp = 2, .vpp = 2}}) {
    job.parallel = p;
    job.parallel.schedule = p.vpp == 2 ? "zb-v" : "1f1b";
    const SyntheticTokens fast(job.model.vocab_size, job.train.sequence_length, 3);
    const SlowTokens slow(job.model.vocab_size, job.train.sequence_length, 3);
    const auto evaluate = [&](exec::RankEngine& engine) {
      engine.initialise();
      const bool late = engine.stages().back().cut().has_head;
      const double got = engine.evaluate(late ? slow : fast, 0, 16);
      EXPECT_NEAR(got, want, 1e-12) << "tp " << p.tp << " dp " << p.dp << " pp " << p.pp << " vpp " << p.vpp;
    };
    (void)run_job(job, {.steps = 0, .start = evaluate});
  }
}

TEST(Step, GradientSumsOutsideOfTheHelperThreadAreExposed) {
  for (const bool worker : {false, true}) {
    spec::Job job = small_job({});
    job.parallel = {.tp = 2, .dp = 4};
    job.train.zero_stage = 1;
    job.train.overlap_param_gather = false;
    (void)run_job(job, {.steps = 2, .worker = worker, .inspect = [&](exec::RankEngine& engine) {
                          const exec::Communicators& c = engine.comms();
                          std::int64_t inside = 0;
                          for (const comm::Communicator* group : {c.dp.get(), c.tp_dp.get()}) {
                            const auto at = static_cast<std::size_t>(worker ? comm::Call::all_gather
                                                                            : comm::Call::reduce_scatter);
                            inside += group->counters()[at].wall_ns;
                          }
                          EXPECT_GT(inside, 0);
                          EXPECT_GE(engine.exposed_reduce_ns(), inside);
                        }});
  }
}

// The norm is that of all gradients together, each element once.
TEST(Step, GradientNormIsThatOfTheGatheredGradients) {
  for (const bool tied : {false, true}) {
    for (const std::int32_t zero : {0, 1}) {
      spec::Job job = small_job({.moe = true, .tied = tied});
      job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2};
      job.train.zero_stage = zero;
      const RunResult got = run_job(job, {.steps = 1});
      double squares = 0.0;
      for (const auto& [name, gradient] : got.gradients) {
        for (const double g : gradient) squares += g * g;
      }
      EXPECT_NEAR(got.steps[0].grad_norm, std::sqrt(squares), 1e-12 * std::sqrt(squares));
    }
  }
}

}  // namespace
}  // namespace tessera::testing
