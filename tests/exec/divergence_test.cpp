// Steps that diverge: which ones, what is done about them, and that the tensor that went bad is named. The
// bad data are sequences with one token whose embedding is infinite.
#include "exec/divergence.h"

#include <fmt/format.h>
#include <gmock/gmock.h>

#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/random.h"
#include "ckpt/checkpoint.h"
#include "data/sampler.h"
#include "exec/trainer.h"
#include "run.h"

namespace tessera::testing {
namespace {

namespace fs = std::filesystem;
using exec::DivergenceWatch;
using spec::OnDivergence;
using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

exec::StepResult result(double loss, double norm) {
  exec::StepResult r;
  r.ce_loss = loss;
  r.grad_norm = norm;
  return r;
}

TEST(DivergenceWatch, CallsWhatIsNotFiniteByItsName) {
  DivergenceWatch watch({});
  EXPECT_TRUE(watch.judge(result(2.0, 1e30)));
  EXPECT_FALSE(watch.judge(result(kNan, 1.0)));
  EXPECT_EQ(watch.fault(), "the loss is not finite");
  EXPECT_FALSE(watch.judge(result(1.0, std::numeric_limits<double>::infinity())));
  EXPECT_EQ(watch.fault(), "the gradient norm is not finite");
  EXPECT_TRUE(watch.judge(result(1e9, 1.0))) << "without ratios nothing is a spike";
  EXPECT_TRUE(watch.fault().empty());
  EXPECT_THAT(watch.state(), ::testing::IsEmpty());
}

TEST(DivergenceWatch, ASpikeIsMeasuredAgainstTheGoodStepsOfTheWindowAlone) {
  DivergenceWatch watch(
      {.action = OnDivergence::skip, .max_loss_ratio = 3.0, .max_grad_norm_ratio = 10.0, .window = 4});
  EXPECT_TRUE(watch.judge(result(2.0, 1.0)));
  EXPECT_TRUE(watch.judge(result(50.0, 1.0))) << "half a window is needed first";
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(watch.judge(result(2.0, 1.0)));
  EXPECT_FALSE(watch.judge(result(6.2, 1.0)));
  EXPECT_EQ(watch.fault(), "the loss 6.2 is 3.1 times the mean of the last 4 good steps");
  EXPECT_FALSE(watch.judge(result(6.2, 1.0))) << "a spike does not move the mean";
  EXPECT_FALSE(watch.judge(result(2.0, 12.0)));
  EXPECT_EQ(watch.fault(), "the gradient norm 12 is 12 times the mean of the last 4 good steps");
  EXPECT_TRUE(watch.judge(result(5.9, 9.0)));
}

TEST(DivergenceWatch, StopsAfterSoManyInARow) {
  DivergenceWatch watch({.action = OnDivergence::skip, .most = 2});
  const auto bad = [&](std::int64_t step) {
    (void)watch.judge(result(kNan, 1.0));
    return watch.decide(step);
  };
  EXPECT_EQ(bad(3), OnDivergence::skip);
  EXPECT_EQ(bad(4), OnDivergence::skip);
  EXPECT_EQ(bad(6), OnDivergence::skip) << "step 5 was good";
  EXPECT_EQ(bad(7), OnDivergence::skip);
  EXPECT_EQ(bad(8), OnDivergence::stop);
  EXPECT_EQ(watch.order(9).updates, 5) << "four steps made no update";
  EXPECT_EQ(watch.order(9).batch, 9);
}

TEST(DivergenceWatch, ItsStateGoesOnWhereItWas) {
  const spec::DivergenceSpec spec{.action = OnDivergence::rollback, .max_loss_ratio = 2.0, .window = 3};
  DivergenceWatch watch(spec);
  for (int i = 0; i < 5; ++i) (void)watch.judge(result(1.0 + i, 1.0));
  (void)watch.judge(result(kNan, 1.0));
  EXPECT_EQ(watch.decide(5), OnDivergence::rollback);
  watch.rolled_back(5, 5, 2);
  EXPECT_EQ(watch.order(2).batch, 6) << "the data behind the step";
  DivergenceWatch other(spec);
  other.restore(watch.state());
  EXPECT_EQ(other.state(), watch.state());
  EXPECT_EQ(other.order(7).batch, watch.order(7).batch);
  EXPECT_FALSE(other.judge(result(8.1, 1.0)));
  EXPECT_EQ(other.fault(), "the loss 8.1 is 2.02 times the mean of the last 3 good steps");
}

// ---- in a run

constexpr std::int32_t kPoison = 39;  // its row of the embedding is infinite

// Random tokens but the poison, which stands in the steps `bad` alone.
std::shared_ptr<const data::TokenSource> tokens_with_poison(const spec::Job& job, std::int64_t steps,
                                                            const std::vector<std::int64_t>& bad) {
  const std::int64_t seq = job.train.sequence_length;
  const std::int64_t sequences = steps * job.train.global_batch_size;
  std::vector<std::int32_t> ids;
  for (std::int64_t i = 0; i < sequences * seq + 1; ++i)
    ids.push_back(static_cast<std::int32_t>(uniform_below(kPoison, 3, 5, static_cast<std::uint64_t>(i))));
  const data::SampleOrder order(sequences, job.train.seed);
  for (const std::int64_t step : bad)
    ids[static_cast<std::size_t>(order.sequence_at(step * job.train.global_batch_size + 1) * seq + 2)] =
        kPoison;
  return std::make_shared<data::MemoryTokens>(ids);
}

// The weights of the seed with a row that no sum survives.
class PoisonedWeights : public ckpt::WeightSource {
 public:
  explicit PoisonedWeights(const fs::path& checkpoint) : reader_(checkpoint) {}
  void read(const ckpt::Piece& piece) const override {
    reader_.read(piece);
    if (piece.name != "model.embed_tokens.weight") return;
    const std::int64_t row = kPoison - piece.slice.begin[0];
    if (row < 0 || row >= piece.slice.size[0]) return;
    for (std::int64_t c = 0; c < piece.slice.size[1]; ++c)
      piece.data.as<float>()[row * piece.slice.size[1] + c] = std::numeric_limits<float>::infinity();
  }
  [[nodiscard]] std::vector<std::string> names() const override { return reader_.names(); }
  [[nodiscard]] std::vector<std::int64_t> shape(const std::string& name) const override {
    return reader_.shape(name);
  }

