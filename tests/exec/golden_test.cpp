// The engine computes what Hugging Face transformers computes: tiny checkpoints of the llama (GQA, llama3
// rotary scaling) and mixtral families with the logits, loss, routing and gradients that transformers gives
// in f64 (tests/golden/hf). One rank, and layouts over tp, pp and ep.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <mutex>

#include "ckpt/checkpoint.h"
#include "ckpt/safetensors.h"
#include "exec/run_state.h"
#include "run.h"

namespace tessera::testing {
namespace {

class Expected {
 public:
  explicit Expected(const std::string& family)
      : folder(fmt::format("{}/tests/golden/hf/{}", TESSERA_SOURCE_DIR, family)),
        file_(fmt::format("{}/expected.safetensors", folder)) {}
  [[nodiscard]] std::vector<double> f64(const std::string& name) const {
    return ckpt::to_f64(file_.at(name));
  }
  [[nodiscard]] std::vector<std::int64_t> i64(const std::string& name) const {
    return ckpt::to_i64(file_.at(name));
  }
  [[nodiscard]] std::vector<std::string> gradient_names() const {
    std::vector<std::string> names;
    for (const auto& e : file_.tensors()) {
      if (e.name.starts_with("grad.")) names.emplace_back(e.name, 5);
    }
    return names;
  }
  std::string folder;

 private:
  ckpt::SafetensorsFile file_;
};

// The fixture's batch: position t predicts labels[t + 1].
class FixtureBatch : public exec::BatchSource {
 public:
  FixtureBatch(const Expected& e, std::int64_t seq)
      : ids_(e.i64("input_ids")), labels_(e.i64("labels")), seq_(seq) {}
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    for (std::int64_t t = 0; t < seq_; ++t) {
      ids[t] = static_cast<std::int32_t>(ids_[index * seq_ + t]);
      targets[t] = t + 1 < seq_ ? static_cast<std::int32_t>(labels_[index * seq_ + t + 1]) : -100;
    }
  }
  [[nodiscard]] std::int64_t num_targets(std::int64_t first, std::int64_t count) const override {
    std::int64_t n = 0;
    for (std::int64_t i = first; i < first + count; ++i) {
      for (std::int64_t t = 1; t < seq_; ++t) n += labels_[i * seq_ + t] >= 0 ? 1 : 0;
    }
    return n;
  }

 private:
  std::vector<std::int64_t> ids_, labels_;
  std::int64_t seq_;
};

double relative_error(const std::vector<double>& want, const std::vector<double>& got) {
  return worst_difference({{"x", want}}, {{"x", got}}, nullptr);
}

struct Case {
  std::string family;
  spec::ParallelSpec parallel;
  std::int64_t micro_batch_size = 2;
};

class Golden : public ::testing::TestWithParam<Case> {};
class GoldenLogits : public Golden {};  // layouts where one replica sees the whole batch

constexpr double kBound = 1e-9;
constexpr std::int64_t kBatch = 2, kSeq = 20;

spec::Job job_of(const Case& c, const Expected& e) {
  spec::Job job;
  job.model = spec::read_hf_config(e.folder);
  job.parallel = c.parallel;
  job.train.steps = 1;
  job.train.sequence_length = kSeq;
  job.train.global_batch_size = kBatch;
  job.train.micro_batch_size = c.micro_batch_size;
  job.train.precision = spec::Precision::f64;
  job.train.bucket_bytes = 4096;
  return job;
}

TEST_P(Golden, LossGradientsAndRoutingEqualTransformersInF64) {
  const Expected expected(GetParam().family);
  const spec::Job job = job_of(GetParam(), expected);
  const FixtureBatch batch(expected, kSeq);
  const auto weights = ckpt::open_hf_folder(expected.folder);
  const RunResult got =
      run_job(job, {.steps = 1, .cpu_kernels = true, .data = &batch, .start = [&](exec::RankEngine& e) {
                      exec::load_state(e, *weights, exec::StateParts::weights);
                    }});
  EXPECT_TRUE(relative_error(expected.f64("loss"), {got.steps[0].ce_loss}) < kBound);
  for (const std::string& name : expected.gradient_names()) {
    const auto it = got.gradients.find(name);
    ASSERT_NE(it, got.gradients.end()) << name;
    const double error = relative_error(expected.f64(fmt::format("grad.{}", name)), it->second);
    EXPECT_TRUE(error < kBound) << name << " off by " << error;
  }
  EXPECT_EQ(expected.gradient_names().size(), got.gradients.size());
}

TEST_P(GoldenLogits, EqualTransformersInF64) {
  const Expected expected(GetParam().family);
  const spec::Job job = job_of(GetParam(), expected);
  const FixtureBatch batch(expected, kSeq);
  const auto weights = ckpt::open_hf_folder(expected.folder);
  const std::int64_t vocab = job.model.vocab_size;
  std::vector<double> logits(kBatch * kSeq * vocab, NAN);
  std::mutex mutex;
  (void)run_job(job,
                {.steps = 0, .cpu_kernels = true, .data = &batch, .start = [&](exec::RankEngine& e) {
                   exec::load_state(e, *weights, exec::StateParts::weights);
                   EXPECT_TRUE(relative_error(expected.f64("loss"), {e.evaluate(batch, 0, kBatch)}) < kBound);
                   for (exec::Stage& s : e.stages()) {
                     if (!s.cut().has_head) continue;
                     const tensor::Tensor local = s.head().logits(0);
                     const std::int64_t columns = local.dim(1);
                     const std::int64_t first = e.comms().tp->rank() * columns;
                     const std::lock_guard lock(mutex);
                     for (std::int64_t t = 0; t < local.rows(); ++t) {
                       for (std::int64_t v = 0; v < columns; ++v) {
                         logits[t * vocab + first + v] = local.as<double>()[t * columns + v];
                       }
                     }
                   }
                 }});
  const double error = relative_error(expected.f64("logits"), logits);
  EXPECT_TRUE(error < kBound) << "logits off by " << error;
}

std::string name_of(const ::testing::TestParamInfo<Case>& info) {
  const spec::ParallelSpec& p = info.param.parallel;
  return fmt::format("{}_dp{}_pp{}_etp{}", info.param.family, p.dp, p.pp, p.etp);
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, Golden,
    ::testing::Values(Case{"llama", {}}, Case{"llama", {.pp = 2}},
                      Case{"llama", {.dp = 2, .schedule = "gpipe"}, 1},
                      Case{"llama", {.dp = 2, .pp = 2, .schedule = "zb-h1"}, 1}, Case{"mixtral", {}},
                      Case{"mixtral", {.pp = 2}}, Case{"mixtral", {.dp = 2, .etp = 2}, 1},
                      Case{"mixtral", {.dp = 2, .pp = 2, .etp = 2, .schedule = "zb-h1"}, 1}),
    name_of);
INSTANTIATE_TEST_SUITE_P(Layouts, GoldenLogits,
                         ::testing::Values(Case{"llama", {}}, Case{"llama", {.pp = 2}}, Case{"mixtral", {}},
                                           Case{"mixtral", {.pp = 2}}),
                         name_of);

}  // namespace
}  // namespace tessera::testing
