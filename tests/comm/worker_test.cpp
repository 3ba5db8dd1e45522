// The helper thread: order, overlap with the owner, errors at wait, and its end together with a world.
#include "comm/worker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>

#include "base/clock.h"
#include "base/error.h"
#include "comm/backends.h"

namespace tessera::comm {
namespace {

using ::testing::HasSubstr;

TEST(Worker, RunsOperationsInTheOrderOfPostingEvenWhenTheRingIsFull) {
  CommWorker worker({.capacity = 4});
  std::vector<int> seen;
  for (int i = 0; i < 100; ++i) worker.post([&seen, i] { seen.push_back(i); });
  worker.wait_all();
  ASSERT_EQ(seen.size(), 100);
  for (int i = 0; i < 100; ++i) EXPECT_EQ(seen[i], i);
  EXPECT_EQ(worker.totals().operations, 100);
}

TEST(Worker, TheOwnerGoesOnWhileAnOperationRuns) {
  CommWorker worker({});
  std::atomic<bool> release{false};
  const auto ticket = worker.post([&release] {
    while (!release.load()) std::this_thread::yield();
  });
  EXPECT_FALSE(worker.done(ticket));  // and post has returned
  release = true;
  worker.wait(ticket);
  EXPECT_TRUE(worker.done(ticket));
}

TEST(Worker, RecordsWallAndCpuTimeOfEachOperation) {
  CommWorker worker({});
  const auto idle = worker.post([] { std::this_thread::sleep_for(std::chrono::milliseconds(30)); });
  const auto busy = worker.post([] {
    const std::int64_t start = thread_cpu_ns();
    while (thread_cpu_ns() - start < 10'000'000) {
    }
  });
  worker.wait_all();
  EXPECT_GE(worker.timing(idle).end_ns - worker.timing(idle).start_ns, 30'000'000);
  EXPECT_LT(worker.timing(idle).cpu_ns, 10'000'000);
  EXPECT_GE(worker.timing(busy).cpu_ns, 10'000'000);
  EXPECT_GE(worker.timing(busy).start_ns, worker.timing(idle).end_ns);
  EXPECT_EQ(worker.totals().cpu_ns, worker.timing(idle).cpu_ns + worker.timing(busy).cpu_ns);
}

TEST(Worker, AnErrorIsRethrownAtWaitAndLaterOperationsAreNotRun) {
  CommWorker worker({});
  std::atomic<bool> later{false};
  const auto good = worker.post([] {});
  const auto bad = worker.post([] { throw Error(ErrorKind::io, "link is down", "rank 3", "plug it in"); });
  const auto after = worker.post([&later] { later = true; });
  EXPECT_NO_THROW(worker.wait(good));
  EXPECT_THROW(worker.wait(bad), Error);
  try {
    worker.wait(after);
    FAIL() << "an operation after a failed one counts as failed";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("link is down"));
  }
  EXPECT_THROW(worker.wait_all(), Error);
  EXPECT_FALSE(later.load());
}

TEST(Worker, RefusesTicketsThatItNeverGave) {
  CommWorker worker({});
  EXPECT_THROW(worker.wait({0}), Error);
  EXPECT_THROW((void)worker.timing({0}), Error);
}

TEST(Worker, TheDestructorFinishesWhatWasPosted) {
  std::atomic<int> count{0};
  {
    CommWorker worker({});
    for (int i = 0; i < 10; ++i) worker.post([&count] { ++count; });
  }
  EXPECT_EQ(count.load(), 10);
}

TEST(Worker, GradientBucketsAreReducedWhileTheRanksUseOtherCommunicators) {
  for (const std::int32_t cores : {1, 64}) {
    ThreadWorld world({.size = 4, .cores = cores});
    const std::vector<Rank> members = ranks_upto(4);
    world.run([&](Rank rank) {
      const auto dp = world.communicator(rank, members, "dp", 1);
      const auto tp = world.communicator(rank, members, "tp");
      CommWorker worker({.on_unwind = [&] { world.abort(rank, "left"); }});
      std::vector<std::vector<float>> buckets;
      for (int b = 0; b < 6; ++b) buckets.emplace_back(50000 + b, static_cast<float>(rank.value + b));
      std::vector<CommWorker::Ticket> tickets;
      for (auto& bucket : buckets) {
        const Tensor x = tensor_of(bucket);
        tickets.push_back(worker.post([c = dp.get(), x] { c->all_reduce(x); }));
        std::vector<double> y(100, 1.0);
        tp->all_reduce(tensor_of(y));
        ASSERT_EQ(y[0], 4.0);
      }
      for (int b = 0; b < 6; ++b) {
        worker.wait(tickets[b]);
        ASSERT_EQ(buckets[b].back(), 6.0F + 4 * b);
      }
      EXPECT_EQ(dp->counters()[0].calls, 6);
    });
  }
}

TEST(Worker, AnExceptionOfTheOwnerEndsAnOperationThatWaitsForOthers) {
  ThreadWorld world({.size = 2});
  const std::vector<Rank> members = ranks_upto(2);
  const std::int64_t start = wall_ns();
  try {
    world.run([&](Rank rank) {
      const auto dp = world.communicator(rank, members, "dp", 1);
      std::vector<float> x(100000);
      CommWorker worker({.on_unwind = [&] { world.abort(rank, "left while its worker ran"); }});
      if (rank.value == 0) {
        const Tensor t = tensor_of(x);
        worker.post([c = dp.get(), t] { c->all_reduce(t); });
        throw Error(ErrorKind::io, "the text is gone", "corpus.txt", "put it back");
      }
      // Rank 1 never comes to the all_reduce.
      const auto tp = world.communicator(rank, members, "tp");
      tp->barrier();
    });
    FAIL() << "run() returned";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("rank 0 failed: the text is gone"));
    EXPECT_EQ(e.kind(), ErrorKind::io);
  }
  EXPECT_LT(wall_ns() - start, 20'000'000'000);
}

TEST(Worker, AFailureOfAnotherRankComesOutOfWait) {
  ThreadWorld world({.size = 3});
  const std::vector<Rank> members = ranks_upto(3);
  std::vector<std::string> seen(3);
  EXPECT_THROW(world.run([&](Rank rank) {
    const auto dp = world.communicator(rank, members, "dp", 1);
    std::vector<float> x(100000);
    CommWorker worker({.on_unwind = [&] { world.abort(rank, "left"); }});
    if (rank.value == 1) throw Error(ErrorKind::io, "boom", "", "");
    const Tensor t = tensor_of(x);
    const auto ticket = worker.post([c = dp.get(), t] { c->all_reduce(t); });
    try {
      worker.wait(ticket);
    } catch (const Error& e) {
      seen[rank.value] = e.what();
      throw;
    }
  }),
               Error);
  EXPECT_THAT(seen[0], HasSubstr("rank 1 failed: boom"));
  EXPECT_THAT(seen[2], HasSubstr("rank 1 failed: boom"));
}

}  // namespace
}  // namespace tessera::comm
