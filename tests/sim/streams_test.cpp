// Streams by hand: messages, reductions, gathers, shared links, stragglers, where each second goes, memory.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/error.h"
#include "plan/plan.h"
#include "sim/support.h"

namespace tessera::sim {
namespace {

using cost::Part;
using graph::Axis;

double seconds(SimTime t) {
  return schedule::to_seconds(t).value;
}
double part(const RankResult& r, Part p) {
  return seconds(r[p]);
}

// Two ranks, two micro-batches, F = 1, I + W = 2: 9 without messages.
cost::StepWork two_ranks(const Schedule& s) {
  return uniform_work(s, 1, 1, 1);
}
Schedule pair(std::int32_t m = 2) {
  return make(Kind::one_f_one_b, 2, m);
}

TEST(Messages, OverlappedTravelBesideCompute) {
  const Schedule s = pair();
  cost::StepWork work = two_ranks(s);
  work.stages[0].p2p_seconds = 0.5;
  work.p2p_overlapped = true;
  const Result r = simulate(s, work);
  // rank 0: F0 0-1, F1 1-2, B0 5-7; rank 1: F0 1.5-2.5, B0 2.5-4.5, F1 4.5-5.5, B1 5.5-7.5; B1 8-10.
  EXPECT_EQ(r.seconds(), 10);
  EXPECT_EQ(part(r.ranks[0], Part::ideal), 6);
  EXPECT_EQ(part(r.ranks[0], Part::pp), 1);      // the two gradients on their way
  EXPECT_EQ(part(r.ranks[0], Part::bubble), 3);  // 2 to 4.5, 7 to 7.5
  EXPECT_EQ(part(r.ranks[1], Part::pp), 0.5);
  EXPECT_EQ(seconds(r.ranks[0].comm[static_cast<std::size_t>(Axis::pp)]), 1);
}

TEST(Messages, BlockingOnesTakeTheSender) {
  const Schedule s = pair();
  cost::StepWork work = two_ranks(s);
  work.stages[0].p2p_seconds = 0.5;
  // rank 0: F0 0-1, send to 1.5, F1 to 2.5, send to 3; rank 1: F0 1.5-2.5, B0 to 4.5, send to 5, F1 to 6,
  // B1 to 8, send to 8.5; rank 0: B0 5-7, B1 8.5-10.5.
  const Result r = simulate(s, work);
  EXPECT_EQ(r.seconds(), 10.5);
  EXPECT_EQ(part(r.ranks[1], Part::pp), 1.5);
  EXPECT_EQ(part(r.ranks[0], Part::pp), 2);  // two sends, two waits for a gradient on its way
}

TEST(Messages, OneStreamCarriesOneMessageAtATime) {
  const Schedule s = make(Kind::gpipe, 2, 3);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.stages[0].p2p_seconds = 2;
  work.p2p_overlapped = true;
  // Activations arrive at 3, 5, 7; B on rank 1 at 8, 10, 12 to 14; gradients at 12, 14, 16; B to 14, 16, 18.
  EXPECT_EQ(simulate(s, work).seconds(), 18);
}

TEST(Reductions, RunInBucketsUnderTheLastBackward) {
  const Schedule s = make(Kind::one_f_one_b, 1, 4);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.grad_seconds = {2};
  work.grad_bytes = {100};
  work.grad_overlapped = true;
  // Buckets of 0.5 of compute and of traffic: all but the last one hide.
  const Result r = simulate(s, work, {.num_buckets = 4});
  EXPECT_EQ(r.seconds(), 12.5);
  EXPECT_EQ(part(r.ranks[0], Part::dp), 0.5);
  EXPECT_EQ(seconds(r.ranks[0].comm[static_cast<std::size_t>(Axis::dp)]), 2);
  EXPECT_EQ(r.ranks[0].bytes_sent[static_cast<std::size_t>(Axis::dp)], 100);
  work.grad_overlapped = false;
  EXPECT_EQ(simulate(s, work).seconds(), 14);
  // Twice as long as the backward that hides it: the first bucket's compute, then all of the traffic.
  work.grad_overlapped = true;
  work.grad_seconds = {4};
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 10 + 0.5 + 4);
}

TEST(Reductions, SlowDownTheComputeBesideThem) {
  const Schedule s = make(Kind::one_f_one_b, 1, 1);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.grad_seconds = {1};
  work.grad_overlapped = true;
  work.overlap_slowdown = 0.5;
  // Two buckets: F and half of B to 2; 0.5 of traffic, in which compute does 0.25; the rest to 3.25; the last
  // bucket to 3.75.
  const Result r = simulate(s, work, {.num_buckets = 2});
  EXPECT_EQ(r.seconds(), 3.75);
  EXPECT_EQ(part(r.ranks[0], Part::dp), 0.75);
  EXPECT_EQ(part(r.ranks[0], Part::ideal), 3);
}

TEST(Reductions, OfZero2FollowEveryMicrobatch) {
  const Schedule s = make(Kind::one_f_one_b, 1, 3);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.grad_seconds = {3};
  work.grad_repeats = 3;
  EXPECT_EQ(simulate(s, work).seconds(), 12);
  work.grad_overlapped = true;
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 9.25);
}

