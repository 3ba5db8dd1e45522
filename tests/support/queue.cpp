#include "support/queue.h"

#include <utility>

namespace tessera::emulation {

void Queue::put(std::function<void()> work) {
  put_attempts([work = std::move(work)] {
    work();
    return true;
  });
}

void Queue::put_attempts(std::function<bool()> attempt) {
  const std::lock_guard lock(mutex_);
  work_.push_back(std::move(attempt));
}

bool Queue::step() {
  const std::lock_guard turn(stepping_);
  std::function<bool()>* first = nullptr;  // stays where it is while others are put behind it
  {
    const std::lock_guard lock(mutex_);
    if (work_.empty()) return false;
    first = &work_.front();
  }
  if (!(*first)()) return false;
  const std::lock_guard lock(mutex_);
  work_.pop_front();
  return true;
}

bool Queue::empty() {
  const std::lock_guard lock(mutex_);
  return work_.empty();
}

}  // namespace tessera::emulation
