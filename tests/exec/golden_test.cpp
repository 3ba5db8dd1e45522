// The engine computes what Hugging Face transformers computes: tiny checkpoints of the twelve families with
// the hidden states, logits, loss, routing and gradients that transformers gives (tests/golden/hf). In f64 on
// one rank and on layouts over tp, cp, pp, dp, ep and etp, in f32 on one rank.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <functional>
#include <mutex>

#include "ckpt/checkpoint.h"
#include "ckpt/hf_names.h"
#include "ckpt/safetensors.h"
#include "cudalib/library_ops.h"
#include "exec/run_state.h"
#include "kernels/cuda/cuda_kernels.h"
#include "run.h"
#include "support/emulated_place.h"

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
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const {
    return file_.at(name).shape;
  }
  [[nodiscard]] bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  // A tensor of the family's files as the engine holds it: its parts by the engine's names.
  [[nodiscard]] GlobalTensors in_engine_form(const ckpt::HfTensor& t, const std::string& prefix) const {
    const ckpt::StoredTensor& stored = file_.at(prefix + t.name);
    GlobalTensors out;
    for (const ckpt::HfPart& part : t.parts) {
      const layout::ParamSpec& p = part.param;
      std::vector<double>& values = out[p.name];
      values.resize(p.num_elements());
      ckpt::gather(part.view, stored.type, stored.bytes.data(), {.begin = {0, 0}, .size = p.slice.size},
                   tensor::Tensor(values.data(), tensor::DType::f64, {p.num_elements()}));
    }
    return out;
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

struct Case {
  std::string name;
  spec::ParallelSpec parallel;
  std::int64_t micro_batch_size = 2;
};

// Every family, on these layouts. etp cuts experts, ep spreads them where their number allows.
struct Family {
  std::string name;
  bool moe = false;
  std::int32_t most_ep = 1;
  bool cuts_sequences = true;  // 4 divides the fixture's length
  friend void PrintTo(const Family& f, std::ostream* out) { *out << f.name; }
};
const std::vector<Family>& families() {
  static const std::vector<Family> list = {
      {"llama"},
      {"mistral"},
      {"qwen2"},
      {"qwen3"},
      {"gpt2"},
      {"mixtral", true},
      {"qwen2_moe", true, 1, false},
      {"qwen3_moe", true, 4},
      {"olmoe", true, 4},
      {"deepseek_v2", true, 4},
      {"deepseek_v3", true, 4},
      {"gpt_oss", true},
  };
  return list;
}
std::vector<Case> layouts_of(const Family& f) {
  std::vector<Case> cases{
      {"one", {}},
      {"pp2", {.pp = 2}},
      {"tp2", {.tp = 2, .etp = f.moe ? 2 : 1}},
      {"dp2_gpipe", {.dp = 2, .schedule = "gpipe"}, 1},
      {"tp2_dp2", {.tp = 2, .dp = 2}, 1},
      {"dp2_pp2_zb_h1", {.dp = 2, .pp = 2, .schedule = "zb-h1"}, 1},
      {"tp2_pp2", {.tp = 2, .pp = 2}},
  };
  if (f.moe) cases.push_back({"dp2_etp2", {.dp = 2, .etp = 2}, 1});
  if (f.cuts_sequences) {
    cases.push_back({"cp2", {.cp = 2}});
    cases.push_back({"tp2_cp2", {.tp = 2, .cp = 2, .etp = f.moe ? 2 : 1}});
    cases.push_back({"cp2_dp2_pp2_zb_h1", {.cp = 2, .dp = 2, .pp = 2, .schedule = "zb-h1"}, 1});
  }
  if (f.cuts_sequences && f.most_ep >= 4) {
    cases.push_back({"cp2_ep2", {.cp = 2, .ep = 2}});
    cases.push_back({"tp2_cp2_dp2_ep4_etp2", {.tp = 2, .cp = 2, .dp = 2, .ep = 4, .etp = 2}, 1});
  }
  if (f.most_ep >= 4) {
    cases.push_back({"dp2_ep2", {.dp = 2, .ep = 2}, 1});
    cases.push_back({"tp2_dp2_ep4", {.tp = 2, .dp = 2, .ep = 4}, 1});
    cases.push_back({"tp2_dp2_ep2_etp2", {.tp = 2, .dp = 2, .ep = 2, .etp = 2}, 1});
  }
  return cases;
}
struct Param {
  Family family;
  Case c;
  friend void PrintTo(const Param& p, std::ostream* out) { *out << p.family.name << " " << p.c.name; }
};
std::vector<Param> all_params(bool whole_batch_only) {
  std::vector<Param> out;
  for (const Family& f : families()) {
    for (const Case& c : layouts_of(f)) {
      if (!whole_batch_only || c.parallel.dp == 1) out.push_back({f, c});
    }
  }
  return out;
}

class Golden : public ::testing::TestWithParam<Param> {};
class GoldenValues : public Golden {};  // layouts where one replica sees the whole batch
class GoldenF32 : public ::testing::TestWithParam<Family> {};

constexpr double kBound = 1e-9;
constexpr double kBoundF32 = 2e-4;

double relative_error(const std::vector<double>& want, const std::vector<double>& got) {
  return worst_difference({{"x", want}}, {{"x", got}}, nullptr);
}

spec::Job job_of(const Case& c, const Expected& e, spec::Precision precision) {
  const std::vector<std::int64_t> shape = e.shape("input_ids");
  spec::Job job;
  job.model = spec::read_hf_config(e.folder);
  job.parallel = c.parallel;
  job.train.steps = 1;
  job.train.sequence_length = shape.at(1);
  job.train.global_batch_size = shape.at(0);
  job.train.micro_batch_size = c.micro_batch_size;
  job.train.precision = precision;
  job.train.bucket_bytes = 4096;
  return job;
}

using MakeKernels = std::function<std::unique_ptr<kernels::Kernels>()>;

RunResult first_step(const Expected& expected, const spec::Job& job, const MakeKernels& make_kernels) {
  const FixtureBatch batch(expected, job.train.sequence_length);
  const auto weights = ckpt::open_hf_folder(expected.folder);
  return run_job(
      job, {.steps = 1, .make_kernels = make_kernels, .data = &batch, .start = [&](exec::RankEngine& e) {
              exec::load_state(e, *weights, exec::StateParts::weights);
            }});
}

void expect_loss_and_gradients(const Expected& expected, const spec::Job& job, double bound,
                               const MakeKernels& make_kernels = &kernels::make_cpu) {
  const RunResult got = first_step(expected, job, make_kernels);
  EXPECT_TRUE(relative_error(expected.f64("loss"), {got.steps[0].ce_loss}) < bound);
  std::size_t compared = 0;
  for (const ckpt::HfTensor& t : ckpt::hf_tensors(job.model)) {
    if (!expected.has("grad." + t.name)) continue;  // a buffer
    std::vector<double> want, have;  // the whole tensor of the file: gpt2's keys have a bias without effect
    for (const auto& [name, values] : expected.in_engine_form(t, "grad.")) {
      const auto it = got.gradients.find(name);
      ASSERT_NE(it, got.gradients.end()) << name;
      want.insert(want.end(), values.begin(), values.end());
      have.insert(have.end(), it->second.begin(), it->second.end());
      ++compared;
    }
    const double error = relative_error(want, have);
    EXPECT_TRUE(error < bound) << t.name << " off by " << error;
  }
  EXPECT_EQ(compared, got.gradients.size());
}

TEST_P(Golden, LossAndEveryGradientEqualTransformersInF64) {
  const Expected expected(GetParam().family.name);
  expect_loss_and_gradients(expected, job_of(GetParam().c, expected, spec::Precision::f64), kBound);
}

TEST_P(GoldenF32, LossAndEveryGradientEqualTransformers) {
  const Expected expected(GetParam().name);
  expect_loss_and_gradients(expected, job_of({"one", {}}, expected, spec::Precision::f32), kBoundF32);
}

// The whole step on the kernels of the CUDA backend, compiled for the host (docs/gpu.md).
class GoldenCuda : public ::testing::TestWithParam<Param> {};

TEST_P(GoldenCuda, LossAndEveryGradientEqualTransformersInF64) {
  const Expected expected(GetParam().family.name);
  expect_loss_and_gradients(expected, job_of(GetParam().c, expected, spec::Precision::f64), kBound,
                            &kernels::emulated::make_device);
}

TEST_P(GoldenCuda, LossAndEveryGradientEqualTransformersInF32) {
  const Expected expected(GetParam().family.name);
  expect_loss_and_gradients(expected, job_of(GetParam().c, expected, spec::Precision::f32), kBoundF32,
                            &kernels::emulated::make_device);
}

// bf16 holds 8 bits: a rounding is off by up to 2^-8, and a step has dozens of them, one after another.
// Measured: the loss within 0.13 %, the gradient of the whole model within 3 % of its length, 8 % where a
// token changed an expert.
constexpr double kLossBf16 = 0.003, kGradientBf16 = 0.1;

// Of the loss and of the whole gradient, over their size.
void expect_near_in_bf16(const Expected& expected, const spec::Job& job, const MakeKernels& make_kernels) {
  const RunResult got = first_step(expected, job, make_kernels);
  const double loss = relative_error(expected.f64("loss"), {got.steps[0].ce_loss});
  double wrong = 0.0, all = 0.0;
  for (const ckpt::HfTensor& t : ckpt::hf_tensors(job.model)) {
    if (!expected.has("grad." + t.name)) continue;
    for (const auto& [name, want] : expected.in_engine_form(t, "grad.")) {
      const std::vector<double>& have = got.gradients.at(name);
      for (std::size_t i = 0; i < want.size(); ++i) {
        wrong += (have[i] - want[i]) * (have[i] - want[i]);
        all += want[i] * want[i];
      }
    }
  }
  EXPECT_TRUE(loss < kLossBf16) << loss;
  EXPECT_TRUE(std::sqrt(wrong / all) < kGradientBf16) << std::sqrt(wrong / all);
}

TEST_P(GoldenCuda, LossAndTheWholeGradientAreNearTransformersInBf16) {
  const Expected expected(GetParam().family.name);
  expect_near_in_bf16(expected, job_of(GetParam().c, expected, spec::Precision::bf16),
                      &kernels::emulated::make_device);
}

// On GPU 0 with the libraries.
TEST(GoldenGpu, EveryFamilyIsNearTransformersInF32AndBf16) {
  const kernels::DeviceList list = kernels::cuda_devices();
  if (list.count == 0 && std::getenv("TESSERA_REQUIRE_GPU") != nullptr) FAIL() << list.why_none;
  if (list.count == 0) GTEST_SKIP() << "no GPU: " << list.why_none;
  const auto make = [] { return cudalib::make_gpu_kernels(0); };
  for (const Family& f : families()) {
    SCOPED_TRACE(f.name);
    const Expected expected(f.name);
    expect_loss_and_gradients(expected, job_of({"one", {}}, expected, spec::Precision::f32), kBoundF32, make);
    expect_near_in_bf16(expected, job_of({"one", {}}, expected, spec::Precision::bf16), make);
    expect_near_in_bf16(expected, job_of({"tp2_pp2", {.tp = 2, .pp = 2}}, expected, spec::Precision::bf16),
                        make);
  }
}

std::vector<Param> cuda_params() {
  std::vector<Param> out;
  for (const Family& f : families()) {
    out.push_back({f, {"one", {}}});
    if (f.cuts_sequences) out.push_back({f, {"tp2_cp2", {.tp = 2, .cp = 2, .etp = f.moe ? 2 : 1}}});
    if (f.most_ep >= 4) out.push_back({f, {"tp2_dp2_ep4", {.tp = 2, .dp = 2, .ep = 4}, 1}});
  }
  return out;
}

// What one forward pass leaves on the ranks, gathered: rows of [T, columns] tensors by name.
class Gathered {
 public:
  explicit Gathered(std::int64_t rows) : rows_(rows) {}
  // cut: of the rank's sequences; first_row: of its tokens.
  void add(const std::string& name, const tensor::Tensor& part, const SequenceCut& cut,
           std::int64_t first_row, std::int64_t first_column, std::int64_t columns) {
    const std::lock_guard lock(mutex_);
    std::vector<double>& whole = values_[name];
    whole.resize(rows_ * columns, NAN);
    for (std::int64_t r = 0; r < part.rows(); ++r) {
      for (std::int64_t c = 0; c < part.dim(1); ++c) {
        const std::int64_t at = r * part.dim(1) + c;
        whole[cut.token(first_row + r) * columns + first_column + c] =
            part.dtype() == tensor::DType::i32 ? part.as<std::int32_t>()[at] : part.as<double>()[at];
      }
    }
  }
  [[nodiscard]] const std::vector<double>& at(const std::string& name) { return values_[name]; }

 private:
  std::int64_t rows_;
  std::mutex mutex_;
  std::map<std::string, std::vector<double>> values_;
};

// Of one rank after a forward pass.
void gather(exec::RankEngine& e, const spec::Job& job, Gathered& out) {
  const spec::ModelSpec& model = job.model;
  const SequenceCut cut{
      .length = job.train.sequence_length, .cp = job.parallel.cp, .rank = e.comms().cp->rank()};
  for (exec::Stage& s : e.stages()) {
    const bool embedded = s.cut().has_embedding;
    for (std::size_t u = 0; u <= s.num_units(); ++u) {
      const tensor::Tensor x = s.boundary(0, u);
      if (x.empty() || (s.cut().has_head && u == s.num_units())) continue;
      const std::int64_t layer = s.cut().first_layer + static_cast<std::int64_t>(u) - (embedded ? 1 : 0);
      out.add(fmt::format("hidden.{}", layer), x, cut, e.comms().tp->rank() * x.rows(), 0, model.hidden_size);
    }
    for (const exec::Stage::Mixture& m : s.mixtures()) {
      const std::string prefix = fmt::format("router.{}.", m.layer);
      const tensor::Tensor index = m.moe->chosen_tK(0);
      const std::int64_t first = e.comms().tp->rank() * index.rows();
      out.add(prefix + "indices", index, cut, first, 0, index.dim(1));
      out.add(prefix + "weights", m.moe->weights_tK(0), cut, first, 0, index.dim(1));
    }
    if (!s.cut().has_head) continue;
    const layout::VocabShare share =
        layout::vocab_share(model.vocab_size, e.comms().tp->rank(), e.comms().tp->size());
    out.add("logits", s.head().logits(0), cut, 0, share.begin, model.vocab_size);
  }
}

TEST_P(GoldenValues, HiddenStatesLogitsAndRoutingEqualTransformersInF64) {
  const Expected expected(GetParam().family.name);
  const spec::Job job = job_of(GetParam().c, expected, spec::Precision::f64);
  const FixtureBatch batch(expected, job.train.sequence_length);
  const auto weights = ckpt::open_hf_folder(expected.folder);
  const std::int64_t sequences = job.train.global_batch_size;
  Gathered got(sequences * job.train.sequence_length);
  (void)run_job(job, {.steps = 0, .cpu_kernels = true, .data = &batch, .start = [&](exec::RankEngine& e) {
                        exec::load_state(e, *weights, exec::StateParts::weights);
                        const double loss = e.evaluate(batch, 0, sequences);
                        EXPECT_TRUE(relative_error(expected.f64("loss"), {loss}) < kBound);
                        gather(e, job, got);
                      }});
  const auto expect_near = [&](const std::string& name) {
    const double error = relative_error(expected.f64(name), got.at(name));
    EXPECT_TRUE(error < kBound) << name << " off by " << error;
  };
  for (std::int32_t l = 0; l <= job.model.num_hidden_layers; ++l) expect_near(fmt::format("hidden.{}", l));
  expect_near("logits");
  for (const std::int32_t l : spec::moe_layers(job.model)) {
    const std::string prefix = fmt::format("router.{}.", l);
    const std::vector<std::int64_t> index = expected.i64(prefix + "indices");
    EXPECT_EQ(std::vector<double>(index.begin(), index.end()), got.at(prefix + "indices")) << prefix;
    expect_near(prefix + "weights");
  }
}

// The objective of transformers with balancing is loss + coefficient * aux_loss over the tokens of all MoE
// layers together; the fixtures hold the gradient of the second term for routers.
class GoldenBalancing : public Golden {};

TEST_P(GoldenBalancing, LossOverAllLayersAndItsGradientEqualTransformersInF64) {
  const Expected expected(GetParam().family.name);
  spec::Job job = job_of(GetParam().c, expected, spec::Precision::f64);
  constexpr double kCoefficient = 0.5;
  job.train.moe.balancing = spec::Balancing::loss;
  job.train.moe.aux_loss_coef = kCoefficient;
  job.train.moe.aux_loss_normalisation = spec::AuxNormalisation::huggingface;
  const FixtureBatch batch(expected, job.train.sequence_length);
  const auto weights = ckpt::open_hf_folder(expected.folder);
  const RunResult got =
      run_job(job, {.steps = 1, .cpu_kernels = true, .data = &batch, .start = [&](exec::RankEngine& e) {
                      exec::load_state(e, *weights, exec::StateParts::weights);
                    }});
  EXPECT_TRUE(relative_error({kCoefficient * expected.f64("aux_loss").at(0)}, {got.steps[0].aux_loss}) <
              kBound);
  std::size_t compared = 0;
  for (const ckpt::HfTensor& t : ckpt::hf_tensors(job.model)) {
    if (!expected.has("aux_grad." + t.name)) continue;
    const GlobalTensors loss = expected.in_engine_form(t, "grad.");
    for (const auto& [name, aux] : expected.in_engine_form(t, "aux_grad.")) {
      std::vector<double> want = loss.at(name);
      for (std::size_t i = 0; i < want.size(); ++i) want[i] += kCoefficient * aux[i];
      const double error = relative_error(want, got.gradients.at(name));
      EXPECT_TRUE(error < kBound) << name << " off by " << error;
      ++compared;
    }
  }
  EXPECT_GE(compared, spec::moe_layers(job.model).size());
}

std::vector<Param> balancing_params() {
  std::vector<Param> out;
  for (const Param& p : all_params(true)) {
    const bool one_stage = p.c.parallel.pp == 1;
    if (p.family.moe && !p.family.name.starts_with("deepseek") && one_stage) out.push_back(p);
  }
  return out;
}

std::string name_of(const ::testing::TestParamInfo<Param>& info) {
  return fmt::format("{}_{}", info.param.family.name, info.param.c.name);
}

INSTANTIATE_TEST_SUITE_P(Layouts, Golden, ::testing::ValuesIn(all_params(false)), name_of);
INSTANTIATE_TEST_SUITE_P(Layouts, GoldenCuda, ::testing::ValuesIn(cuda_params()), name_of);
INSTANTIATE_TEST_SUITE_P(Layouts, GoldenValues, ::testing::ValuesIn(all_params(true)), name_of);
INSTANTIATE_TEST_SUITE_P(Layouts, GoldenBalancing, ::testing::ValuesIn(balancing_params()), name_of);
INSTANTIATE_TEST_SUITE_P(Families, GoldenF32, ::testing::ValuesIn(families()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace tessera::testing