TEST(Gathers, OpenTheStepUnderTheFirstForward) {
  const Schedule s = make(Kind::one_f_one_b, 1, 2);
  cost::StepWork work = uniform_work(s, 2, 1, 1);
  work.param_seconds = {1};
  work.param_overlapped = true;
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 8.25);
  work.param_seconds = {6};  // the forward waits for each bucket: 6, then the last bucket's compute
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 6 + 0.5 + 6);
  work.param_overlapped = false;
  EXPECT_EQ(simulate(s, work).seconds(), 14);
}

TEST(Gathers, OfZero3ComeOneBucketAhead) {
  const Schedule s = make(Kind::one_f_one_b, 1, 2);
  cost::StepWork work = uniform_work(s, 2, 1, 1);
  work.param_seconds = {4};
  work.param_repeats = 4;  // 1 before each F and each B
  work.param_overlapped = true;
  // The first bucket is bare, the others run under compute.
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 8.25);
  // Gathers of twice the time of compute: all traffic, then the last bucket's compute.
  work.param_seconds = {16};
  EXPECT_EQ(simulate(s, work, {.num_buckets = 4}).seconds(), 16.5);
  work.param_overlapped = false;
  EXPECT_EQ(simulate(s, work).seconds(), 24);
}

TEST(SharedLinks, MessagesAndReductionsSlowEachOther) {
  const Schedule s = pair(1);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.stages[0].p2p_seconds = 1;
  work.p2p_overlapped = true;
  work.grad_seconds = {0, 4};
  work.grad_overlapped = true;
  // rank 1: F 2-3, B 3-5; its gradients and the message to rank 0 both leave at 5. Alone: 6 and 9.
  EXPECT_EQ(simulate(s, work, {.num_buckets = 1}).ranks[0].end, schedule::to_sim_time(Seconds(8)));
  EXPECT_EQ(simulate(s, work, {.num_buckets = 1}).seconds(), 9);
  // Shared: the message takes 2, the rest of the reduction the link alone.
  const Result r = simulate(s, work, {.shared_links = true, .num_buckets = 1});
  EXPECT_EQ(r.ranks[0].end, schedule::to_sim_time(Seconds(9)));
  EXPECT_EQ(r.seconds(), 10);
  EXPECT_EQ(part(r.ranks[0], Part::pp), 2);
}

TEST(SharedLinks, PipelinesOfOneNodeShareItsWayOut) {
  const Schedule s = pair(1);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.stages[0].p2p_seconds = 1;
  EXPECT_EQ(simulate(s, work).seconds(), 8);
  Options four{.replica_slowdown = {1, 1, 1, 1}, .shared_links = true};
  EXPECT_EQ(simulate(s, work, four).seconds(), 8);
  four.replicas_share_links = true;
  EXPECT_EQ(simulate(s, work, four).seconds(), 6 + 2 * 4);
}

