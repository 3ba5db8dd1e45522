// Memory of the host and of a device, arenas over them, and how the host gets at values.
#include "tensor/memory.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/fake_device.h"
#include "support/tensors.h"
#include "tensor/arena.h"

namespace tessera::tensor {
namespace {

using test::FakeDevice;
using test::OnDevice;
using test::Owned;
using ::testing::HasSubstr;

TEST(Memory, OfTheHostCopiesAtOnce) {
  const auto memory = make_host_memory();
  EXPECT_EQ(memory->device(), Device::cpu);
  const Owned from = test::tensor_of(DType::f32, {3}, {1, 2, 3}), to(DType::f32, {3});
  memory->copy(to, from);
  EXPECT_EQ(test::values(to), test::values(from));
  memory->clear(to);
  EXPECT_EQ(test::values(to), (std::vector<double>{0, 0, 0}));
}

TEST(Memory, CopiesOfOtherSizesAreRefusedAndNothingIsCopiedOntoItself) {
  const auto memory = std::make_shared<FakeDevice>();
  const Owned three(DType::f32, {3}), two(DType::f32, {2});
  EXPECT_THROW(memory->copy(three, two), Error);
  memory->copy(three, three);
  EXPECT_TRUE(memory->idle());
}

TEST(Memory, OfADeviceIsOutOfTheHostsReachAndItsWorkWaits) {
  const auto memory = std::make_shared<FakeDevice>();
  const OnDevice there(memory, DType::f32, {3});
  const Tensor t = there;
  EXPECT_THROW((void)t.as<float>(), Error);
  EXPECT_NE(t.address<float>(), nullptr);
  EXPECT_THROW((void)t.narrow_rows(1, 2).as<float>(), Error) << "a view lies where the tensor does";
  EXPECT_THROW((void)t.reshaped({1, 3}).as<float>(), Error);
  const Owned one = test::tensor_of(DType::f32, {3}, {1, 2, 3}), back = test::zeros(DType::f32, {3});
  memory->copy(t, one);
  memory->copy(back, t);
  EXPECT_EQ(test::values(back), (std::vector<double>{0, 0, 0}));
  memory->synchronise();
  EXPECT_EQ(test::values(back), (std::vector<double>{1, 2, 3}));
}

TEST(Memory, MarksTimeWhatALaneDoesBetweenThem) {
  for (const std::shared_ptr<Memory>& memory :
       {make_host_memory(), std::shared_ptr<Memory>(std::make_shared<FakeDevice>())}) {
    const std::int64_t bytes = std::int64_t{8} << 20U;
    const Buffer a(memory, Bytes(bytes), Reach::own), b(memory, Bytes(bytes), Reach::own);
    const Tensor from(a.data(), DType::u8, {bytes}, memory->device());
    const Tensor to(b.data(), DType::u8, {bytes}, memory->device());
    const auto start = memory->make_mark(), middle = memory->make_mark(), end = memory->make_mark();
    start->record();
    memory->copy(to, from);
    middle->record();
    for (int i = 0; i < 10; ++i) memory->copy(to, from);
    end->record();
    EXPECT_GT(middle->ns_since(*start), 0);
    EXPECT_GT(end->ns_since(*start), middle->ns_since(*start));
    EXPECT_EQ(end->ns_since(*start), middle->ns_since(*start) + end->ns_since(*middle));
  }
}

TEST(Memory, TheHostGetsAtValuesThereAndTheyGoBackAfterAWrite) {
  const auto memory = std::make_shared<FakeDevice>();
  const OnDevice there(memory, test::tensor_of(DType::f64, {2}, {4, 5}));
  on_host(*memory, there, Access::read, [](const Tensor& h) {
    EXPECT_EQ(h.as<double>()[1], 5.0);
    h.as<double>()[1] = 9.0;
  });
  EXPECT_EQ(there.values(), (std::vector<double>{4, 5})) << "read only";
  on_host(*memory, there, Access::read_write, [](const Tensor& h) { h.as<double>()[1] += 1.0; });
  EXPECT_EQ(there.values(), (std::vector<double>{4, 6}));
  on_host(*memory, there, Access::write, [](const Tensor& h) { test::set_all(h, 8); });
  EXPECT_EQ(there.values(), (std::vector<double>{8, 8}));
}

TEST(Memory, AnArenaOfADeviceKeepsIntegersWhereTheHostReadsThem) {
  const auto memory = std::make_shared<FakeDevice>();
  const auto set_up = [](Arena& arena) {
    std::vector<Tensor> out = {arena.take(DType::f32, {3}), arena.take(DType::i32, {5}),
                               arena.take(DType::bf16, {40})};
    const Frame frame(arena);
    out.push_back(arena.take_shared(DType::f64, {9}));
    out.push_back(arena.take(DType::u8, {100}));
    return out;
  };
  Arena counting;
  (void)set_up(counting);
  EXPECT_EQ(counting.size().own, Bytes(64 + 128 + 128));
  EXPECT_EQ(counting.size().shared, Bytes(64 + 128));
  EXPECT_EQ(counting.size().all, Bytes(512));
  Arena real(memory, counting.size());
  const std::vector<Tensor> t = set_up(real);
  EXPECT_EQ(real.size().all, counting.size().all);
  for (const std::size_t own : {0U, 2U, 4U}) EXPECT_EQ(t[own].device(), Device::cuda) << own;
  for (const std::size_t shared : {1U, 3U}) EXPECT_EQ(t[shared].device(), Device::cpu) << shared;
  try {
    (void)real.take(DType::i32, {64});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_THAT(e.what(), HasSubstr("64 B used, 256 B more asked for"));
  }
}

TEST(Memory, AnArenaCoversWhatOneOfSeveralUsersNeeds) {
  Arena arena;
  const ArenaSize begin = arena.mark();
  ArenaSize most = begin;
  for (const std::int64_t n : {100, 300, 200}) {
    (void)arena.take(DType::u8, {n});
    if (n == 100) (void)arena.take(DType::i32, {50});
    most = most.join(arena.mark());
    arena.release(begin);
  }
  arena.cover(most);
  EXPECT_EQ(arena.mark().own, Bytes(320));
  EXPECT_EQ(arena.mark().shared, Bytes(256));
  EXPECT_EQ(arena.used(), Bytes(384)) << "what was there at one time, not the sum of both parts";
}

TEST(Memory, StatisticsOfATypeAreKeptInF32OrF64) {
  EXPECT_EQ(stats_of(DType::bf16), DType::f32);
  EXPECT_EQ(stats_of(DType::f32), DType::f32);
  EXPECT_EQ(stats_of(DType::f64), DType::f64);
}

}  // namespace
}  // namespace tessera::tensor
