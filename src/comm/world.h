// World: the ranks of one job, some or all of them threads of this process. It makes communicators for any
// subset of ranks and runs the rank bodies.
//
//   world.run([&](Rank rank) { auto tp = world.communicator(rank, {Rank(0), Rank(1)}, "tp"); ... });
//
// ThreadWorld (thread_world.h): all ranks are threads of this process. ProcessWorld
// (message/process_world.h): several processes, each with some of the ranks as threads.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "base/ids.h"
#include "comm/communicator.h"
#include "comm/site.h"

namespace tessera::comm {

class World {
 public:
  virtual ~World() = default;
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  [[nodiscard]] virtual std::int32_t size() const = 0;  // ranks of all processes
  // The ranks that run() runs in this process, ascending.
  [[nodiscard]] virtual std::span<const Rank> local_ranks() const = 0;
  [[nodiscard]] bool is_local(Rank rank) const;
  [[nodiscard]] bool spans_processes() const { return std::ssize(local_ranks()) != size(); }
  // Processes hold equally many ranks, in order: the first has rank 0.
  [[nodiscard]] std::int32_t process() const { return local_ranks().front().value / ranks_per_process(); }
  [[nodiscard]] std::int32_t processes() const { return size() / ranks_per_process(); }
  [[nodiscard]] std::int32_t ranks_per_process() const {
    return static_cast<std::int32_t>(local_ranks().size());
  }
  // Of the process with rank 0, on its host: a number that all processes know.
  [[nodiscard]] virtual std::int64_t first_process_id() const = 0;

  // This rank's end of a communicator over `members` (ascending or not: the order gives the group ranks; must
  // contain `rank`). All members must ask with the same members, label and instance; the first to ask creates
  // the shared part. Thread safe. `label` has static storage. `instance` tells apart several communicators
  // over the same members (0, 1, ...).
  [[nodiscard]] virtual std::unique_ptr<Communicator> communicator(Rank rank, std::span<const Rank> members,
                                                                   std::string_view label,
                                                                   std::int32_t instance = 0) = 0;

  // Where a local rank is in training: its own thread writes, the flight recorder and errors show it.
  [[nodiscard]] virtual Whereabouts& whereabouts(Rank rank) = 0;

  // Runs body(rank) on one thread per local rank and returns when all ranks of all processes are done; pins
  // rank r to a core of its own when there are enough (a single rank is not pinned). A rank that throws stops
  // the world: all waits throw, run() joins every thread and rethrows the first error with the failing rank
  // named and the state of all ranks. May be called again, unless a rank failed: then the world is spent.
  virtual void run(const std::function<void(Rank)>& body) = 0;

  // Whether a message of send to another process travels before its receiver asks for it (it does). Not while
  // messages are on their way.
  virtual void set_lands_messages(bool /*lands*/) {}

  // First error wins; wakes every wait of every communicator.
  virtual void abort(Rank rank, std::string_view why) = 0;

 protected:
  World() = default;
};

// The group rank of `rank`. Error{internal} when it is no member, or a member is listed twice or not of a
// world of `size`.
[[nodiscard]] std::int32_t place_of(Rank rank, std::span<const Rank> members, std::int32_t size,
                                    std::string_view label);

}  // namespace tessera::comm