TEST(SharedLinks, CollectivesInsideOfActionsTakePartWhenTheirAxisDoes) {
  const Schedule s = make(Kind::one_f_one_b, 1, 1);
  cost::StepWork work = uniform_work(s, 0, 0, 0);
  cost::StageWork& w = work.stages[0];
  add(w.forward, w.forward_seconds, "gemm", Part::gemm, 1);
  add_communication(w.forward, w.forward_seconds, "exchange", Axis::ep, Part::ep, 1, 0);
  add(w.forward, w.forward_seconds, "gemm", Part::gemm, 1);
  work.param_seconds = {2};
  work.param_overlapped = true;
  // Weights are here at 2 and open the forward: gemm 2-3, exchange 3-4, gemm 4-5.
  EXPECT_EQ(simulate(s, work, {.num_buckets = 1}).seconds(), 5);
  work.grad_seconds = {2};
  work.grad_overlapped = true;
  w.backward_weight = w.forward;
  w.backward_weight_seconds = w.forward_seconds;
  // Three buckets of gradients of 2/3: the first runs from 6 to 6.67, as does the exchange of W.
  EXPECT_NEAR(simulate(s, work, {.num_buckets = 3}).seconds(), 2 * 1.0 / 3 + 6 + 2.0 / 3, 1e-9);
  const Result r = simulate(
      s, work,
      {.shared_links = true, .link_axes = axis_bit(Axis::ep) | axis_bit(Axis::dp), .num_buckets = 3});
  EXPECT_GT(part(r.ranks[0], Part::ep), 2.6);
  EXPECT_LT(part(r.ranks[0], Part::ep), 4.0);
  EXPECT_EQ(part(r.ranks[0], Part::gemm), 4);
}

TEST(Stragglers, ASlowRankHoldsUpThePipeline) {
  const Schedule s = make(Kind::one_f_one_b, 4, 16);
  const cost::StepWork work = uniform_work(s, 1, 1, 1);
  const Result r = simulate(s, work, {.rank_slowdown = {1, 1.5, 1, 1}});
  // Rank 1 starts at 1, works 72, waits 3 for its first gradient (three F of 1.5 done at 5.5, it comes at
  // 8.5); rank 0 ends 2 later.
  EXPECT_NEAR(r.seconds(), 1 + 72 + 3 + 2, 1e-9);
  EXPECT_EQ(part(r.ranks[1], Part::jitter), 24);
  EXPECT_EQ(part(r.ranks[1], Part::ideal), 48);
  EXPECT_EQ(part(r.ranks[0], Part::jitter), 0);
  EXPECT_GT(part(r.ranks[0], Part::bubble), part(r.ranks[1], Part::bubble));
}

TEST(Stragglers, AReductionWaitsForTheSlowestReplica) {
  const Schedule s = make(Kind::one_f_one_b, 2, 4);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.grad_seconds = {1, 1};
  for (const bool overlapped : {false, true}) {
    work.grad_overlapped = overlapped;
    const Result even = simulate(s, work, {.num_buckets = 1});
    const Result r = simulate(s, work, {.replica_slowdown = {1, 1.2}, .num_buckets = 1});
    EXPECT_NEAR(r.seconds(), 15 * 1.2 + 1, 1e-9);
    EXPECT_NEAR(part(r.ranks[0], Part::jitter), 3, 1e-9);
    EXPECT_NEAR(part(r.ranks[0], Part::dp), part(even.ranks[0], Part::dp), 1e-9);
  }
}

TEST(Stragglers, AShareOfTheStepStandsAtItsEnd) {
  const Schedule s = pair();
  cost::StepWork work = two_ranks(s);
  work.jitter_share = 0.1;
  const Result r = simulate(s, work);
  EXPECT_NEAR(r.seconds(), 9.9, 1e-9);
  for (const RankResult& rank : r.ranks) EXPECT_NEAR(part(rank, Part::jitter), 0.9, 1e-9);
}

