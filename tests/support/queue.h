// One lane of a device that is none: work in the order it was put there (support/lanes.h).
#pragma once
#include <deque>
#include <functional>
#include <mutex>
#include <utility>

namespace tessera::emulation {

// Done by whoever steps it. Thread safe.
class Queue {
 public:
  void put(std::function<void()> work);
  void put_attempts(std::function<bool()> attempt);  // tried again until it gives true
  bool step();  // does, or tries, what stands first; false: nothing was done
  [[nodiscard]] bool empty();

 private:
  std::mutex mutex_;     // of work_
  std::mutex stepping_;  // one at a time, in order
  std::deque<std::function<bool()>> work_;
};

// queue: null does it at once.
inline void run_on(Queue* queue, std::function<void()> work) {
  queue == nullptr ? work() : queue->put(std::move(work));
}

}  // namespace tessera::emulation
