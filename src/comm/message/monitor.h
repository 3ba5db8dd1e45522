// Monitor: one thread of a process of a ProcessWorld. It tells the other processes what happens here (ranks
// that left, the first error, signs of life), takes in what they tell, and watches the process before it, and
// the connections to all where the wire has such.
#pragma once
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/ids.h"
#include "comm/message/post.h"
#include "comm/thread/world.h"

namespace tessera::comm::message {

class Monitor {
 public:
  struct Options {
    std::int32_t ranks_per_process = 1;
    std::int64_t silence_ns = 0;
    std::function<void()> on_sigterm;
  };
  Monitor(Wire& wire, Post& post, thread::World& world, const Options& options);
  ~Monitor();
  Monitor(const Monitor&) = delete;
  Monitor& operator=(const Monitor&) = delete;

  void begin_run(std::int64_t run);
  void tell_left(Rank rank);
  // Until all ranks of all processes have left this run, or the world is stopped.
  void wait_for_all_ranks();
  // Of a stopped world: until the other processes have said what their ranks did, at most for 0.6 s: mpirun
  // kills all a second after one has died.
  void wait_for_states();
  [[nodiscard]] bool was_reported() const { return reported_.load(); }
  void tell_reported();
  // Ends the thread. True when all processes parted in order.
  [[nodiscard]] bool say_goodbye();

 private:
  void loop(const std::stop_token& stop);
  void take_in(const Post::Control& control);
  void take_in_stop(const Post::Control& control);
  void tell_stop();
  void send_all(const Envelope& envelope, std::string_view text);
  void send_states(std::int32_t process);
  [[nodiscard]] std::string last_words(Rank rank);  // that its messages tell
  void show_life(std::int64_t now);
  void watch(std::int64_t now);
  void watch_connections(const std::vector<std::int32_t>& gone, std::int64_t now);
  void take_sigterm(std::int64_t now);
  void lost(std::int32_t process, std::string_view how, std::int64_t silent_ns);
  [[nodiscard]] bool is_local(Rank rank) const { return rank.value / each_ == wire_.process(); }
  [[nodiscard]] std::int32_t before() const {
    return (wire_.process() + wire_.processes() - 1) % wire_.processes();
  }

  Wire& wire_;
  Post& post_;
  thread::World& world_;
  std::int32_t each_;  // ranks of a process
  std::int64_t silence_ns_;
  std::function<void()> on_sigterm_;
  std::mutex mutex_;  // of what follows
  std::condition_variable changed_;
  std::int64_t run_ = 0;
  std::vector<std::int64_t> left_run_;  // of each rank: the last run that it has left
  std::vector<bool> has_state_;         // of each rank of another process, of the stop
  std::vector<bool> goodbye_;           // of each process
  std::atomic<bool> reported_{false};
  std::int32_t stopped_by_ = -1;  // the process that told of the stop; -1: this one found it
  // Of the thread alone.
  bool told_stop_ = false;
  std::int64_t shown_ns_ = 0, watched_ns_ = 0, heard_from_ns_ = 0, gone_ns_ = 0;
  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace tessera::comm::message
