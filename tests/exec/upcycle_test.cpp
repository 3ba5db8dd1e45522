// A dense model of every family that can be upcycled against the mixture that comes out, in f64 on one
// rank and on a layout; what noise and router are made of; what is refused.
#include "ckpt/upcycle.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "ckpt/hf_names.h"
#include "exec/run_state.h"
#include "run.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;

struct Dense {
  explicit Dense(const std::string& family)
      : folder(fmt::format("{}/tests/golden/hf/{}", TESSERA_SOURCE_DIR, family)),
        model(spec::read_hf_config(folder)),
        weights(ckpt::open_hf_folder(folder, model)) {}
  std::string folder;
  spec::ModelSpec model;
  std::unique_ptr<ckpt::WeightSource> weights;
};

// Loss of the first step and the weights before it.
RunResult run_with(const spec::ModelSpec& model, const ckpt::WeightSource& weights,
                   const spec::ParallelSpec& parallel) {
  spec::Job job = small_job({});
  job.model = model;
  job.parallel = parallel;
  job.train.precision = spec::Precision::f64;
  job.train.sequence_length = 12;
  job.train.global_batch_size = 4;
  job.train.micro_batch_size = 2;
  job.train.optimizer.lr = 0.0;
  job.train.moe.aux_loss_coef = 0.0;
  return run_job(job, {.steps = 1, .start = [&](exec::RankEngine& engine) {
                         exec::load_state(engine, weights, exec::StateParts::weights);
                       }});
}

class Upcycling : public ::testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Families, Upcycling, ::testing::Values("llama", "mistral", "qwen2", "qwen3"),
                         [](const auto& info) { return std::string(info.param); });

TEST_P(Upcycling, ComputesWhatTheDenseModelDoes) {
  const Dense dense(GetParam());
  const ckpt::UpcycleOptions options{.num_experts = 4, .top_k = 2};
  const spec::ModelSpec moe = ckpt::upcycled_model(dense.model, options, dense.folder);
  const auto source = ckpt::upcycle(dense.model, *dense.weights, moe, options);
  const RunResult want = run_with(dense.model, *dense.weights, {});
  for (const spec::ParallelSpec& p : {spec::ParallelSpec{}, spec::ParallelSpec{.tp = 2, .ep = 2}}) {
    const RunResult got = run_with(moe, *source, p);
    EXPECT_NEAR(got.steps[0].ce_loss, want.steps[0].ce_loss, 1e-13);
    // What both have gets the same gradient.
    for (const auto& [name, gradient] : want.gradients) {
      if (name.find(".mlp.") != std::string::npos) continue;
      const std::vector<double>& other = got.gradients.at(name);
      double largest = 0, apart = 0;
      for (std::size_t i = 0; i < gradient.size(); ++i) {
        largest = std::max(largest, std::abs(gradient[i]));
        apart = std::max(apart, std::abs(gradient[i] - other[i]));
      }
      EXPECT_LE(apart, 1e-11 * largest) << name;
    }
  }
}

TEST_P(Upcycling, IsAFolderThatReadsBack) {
  const Dense dense(GetParam());
  const ckpt::UpcycleOptions options{.num_experts = 4, .top_k = 1, .noise = 0.01};
  const spec::ModelSpec moe = ckpt::upcycled_model(dense.model, options, dense.folder);
  const auto source = ckpt::upcycle(dense.model, *dense.weights, moe, options);
  const fs::path folder = fs::path(TESSERA_BINARY_DIR) / fmt::format("upcycled_{}", GetParam());
  fs::remove_all(folder);
  ckpt::write_hf_folder(folder, moe, *source);
  const spec::ModelSpec again = spec::read_hf_config(folder);
  EXPECT_EQ(again.moe->num_experts, 4);
  EXPECT_EQ(again.moe->num_experts_per_tok, 1);
  EXPECT_TRUE(again.moe->norm_topk_prob);
  EXPECT_EQ(spec::num_parameters(again), spec::num_parameters(moe));
  const auto read = ckpt::open_hf_folder(folder, again);
  EXPECT_EQ(read->names(), source->names());
}

std::vector<double> values_of(const ckpt::WeightSource& source, const layout::ParamSpec& p) {
  std::vector<double> values(static_cast<std::size_t>(p.num_elements()));
  source.read({.name = p.name,
               .num_dims = p.num_dims,
               .global = p.global,
               .slice = p.slice,
               .data = tensor::Tensor(values.data(), tensor::DType::f64, {p.num_elements()})});
  return values;
}

TEST(UpcyclingNoise, IsAShareOfTheMatrixAndDiffersBetweenExperts) {
  const Dense dense("llama");
  const ckpt::UpcycleOptions options{.num_experts = 2, .top_k = 1, .noise = 0.1};
  const spec::ModelSpec moe = ckpt::upcycled_model(dense.model, options, dense.folder);
  const auto equal = ckpt::upcycle(dense.model, *dense.weights, moe, {.num_experts = 2, .top_k = 1});
  const auto noisy = ckpt::upcycle(dense.model, *dense.weights, moe, options);
  std::vector<double> first;
  for (const layout::ParamSpec& p : ckpt::model_parameters(moe)) {
    const std::vector<double> a = values_of(*equal, p), b = values_of(*noisy, p);
    if (p.kind != layout::ParamKind::expert_down) continue;
    double size = 0, noise = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      size += a[i] * a[i];
      noise += (b[i] - a[i]) * (b[i] - a[i]);
    }
    EXPECT_NEAR(std::sqrt(noise / size), 0.1, 0.01);
    if (!first.empty()) {
      EXPECT_NE(b, first);
    }
    first = b;
  }
  ASSERT_FALSE(first.empty());
}

// A bias that transformers does not know would be lost there, and with it the choice of experts.
TEST(OwnCorrectionBias, IsNotWrittenForOtherPrograms) {
  const Dense dense("llama");
  spec::ModelSpec moe = ckpt::upcycled_model(dense.model, {.num_experts = 4, .top_k = 2}, dense.folder);
  moe.moe->score_correction_bias = true;
  const auto source = ckpt::upcycle(dense.model, *dense.weights, moe, {.num_experts = 4, .top_k = 2});
  try {
    ckpt::write_hf_folder(fs::path(TESSERA_BINARY_DIR) / "own_bias", moe, *source);
    FAIL() << "written";
  } catch (const Error& e) {
    EXPECT_NE(e.problems()[0].what.find("correction bias, which mixtral does not have"), std::string::npos);
    EXPECT_NE(e.problems()[0].mend.find("balancing: loss"), std::string::npos);
  }
}

TEST(UpcyclingErrors, NameEveryProblemAtOnce) {
  const Dense gpt2("gpt2");
  try {
    (void)ckpt::upcycled_model(gpt2.model, {.num_experts = 1, .top_k = 3, .noise = -1}, "hf/gpt2");
    FAIL() << "accepted";
  } catch (const Error& e) {
    ASSERT_EQ(e.problems().size(), 4u);
    EXPECT_NE(e.problems()[0].what.find("gpt2"), std::string::npos);
    EXPECT_EQ(e.problems()[0].where, "hf/gpt2");
    EXPECT_NE(e.problems()[0].mend.find("qwen3"), std::string::npos);
    EXPECT_NE(e.problems()[1].what.find("experts=1"), std::string::npos);
    EXPECT_NE(e.problems()[2].what.find("top_k=3"), std::string::npos);
    EXPECT_NE(e.problems()[3].what.find("noise=-1"), std::string::npos);
  }
}

}  // namespace
}  // namespace tessera::testing
