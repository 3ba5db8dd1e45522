// Point to point, groups of some of the ranks, and several communicators at once, on every backend.
#include <gtest/gtest.h>

#include "comm/backends.h"

namespace tessera::comm {
namespace {

class Messages : public OnEveryBackend {};

TEST_P(Messages, EveryPairOfRanksExchangesMessages) {
  on_ranks([&](Communicator& c) {
    std::vector<std::vector<double>> out;
    for (std::int32_t to = 0; to < c.size(); ++to)
      out.emplace_back(1000 + 10 * to, 100.0 * c.rank() + to);  // sizes differ by receiver
    for (std::int32_t to = 0; to < c.size(); ++to)
      if (to != c.rank()) c.send(tensor_of(out[to]), to, 5);
    for (std::int32_t from = 0; from < c.size(); ++from) {
      if (from == c.rank()) continue;
      std::vector<double> in(1000 + 10 * c.rank(), -1.0);
      c.recv(tensor_of(in), from, 5);
      EXPECT_EQ(difference(in, std::vector<double>(in.size(), 100.0 * from + c.rank())), "");
    }
    for (std::int32_t to = 0; to < c.size(); ++to)
      if (to != c.rank()) c.wait_send(to, 5);
    std::int64_t bytes = 0;
    for (std::int32_t to = 0; to < c.size(); ++to)
      if (to != c.rank()) bytes += out[to].size() * 8;
    EXPECT_EQ(c.bytes_sent().value, bytes);
  });
}

TEST_P(Messages, TagsChooseTheMessageAndEqualTagsKeepTheirOrder) {
  on_ranks([&](Communicator& c) {
    if (c.size() < 2) {
      EXPECT_EQ(c.rank(), 0);
      return;
    }
    std::vector<std::int32_t> values = {10, 11, 12, 13};
    const Tensor all = tensor_of(values);
    if (c.rank() == 0) {
      c.send(all.narrow_rows(0, 1), 1, 1);
      c.send(all.narrow_rows(1, 1), 1, 2);
      c.send(all.narrow_rows(2, 1), 1, 1);
      c.send(all.narrow_rows(3, 1), 1, 3);
      for (const std::int64_t tag : {1, 2, 3}) c.wait_send(1, tag);
    } else if (c.rank() == 1) {
      const auto next = [&](std::int64_t tag) {
        std::vector<std::int32_t> x = {-1};
        c.recv(tensor_of(x), 0, tag);
        return x[0];
      };
      EXPECT_EQ(next(3), 13);
      EXPECT_EQ(next(1), 10);
      EXPECT_EQ(next(1), 12);
      EXPECT_EQ(next(2), 11);
    }
  });
}

TEST_P(Messages, HundredsOfSendsMayBeOutstanding) {
  on_ranks([&](Communicator& c) {
    constexpr std::int64_t kMessages = 500;
    std::vector<std::int64_t> out(kMessages);
    for (std::int64_t i = 0; i < kMessages; ++i) out[i] = 1000 * c.rank() + i;
    const std::int32_t next = (c.rank() + 1) % c.size();
    const std::int32_t last = (c.rank() + c.size() - 1) % c.size();
    if (next == c.rank()) {
      EXPECT_EQ(c.size(), 1);
      return;
    }
    for (std::int64_t i = 0; i < kMessages; ++i) c.send(tensor_of(out).narrow_rows(i, 1), next, i);
    for (std::int64_t i = kMessages - 1; i >= 0; --i) {
      std::vector<std::int64_t> in = {-1};
      c.recv(tensor_of(in), last, i);
      ASSERT_EQ(in[0], 1000 * last + i);
    }
    for (std::int64_t i = 0; i < kMessages; ++i) c.wait_send(next, i);
  });
}

TEST_P(Messages, WaitSendReturnsOnlyAfterTheReceiverHasCopied) {
  on_ranks([&](Communicator& c) {
    if (c.size() < 2) {
      EXPECT_EQ(c.rank(), 0);
      return;
    }
    // After wait_send the buffer may be written again; a copy made too late would see the next value.
    std::vector<double> x(50000);
    for (std::int32_t round = 0; round < 20; ++round) {
      if (c.rank() == 0) {
        std::fill(x.begin(), x.end(), round);
        c.send(tensor_of(x), 1, 9);
        c.wait_send(1, 9);
      } else if (c.rank() == 1) {
        c.recv(tensor_of(x), 0, 9);
        EXPECT_EQ(difference(x, std::vector<double>(x.size(), round)), "");
      }
    }
  });
}

TEST_P(Messages, WaitSendWithoutAnOutstandingMessageReturnsAtOnce) {
  on_ranks([&](Communicator& c) {
    if (c.size() > 1) c.wait_send((c.rank() + 1) % c.size(), 77);
    EXPECT_EQ(c.bytes_sent().value, 0);
  });
}

TEST_P(Messages, EmptyMessagesArrive) {
  on_ranks([&](Communicator& c) {
    if (c.size() > 1 && c.rank() == 0) c.send(Tensor(nullptr, DType::f32, {0, 4}), 1, 0);
    if (c.rank() == 1) c.recv(Tensor(nullptr, DType::f32, {0, 4}), 0, 0);
    c.barrier();
    EXPECT_EQ(c.bytes_sent().value, 0);
  });
}

TEST_P(Messages, GroupsOverDifferentAxesWorkAtTheSameTime) {
  if (size() % 2 != 0) {
    EXPECT_EQ(size() % 2, 1);  // needs a grid of two columns
    return;
  }
  const auto world = GetParam().backend.make(size());
  world->run([&](Rank rank) {
    // tp: neighbours {2k, 2k + 1}; dp: same parity, listed in falling order.
    const std::vector<Rank> tp_members = {Rank(rank.value / 2 * 2), Rank(rank.value / 2 * 2 + 1)};
    std::vector<Rank> dp_members;
    for (std::int32_t r = size() - 2 + rank.value % 2; r >= 0; r -= 2) dp_members.push_back(Rank(r));
    const auto tp = world->make(rank, tp_members, "tp", 0);
    const auto dp = world->make(rank, dp_members, "dp", 0);
    const auto dp2 = world->make(rank, dp_members, "dp", 1);
    EXPECT_EQ(tp->rank(), rank.value % 2);
    EXPECT_EQ(dp->rank(), static_cast<std::int32_t>(dp_members.size()) - 1 - rank.value / 2);
    EXPECT_EQ(dp->label(), "dp");
    for (std::int32_t i = 0; i < 50; ++i) {
      std::vector<double> a(5, rank.value);
      tp->all_reduce(tensor_of(a));
      ASSERT_EQ(a[4], rank.value / 2 * 4 + 1);
      std::vector<double> b(3000, rank.value);
      (i % 2 == 0 ? dp : dp2)->all_reduce(tensor_of(b));
      const double half = size() / 2;
      ASSERT_EQ(b[2999], half * (half - 1) + half * (rank.value % 2));
    }
  });
}

TEST_P(Messages, AWorldRunsTwiceWithNewCommunicators) {
  const auto world = GetParam().backend.make(size());
  const std::vector<Rank> members = ranks_upto(size());
  for (int run = 0; run < 3; ++run)
    world->run([&](Rank rank) {
      const auto c = world->make(rank, members, "all", 0);
      std::vector<double> x(run + 1, 1.0);
      c->all_reduce(tensor_of(x));
      EXPECT_EQ(x.back(), size());
    });
}

// Between processes a message travels before its receiver asks for it: pipeline sends go beside compute.
TEST(MessagesOfProcesses, ALargeOneIsThereWhenItsReceiverAsks) {
  constexpr std::int64_t kElements = 1 << 18;
  ProcessesTestWorld world(local_wires(2), {.timeout = Seconds(20.0)});
  world.run([&](Rank rank) {
    const std::vector<Rank> both = {Rank(0), Rank(1)};
    const auto c = world.make(rank, both, "pp", 0);
    std::vector<double> x(kElements);
    for (std::int32_t round = 0; round < 3; ++round) {
      if (rank.value == 0) {
        std::fill(x.begin(), x.end(), round + 1);
        c->send(tensor_of(x), 1, round);
        c->wait_send(1, round);  // while the receiver is on its way to the barrier
        std::fill(x.begin(), x.end(), -1.0);
        c->barrier();
      } else {
        c->barrier();
        c->recv(tensor_of(x), 0, round);
        EXPECT_EQ(difference(x, std::vector<double>(kElements, round + 1)), "");
      }
    }
  });
}

// A rank that is early in the second run waits for a peer whose communicator of the first run is gone.
TEST(MessagesOfThreads, ASecondRunDoesNotTakeTheFirstOnesEndForItsOwn) {
  ThreadWorld world({.size = 2, .timeout = Seconds(20.0)});
  const std::vector<Rank> both = {Rank(0), Rank(1)};
  for (std::int32_t run = 0; run < 3; ++run) {
    world.run([&](Rank rank) {
      if (rank.value == 1) std::this_thread::sleep_for(std::chrono::milliseconds(20));
      const auto c = world.communicator(rank, both, "cp");
      std::vector<double> x(4, rank.value);
      if (rank.value == 1) c->send(tensor_of(x), 0, 0);
      if (rank.value == 0) c->recv(tensor_of(x), 1, 0);
      EXPECT_EQ(x[0], 1.0);
      if (rank.value == 1) c->wait_send(0, 0);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, Messages, ::testing::ValuesIn(settings()), setting_name);

}  // namespace
}  // namespace tessera::comm
