// Every family on many layouts equals one rank: loss, gradients, routing and weights after three optimiser
// steps in f64, under every schedule, recomputation, ZeRO and routing that a job can ask for. The models are
// those of tests/golden/hf with random weights.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>

#include "base/random.h"
#include "run.h"

namespace tessera::testing {
namespace {

struct Choice {
  explicit Choice(const std::string& name) : stream(stream_of(name)) {}
  template <class T>
  T of(const std::vector<T>& values) {
    return values[uniform_below(values.size(), 29, stream, counter++)];
  }
  std::uint64_t stream;
  std::uint64_t counter = 0;
};

spec::Job job_for(const std::string& family) {
  spec::Job job = small_job({});
  job.model = spec::read_hf_config(fmt::format("{}/tests/golden/hf/{}", TESSERA_SOURCE_DIR, family));
  spec::Recipe& r = job.train;
  r.sequence_length = 12;
  r.global_batch_size = 8;
  r.micro_batch_size = 2;
  r.precision = spec::Precision::f64;
  return job;
}

std::vector<std::int32_t> divisors(std::int32_t n, std::int64_t also_of) {
  std::vector<std::int32_t> d;
  for (std::int32_t i = 1; i <= n; ++i) {
    if (n % i == 0 && also_of % i == 0) d.push_back(i);
  }
  return d;
}

// What the job leaves open is chosen by the name of the layout, the same in every run.
void choose_recipe(spec::Job& job, Choice& choice) {
  spec::Recipe& r = job.train;
  r.recompute =
      choice.of<spec::Recompute>({spec::Recompute::none, spec::Recompute::selective, spec::Recompute::full});
  if (!job.model.moe) return;
  r.moe.aux_loss_coef = choice.of<double>({0.0, 0.01});
  r.moe.z_loss_coef = choice.of<double>({0.0, 0.001});
  r.moe.aux_loss_unit = choice.of<spec::BalanceUnit>(
      {spec::BalanceUnit::sequence, spec::BalanceUnit::micro_batch, spec::BalanceUnit::global_batch});
  r.moe.capacity_factor = choice.of<double>({0.0, 1.0});
  r.moe.drop_policy = choice.of<spec::DropPolicy>({spec::DropPolicy::position, spec::DropPolicy::probs});
}

// Without rotary positions a bias of the keys shifts all scores of a query alike: its gradient is rounding
// only, which
// AdamW makes steps of.
void forget_key_biases(RunResult& r) {
  const auto is_key_bias = [](const auto& entry) { return entry.first.ends_with("k_proj.bias"); };
  std::erase_if(r.gradients, is_key_bias);
  std::erase_if(r.weights, is_key_bias);
}

class Families : public ::testing::TestWithParam<const char*> {};

TEST_P(Families, OnAnyLayoutEqualOneRank) {
  const std::string family = GetParam();
  std::int32_t ran = 0;
  for (const std::int32_t tp : {1, 2}) {
    for (const std::int32_t pp : {1, 2}) {
      for (const std::int32_t dp : {1, 2}) {
        if (tp * pp * dp == 1) continue;
        for (const char* schedule : {"1f1b", "zb-h1"}) {
          if (pp == 1 && std::string(schedule) != "1f1b") continue;
          spec::Job job = job_for(family);
          Choice choice(fmt::format("{} tp{} pp{} dp{} {}", family, tp, pp, dp, schedule));
          choose_recipe(job, choice);
          RunResult one = run_job(job);
          job.parallel = {.tp = tp, .dp = dp, .pp = pp, .schedule = schedule};
          if (job.model.moe) {
            job.parallel.ep = choice.of(divisors(tp * dp, job.model.moe->num_experts));
            job.parallel.etp =
                choice.of(divisors(tp * dp / job.parallel.ep, spec::expert_intermediate_size(job.model)));
          }
          job.train.zero_stage = choice.of<std::int32_t>({0, 1, 2, 3});
          const std::string text =
              fmt::format("{} tp{} dp{} pp{} ep{} etp{} {} zero{} recompute{} capacity{}", family, tp, dp, pp,
                          job.parallel.ep, job.parallel.etp, schedule, job.train.zero_stage,
                          static_cast<int>(job.train.recompute), job.train.moe.capacity_factor);
          RunResult got = run_job(job, {.worker = choice.of<bool>({false, true})});
          if (family == "gpt2") {
            forget_key_biases(one);
            forget_key_biases(got);
          }
          expect_parity(one, got, text);
          ++ran;
          if (HasFailure()) return;
        }
      }
    }
  }
  EXPECT_GE(ran, 10);
}

INSTANTIATE_TEST_SUITE_P(Engine, Families,
                         ::testing::Values("llama", "mistral", "qwen2", "qwen3", "gpt2", "mixtral",
                                           "qwen2_moe", "qwen3_moe", "olmoe", "deepseek_v2", "deepseek_v3",
                                           "gpt_oss"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace tessera::testing
