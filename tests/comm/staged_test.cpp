// A staged communicator does on a device's tensors what the one behind it does on the host's.
#include "comm/staged.h"

#include <gtest/gtest.h>

#include <array>
#include <functional>
#include <mutex>

#include "comm/thread_world.h"
#include "support/fake_device.h"
#include "support/tensors.h"

namespace tessera::comm {
namespace {

using tensor::DType;
using test::FakeDevice;
using test::OnDevice;
using test::Owned;
using test::random;

constexpr std::int32_t kRanks = 3;

void on_ranks(const std::function<void(Communicator& plain, Communicator& staged,
                                       const std::shared_ptr<FakeDevice>& device)>& body) {
  ThreadWorld world({.size = kRanks, .timeout = Seconds(20.0)});
  std::vector<Rank> all;
  for (std::int32_t r = 0; r < kRanks; ++r) all.emplace_back(r);
  world.run([&](Rank rank) {
    const auto device = std::make_shared<FakeDevice>();
    const auto plain = world.communicator(rank, all, "plain");
    const auto staged = make_staged(world.communicator(rank, all, "staged"), device);
    body(*plain, *staged, device);
  });
}

std::uint64_t seed_of(const Communicator& c) {
  return static_cast<std::uint64_t>(c.rank() + 1);
}

TEST(Staged, SumsEqualThoseOfTheHostToTheBitAndCountTheSameBytes) {
  on_ranks([](Communicator& plain, Communicator& staged, const std::shared_ptr<FakeDevice>& device) {
    for (const DType dtype : {DType::f32, DType::f64}) {
      const Owned x = random(dtype, {7, 3}, seed_of(plain)), in = random(dtype, {6, 2}, seed_of(plain));
      const OnDevice there(device, x), in_there(device, in), out_there(device, dtype, {2, 2});
      const Owned out(dtype, {2, 2});
      plain.all_reduce(x);
      staged.all_reduce(there);
      EXPECT_EQ(there.values(), test::values(x));
      plain.reduce_scatter(out, in);
      staged.reduce_scatter(out_there, in_there);
      EXPECT_EQ(out_there.values(), test::values(out));
    }
    EXPECT_EQ(staged.bytes_sent(), plain.bytes_sent());
  });
}

TEST(Staged, Bf16IsSummedInF32AndRoundedOnce) {
  on_ranks([](Communicator& plain, Communicator& staged, const std::shared_ptr<FakeDevice>& device) {
    const Owned narrow = random(DType::bf16, {5, 3}, seed_of(plain));
    const Owned wide = test::cast(narrow, DType::f32);
    const OnDevice there(device, narrow);
    plain.all_reduce(wide);
    staged.all_reduce(there);
    EXPECT_EQ(there.values(), test::values(test::cast(wide, DType::bf16)));
    const Owned parts = random(DType::bf16, {kRanks * 2, 4}, seed_of(plain));
    const Owned wide_parts = test::cast(parts, DType::f32), sum(DType::f32, {2, 4});
    const OnDevice parts_there(device, parts);
    const tensor::Tensor own = tensor::Tensor(parts_there).narrow_rows(plain.rank() * 2, 2);
    plain.reduce_scatter(sum, wide_parts);
    staged.reduce_scatter(own, parts_there);  // in place, as sequence parallelism does
    const std::vector<double> all = parts_there.values(), want = test::values(test::cast(sum, DType::bf16));
    for (std::size_t i = 0; i < want.size(); ++i)
      EXPECT_EQ(all[static_cast<std::size_t>(plain.rank()) * 8 + i], want[i]) << i;
  });
}

TEST(Staged, RowsMoveAsOnTheHost) {
  on_ranks([](Communicator& plain, Communicator& staged, const std::shared_ptr<FakeDevice>& device) {
    const std::array<std::int64_t, kRanks> rows{2, 0, 3};
    const std::int64_t mine = rows[static_cast<std::size_t>(plain.rank())];
    const Owned in = random(DType::bf16, {mine, 4}, seed_of(plain)), out(DType::bf16, {5, 4});
    const OnDevice in_there(device, in), out_there(device, DType::bf16, {5, 4});
    plain.all_gather_v(out, in, rows);
    staged.all_gather_v(out_there, in_there, rows);
    EXPECT_EQ(out_there.values(), test::values(out));
    // Rank r sends r + 1 rows to each.
    const std::array<std::int64_t, kRanks> sent{plain.rank() + 1, plain.rank() + 1, plain.rank() + 1};
    const std::array<std::int64_t, kRanks> received{1, 2, 3};
    const Owned from = random(DType::f32, {3 * (plain.rank() + 1), 2}, seed_of(plain)),
                to(DType::f32, {6, 2});
    const OnDevice from_there(device, from), to_there(device, DType::f32, {6, 2});
    plain.all_to_all_v(to, received, from, sent);
    staged.all_to_all_v(to_there, received, from_there, sent);
    EXPECT_EQ(to_there.values(), test::values(to));
  });
}

TEST(Staged, MessagesKeepWhatWasSentUntilTheyAreRead) {
  on_ranks([](Communicator&, Communicator& staged, const std::shared_ptr<FakeDevice>& device) {
    const std::int32_t next = (staged.rank() + 1) % kRanks, previous = (staged.rank() + 2) % kRanks;
    const Owned first = random(DType::f32, {4}, seed_of(staged)),
                second = random(DType::f32, {4}, 10 + seed_of(staged));
    const OnDevice one(device, first), two(device, second), got(device, DType::f32, {4});
    staged.send(one, next, 1);
    staged.send(two, next, 2);
    staged.recv(got, previous, 2);
    EXPECT_EQ(got.values(),
              test::values(random(DType::f32, {4}, 10 + static_cast<std::uint64_t>(previous + 1))));
    staged.recv(got, previous, 1);
    EXPECT_EQ(got.values(), test::values(random(DType::f32, {4}, static_cast<std::uint64_t>(previous + 1))));
    staged.wait_send(next, 1);
    staged.wait_send(next, 2);
    const OnDevice shared(device, staged.rank() == 1 ? first : second);
    staged.broadcast(shared, 1);
    EXPECT_EQ(shared.values(), test::values(random(DType::f32, {4}, 2)));
    staged.barrier();
  });
}

TEST(Staged, TensorsOfTheHostGoThroughAndOneRankOnlyCopies) {
  const auto device = std::make_shared<FakeDevice>();
  const auto alone = make_staged(make_self("alone"), device);
  const Owned x = random(DType::bf16, {3}, 1);
  const OnDevice in(device, x), out(device, DType::bf16, {3});
  alone->all_gather(out, in);
  alone->all_reduce(out);
  EXPECT_EQ(out.values(), test::values(x));
  const Owned here(DType::bf16, {3}), again(DType::bf16, {3});
  alone->all_gather(here, x);
  EXPECT_EQ(test::values(here), test::values(x)) << "tensors of the host at once: theirs may be gone soon";
  alone->all_gather(again, in);
  EXPECT_EQ(test::values(again), test::values(x));
  const Owned host = random(DType::f32, {3}, 2), copy = test::copy_of(host);
  alone->all_reduce(host);
  EXPECT_EQ(test::values(host), test::values(copy));
  EXPECT_THROW(make_self("plain")->all_reduce(out), Error) << "which is why it is staged";
  auto taken = make_self("host");
  const Communicator* before = taken.get();
  EXPECT_EQ(make_staged(std::move(taken), tensor::make_host_memory()).get(), before);
}

}  // namespace
}  // namespace tessera::comm
