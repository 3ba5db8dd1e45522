// Collectives and messages between the memories of devices, over a network that is as strict as NCCL
// (support/fake_network.h): the numbers of a host's communicator, without the host waiting, helper threads in
// lanes of their own, and what happens when a peer or the network fails.
#include "comm/device_communicator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "comm/nccl/nccl_network.h"
#include "comm/thread_world.h"
#include "comm/worker.h"
#include "support/fake_device.h"
#include "support/fake_network.h"

namespace tessera::comm {
namespace {

using tensor::DType;
using test::FakeDevice;
using test::FakeNetwork;
using test::OnDevice;
using test::Owned;
using test::random;

constexpr std::int32_t kRanks = 3;

struct Bench {
  Communicator& plain;   // of the host
  Communicator& direct;  // between devices
  std::shared_ptr<FakeDevice> device;
  FakeNetwork& network;
  [[nodiscard]] std::int32_t rank() const { return plain.rank(); }
  [[nodiscard]] std::uint64_t seed() const { return static_cast<std::uint64_t>(plain.rank() + 1); }
};

struct Setting {
  MessagePairs pairs = MessagePairs::all;
  bool one_device = false;
  std::int64_t patience_ns = 20'000'000'000;
  Seconds timeout = Seconds(30.0);
};

void on_devices(const std::function<void(Bench&)>& body, const Setting& setting = {}) {
  ThreadWorld world({.size = kRanks, .timeout = setting.timeout});
  const auto hub = std::make_shared<FakeNetwork::Hub>();
  std::vector<Rank> all;
  for (std::int32_t r = 0; r < kRanks; ++r) all.emplace_back(r);
  world.run([&](Rank rank) {
    const auto device = std::make_shared<FakeDevice>(emulation::Pace::beside);
    FakeNetwork network(hub, device, setting.one_device ? "GPU" : "GPU-" + std::to_string(rank.value),
                        setting.patience_ns);
    const auto plain = world.communicator(rank, all, "plain");
    const auto direct =
        make_between_devices(world.communicator(rank, all, "direct"), device, &network, setting.pairs);
    device->set_check([&](std::int64_t waited) {
      try {
        direct->check(waited);
      } catch (...) {
        network.end_all();
        throw;
      }
    });
    Bench bench{*plain, *direct, device, network};
    body(bench);
  });
}

void expect_near(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << i;
}

TEST(BetweenDevices, SumsAreThoseOfTheHostUpToTheirOrder) {
  on_devices([](Bench& b) {
    for (const DType dtype : {DType::f64, DType::f32}) {
      const double tolerance = dtype == DType::f64 ? 1e-14 : 1e-6;
      const Owned x = random(dtype, {7, 3}, b.seed()), in = random(dtype, {6, 2}, b.seed());
      const OnDevice there(b.device, x), in_there(b.device, in), out_there(b.device, dtype, {2, 2});
      const Owned out(dtype, {2, 2});
      b.plain.all_reduce(x);
      b.direct.all_reduce(there);
      expect_near(there.values(), test::values(x), tolerance);
      b.plain.reduce_scatter(out, in);
      b.direct.reduce_scatter(out_there, in_there);
      expect_near(out_there.values(), test::values(out), tolerance);
      const std::array<std::int64_t, kRanks> rows{1, 0, 4};
      const std::int64_t mine = rows[static_cast<std::size_t>(b.rank())];
      const Owned parts = random(dtype, {5, 2}, b.seed()), sum(dtype, {mine, 2});
      const OnDevice parts_there(b.device, parts), sum_there(b.device, dtype, {mine, 2});
      b.plain.reduce_scatter_v(sum, parts, rows);
      b.direct.reduce_scatter_v(sum_there, parts_there, rows);
      expect_near(sum_there.values(), test::values(sum), tolerance);
      const Owned most = random(dtype, {4}, b.seed());
      const OnDevice most_there(b.device, most);
      b.plain.all_reduce_direct(most, Op::max);
      b.direct.all_reduce_direct(most_there, Op::max);
      EXPECT_EQ(most_there.values(), test::values(most));
    }
    EXPECT_EQ(b.direct.bytes_sent(), b.plain.bytes_sent());
  });
}

TEST(BetweenDevices, RowsMoveAsOnTheHost) {
  on_devices([](Bench& b) {
    const std::array<std::int64_t, kRanks> rows{2, 0, 3};
    const std::int64_t mine = rows[static_cast<std::size_t>(b.rank())];
    const Owned in = random(DType::bf16, {mine, 4}, b.seed()), out(DType::bf16, {5, 4});
    const OnDevice in_there(b.device, in), out_there(b.device, DType::bf16, {5, 4});
    b.plain.all_gather_v(out, in, rows);
    b.direct.all_gather_v(out_there, in_there, rows);
    EXPECT_EQ(out_there.values(), test::values(out));
    // Rank r sends r + 1 rows to each, but none from 0 to 2.
    std::array<std::int64_t, kRanks> sent{b.rank() + 1, b.rank() + 1, b.rank() + 1}, received{1, 2, 3};
    if (b.rank() == 0) sent[2] = 0;
    if (b.rank() == 2) received[0] = 0;
    const std::int64_t n = sent[0] + sent[1] + sent[2], m = received[0] + received[1] + received[2];
    const Owned from = random(DType::f32, {n, 2}, b.seed()), to(DType::f32, {m, 2});
    const OnDevice from_there(b.device, from), to_there(b.device, DType::f32, {m, 2});
    b.plain.all_to_all_v(to, received, from, sent);
    b.direct.all_to_all_v(to_there, received, from_there, sent);
    EXPECT_EQ(to_there.values(), test::values(to));
    const Owned part = random(DType::f64, {2}, b.seed()), whole(DType::f64, {6}), own(DType::f64, {6});
    const OnDevice whole_there(b.device, DType::f64, {6}), part_there(b.device, part);
    b.plain.all_gather(whole, part);
    b.direct.all_gather(whole_there, part_there);
    EXPECT_EQ(whole_there.values(), test::values(whole));
    b.plain.broadcast(part, 2);
    b.direct.broadcast(part_there, 2);
    EXPECT_EQ(part_there.values(), test::values(part));
    b.direct.barrier();
  });
}

TEST(BetweenDevices, TensorsOfTheHostGoOverTheHost) {
  on_devices([](Bench& b) {
    const Owned x = random(DType::f64, {5}, b.seed()), same = test::copy_of(x);
    b.plain.all_reduce(x);
    b.direct.all_reduce(same);
    EXPECT_EQ(test::values(same), test::values(x)) << "to the bit";
    const std::int32_t next = (b.rank() + 1) % kRanks, previous = (b.rank() + 2) % kRanks;
    const Owned sent = random(DType::i32, {3}, b.seed()), got(DType::i32, {3});
    b.direct.send(sent, next, 5);
    b.direct.recv(got, previous, 5);
    b.direct.wait_send(next, 5);
    EXPECT_EQ(test::values(got),
              test::values(random(DType::i32, {3}, static_cast<std::uint64_t>(previous + 1))));
    EXPECT_EQ(b.network.groups(), 4) << "messages of devices have theirs, and no collective used any";
  });
}

TEST(BetweenDevices, MessagesComeInAnyOrderAndHoldNothingUp) {
  on_devices([](Bench& b) {
    const std::int32_t next = (b.rank() + 1) % kRanks, previous = (b.rank() + 2) % kRanks;
    const auto numbers = [](std::int32_t rank, std::uint64_t tag) {
      return random(DType::f32, {4}, static_cast<std::uint64_t>(rank) * 10 + tag);
    };
    for (int round = 0; round < 3; ++round) {
      const OnDevice one(b.device, numbers(b.rank(), 1)), two(b.device, numbers(b.rank(), 2)),
          back(b.device, numbers(b.rank(), 3)), got(b.device, DType::f32, {4});
      // All send before anybody receives, in both directions; the second is asked for first.
      b.direct.send(one, next, 1);
      b.direct.send(two, next, 2);
      b.direct.send(back, previous, 3);
      b.direct.recv(got, previous, 2);
      EXPECT_EQ(got.values(), test::values(numbers(previous, 2)));
      b.direct.recv(got, previous, 1);
      EXPECT_EQ(got.values(), test::values(numbers(previous, 1)));
      b.direct.recv(got, next, 3);
      EXPECT_EQ(got.values(), test::values(numbers(next, 3)));
      b.direct.wait_send(next, 1);
      b.direct.wait_send(next, 2);
      b.direct.wait_send(previous, 3);
    }
  });
}

// What is queued before send makes what is sent, and what is queued behind wait_send may overwrite it; only
// the device waits for either.
TEST(BetweenDevices, AMessageIsWhatWasQueuedBeforeItAndStaysUntilItIsReceived) {
  on_devices([](Bench& b) {
    const std::int32_t next = (b.rank() + 1) % kRanks, previous = (b.rank() + 2) % kRanks;
    const OnDevice mine(b.device, random(DType::f32, {1000}, b.seed()));
    const std::vector<double> want =
        test::values(random(DType::f32, {1000}, static_cast<std::uint64_t>(previous + 1)));
    for (int round = 0; round < 20; ++round) {
      const OnDevice x(b.device, DType::f32, {1000}), got(b.device, DType::f32, {1000});
      for (int i = 0; i < 5; ++i) b.device->copy(x, mine);
      b.direct.send(x, next, 1);
      b.direct.recv(got, previous, 1);
      b.direct.wait_send(next, 1);
      b.device->clear(x);
      EXPECT_EQ(got.values(), want);
    }
  });
}

TEST(BetweenDevices, NoHostWaitsForACollective) {
  on_devices([](Bench& b) {
    const OnDevice x(b.device, random(DType::f32, {64}, b.seed()));
    b.direct.all_reduce(x);  // the group is joined
    b.device->synchronise();
    b.plain.barrier();
    if (b.rank() == 0) {
      for (int i = 0; i < 5; ++i) b.direct.all_reduce(x);
      EXPECT_FALSE(b.device->idle()) << "the others have not begun, and this host went on";
    }
    b.plain.barrier();
    if (b.rank() != 0) {
      for (int i = 0; i < 5; ++i) b.direct.all_reduce(x);
    }
    b.device->synchronise();
    EXPECT_TRUE(b.device->idle());
  });
}

// A helper's all-reduce reads what was queued before it was posted, though its lane knows nothing of that
// one, and what is queued after the wait reads its sums.
TEST(BetweenDevices, AHelperThreadHasALaneOfItsOwn) {
  on_devices([](Bench& b) {
    CommWorker worker({.on_unwind = [] {}});
    worker.attach(b.device);
    for (int round = 0; round < 20; ++round) {
      const Owned values = random(DType::f64, {64}, b.seed() + 100U * static_cast<std::uint64_t>(round));
      const OnDevice from(b.device, values), x(b.device, DType::f64, {64}), to(b.device, DType::f64, {64});
      b.device->copy(x, from);
      const CommWorker::Ticket ticket =
          worker.post([comm = &b.direct, t = tensor::Tensor(x)] { comm->all_reduce(t); });
      worker.wait(ticket);
      b.device->copy(to, x);
      b.plain.all_reduce(values);
      expect_near(to.values(), test::values(values), 1e-14);
    }
  });
}

TEST(BetweenDevices, RanksThatShareADeviceMeetThroughTheHost) {
  on_devices(
      [](Bench& b) {
        const Owned x = random(DType::f64, {5}, b.seed());
        const OnDevice there(b.device, x);
        b.plain.all_reduce(x);
        b.direct.all_reduce(there);
        EXPECT_EQ(there.values(), test::values(x));
        EXPECT_EQ(b.network.groups(), 0);
      },
      {.one_device = true});
}

std::string failure_of(const std::function<void(Bench&)>& body, const Setting& setting = {}) {
  try {
    on_devices(body, setting);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(BetweenDevices, ARankThatFailsEndsTheWaitOfTheOthersDevices) {
  const std::string error = failure_of([](Bench& b) {
    const OnDevice x(b.device, random(DType::f32, {64}, b.seed()));
    b.direct.all_reduce(x);
    b.device->synchronise();
    if (b.rank() == 1) throw Error(ErrorKind::io, "the disk is full", "rank 1", "");
    b.direct.all_reduce(x);
    b.device->synchronise();
    ADD_FAILURE() << "an all-reduce without rank 1 cannot end";
  });
  EXPECT_THAT(error, ::testing::HasSubstr("the disk is full"));
}

TEST(BetweenDevices, ACollectiveThatHangsIsNamed) {
  const std::string error = failure_of(
      [](Bench& b) {
        const OnDevice x(b.device, random(DType::f32, {64}, b.seed()));
        b.direct.all_reduce(x);
        b.device->synchronise();
        if (b.rank() != 1) b.direct.all_reduce(x);
        b.device->synchronise();
        if (b.rank() == 1) b.plain.barrier();
      },
      {.patience_ns = 200'000'000});
  EXPECT_THAT(error, ::testing::HasSubstr("waits for its GPU in direct all_reduce #2 (256 B f32)"));
}

TEST(BetweenDevices, AnErrorOfTheNetworkEndsTheRun) {
  const std::string error = failure_of([](Bench& b) {
    const OnDevice x(b.device, random(DType::f32, {64}, b.seed()));
    b.direct.all_reduce(x);
    if (b.rank() == 2) b.network.fail();
    if (b.rank() == 2) b.direct.all_reduce(x);
    b.device->synchronise();
    b.plain.barrier();
  });
  EXPECT_THAT(error, ::testing::HasSubstr("a link of the network is down"));
}

TEST(BetweenDevices, MessagesThatDifferAreRefused) {
  const std::string error = failure_of([](Bench& b) {
    const OnDevice x(b.device, DType::f32, {8}), y(b.device, DType::bf16, {8});
    if (b.rank() == 0) b.direct.send(x, 1, 7);
    if (b.rank() == 1) b.direct.recv(y, 0, 7);
    b.plain.barrier();
  });
  EXPECT_THAT(error,
              ::testing::HasSubstr("sends tag 7 with 32 bytes of f32, rank 1 receives 16 bytes of bf16"));
  const std::string far = failure_of(
      [](Bench& b) {
        const OnDevice x(b.device, DType::f32, {8});
        if (b.rank() == 0) b.direct.send(x, 1, 7);
        b.plain.barrier();
      },
      {.pairs = MessagePairs::none});
  EXPECT_THAT(far, ::testing::HasSubstr("no messages of devices go between ranks 0 and 1"));
}

// NCCL itself, as far as it goes without a GPU.
TEST(Nccl, SaysItsVersionAndRefusesAMachineWithoutGpus) {
  if (!nccl::is_built_in()) {
    EXPECT_EQ(nccl::version(), "");
    GTEST_SKIP() << "this build has no NCCL";
  }
  EXPECT_GE(std::stoi(nccl::version()), 2);
  try {
    const auto device = std::make_shared<FakeDevice>();
    const auto network = nccl::make_network(1000, device, Seconds(1.0));
    FAIL() << "there is no GPU 1000";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::unsupported);
  }
}

}  // namespace
}  // namespace tessera::comm
