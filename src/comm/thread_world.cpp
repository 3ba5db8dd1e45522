#include "comm/thread_world.h"

#include <fmt/format.h>
#include <unistd.h>

#include <vector>

#include "comm/thread/run_ranks.h"
#include "comm/thread/thread_communicator.h"
#include "comm/thread/world.h"

namespace tessera::comm {

struct ThreadWorld::Shared {
  Options options;
  std::vector<std::int32_t> cores;
  std::vector<Rank> ranks;
  thread::World world;

  explicit Shared(const Options& o)
      : options(o),
        cores(thread::usable_cores()),
        world(o.size, static_cast<std::int64_t>(o.timeout.value * 1e9),
              o.cores > 0 ? o.cores : static_cast<std::int32_t>(cores.size())) {
    for (std::int32_t r = 0; r < o.size; ++r) ranks.emplace_back(r);
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

std::span<const Rank> ThreadWorld::local_ranks() const {
  return shared_->ranks;
}

std::int64_t ThreadWorld::first_process_id() const {
  return ::getpid();
}

std::unique_ptr<Communicator> ThreadWorld::communicator(Rank rank, std::span<const Rank> members,
                                                        std::string_view label, std::int32_t instance) {
  const std::int32_t place = place_of(rank, members, size(), label);
  thread::Group& group = shared_->world.group(members, label, instance);
  auto comm = thread::make_communicator(group, place);
  comm->set_whereabouts(&shared_->world.whereabouts(rank));
  return comm;
}

Whereabouts& ThreadWorld::whereabouts(Rank rank) {
  return shared_->world.whereabouts(rank);
}

void ThreadWorld::run(const std::function<void(Rank)>& body) {
  thread::run_ranks(shared_->world, shared_->ranks, shared_->cores, body);
  for (const Rank r : shared_->ranks) shared_->world.set_state(r, thread::RankState::idle);
  if (auto error = shared_->world.verdict()) throw Error(std::move(*error));
}

void ThreadWorld::abort(Rank rank, std::string_view why) {
  // Provisional: when an exception of this rank follows, that is the better reason.
  shared_->world.stop(rank, Error(ErrorKind::comm, std::string(why), fmt::format("rank {}", rank.value), ""),
                      true);
}

}  // namespace tessera::comm
