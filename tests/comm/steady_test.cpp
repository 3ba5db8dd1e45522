// A steady step allocates nothing: operator new is counted while all collectives repeat.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "comm/backends.h"
#include "comm/worker.h"

namespace {
std::atomic<bool> counting{false};
std::atomic<std::int64_t> allocations{0};
}  // namespace

[[gnu::noinline]] void* operator new(std::size_t size) {
  if (counting.load(std::memory_order_relaxed)) allocations.fetch_add(1, std::memory_order_relaxed);
  if (void* p = std::malloc(size == 0 ? 1 : size)) return p;
  throw std::bad_alloc();
}
[[gnu::noinline]] void operator delete(void* p) noexcept {
  std::free(p);
}
[[gnu::noinline]] void operator delete(void* p, std::size_t) noexcept {
  std::free(p);
}

namespace tessera::comm {
namespace {

TEST(Steady, CollectivesMessagesAndTheWorkerAllocateOnlyInTheirFirstRound) {
  constexpr std::int32_t kSize = 4;
  ThreadWorld world({.size = kSize});
  const std::vector<Rank> members = ranks_upto(kSize);
  world.run([&](Rank rank) {
    const auto c = world.communicator(rank, members, "tp");
    const auto dp = world.communicator(rank, members, "dp", 1);
    CommWorker worker({});
    std::vector<float> small(16);
    std::vector<float> middle(20000);
    std::vector<float> large(400000);  // beyond the gathered all_reduce
    std::vector<float> received(20000);
    std::vector<float> part(5000);
    const std::vector<std::int64_t> rows(kSize, 5000);
    const std::int32_t next = (rank.value + 1) % kSize;
    const std::int32_t last = (rank.value + kSize - 1) % kSize;
    for (int round = 0; round < 4; ++round) {
      c->barrier();
      if (round == 1 && rank.value == 0) counting = true;
      c->barrier();
      const Tensor bucket = tensor_of(large);
      const auto ticket = worker.post([d = dp.get(), bucket] { d->all_reduce(bucket); });
      c->all_reduce(tensor_of(small));
      c->all_reduce(tensor_of(middle));
      c->all_reduce_direct(tensor_of(part), Op::sum);
      c->reduce_scatter(tensor_of(part), tensor_of(middle));
      c->all_gather(tensor_of(middle), tensor_of(part));
      c->all_gather_v(tensor_of(middle), tensor_of(part), rows);
      c->reduce_scatter_v(tensor_of(part), tensor_of(middle), rows);
      c->send(tensor_of(small), next, round);
      c->recv(tensor_of(part).narrow_rows(0, 16), last, round);
      c->wait_send(next, round);
      c->broadcast(tensor_of(part), 1);
      c->all_to_all_v(tensor_of(received), rows, tensor_of(middle), rows);
      worker.wait(ticket);
    }
    c->barrier();
    if (rank.value == 0) counting = false;
    c->barrier();
  });
  EXPECT_EQ(allocations.load(), 0);
}

}  // namespace
}  // namespace tessera::comm