TEST(Optimizer, WaitsForTheGradientNormOfAllRanks) {
  const Schedule s = pair();
  cost::StepWork work = two_ranks(s);
  work.optimizer_seconds = {0.5, 1};
  EXPECT_EQ(simulate(s, work).seconds(), 10);
  const Result alone = simulate(s, work, {.synchronized_optimizer = false});
  EXPECT_EQ(alone.seconds(), 9.5);  // rank 1 ends its compute at 7
  EXPECT_EQ(part(alone.ranks[1], Part::optimizer), 1);
}

TEST(Segments, CountByPartAndHiddenOnesTakeNoTime) {
  const Schedule s = make(Kind::one_f_one_b, 1, 2);
  cost::StepWork work = uniform_work(s, 0, 1, 1);
  cost::StageWork& w = work.stages[0];
  add(w.forward, w.forward_seconds, "attention", Part::attention, 2);
  add_communication(w.forward, w.forward_seconds, "gather", Axis::tp, Part::tp, 0.25, 0.5);
  add(w.forward, w.forward_seconds, "gemm", Part::gemm, 1);
  const Result r = simulate(s, work);
  EXPECT_EQ(r.seconds(), 2 * 5.25);
  EXPECT_EQ(part(r.ranks[0], Part::attention), 4);
  EXPECT_EQ(part(r.ranks[0], Part::tp), 0.5);
  EXPECT_EQ(seconds(r.ranks[0].busy), 10);
  EXPECT_EQ(seconds(r.ranks[0].comm[static_cast<std::size_t>(Axis::tp)]), 1.5);
  EXPECT_EQ(seconds(r.ranks[0].exposed[static_cast<std::size_t>(Axis::tp)]), 0.5);
  EXPECT_EQ(r.ranks[0].flops, 4e3);
  // The gather's span ends where the compute stream goes on: 1.5 to 2.25 of the first forward.
  for (const trace::Span& span : r.trace.spans) {
    if (span.axis != trace::Axis::tp || span.microbatch != 0) continue;
    EXPECT_EQ(span.start_ns, 1'500'000'000);
    EXPECT_EQ(span.end_ns, 2'250'000'000);
    EXPECT_EQ(span.bytes.value, 1'000'000);
  }
}

TEST(Memory, PeaksAtTheCheckersLiveMicrobatches) {
  Dice dice(9);
  for (std::int32_t n = 0; n < 100; ++n) {
    const Schedule s = random_schedule(dice);
    cost::StepWork work = random_work(s, dice);
    for (cost::StageWork& w : work.stages) w.saved_bytes = 1000, w.transient_bytes = 0;
    const schedule::CheckReport report = schedule::checked(s);
    const Result r = simulate(s, work, random_options(s, dice));
    for (std::int32_t rank = 0; rank < s.pp; ++rank) {
      EXPECT_NEAR(r.ranks[rank].peak_bytes, work.static_bytes[rank] + 1000.0 * report.peak_live_rank[rank],
                  1e-6);
    }
  }
}

TEST(Memory, RunsOverTimeWithStaticLiveAndTransientBytes) {
  const Schedule s = make(Kind::gpipe, 1, 2);
  cost::StepWork work = uniform_work(s, 1, 1, 1);
  work.static_bytes = {100};
  work.stages[0].saved_bytes = 10;
  work.stages[0].transient_bytes = 3;
  const Result r = simulate(s, work);
  std::vector<std::pair<double, double>> points;
  for (const MemoryPoint& p : r.ranks[0].memory) points.emplace_back(seconds(p.time), p.bytes);
  EXPECT_EQ(points, (std::vector<std::pair<double, double>>{{0, 113}, {1, 123}, {4, 113}, {6, 100}}));
  EXPECT_EQ(r.ranks[0].peak_bytes, 123);
  EXPECT_EQ(seconds(r.ranks[0].peak_at), 1);
}

TEST(Plans, AreSimulatedOnTheirWorldRanks) {
  constexpr std::string_view kYaml = R"(
model: {model_type: llama, num_hidden_layers: 4, hidden_size: 32, intermediate_size: 48,
        num_attention_heads: 8, num_key_value_heads: 4, vocab_size: 96}
train: {steps: 10, sequence_length: 16, global_batch_size: 16, micro_batch_size: 2}
parallel: {tp: 2, pp: 2, dp: 2}
output: {folder: "runs/a"}
)";
  const plan::Plan plan = plan::make_plan(spec::parse_job(kYaml, ".", "job.yaml", {}));
  const Result r = simulate(plan, uniform_work(plan.schedule, 1, 1, 1));
  EXPECT_EQ(r.ranks[1].rank, Rank(4));
  EXPECT_EQ(r.trace.spans.back().rank, Rank(4));
  EXPECT_EQ(r.seconds(), 4 * 3 + 3);
}

std::string error_of(const Schedule& s, const cost::StepWork& work, const Options& options = {}) {
  try {
    static_cast<void>(simulate(s, work, options));
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::config);
    return e.what();
  }
  return "no error";
}

