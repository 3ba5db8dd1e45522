// World: what all groups of one world share in this process: the stop flag with the first error, the ranks'
// states, the rules for waiting, and the table of groups of thread ranks. Ranks are those of the whole world;
// of ranks in other processes only the state is known here.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "base/error.h"
#include "comm/flight_log.h"
#include "comm/site.h"
#include "comm/thread/group.h"

namespace tessera::comm::thread {

// Thrown out of a wait because the world was stopped by some other error: a consequence, never the cause.
class Stopped final : public Error {
 public:
  using Error::Error;
};

// elsewhere: runs in another process.
enum class RankState : std::uint8_t { idle, running, finished, failed, elsewhere };

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
  void open_groups();  // before a run
  void wake_all();
  // A stopped rank takes back its messages in all groups before it frees what it sent.
  void withdraw(Rank rank);
  [[nodiscard]] Whereabouts& whereabouts(Rank rank) {
    return whereabouts_[static_cast<std::size_t>(rank.value)];
  }

  // The flight recorder of a rank in a group of several processes; it and the names live as long as the
  // world.
  void add_log(Rank rank, const GroupName& group, const FlightLog* log);
  // What a rank of another process was doing when the world stopped; shown by verdict().
  void set_remote_state(Rank rank, std::string line);
  // One line of each rank, as of the stop.
  [[nodiscard]] std::vector<std::string> states();

  struct Failure {
    Rank rank;
    ErrorKind kind = ErrorKind::internal;
    std::vector<Problem> problems;
    std::vector<std::string> states;  // of each rank at the moment of the failure
    bool provisional = false;
  };
  [[nodiscard]] std::optional<Failure> failure() const;
  // The first error with its rank named and all states, if any.
  [[nodiscard]] std::optional<Error> verdict();

 private:
  struct Log {
    Rank rank;
    GroupName group;
    const FlightLog* log;
  };
  [[nodiscard]] std::vector<std::string> describe_ranks() const;
  [[nodiscard]] std::string describe_calls(Rank rank) const;
  [[nodiscard]] std::string describe_rank(Rank rank) const;

  std::int32_t size_;
  std::int64_t timeout_ns_;
  std::int32_t spins_;
  std::atomic<bool> stopped_{false};
  std::vector<std::atomic<RankState>> states_;
  std::vector<Whereabouts> whereabouts_;
  mutable std::mutex mutex_;  // of what follows
  std::vector<std::unique_ptr<Group>> groups_;
  std::vector<Log> logs_;
  std::vector<std::string> remote_states_;  // "": unknown
  std::optional<Failure> first_;
};

}  // namespace tessera::comm::thread
