// Buffers and arenas: alignment, zeroed pages, the counting pass that predicts the real one, frames.
#include "tensor/arena.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace tessera::tensor {
namespace {

using ::testing::HasSubstr;

bool aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % kAlignment == 0;
}

TEST(Buffer, IsAlignedZeroedAndAsLargeAsAsked) {
  for (const std::int64_t size : {1, 63, 4096, 4097, (2 << 20) + 1}) {
    const Buffer b{Bytes(size)};
    EXPECT_EQ(b.size(), Bytes(size));
    ASSERT_NE(b.data(), nullptr);
    EXPECT_TRUE(aligned(b.data()));
    EXPECT_TRUE(std::all_of(b.data(), b.data() + size, [](std::byte v) { return v == std::byte{0}; }));
    std::memset(b.data(), 0xff, static_cast<std::size_t>(size));  // writable to the last byte
  }
}

TEST(Buffer, OfNoBytesHasNoMemory) {
  const Buffer b{Bytes(0)};
  EXPECT_EQ(b.data(), nullptr);
  EXPECT_EQ(Buffer().data(), nullptr);
}

TEST(Buffer, MovesWithoutCopyingAndLeavesNothingBehind) {
  Buffer a{Bytes(100)};
  a.data()[7] = std::byte{42};
  const std::byte* at = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), at);
  EXPECT_EQ(b.data()[7], std::byte{42});
  EXPECT_EQ(a.data(), nullptr);  // NOLINT: the moved-from state is part of the contract
  EXPECT_EQ(a.size(), Bytes(0));
  Buffer c{Bytes(10)};
  c = std::move(b);
  EXPECT_EQ(c.data(), at);
  EXPECT_EQ(c.size(), Bytes(100));
}

TEST(Buffer, LargerThanTheAddressSpaceIsAnIoErrorThatSaysHowMuch) {
  try {
    const Buffer b{Bytes(std::int64_t{1} << 60)};
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::io);
    EXPECT_THAT(e.what(), HasSubstr("cannot reserve 1"));
    EXPECT_THAT(e.what(), HasSubstr("mend: use a smaller model or micro-batch"));
  }
}

// Takes tensors of awkward sizes, some inside a frame.
std::vector<Tensor> set_up(Arena& arena) {
  std::vector<Tensor> out = {arena.take(DType::f32, {3, 5}), arena.take(DType::u8, {1}),
                             arena.take(DType::f64, {0, 7})};
  {
    const Frame frame(arena);
    out.push_back(arena.take(DType::i32, {1000}));
  }
  out.push_back(arena.take(DType::bf16, {33}));
  return out;
}

TEST(Arena, TheCountingPassPredictsTheRealOneExactly) {
  Arena counting;
  EXPECT_TRUE(counting.counting());
  for (const Tensor& t : set_up(counting)) EXPECT_EQ(t.raw(), nullptr);
  // Each tensor is rounded up to 64 bytes: 60, 1, 0, then 4000 in the frame or 66 after it.
  EXPECT_EQ(counting.used(), Bytes(64 + 64 + 0 + 128));
  EXPECT_EQ(counting.peak(), Bytes(64 + 64 + 0 + 4032));

  Arena real(counting.peak());
  EXPECT_FALSE(real.counting());
  const std::vector<Tensor> tensors = set_up(real);
  EXPECT_EQ(real.used(), counting.used());
  EXPECT_EQ(real.peak(), counting.peak());
  for (const Tensor& t : tensors) EXPECT_TRUE(aligned(t.raw()));
}

TEST(Arena, TensorsDoNotOverlap) {
  Arena arena(Bytes(1 << 16));
  std::vector<Tensor> tensors;
  for (std::int64_t i = 0; i < 20; ++i) {
    tensors.push_back(arena.take(DType::u8, {1 + 37 * i}));
    std::memset(tensors.back().raw(), static_cast<int>(i + 1), static_cast<std::size_t>(1 + 37 * i));
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    for (const std::uint8_t v : tensors[i].span<std::uint8_t>()) ASSERT_EQ(v, i + 1);
  }
}

TEST(Arena, TooSmallIsAnErrorWithTheNumbersAndTheTensor) {
  Arena arena(Bytes(1024));
  (void)arena.take(DType::f32, {128});
  try {
    (void)arena.take(DType::f32, {129, 1});
    FAIL() << "no error";
  } catch (const Error& e) {
    EXPECT_EQ(e.kind(), ErrorKind::internal);
    EXPECT_THAT(e.what(), HasSubstr("512 B used"));
    EXPECT_THAT(e.what(), HasSubstr("576 B more asked for"));
    EXPECT_THAT(e.what(), HasSubstr("tensor f32 [129, 1]"));
    EXPECT_THAT(e.what(), HasSubstr("mend: this is a defect of Tessera's memory plan"));
  }
  EXPECT_EQ(arena.used(), Bytes(512)) << "a refused tensor takes nothing";
  EXPECT_EQ(arena.take(DType::f32, {128}).num_elements(), 128) << "the last byte can be used";
}

TEST(Arena, FramesGiveTheSameMemoryAgainAndThePeakRemembers) {
  Arena arena(Bytes(4096));
  const Tensor kept = arena.take(DType::f64, {8});
  void* first = nullptr;
  for (int step = 0; step < 3; ++step) {
    const Frame outer(arena);
    const Tensor a = arena.take(DType::f64, {16});
    if (step == 0) first = a.raw();
    EXPECT_EQ(a.raw(), first);
    {
      const Frame inner(arena);
      (void)arena.take(DType::f64, {32});
    }
    EXPECT_EQ(arena.used(), Bytes(64 + 128));
  }
  EXPECT_EQ(arena.used(), kept.bytes());
  EXPECT_EQ(arena.peak(), Bytes(64 + 128 + 256));
}

TEST(Arena, ReleasingWhatWasNotTakenIsRefused) {
  Arena arena(Bytes(1024));
  (void)arena.take(DType::u8, {64});
  EXPECT_THROW(arena.release({.all = Bytes(128), .own = Bytes(128)}), Error);
  EXPECT_THROW(arena.release({.all = Bytes(-1)}), Error);
  EXPECT_EQ(arena.used(), Bytes(64));
}

}  // namespace
}  // namespace tessera::tensor
