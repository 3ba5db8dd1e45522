// ThreadWorld: N ranks as threads of this process. It makes communicators for any subset of ranks and runs
// the rank bodies.
//
//   ThreadWorld world({.size = 4, .timeout = Seconds(60)});
//   world.run([&](Rank rank) { auto tp = world.communicator(rank, {Rank(0), Rank(1)}, "tp"); ... });
//
// Waits: with ranks <= cores a short spin, then futex; with more ranks than cores futex at once. A rank that
// throws stops the group: all waits throw, run() joins every thread and rethrows the first error with the
// failing rank named and the state of all ranks (what each was waiting for).
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>

#include "base/ids.h"
#include "base/quantity.h"
#include "comm/communicator.h"

namespace tessera::comm {

class ThreadWorld {
 public:
  struct Options {
    std::int32_t size = 1;
    Seconds timeout = Seconds(120.0);  // of one wait
    std::int32_t cores = 0;            // that the ranks share; 0: those this process may use
  };
  explicit ThreadWorld(Options options);
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  [[nodiscard]] std::int32_t size() const;

  // This rank's end of a communicator over `members` (ascending or not: the order gives the group ranks; must
  // contain `rank`). All members must ask with the same members, label and instance; the first to ask creates
  // the shared part. Thread safe. `label` has static storage. `instance` tells apart several communicators
  // over the same members (0, 1, ...).
  [[nodiscard]] std::unique_ptr<Communicator> communicator(Rank rank, std::span<const Rank> members,
                                                           std::string_view label, std::int32_t instance = 0);

  // Runs body(rank) on one thread per rank and returns when all are done; pins rank r to core r when ranks <=
  // cores (a single rank is not pinned). May be called again, unless a rank failed: then the world is spent.
  void run(const std::function<void(Rank)>& body);

  // First error wins; wakes every wait of every communicator.
  void abort(Rank rank, std::string_view why);

 private:
  struct Shared;
  std::unique_ptr<Shared> shared_;
};

}  // namespace tessera::comm