 private:
  ckpt::CheckpointReader reader_;
};

class Diverging : public ::testing::Test {
 protected:
  void SetUp() override {
    root_ = fs::temp_directory_path() / fmt::format("tessera-diverging-{}", ::getpid());
    fs::remove_all(root_);
    spec::Job seed = job("seed", 1);
    seed.train.optimizer.lr = 0.0;
    seed.train.optimizer.weight_decay = 0.0;
    start_ = std::make_shared<PoisonedWeights>(run(seed, {}, nullptr).checkpoint);
  }
  void TearDown() override { fs::remove_all(root_); }

  [[nodiscard]] spec::Job job(const std::string& name, std::int64_t steps) const {
    spec::Job job = small_job({.moe = true});
    job.train.precision = spec::Precision::f32;
    job.train.steps = steps;
    job.train.optimizer.lr_decay = spec::LrDecay::constant;
    job.train.optimizer.weight_decay = 0.0;
    job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .schedule = "1f1b"};
    job.checkpoint = {.folder = (root_ / name / "checkpoints").string(), .every = 2, .keep = 10};
    job.output.folder = (root_ / name / "out").string();
    return job;
  }
  exec::RunSummary run(const spec::Job& job, const std::vector<std::int64_t>& bad,
                       const std::shared_ptr<const ckpt::WeightSource>& start) const {
    return exec::train(plan::make_plan(job),
                       {.train = tokens_with_poison(job, 20, bad),
                        .cores = 2,
                        .peak_per_core = FlopsPerSecond(1e11),
                        .output = job.output.folder,
                        .start_weights = start},
                       {});
  }
  static std::vector<nlohmann::json> lines(const exec::RunSummary& s) {
    std::vector<nlohmann::json> out;
    std::ifstream in(s.metrics);
    for (std::string line; std::getline(in, line);) out.push_back(nlohmann::json::parse(line));
    return out;
  }
  fs::path root_;
  std::shared_ptr<const ckpt::WeightSource> start_;
};

TEST_F(Diverging, StopNamesTheFirstBadTensorAndKeepsTheWeights) {
  const exec::RunSummary s = run(job("stop", 8), {5}, start_);
  EXPECT_EQ(s.diverged_at, 5);
  ASSERT_EQ(s.divergences.size(), 1U);
  EXPECT_EQ(s.divergences[0].fault, "the loss and the gradient norm are not finite");
  EXPECT_THAT(s.divergences[0].where, HasSubstr("first in the weight model.embed_tokens.weight, rank "));
  EXPECT_EQ(s.checkpoint.filename(), "step-00000004");
  EXPECT_EQ(lines(s).at(5)["diverged"],
            "the loss and the gradient norm are not finite; " + s.divergences[0].where);
}

TEST_F(Diverging, SkipLeavesTheUpdateOutOnEveryLayoutAlike) {
  spec::Job skip = job("skip", 9);
  skip.train.divergence.action = OnDivergence::skip;
  const exec::RunSummary s = run(skip, {3, 5}, start_);
  EXPECT_EQ(s.diverged_at, -1);
  ASSERT_EQ(s.divergences.size(), 2U);
  ASSERT_EQ(s.losses.size(), 9U);
  EXPECT_FALSE(std::isfinite(s.losses[5]));
  EXPECT_TRUE(std::isfinite(s.losses[6]));
  EXPECT_TRUE(lines(s).at(3).contains("diverged"));
  // The same run, whose steps 3 and 5 have no bad token but a learning rate of zero, is another run; so it
  // is compared with itself on other layouts, and across a resume between the two.
  spec::Job other = job("other", 9);
  other.train.divergence.action = OnDivergence::skip;
  other.parallel = {.dp = 4, .ep = 4};
  const exec::RunSummary o = run(other, {3, 5}, start_);
  ASSERT_EQ(o.losses.size(), 9U);
  EXPECT_EQ(o.divergences.size(), 2U);
  EXPECT_TRUE(std::abs(o.losses[8] - s.losses[8]) < 1e-4 * s.losses[8]) << o.losses[8] << " " << s.losses[8];
  spec::Job halves = job("halves", 4);
  halves.train.divergence.action = OnDivergence::skip;
  ASSERT_EQ(run(halves, {3, 5}, start_).losses.size(), 4U);
  halves.train.steps = 9;
  const exec::RunSummary rest = run(halves, {3, 5}, nullptr);
  EXPECT_EQ(rest.first_step, 4);
  EXPECT_EQ(rest.losses.back(), s.losses.back()) << "the updates left out are in the checkpoint";
}

TEST_F(Diverging, SkipGivesUpWhenEveryStepIsBad) {
  spec::Job skip = job("patience", 9);
  skip.train.divergence = {.action = OnDivergence::skip, .most = 2};
  const exec::RunSummary s = run(skip, {2, 3, 4, 5, 6}, start_);
  EXPECT_EQ(s.diverged_at, 4);
  EXPECT_EQ(s.divergences.size(), 3U);
}

TEST_F(Diverging, RollbackGoesOnWithTheDataBehindTheStep) {
  spec::Job back = job("back", 9);
  back.train.divergence.action = OnDivergence::rollback;
  const exec::RunSummary s = run(back, {5}, start_);
  EXPECT_EQ(s.diverged_at, -1);
  ASSERT_EQ(s.divergences.size(), 1U);
  EXPECT_EQ(s.divergences[0].back_to, 4);
  ASSERT_EQ(s.losses.size(), 9U);
  for (const double loss : s.losses) EXPECT_TRUE(std::isfinite(loss));
  const std::vector<nlohmann::json> metrics = lines(s);
  ASSERT_EQ(metrics.size(), 9U);
  for (std::size_t i = 0; i < 9; ++i) EXPECT_EQ(metrics[i]["step"], i);
  EXPECT_FALSE(metrics[3].contains("batch"));
  EXPECT_EQ(metrics[4]["batch"], 6) << "4 and 5 are left out";
  EXPECT_EQ(metrics[8]["batch"], 10);
  EXPECT_THAT(metrics[4]["warnings"].dump(), HasSubstr("after a rollback from step 6"));
  // A run that is cut behind the rollback goes on with the same data.
  spec::Job halves = job("halves", 6);
  halves.train.divergence.action = OnDivergence::rollback;
  ASSERT_EQ(run(halves, {5}, start_).losses.size(), 6U);
  halves.train.steps = 9;
  const exec::RunSummary rest = run(halves, {5}, nullptr);
  EXPECT_EQ(rest.first_step, 6);
  EXPECT_EQ(rest.losses.back(), s.losses.back());
}

TEST_F(Diverging, ARollbackWithoutACheckpointBeginsAgain) {
  spec::Job back = job("begin", 4);
  back.train.divergence.action = OnDivergence::rollback;
  const exec::RunSummary s = run(back, {1}, start_);
  ASSERT_EQ(s.divergences.size(), 1U);
  EXPECT_EQ(s.divergences[0].back_to, 0);
  EXPECT_EQ(s.losses.size(), 4U);
  EXPECT_EQ(lines(s).at(0)["batch"], 2);
}

// Finite weights, too large: the layer whose output overflows is named, and on every layout the same.
TEST_F(Diverging, AnActivationThatOverflowsIsNamedByItsLayerAndMicroBatch) {
  class LargeWeights : public PoisonedWeights {
   public:
    using PoisonedWeights::PoisonedWeights;
    void read(const ckpt::Piece& piece) const override {
      PoisonedWeights::read(piece);
      for (std::int64_t i = 0; i < piece.data.num_elements(); ++i) {
        float& x = piece.data.as<float>()[i];
        if (piece.name == "model.layers.2.self_attn.o_proj.weight") x = x < 0 ? -3e38F : 3e38F;
        if (std::isinf(x)) x = 0;
      }
    }
  };
  const auto large = std::make_shared<LargeWeights>(root_ / "seed/checkpoints/step-00000001");
  spec::Job stop = job("activation", 3);
  const exec::RunSummary s = run(stop, {}, large);
  EXPECT_EQ(s.diverged_at, 0);
  ASSERT_EQ(s.divergences.size(), 1U);
  EXPECT_THAT(s.divergences[0].where, HasSubstr("first in the output of layer 2, micro-batch 0, rank "));
  spec::Job one = job("one", 3);
  one.parallel = {};
  const exec::RunSummary o = run(one, {}, large);
  ASSERT_EQ(o.divergences.size(), 1U);
  EXPECT_THAT(o.divergences[0].where, HasSubstr("first in the output of layer 2, micro-batch 0, rank 0"));
}

}  // namespace
}  // namespace tessera::testing
