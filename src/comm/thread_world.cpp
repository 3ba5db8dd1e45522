#include "comm/thread_world.h"

#include <fmt/format.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <thread>
#include <vector>

#include "comm/thread/thread_communicator.h"
#include "comm/thread/world.h"

namespace tessera::comm {

namespace {

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

void pin_this_thread(std::int32_t core) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(static_cast<std::size_t>(core), &set);
  // A container may forbid it; the ranks then run unpinned, only slower.
  (void)::pthread_setaffinity_np(::pthread_self(), sizeof(set), &set);
}

}  // namespace

struct ThreadWorld::Shared {
  Options options;
  std::vector<std::int32_t> cores;
  thread::World world;

  explicit Shared(const Options& o)
      : options(o),
        cores(usable_cores()),
        world(o.size, static_cast<std::int64_t>(o.timeout.value * 1e9),
              o.cores > 0 ? o.cores : static_cast<std::int32_t>(cores.size())) {}

  void run_rank(Rank rank, const std::function<void(Rank)>& body) {
    // One rank alone gains nothing from a pin, and would keep off a free core.
    if (options.size > 1 && options.size <= static_cast<std::int32_t>(cores.size()) && world.spins() > 0)
      pin_this_thread(cores[static_cast<std::size_t>(rank.value)]);
    try {
      body(rank);
      world.set_state(rank, thread::RankState::finished);
      return;
    } catch (const thread::Stopped&) {
      // Some other error came first, or this rank was stopped from outside; either is kept already.
    } catch (const Error& e) {
      world.stop(rank, e, false);
    } catch (const std::exception& e) {
      world.stop(rank,
                 Error(ErrorKind::internal, e.what(), fmt::format("rank {}", rank.value),
                       "this is a defect of Tessera: please report it"),
                 false);
    } catch (...) {
      world.stop(rank,
                 Error(ErrorKind::internal, "an exception of an unknown type",
                       fmt::format("rank {}", rank.value), "this is a defect of Tessera: please report it"),
                 false);
    }
    world.set_state(rank, thread::RankState::failed);
  }
};

ThreadWorld::ThreadWorld(Options options) {
  if (options.size < 1 || !(options.timeout.value > 0.0))
    throw Error(
        ErrorKind::internal,
        fmt::format("a world of {} ranks with a timeout of {} s", options.size, options.timeout.value),
        "ThreadWorld", "use 1 rank or more and a timeout above 0");
  shared_ = std::make_unique<Shared>(options);
}

ThreadWorld::~ThreadWorld() = default;

std::int32_t ThreadWorld::size() const {
  return shared_->options.size;
}

std::unique_ptr<Communicator> ThreadWorld::communicator(Rank rank, std::span<const Rank> members,
                                                        std::string_view label, std::int32_t instance) {
  const auto where = [&] { return fmt::format("rank {}, communicator {}", rank.value, label); };
  const auto bad = [&](std::string what) {
    throw Error(ErrorKind::internal, std::move(what), where(),
                "list each member once, the asking rank among them");
  };
  const auto me = std::ranges::find(members, rank);
  if (me == members.end()) bad(fmt::format("rank {} is not a member", rank.value));
  for (const Rank r : members) {
    if (r.value < 0 || r.value >= size()) bad(fmt::format("rank {} in a world of {}", r.value, size()));
    if (std::ranges::count(members, r) != 1) bad(fmt::format("rank {} is listed twice", r.value));
  }
  thread::Group& group = shared_->world.group(members, label, instance);
  const auto place = static_cast<std::int32_t>(me - members.begin());
  if (group.slot(place).held.exchange(true))
    throw Error(ErrorKind::internal, fmt::format("instance {} is already in use by this rank", instance),
                where(), "ask for another instance, or destroy the first communicator");
  return std::make_unique<thread::ThreadCommunicator>(group, place);
}

void ThreadWorld::run(const std::function<void(Rank)>& body) {
  thread::World& world = shared_->world;
  if (auto error = world.verdict()) throw Error(std::move(*error));
  for (std::int32_t r = 0; r < size(); ++r) world.set_state(Rank(r), thread::RankState::running);
  {
    std::vector<std::jthread> threads;
    threads.reserve(static_cast<std::size_t>(size()));
    for (std::int32_t r = 0; r < size(); ++r)
      threads.emplace_back([this, r, &body] { shared_->run_rank(Rank(r), body); });
  }
  for (std::int32_t r = 0; r < size(); ++r) world.set_state(Rank(r), thread::RankState::idle);
  if (auto error = world.verdict()) throw Error(std::move(*error));
}

void ThreadWorld::abort(Rank rank, std::string_view why) {
  // Provisional: when an exception of this rank follows, that is the better reason.
  shared_->world.stop(rank, Error(ErrorKind::comm, std::string(why), fmt::format("rank {}", rank.value), ""),
                      true);
}

}  // namespace tessera::comm
