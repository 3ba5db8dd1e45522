// The support of the exec tests (see run.h), and tests that it can see a difference at all.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <mutex>
#include <optional>

#include "base/random.h"
#include "comm/thread_world.h"
#include "run.h"

namespace tessera::testing {

std::int32_t SyntheticTokens::token(std::int64_t index, std::int64_t position) const {
  const auto vocab = static_cast<std::uint64_t>(vocab_);
  const auto drawn = [&](std::int64_t at) {
    return static_cast<std::int32_t>(
        uniform_below(vocab, 7, 11, static_cast<std::uint64_t>(index * (seq_ + 1) + at)));
  };
  // A sequence "x x ..." has equal hidden states at its first two positions (the mean of one value is the
  // value): a tie between them that only rounding breaks, another way on each layout.
  const std::int32_t t = drawn(position);
  return position == 1 && t == drawn(0) ? (t + 1) % static_cast<std::int32_t>(vocab_) : t;
}
bool SyntheticTokens::ignored(std::int64_t index, std::int64_t position) const {
  return ignore_every_ > 0 && (index * seq_ + position) % ignore_every_ == 0;
}
void SyntheticTokens::fill(std::int64_t index, std::span<std::int32_t> ids,
                           std::span<std::int32_t> targets) const {
  for (std::int64_t t = 0; t < seq_; ++t) {
    ids[t] = token(index, t);
    targets[t] = ignored(index, t) ? -100 : token(index, t + 1);
  }
}
std::int64_t SyntheticTokens::num_targets(std::int64_t first, std::int64_t count) const {
  std::int64_t n = 0;
  for (std::int64_t i = first; i < first + count; ++i) {
    for (std::int64_t t = 0; t < seq_; ++t) n += ignored(i, t) ? 0 : 1;
  }
  return n;
}

namespace {

// Adds what this rank must contribute: the owned range of every parameter that no other rank of its group
// contributes.
void gather(exec::RankEngine& engine, bool gradients, GlobalTensors& out) {
  for (const exec::StoredParam& p : engine.store().params()) {
    if (p.spec.buffer) continue;
    const optim::Bucket& bucket = engine.store().buckets()[p.bucket];
    if (p.spec.tied_copy || (!bucket.sharded && bucket.group->rank() != 0)) continue;
    std::vector<double>& global = out[p.spec.name];
    global.resize(p.spec.global[0] * p.spec.global[1], std::numeric_limits<double>::quiet_NaN());
    on_host(
        *engine.kernels().memory(), gradients ? bucket.owned_grad() : bucket.owned_value(),
        tensor::Access::read, [&](const tensor::Tensor& owned) {
          for (std::int64_t i = 0; i < p.spec.num_elements(); ++i) {
            const std::int64_t in_bucket = p.offset + i;
            if (in_bucket < bucket.owned_begin() || in_bucket >= bucket.owned_begin() + bucket.owned_size())
              continue;
            const std::int64_t row = p.spec.slice.begin[0] + i / p.spec.slice.size[1];
            const std::int64_t column = p.spec.slice.begin[1] + i % p.spec.slice.size[1];
            global[row * p.spec.global[1] + column] =
                owned.dtype() == tensor::DType::f64 ? owned.as<double>()[in_bucket - bucket.owned_begin()]
                                                    : owned.as<float>()[in_bucket - bucket.owned_begin()];
          }
        });
  }
}

}  // namespace

namespace {

std::unique_ptr<kernels::Kernels> kernels_of(const RunOptions& options) {
  if (options.make_kernels) return options.make_kernels();
  return options.cpu_kernels ? kernels::make_cpu() : kernels::make_reference();
}

}  // namespace

RunResult run_job(const spec::Job& job, const RunOptions& options) {
  const plan::Plan plan = plan::make_plan(job);
  const SyntheticTokens synthetic(job.model.vocab_size, job.train.sequence_length, options.ignore_every);
  std::optional<comm::ThreadWorld> threads;
  if (options.world == nullptr)
    threads.emplace(comm::ThreadWorld::Options{.size = plan.layout.world_size(), .timeout = Seconds(60)});
  comm::World& world = options.world != nullptr ? *options.world : *threads;
  RunResult result;
  std::mutex mutex;
  world.run([&](Rank rank) {
    std::unique_ptr<comm::CommWorker> worker;
    if (options.worker) {
      worker = std::make_unique<comm::CommWorker>(
          comm::CommWorker::Options{.on_unwind = [&] { world.abort(rank, "left while its worker ran"); }});
    }
    std::unique_ptr<kernels::Kernels> kernels = kernels_of(options);
    std::unique_ptr<comm::DeviceNetwork> network;
    if (options.make_network) network = options.make_network(rank, kernels->memory());
    exec::RankEngine engine(
        {.plan = &plan,
         .data = options.data != nullptr ? options.data : &synthetic,
         .rank = rank,
         .kernels = std::move(kernels),
         .communicators = [&](std::span<const Rank> members,
                              std::string_view label) { return world.communicator(rank, members, label); },
         .network = std::move(network),
         .worker = worker.get(),
         .whereabouts = &world.whereabouts(rank)});
    options.start ? options.start(engine) : engine.initialise();
    for (std::int64_t s = 0; s < options.steps; ++s) {
      if (s > 0 && options.between) options.between(engine, s - 1);
      const exec::StepResult& r = engine.train_step(s);
      if (rank.value == 0) result.steps.push_back(r);
    }
    const std::lock_guard lock(mutex);
    gather(engine, true, result.gradients);
    gather(engine, false, result.weights);
    if (options.inspect) options.inspect(engine);
  });
  return result;
}

spec::Job small_job(const ModelOptions& options) {
  spec::Job job;
  spec::ModelSpec& m = job.model;
  m.family = options.moe ? spec::Family::mixtral : spec::Family::llama;
  m.num_hidden_layers = options.layers;
  m.hidden_size = 16;
  m.intermediate_size = 16;
  m.num_attention_heads = 16;
  m.num_key_value_heads = 8;
  m.head_dim = 2;
  m.vocab_size = 40;
  m.max_position_embeddings = 64;
  m.tie_word_embeddings = options.tied;
  m.initializer_range = 0.3;  // large enough that every path matters
  if (options.moe) m.moe = spec::MoeSpec{.num_experts = 8, .num_experts_per_tok = 2};
  spec::Recipe& r = job.train;
  r.steps = 10;
  r.sequence_length = 4;
  r.global_batch_size = 16;
  r.micro_batch_size = 2;
  r.precision = spec::Precision::f64;
  r.bucket_bytes = 4096;
  r.optimizer.lr = 1e-2;
  r.optimizer.clip_grad = 0.5;
  if (options.moe) {
    r.moe.aux_loss_coef = 0.02;
    r.moe.z_loss_coef = 0.003;
  }
  return job;
}

spec::ModelSpec mtp_model(std::int32_t num_layers) {
  spec::ModelSpec m = spec::read_hf_config(fmt::format("{}/tests/golden/hf/deepseek_v3", TESSERA_SOURCE_DIR));
  m.num_nextn_predict_layers = num_layers;
  m.initializer_range = 0.3;
  return m;
}

double worst_difference(const GlobalTensors& a, const GlobalTensors& b, std::string* where) {
  double worst = a.size() == b.size() ? 0.0 : std::numeric_limits<double>::infinity();
  for (const auto& [name, want] : a) {
    const auto it = b.find(name);
    double error = std::numeric_limits<double>::infinity();
    if (it != b.end() && it->second.size() == want.size()) {
      double largest = 0.0;
      double difference = 0.0;
      bool finite = true;
      for (std::size_t i = 0; i < want.size(); ++i) {
        finite = finite && std::isfinite(want[i]) && std::isfinite(it->second[i]);
        largest = std::max(largest, std::abs(want[i]));
        difference = std::max(difference, std::abs(want[i] - it->second[i]));
      }
      if (finite) error = largest > 0.0 ? difference / largest : (difference > 0.0 ? HUGE_VAL : 0.0);
    }
    if (!(error <= worst)) {
      worst = error;
      if (where != nullptr) *where = name;
    }
  }
  return worst;
}

void expect_parity(const RunResult& want, const RunResult& got, const std::string& what) {
  constexpr double kBound = 1e-10;
  std::string where;
  const double gradients = worst_difference(want.gradients, got.gradients, &where);
  EXPECT_TRUE(gradients <= kBound) << what << ": gradient " << where << " off by " << gradients;
  const double weights = worst_difference(want.weights, got.weights, &where);
  EXPECT_TRUE(weights <= kBound) << what << ": weight " << where << " off by " << weights;
  ASSERT_EQ(want.steps.size(), got.steps.size());
  for (std::size_t s = 0; s < want.steps.size(); ++s) {
    const auto near = [&](double a, double b, const char* name) {
      EXPECT_TRUE(std::abs(a - b) <= kBound * std::max(1.0, std::abs(a)))
          << what << ": " << name << " of step " << s << " is " << b << ", wanted " << a;
    };
    const exec::StepResult& a = want.steps[s];
    const exec::StepResult& b = got.steps[s];
    near(a.ce_loss, b.ce_loss, "loss");
    near(a.aux_loss, b.aux_loss, "balancing loss");
    near(a.z_loss, b.z_loss, "z-loss");
    near(a.mtp_loss, b.mtp_loss, "MTP loss");
    near(a.grad_norm, b.grad_norm, "gradient norm");
    EXPECT_EQ(a.lr, b.lr) << what;
    ASSERT_EQ(a.routing.size(), b.routing.size());
    for (std::size_t l = 0; l < a.routing.size(); ++l) {
      EXPECT_EQ(a.routing[l].chosen, b.routing[l].chosen) << what << " layer " << l;
      EXPECT_EQ(a.routing[l].dropped, b.routing[l].dropped) << what << " layer " << l;
      EXPECT_EQ(a.routing[l].tokens, b.routing[l].tokens) << what << " layer " << l;
      near(a.routing[l].entropy, b.routing[l].entropy, "router entropy");
    }
  }
}

TEST(WorstDifference, SeesNanMissingTensorsAndSmallChanges) {
  const GlobalTensors a{{"w", {1.0, 2.0}}};
  EXPECT_EQ(worst_difference(a, a, nullptr), 0.0);
  EXPECT_DOUBLE_EQ(worst_difference(a, {{"w", {1.0, 2.5}}}, nullptr), 0.25);
  EXPECT_TRUE(std::isinf(worst_difference(a, {}, nullptr)));
  EXPECT_TRUE(std::isinf(worst_difference(a, {{"w", {1.0, NAN}}}, nullptr)));
}

TEST(RunJob, LossFallsOnOneRankAndIsTheSameInEveryRun) {
  const spec::Job job = small_job({.moe = true});
  const RunResult a = run_job(job, {.steps = 6});
  const RunResult b = run_job(job, {.steps = 6});
  ASSERT_EQ(a.steps.size(), 6U);
  EXPECT_NEAR(a.steps[0].ce_loss, std::log(40.0), 1.5);
  EXPECT_EQ(a.gradients, b.gradients);
  EXPECT_EQ(a.weights, b.weights);
  EXPECT_NE(a.steps[0].ce_loss, a.steps[5].ce_loss);
}

}  // namespace tessera::testing
