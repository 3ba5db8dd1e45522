// A rank that fails inside a step ends the whole run at once: no rank hangs, no memory is read after it went,
// and the error names the rank that failed and its cause, wherever in the step it happens and whatever the
// helper threads are doing.
#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/clock.h"
#include "run.h"

namespace tessera::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kAtOnceNs = 20'000'000'000;  // a machine under load; a wait would time out after 60 s

Error text_is_gone() {
  return {ErrorKind::io, "the text is gone", "corpus.txt", "put it back"};
}

// Expects that the job fails quickly, as `rank`'s text_is_gone().
void expect_failure(const spec::Job& job, const RunOptions& options, std::int32_t rank) {
  const std::int64_t start = wall_ns();
  try {
    (void)run_job(job, options);
    ADD_FAILURE() << "the run went on";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), HasSubstr(fmt::format("rank {} failed: the text is gone", rank)));
    EXPECT_THAT(e.what(), HasSubstr("corpus.txt"));
    EXPECT_THAT(e.what(), HasSubstr("put it back"));
  }
  EXPECT_LT(wall_ns() - start, kAtOnceNs);
}

class FailingTokens : public SyntheticTokens {
 public:
  FailingTokens(const spec::Job& job, std::int64_t failing_index)
      : SyntheticTokens(job.model.vocab_size, job.train.sequence_length), failing_index_(failing_index) {}
  void fill(std::int64_t index, std::span<std::int32_t> ids, std::span<std::int32_t> targets) const override {
    if (index == failing_index_) throw text_is_gone();
    SyntheticTokens::fill(index, ids, targets);
  }

 private:
  std::int64_t failing_index_;
};

TEST(Failure, OfTheTokensOfOneReplicaNamesItsRank) {
  spec::Job job = small_job({.moe = true});
  job.parallel = {.dp = 4, .ep = 2};
  // The first sequences of step 2 go to the replicas in turn, micro_batch_size each.
  for (std::int32_t rank = 0; rank < 4; ++rank) {
    const FailingTokens data(job, 2 * job.train.global_batch_size + rank * job.train.micro_batch_size);
    expect_failure(job, {.worker = true, .data = &data}, rank);
  }
}

// Throws when the rank has told of `events` actions and phases.
class FailingObserver : public exec::Observer {
 public:
  explicit FailingObserver(std::int64_t events) : left_(events) {}
  void action(const schedule::Action& /*action*/, const exec::ActionTime& /*time*/) override { count(); }
  void phase(const char* /*name*/, const exec::ActionTime& /*time*/) override { count(); }

 private:
  void count() {
    if (left_-- == 0) throw text_is_gone();
  }
  std::int64_t left_;
};

TEST(Failure, AnywhereInAStepOfAnyRankEndsTheRunWithItsCause) {
  spec::Job job = small_job({.moe = true, .tied = true});
  job.train.global_batch_size = 8;
  job.train.bucket_bytes = 1;  // many reductions under way
  job.parallel = {.tp = 2, .dp = 2, .pp = 2, .ep = 2, .schedule = "zb-h1"};
  for (std::int32_t at = 0; at < 30; ++at) {
    const std::int32_t rank = at * 3 % 8;
    job.train.zero_stage = at / 8 % 2;
    FailingObserver observer(at);
    const auto start = [&](exec::RankEngine& engine) {
      engine.initialise();
      if (engine.rank().value == rank) engine.set_observer(&observer);
    };
    SCOPED_TRACE(fmt::format("rank {}, after {} events", rank, at));
    expect_failure(job, {.worker = true, .start = start}, rank);
    if (HasFailure()) break;
  }
}

// Throws in the middle of a forward pass, when the rank has routed `passes` times.
class FailingRouting : public exec::RoutingListener {
 public:
  explicit FailingRouting(std::int32_t passes) : left_(passes) {}
  void on_routed(const exec::Mixture& /*mixture*/, const nn::Microbatch& /*mb*/,
                 std::int32_t /*slot*/) override {
    if (left_-- == 0) throw text_is_gone();
  }

 private:
  std::int32_t left_;
};

TEST(Failure, OfAForwardPassEndsTheBackwardPassBesideIt) {
  spec::Job job = small_job({.moe = true});
  job.train.global_batch_size = 16;
  job.parallel = {.dp = 2, .pp = 2, .ep = 2, .schedule = "combined-1f1b"};
  for (std::int32_t at = 0; at < 12; ++at) {
    const std::int32_t rank = at % 4;
    FailingRouting listener(at);
    const auto start = [&](exec::RankEngine& engine) {
      engine.initialise();
      if (engine.rank().value != rank) return;
      for (exec::Stage& stage : engine.stages()) stage.set_routing_listener(&listener);
    };
    SCOPED_TRACE(fmt::format("rank {}, after {} passes", rank, at));
    expect_failure(job, {.worker = true, .start = start}, rank);
    if (HasFailure()) break;
  }
}

}  // namespace
}  // namespace tessera::testing