TEST(Errors, NameEveryNumberThatDoesNotFit) {
  using testing::AllOf;
  using testing::HasSubstr;
  const Schedule s = pair();
  cost::StepWork work = two_ranks(s);
  work.stages.pop_back();
  work.num_microbatches = 3;
  EXPECT_THAT(error_of(s, work, {.rank_slowdown = {1}, .num_buckets = 0}),
              AllOf(HasSubstr("work.stages has 1 entries, not 2"), HasSubstr("work is of 3 micro-batches"),
                    HasSubstr("rank_slowdown has 1 entries"), HasSubstr("num_buckets is 0"),
                    HasSubstr("mend: make the work from the candidate"), HasSubstr("mend: use 1 to 1024")));
  work = two_ranks(s);
  work.stages[1].forward_seconds = std::nan("");
  work.grad_seconds = {-1, 0};
  work.grad_repeats = 7;
  EXPECT_THAT(error_of(s, work, {.replica_slowdown = {0}}),
              AllOf(HasSubstr("forward_seconds of stage 1 is nan s"), HasSubstr("grad_seconds is -1 s"),
                    HasSubstr("a slowdown is 0"), HasSubstr("grad_repeats is 7 with 2 micro-batches"),
                    HasSubstr("mend: use factors above 0")));
  work = two_ranks(s);
  work.stages[0].forward = {{.name = "gemm", .seconds = 2, .exposed = 2}};
  EXPECT_THAT(error_of(s, work), AllOf(HasSubstr("forward_seconds of stage 0 is 1 s, its segments take 2 s"),
                                       HasSubstr("mend: let it be the sum")));
  work = two_ranks(s);
  work.stages[0].forward_seconds = 5e6;
  EXPECT_THAT(error_of(s, work), HasSubstr("is not a time of the simulator"));
  Schedule stuck = s;
  std::swap(stuck.ranks[1][0], stuck.ranks[1][1]);  // B0 before F0
  EXPECT_THAT(
      error_of(stuck, two_ranks(s)),
      AllOf(HasSubstr("hangs at 0B0"), HasSubstr("where: rank 0, action 2"), HasSubstr("run the checker")));
  Schedule missing = s;
  missing.ranks[1].clear();
  EXPECT_THAT(error_of(missing, two_ranks(s)), HasSubstr("rank 1 does not run F and B of stage 1"));
}

// 16,384 devices: tp 8, dp 128, pp 16, 256 micro-batches; one pipeline stands for all of them.
TEST(Scale, AStepOfSixteenThousandDevicesTakesLessThanASecond) {
  const Schedule s = make(Kind::one_f_one_b, 16, 256);
  Dice dice(1);
  cost::StepWork work = random_work(s, dice);
  timespec start{}, end{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &start);
  const Result r = simulate(s, work);
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
  const double took = static_cast<double>(end.tv_sec - start.tv_sec) +
                      1e-9 * static_cast<double>(end.tv_nsec - start.tv_nsec);
  EXPECT_GT(r.trace.spans.size(), 10000);
#if defined(__OPTIMIZE__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_LT(took, 1.0);
#else
  static_cast<void>(took);
#endif
}

}  // namespace
}  // namespace tessera::sim
