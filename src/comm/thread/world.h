// World: what all groups of one ThreadWorld share: the stop flag with the first error, the ranks' states, the
// rules for waiting, and the table of groups.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/thread/group.h"

namespace tessera::comm::thread {

// Thrown out of a wait because the world was stopped by some other error: a consequence, never the cause.
class Stopped final : public Error {
 public:
  using Error::Error;
};

enum class RankState : std::uint8_t { idle, running, finished, failed };

class World {
 public:
  World(std::int32_t size, std::int64_t timeout_ns, std::int32_t cores);

  [[nodiscard]] std::int32_t size() const { return size_; }
  [[nodiscard]] std::int64_t timeout_ns() const { return timeout_ns_; }
  [[nodiscard]] std::int32_t spins() const { return spins_; }  // looks before a wait sleeps
  [[nodiscard]] bool stopped() const { return stopped_.load(std::memory_order_seq_cst); }

  // The first error stays. `provisional`: the rank knows only that it leaves; a later error of the same rank
  // says why.
  void stop(Rank rank, const Error& error, bool provisional);
  [[noreturn]] void throw_stopped(const std::string& where);
  // stop, then throw the error itself.
  [[noreturn]] void fail(Rank rank, const Error& error);

  void set_state(Rank rank, RankState state);
  [[nodiscard]] RankState state(Rank rank) const {
    return states_[static_cast<std::size_t>(rank.value)].load(std::memory_order_seq_cst);
  }

  [[nodiscard]] Group& group(std::span<const Rank> members, std::string_view label, std::int32_t instance);
  void wake_all();
  // A stopped rank takes back its messages in all groups before it frees what it sent.
  void withdraw(Rank rank);
  // The first error with its rank named and all states, if any.
  [[nodiscard]] std::optional<Error> verdict();

 private:
  struct Failure {
    Rank rank;
    ErrorKind kind = ErrorKind::internal;
    std::vector<Problem> problems;
    std::vector<std::string> states;  // of each rank at the moment of the failure
    bool provisional = false;
  };
  [[nodiscard]] std::vector<std::string> describe_ranks() const;
  [[nodiscard]] std::string describe_calls(Rank rank) const;

  std::int32_t size_;
  std::int64_t timeout_ns_;
  std::int32_t spins_;
  std::atomic<bool> stopped_{false};
  std::vector<std::atomic<RankState>> states_;
  mutable std::mutex mutex_;  // of what follows
  std::vector<std::unique_ptr<Group>> groups_;
  std::optional<Failure> first_;
};

}  // namespace tessera::comm::thread
