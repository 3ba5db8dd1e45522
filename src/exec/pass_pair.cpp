#include "exec/pass_pair.h"

namespace tessera::exec {

PassPair::PassPair() : thread_([this] { loop(); }) {
  second_id_ = thread_.get_id();
}

PassPair::~PassPair() {
  {
    const std::lock_guard lock(mutex_);
    closing_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void PassPair::guarded(const std::function<void()>& body) noexcept {
  try {
    body();
  } catch (const Ended&) {  // the other's error is the one to tell
  } catch (...) {
    const std::lock_guard lock(mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

void PassPair::run(const std::function<void()>& first, const std::function<void()>& second) {
  {
    const std::lock_guard lock(mutex_);
    second_ = &second;
    first_open_ = second_open_ = true;
    error_ = nullptr;
    turn_ = Who::first;
  }
  guarded(first);
  std::unique_lock lock(mutex_);
  first_open_ = false;
  if (second_open_) hand_over(lock, Who::first, Who::second);
  turn_ = Who::nobody;
  if (error_) std::rethrow_exception(error_);
}

void PassPair::loop() {
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return closing_ || (turn_ == Who::second && second_open_); });
    if (closing_) return;
    const std::function<void()>* body = second_;
    const bool failed = error_ != nullptr;
    lock.unlock();
    if (!failed) guarded(*body);
    lock.lock();
    second_open_ = false;
    turn_ = Who::first;
    changed_.notify_all();
  }
}

void PassPair::hand_over(std::unique_lock<std::mutex>& lock, Who mine, Who other) {
  turn_ = other;
  changed_.notify_all();
  changed_.wait(lock, [this, mine] { return turn_ == mine; });
}

void PassPair::pass() {
  std::unique_lock lock(mutex_);
  const bool is_second = std::this_thread::get_id() == second_id_;
  if (is_second ? first_open_ : second_open_) {
    hand_over(lock, is_second ? Who::second : Who::first, is_second ? Who::first : Who::second);
  }
  if (error_) throw Ended{};
}

}  // namespace tessera::exec
