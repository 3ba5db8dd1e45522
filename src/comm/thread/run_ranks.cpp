#include "comm/thread/run_ranks.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>

#include <thread>

#include "comm/thread/world.h"

namespace tessera::comm::thread {

std::vector<std::int32_t> usable_cores() {
  cpu_set_t set;
  CPU_ZERO(&set);
  std::vector<std::int32_t> cores;
  if (::sched_getaffinity(0, sizeof(set), &set) == 0)
    for (std::int32_t c = 0; c < CPU_SETSIZE; ++c)
      if (CPU_ISSET(static_cast<std::size_t>(c), &set)) cores.push_back(c);
  if (cores.empty()) cores.push_back(0);
  return cores;
}

namespace {

void pin_this_thread(std::int32_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(core), &set);
  // A container may forbid it; the ranks then run unpinned, only slower.
  (void)::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set);
}

void run_rank(World& world, Rank rank, const std::function<void(Rank)>& body) {
  const std::string where = fmt::format("rank {}", rank.value);
  const char* const mend = "this is a defect of Tessera: please report it";
  try {
    body(rank);
    world.set_state(rank, RankState::finished);
    return;
  } catch (const Stopped&) {
    // Some other error came first, or this rank was stopped from outside; either is kept already.
  } catch (const Error& e) {
    world.stop(rank, e, false);
  } catch (const std::exception& e) {
    world.stop(rank, Error(ErrorKind::internal, e.what(), where, mend), false);
  } catch (...) {
    world.stop(rank, Error(ErrorKind::internal, "an exception of an unknown type", where, mend), false);
  }
  world.set_state(rank, RankState::failed);
}

}  // namespace

void run_ranks(World& world, std::span<const Rank> ranks, std::span<const std::int32_t> cores,
               const std::function<void(Rank)>& body) {
  if (auto error = world.verdict()) throw Error(std::move(*error));
  world.open_groups();
  for (const Rank r : ranks) world.set_state(r, RankState::running);
  {
    // One rank alone gains nothing from a pin, and would keep off a free core.
    const bool pin = ranks.size() > 1 && ranks.size() <= cores.size() && world.spins() > 0;
    std::vector<std::jthread> threads;
    threads.reserve(ranks.size());
    for (std::size_t i = 0; i < ranks.size(); ++i)
      threads.emplace_back([&, i] {
        if (pin) pin_this_thread(cores[i]);
        run_rank(world, ranks[i], body);
      });
  }
}

}  // namespace tessera::comm::thread
